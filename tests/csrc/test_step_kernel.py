"""The CPU's step kernel against float64, on every instruction set this machine has."""

import gc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dive import reference
from dive.errors.checks import ACTIVATIONS
from tests.helpers import host_builds, step_kernel

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the compiler
ISAS = ["scalar", "avx2", "avx512", "avx512_bf16"]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module", autouse=True)
def module():
    try:
        return step_kernel.module()
    except host_builds.CannotBuild as error:
        pytest.skip(str(error))


@pytest.fixture(params=ISAS)
def isa(request, module):
    info = module.build_info()
    if request.param not in info["isa_usable"]:
        pytest.skip(f"this machine has no {request.param}")
    module.use_isa(request.param)
    yield request.param
    module.use_isa(info["isa"])


class Case:
    """One random step, with all of it but bias and static in the dtype `stream`."""

    def __init__(self, rows, width, rank, stream, seed=0, scale=0.3, **kind):
        g = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=g)

        self.residual, self.delta = (draw(rows, width).to(stream) for _ in range(2))
        self.down = (draw(rank, width) / width**0.5).to(stream)
        self.down_bias, self.static = draw(rank), draw(width)
        self.up = (0.3 * draw(width, rank)).to(stream)
        self.scale, self.norm = torch.tensor(scale), draw(width).to(stream)
        self.kind = {"activation": "silu", "norm_preserving": False, "eps": 1e-6} | kind

    @property
    def parts(self):
        return self.down, self.down_bias, self.up, self.static, self.scale

    def packed(self):
        return step_kernel.pack(*self.parts, **self.kind)

    def run(self, plus_one=False):
        """(r', out) of the kernel."""
        residual = self.residual.clone()
        out = step_kernel.steer_step(
            residual, self.delta, self.packed(), self.norm, norm_eps=1e-5, norm_plus_one=plus_one
        )
        return residual, out

    def pytorch(self, plus_one=False):
        """The same as transformers and the reference compute it, in the stream's own dtype."""
        steered = reference.steer(self.residual + self.delta, *self.parts, **self.kind)
        return steered, rms_norm(steered, self.norm, 1e-5, plus_one)

    def exact(self, plus_one=False):
        """Written down from DESIGN's formula, in float64 and without any rounding between."""
        h = self.residual.double() + self.delta.double()
        down, bias, up, static, scale = (part.double() for part in self.parts)
        u = h / (h.square().mean(-1, keepdim=True) + self.kind["eps"]).sqrt()
        pre = u @ down.T + bias
        act = self.kind["activation"]
        z = pre if act == "identity" else {"tanh": torch.tanh}.get(act, getattr(F, act))(pre)
        steered = h + scale * (z @ up.T + static)
        if self.kind["norm_preserving"]:
            steered = steered * (h.norm(dim=-1, keepdim=True) / steered.norm(dim=-1, keepdim=True))
        normed = steered / (steered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return steered, normed * (self.norm.double() + plus_one)


def rms_norm(x, weight, eps, plus_one):
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    if plus_one:
        return (y * (1.0 + weight.float())).to(x.dtype)
    return weight * y.to(x.dtype)


def loss(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


def assert_no_worse_than_pytorch(case, plus_one=False):
    exact, plain, ours = case.exact(plus_one), case.pytorch(plus_one), case.run(plus_one)
    for name, true, torch_, dive in zip(("residual", "out"), exact, plain, ours, strict=True):
        assert dive.dtype == case.residual.dtype
        assert loss(dive, true) <= 2 * loss(torch_, true), name


@pytest.mark.parametrize("stream", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [0, 1, 7, 16, 128])
@pytest.mark.parametrize("plus_one", [False, True])
def test_loses_at_most_twice_what_pytorch_loses(isa, stream, rank, plus_one):
    for width in (100, 512):
        assert_no_worse_than_pytorch(Case(16, width, rank, stream), plus_one)


@pytest.mark.parametrize("stream", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_preserving", [False, True])
def test_every_kind_of_steering(isa, stream, activation, norm_preserving):
    kind = {"activation": activation, "norm_preserving": norm_preserving}
    assert_no_worse_than_pytorch(Case(16, 320, 16, stream, seed=1, **kind))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(2, 300),
    rank=st.integers(0, 40),
    stream=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-2, 1.0, 30.0, 300.0]),
)
def test_odd_sizes_and_streams_of_any_scale(width, rank, stream, seed, size):
    # a mean error over few numbers is luck: 4096 are compared whatever the width
    rows = max(24, -(-4096 // width))
    case = Case(rows, width, rank, stream, seed=seed, scale=0.3 * size)
    case.residual, case.delta = case.residual * size, case.delta * size
    assert_no_worse_than_pytorch(case)


@pytest.mark.parametrize("stream", DTYPES, ids=str)
def test_one_column(isa, stream):
    # its norm is the sign of the state, and near 0 the last bit decides that: the state is compared
    case = Case(4096, 1, 16, stream, seed=3)
    residual, out = case.run()
    exact, plain = case.exact()[0], case.pytorch()[0]
    assert loss(residual, exact) <= 2 * loss(plain, exact)
    assert out.isfinite().all()


@pytest.mark.parametrize("stream", DTYPES, ids=str)
@pytest.mark.parametrize("norm_preserving", [False, True])
def test_an_identity_adapter_changes_no_bit(isa, stream, norm_preserving):
    case = Case(9, 333, 16, stream, norm_preserving=norm_preserving)
    case.up, case.static = torch.zeros_like(case.up), torch.zeros_like(case.static)
    residual, out = case.run()
    assert torch.equal(residual, case.residual + case.delta)
    plain = case.residual.clone()
    assert torch.equal(
        out, step_kernel.steer_step(plain, case.delta, None, case.norm, norm_eps=1e-5)
    )
    assert torch.equal(plain, residual)


def test_rounds_where_transformers_rounds(isa):
    stream = torch.bfloat16
    gemma = pytest.importorskip("transformers.models.gemma3.modeling_gemma3").Gemma3RMSNorm
    llama = pytest.importorskip("transformers.models.llama.modeling_llama").LlamaRMSNorm
    x, weight = torch.randn(64, 512).to(stream), torch.randn(512).to(stream)
    for norm, plus_one in ((llama(512, 1e-5), False), (gemma(512, 1e-5), True)):
        norm.weight.data = weight
        with torch.no_grad():
            want = norm(x)
        got = step_kernel.steer_step(
            x.clone(), None, None, weight, norm_eps=1e-5, norm_plus_one=plus_one
        )
        assert (got != want).float().mean() < 0.01
    # and the order does matter: rounding once at the end is another number in many places
    once = (rms_norm(x.float(), weight.float(), 1e-5, False)).to(stream)
    llama_order = step_kernel.steer_step(x.clone(), None, None, weight, norm_eps=1e-5)
    assert (once != llama_order).float().mean() > 0.05


def test_bfloat16_rounds_like_torch(isa):
    """Every kind of float32 number, NaN, infinities, ties and subnormals too, through a store."""
    g = torch.Generator().manual_seed(3)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=g).to(torch.int32)
    values = torch.cat([bits.view(torch.float32), torch.tensor([0.0, -0.0, 1e-41])])
    values = values[: len(values) // 2 * 2].view(2, -1)
    stored = values.to(torch.bfloat16)
    for a, b in ((stored, stored.flip(1)), (stored, torch.zeros_like(stored))):
        residual = a.clone()
        step_kernel.steer_step(residual, b)
        assert torch.equal(residual.nan_to_num(nan=7.0), (a + b).nan_to_num(nan=7.0))
        assert torch.equal(residual.isnan(), (a + b).isnan())


def test_norm_preserving_keeps_the_norm_where_there_is_a_direction(isa):
    case = Case(5, 640, 16, torch.float32, norm_preserving=True, scale=3.0)
    residual, _ = case.run()
    torch.testing.assert_close(residual.norm(dim=-1), (case.residual + case.delta).norm(dim=-1))
    assert (residual - case.residual - case.delta).norm() > 1
    h = torch.arange(1.0, 71.0)[None]
    empty = torch.zeros(0, 70), torch.zeros(0), torch.zeros(70, 0)
    steering = step_kernel.pack(*empty, -h[0], 1.0, norm_preserving=True)
    gone = h.clone()
    step_kernel.steer_step(gone, None, steering)  # h' = h - h = 0: ratio 1
    assert torch.equal(gone, torch.zeros_like(h))
    assert torch.equal(
        gone, reference.steer(h, *empty, -h[0], torch.ones(()), norm_preserving=True)
    )


def test_one_steering_per_row(isa):
    case, other = (Case(4, 130, 8, torch.bfloat16, seed=s) for s in (1, 2))
    all_steered, _ = case.run()
    plain = case.residual + case.delta
    # rows 0 and 2 by one adapter, 3 by another, 1 by none
    residual = case.residual.clone()
    first, second = case.packed(), other.packed()
    step_kernel.steer_step(residual, case.delta, [first, None, first, second])
    alone = case.residual.clone()
    step_kernel.steer_step(alone, case.delta, second)
    assert torch.equal(residual[[0, 2]], all_steered[[0, 2]])
    assert torch.equal(residual[1], plain[1])
    assert torch.equal(residual[3], alone[3])
    assert not torch.equal(alone[3], all_steered[3])


def test_rows_inside_a_larger_buffer(isa):
    case = Case(3, 77, 5, torch.bfloat16)
    want, want_out = case.run()
    room = torch.full((3, 200), 9.0, dtype=torch.bfloat16)
    room[:, 11:88] = case.residual
    out_room = torch.full((6, 77), 9.0, dtype=torch.bfloat16)
    got = step_kernel.steer_step(
        room[:, 11:88], case.delta, case.packed(), case.norm, out_room[::2], norm_eps=1e-5
    )
    assert got is not None and torch.equal(got, want_out) and torch.equal(room[:, 11:88], want)
    assert (room[:, :11] == 9).all() and (room[:, 88:] == 9).all() and (out_room[1::2] == 9).all()


def test_weights_of_any_strides_are_copied():
    case = Case(4, 96, 12, torch.float32)
    want, _ = case.run()
    wide = torch.zeros(96, 24)
    wide[:, ::2] = case.up
    parts = [case.down.T.contiguous().T, case.down_bias, wide[:, ::2], case.static]
    steering = step_kernel.pack(*parts, 0.3)
    for part in parts:
        part.fill_(float("nan"))
    del parts, wide
    gc.collect()
    got = case.residual.clone()
    step_kernel.steer_step(got, case.delta, steering)
    assert torch.equal(got, want)
