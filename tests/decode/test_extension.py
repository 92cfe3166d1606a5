"""The compiled decode step against float64, on every instruction set this machine has."""

import gc
import json
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dive import reference
from dive.decode import native
from dive.errors import DiveError
from dive.errors.checks import ACTIVATIONS, MAX_RANK

C = pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")

ISAS = C.build_info()["isa_compiled"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=ISAS)
def isa(request):
    info = C.build_info()
    if request.param not in info["isa_usable"]:
        pytest.skip(f"this machine has no {request.param}")
    C.use_isa(request.param)
    yield request.param
    C.use_isa(info["isa"])


class Case:
    """One random step, in the stream's dtype, with weights rounded to `weights`."""

    def __init__(self, rows, width, rank, stream, weights=torch.float32, seed=0, scale=0.3, **kind):
        g = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=g)

        self.residual, self.delta = (draw(rows, width).to(stream) for _ in range(2))
        self.down = (draw(rank, width) / width**0.5).to(weights)
        self.down_bias, self.static = draw(rank), draw(width)
        self.up = (0.3 * draw(width, rank)).to(weights)
        self.scale, self.norm = torch.tensor(scale), draw(width).to(stream)
        self.kind = {"activation": "silu", "norm_preserving": False, "eps": 1e-6} | kind

    @property
    def parts(self):
        return self.down, self.down_bias, self.up, self.static, self.scale

    def packed(self):
        return native.pack_steering(*self.parts, **self.kind)

    def run(self, plus_one=False, **options):
        """(r', out) of the kernel."""
        residual = self.residual.clone()
        out = native.steer_step(
            residual,
            self.delta,
            self.packed(),
            self.norm,
            norm_eps=1e-5,
            norm_plus_one=plus_one,
            **options,
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
    for weights in {torch.float32, stream}:
        for width in (100, 512):
            assert_no_worse_than_pytorch(Case(16, width, rank, stream, weights), plus_one)


@pytest.mark.parametrize("stream", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_preserving", [False, True])
def test_every_kind_of_steering(isa, stream, activation, norm_preserving):
    kind = {"activation": activation, "norm_preserving": norm_preserving}
    assert_no_worse_than_pytorch(Case(16, 320, 16, stream, stream, seed=1, **kind))


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
    assert torch.equal(out, native.steer_step(plain, case.delta, None, case.norm, norm_eps=1e-5))
    assert torch.equal(plain, residual)


@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float16], ids=str)
def test_rounds_where_transformers_rounds(isa, stream):
    gemma = pytest.importorskip("transformers.models.gemma3.modeling_gemma3").Gemma3RMSNorm
    llama = pytest.importorskip("transformers.models.llama.modeling_llama").LlamaRMSNorm
    x, weight = torch.randn(64, 512).to(stream), torch.randn(512).to(stream)
    for norm, plus_one in ((llama(512, 1e-5), False), (gemma(512, 1e-5), True)):
        norm.weight.data = weight
        with torch.no_grad():
            want = norm(x)
        got = native.steer_step(
            x.clone(), None, None, weight, norm_eps=1e-5, norm_plus_one=plus_one
        )
        assert (got != want).float().mean() < 0.01
    # and the order does matter: rounding once at the end is another number in many places
    once = (rms_norm(x.float(), weight.float(), 1e-5, False)).to(stream)
    llama_order = native.steer_step(x.clone(), None, None, weight, norm_eps=1e-5)
    assert (once != llama_order).float().mean() > 0.05


def test_bfloat16_and_float16_round_like_torch(isa):
    """Every kind of float32 number, NaN, infinities, ties and subnormals too, through a store."""
    g = torch.Generator().manual_seed(3)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=g).to(torch.int32)
    values = torch.cat(
        [bits.view(torch.float32), torch.tensor([0.0, -0.0, 1e-41, 65519.9, 65520.0])]
    )
    values = values[: len(values) // 2 * 2].view(2, -1)
    for stream in (torch.bfloat16, torch.float16):
        stored = values.to(stream)
        for a, b in ((stored, stored.flip(1)), (stored, torch.zeros_like(stored))):
            residual = a.clone()
            native.steer_step(residual, b)
            assert torch.equal(residual.nan_to_num(nan=7.0), (a + b).nan_to_num(nan=7.0))
            assert torch.equal(residual.isnan(), (a + b).isnan())


def test_norm_preserving_keeps_the_norm_where_there_is_a_direction(isa):
    case = Case(5, 640, 16, torch.float32, norm_preserving=True, scale=3.0)
    residual, _ = case.run()
    torch.testing.assert_close(residual.norm(dim=-1), (case.residual + case.delta).norm(dim=-1))
    assert (residual - case.residual - case.delta).norm() > 1
    h = torch.arange(1.0, 71.0)[None]
    empty = torch.zeros(0, 70), torch.zeros(0), torch.zeros(70, 0)
    steering = native.pack_steering(*empty, -h[0], 1.0, norm_preserving=True)
    gone = h.clone()
    native.steer_step(gone, None, steering)  # h' = h - h = 0: ratio 1
    assert torch.equal(gone, torch.zeros_like(h))
    assert torch.equal(
        gone, reference.steer(h, *empty, -h[0], torch.ones(()), norm_preserving=True)
    )


def test_mask_and_one_steering_a_row(isa):
    case, other = (Case(4, 130, 8, torch.bfloat16, seed=s) for s in (1, 2))
    all_steered, out = case.run()
    mask = torch.tensor([True, False, True, False])
    masked, masked_out = case.run(mask=mask)
    plain = case.residual + case.delta
    assert torch.equal(masked, torch.where(mask[:, None], all_steered, plain))
    assert torch.equal(masked_out[mask], out[mask])
    assert torch.equal(
        masked_out[1:2], native.steer_step(plain[1:2], None, None, case.norm, norm_eps=1e-5)
    )
    # rows 0 and 2 by one adapter, 3 by another, 1 by none
    residual = case.residual.clone()
    first, second = case.packed(), other.packed()
    native.steer_step(residual, case.delta, [first, None, first, second])
    alone = case.residual.clone()
    native.steer_step(alone, case.delta, second)
    assert torch.equal(residual[[0, 2]], all_steered[[0, 2]])
    assert torch.equal(residual[1], plain[1])
    assert torch.equal(residual[3], alone[3])
    assert not torch.equal(alone[3], all_steered[3])


def test_rows_inside_a_larger_buffer(isa):
    case = Case(3, 77, 5, torch.float16)
    want, want_out = case.run()
    room = torch.full((3, 200), 9.0, dtype=torch.float16)
    room[:, 11:88] = case.residual
    out_room = torch.full((6, 77), 9.0, dtype=torch.float16)
    got = native.steer_step(
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
    steering = native.pack_steering(*parts, 0.3)
    for part in parts:
        part.fill_(float("nan"))
    del parts, wide
    gc.collect()
    got = case.residual.clone()
    native.steer_step(got, case.delta, steering)
    assert torch.equal(got, want)


def test_parameters_are_taken_and_gradients_refused():
    case = Case(2, 32, 4, torch.float32)
    want, _ = case.run()
    got = case.residual.clone()
    params = [torch.nn.Parameter(part) for part in case.parts]
    norm = torch.nn.Parameter(case.norm)
    native.steer_step(got, case.delta, native.pack_steering(*params), norm)
    assert torch.equal(got, want)
    with pytest.raises(DiveError, match="delta requires a gradient"):
        native.steer_step(got, torch.nn.Parameter(case.delta))
    with torch.no_grad():
        native.steer_step(got, torch.nn.Parameter(case.delta))


def test_numpy_arrays_come_by_capsule_and_are_let_go():
    residual, delta = (np.random.default_rng(s).normal(size=(3, 50)).astype("f4") for s in (0, 1))
    before, total = sys.getrefcount(residual), residual + delta
    for _ in range(3):
        C.steer_step(residual, delta)
        total = total + 0
    assert sys.getrefcount(residual) == before
    np.testing.assert_allclose(residual, total + 2 * delta, rtol=1e-5)
    residual.flags.writeable = False
    with pytest.raises(ValueError, match="residual .*(read-only|readonly)"):
        C.steer_step(residual, delta)


class OwnCapsule:
    """A tensor type without the exchange table; `export` is called for its capsule."""

    def __init__(self, export):
        self.export = export

    def __dlpack__(self, **options):
        return self.export(**options)


def test_capsules_of_both_versions_and_broken_producers():
    x, d = torch.ones(2, 8), torch.full((2, 8), 2.0)
    old = OwnCapsule(lambda max_version=None: torch.Tensor.__dlpack__(d))
    C.steer_step(OwnCapsule(lambda **o: torch.Tensor.__dlpack__(x, **o)), old)
    assert torch.equal(x, torch.full((2, 8), 3.0))
    used = torch.Tensor.__dlpack__(d)
    C.steer_step(x, OwnCapsule(lambda **o: used))
    with pytest.raises(ValueError, match="delta .*fresh DLPack capsule"):
        C.steer_step(x, OwnCapsule(lambda **o: used))
    with pytest.raises(ValueError, match="delta .*want a fresh DLPack capsule"):
        C.steer_step(x, OwnCapsule(lambda **o: 3))

    def broken(**options):
        raise RuntimeError("no memory left")

    with pytest.raises(ValueError, match="delta cannot be read: no memory left"):
        C.steer_step(x, OwnCapsule(broken))


def _bad_steps():
    f32, x = torch.float32, torch.zeros(3, 8)
    ok = Case(3, 8, 2, f32)
    big = torch.zeros(6, 8)
    freed = torch.zeros(3, 8)
    freed.untyped_storage().resize_(0)
    byte = torch.zeros(3 * 8 * 4 + 1, dtype=torch.uint8)
    crooked = np.frombuffer(memoryview(byte.numpy())[1:], dtype="f4").reshape(3, 8)
    w = torch.zeros(8)
    return {
        "a number": ((3.0,), {}, "residual is a float, want a tensor"),
        "nothing": ((None,), {}, "residual is a NoneType"),
        "integers": ((x.int(),), {}, "residual has dtype int32, want float32 or bfloat16"),
        "float64": ((x.double(),), {}, "residual has dtype float64"),
        "complex": ((x.to(torch.complex64),), {}, "residual has dtype complex64"),
        "one dimension": ((x[0],), {}, r"residual has shape \[8\], want \[any, any\]"),
        "no columns": ((x[:, :0],), {}, "residual has width 0"),
        "columns first": ((big.T,), {}, "residual has shape .*strides.*contiguous"),
        "rows on rows": ((x[:1].expand(3, 8),), {}, "residual has shape .*do not overlap"),
        "another device": ((x.to("meta"),), {}, "residual"),
        "sparse": ((x.to_sparse(),), {}, "residual cannot be read"),
        "freed": ((freed,), {}, "residual has shape .* no memory"),
        "not aligned": ((crooked,), {}, "residual starts at an address|residual .*read-only"),
        "delta dtype": ((x, x.half()), {}, "delta has dtype float16, want float32"),
        "delta shape": ((x, x[:2].clone()), {}, r"delta has shape \[2, 8\], want \[3, 8\]"),
        "delta is residual": ((x, x), {}, "delta shares memory with residual"),
        "delta in residual": ((big[:3], big[2:5]), {}, "delta shares memory"),
        "steering text": ((x, None, "gelu"), {}, "steering is a str"),
        "steering short": ((x, None, [None]), {}, "steering has 1 entries, want 3"),
        "steering list": ((x, None, [None, 3, None]), {}, "steering holds a int"),
        "steering width": (
            (torch.zeros(3, 9), None, ok.packed().compiled),
            {},
            "steering has width 8, want 9",
        ),
        "steering dtype": (
            (x, None, Case(3, 8, 2, f32, torch.bfloat16).packed().compiled),
            {},
            "weights of bfloat16, want float32",
        ),
        "norm without out": ((x, None, None, w), {}, "out is None although norm_weight"),
        "out without norm": ((x, None, None, None, x.clone()), {}, "norm_weight is None"),
        "norm shape": ((x, None, None, w[:7], x.clone()), {}, r"norm_weight has shape \[7\]"),
        "norm dtype": ((x, None, None, w.half(), x.clone()), {}, "norm_weight has dtype float16"),
        "norm strides": (
            (x, None, None, torch.zeros(16)[::2], x.clone()),
            {},
            "norm_weight has shape .*strides",
        ),
        "out is residual": ((x, None, None, w, x), {}, "out shares memory with residual"),
        "out shape": ((x, None, None, w, x[:, :4].clone()), {}, r"out has shape \[3, 4\]"),
        "norm eps": (
            (x, None, None, w, x.clone()),
            {"norm_eps": float("nan")},
            "norm_eps is nan, want a finite number",
        ),
        "mask alone": ((x,), {"mask": torch.ones(3) > 0}, "mask is given although steering"),
        "mask dtype": (
            (x, None, ok.packed().compiled),
            {"mask": torch.ones(3)},
            "mask has dtype float32, want bool",
        ),
        "mask shape": (
            (x, None, ok.packed().compiled),
            {"mask": torch.ones(2) > 0},
            r"mask has shape \[2\], want \[3\]",
        ),
    }


@pytest.mark.parametrize("name", _bad_steps())
def test_bad_input_of_a_step_is_named(name):
    arguments, options, message = _bad_steps()[name]
    with pytest.raises(ValueError, match=message):
        C.steer_step(*arguments, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down": torch.zeros(2, 9)}, r"up has shape \[8, 2\], want \[9, 2\]"),
        ({"down": torch.zeros(8)}, r"down has shape \[8\], want \[any, any\]"),
        ({"down": torch.zeros(129, 8)}, "want a rank up to 128"),
        ({"up": torch.zeros(8, 2).bfloat16()}, "up has dtype bfloat16, want float32"),
        ({"down_bias": torch.zeros(3)}, "down_bias has shape"),
        ({"static": torch.zeros(8).long()}, "static has dtype int64"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"activation": "relu"}, "activation is 'relu', want silu, gelu"),
        ({"eps": -1.0}, "eps is -1"),
    ],
)
def test_bad_input_of_packing_is_named(change, message):
    good = {
        "down": torch.zeros(2, 8),
        "down_bias": torch.zeros(2),
        "up": torch.zeros(8, 2),
        "static": torch.zeros(8),
        "scale": 0.1,
    }
    with pytest.raises(DiveError, match=f"pack_steering: .*{message}"):
        native.pack_steering(**(good | change))


def test_errors_of_a_step_are_dive_errors():
    with pytest.raises(DiveError, match="steer_step: residual has dtype int64"):
        native.steer_step(torch.zeros(2, 2).long())


def test_two_thousand_random_calls_end_in_a_result_or_an_error():
    dice = random.Random(0)
    x = torch.zeros(3, 8)
    pool = [
        None,
        x,
        x.clone(),
        x.bfloat16(),
        x.half(),
        x[:, ::2],
        x.T,
        x[0],
        x[:0],
        x.int(),
        4,
        "s",
    ]
    pool += [torch.zeros(8), torch.zeros(8).bfloat16(), torch.ones(3) > 0, torch.zeros(())]
    pool += [x.expand(2, 3, 8), np.zeros((3, 8), "f4"), np.zeros(8), [None] * 3, x.to("meta")]
    pool += [C.Steering(torch.zeros(2, 8), torch.zeros(2), torch.zeros(8, 2), torch.zeros(8), 0.1)]
    results = {"done": 0, "refused": 0}
    for _ in range(2000):
        arguments = [dice.choice(pool) for _ in range(dice.randint(1, 5))]
        options = {"mask": dice.choice(pool)} if dice.random() < 0.3 else {}
        try:
            C.steer_step(*arguments, **options)
            results["done"] += 1
        except (ValueError, TypeError) as error:
            assert str(error)
            results["refused"] += 1
    assert results["done"] > 10 and results["refused"] > 1000


def test_build_info_and_choice_of_path():
    info = native.build_info()
    assert info is not None and native.available()
    from dive import __version__

    assert info["version"] == __version__ and info["compiler"]
    assert info["cuda"] is bool(info["cuda_archs"])
    assert info["isa_usable"][0] == "scalar" and info["isa"] in info["isa_usable"]
    assert set(info["isa_usable"]) <= set(info["isa_compiled"])
    with pytest.raises(ValueError, match="name is 'mmx', this machine can run scalar"):
        C.use_isa("mmx")
    assert C.build_info()["isa"] == info["isa"]


def test_without_the_extension_one_warning_and_the_same_numbers(tmp_path):
    case = Case(4, 60, 6, torch.bfloat16, torch.bfloat16, activation="gelu")
    torch.save([case.residual, case.delta, case.norm, *case.parts], tmp_path / "case.pt")
    script = """
        import logging, sys

        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name == "dive._C":
                    raise ImportError("hidden by the test")

        sys.meta_path.insert(0, Hidden())
        logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
        import torch
        from dive.decode import native

        folder = sys.argv[1] + "/"
        residual, delta, norm, *parts = torch.load(folder + "case.pt", weights_only=True)
        assert not native.available() and native.build_info() is None
        steering = native.pack_steering(*parts, activation="gelu")
        mask = torch.tensor([True, True, True, False])
        out = native.steer_step(residual, delta, steering, norm, norm_eps=1e-5, mask=mask)
        native.steer_step(residual.clone(), None, [steering, None, None, None])
        torch.save([residual, out], folder + "result.pt")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot be loaded: hidden by the test") == 1
    assert done.stdout.count("WARNING") == 1
    mask = torch.tensor([True, True, True, False])
    for got, want in zip(torch.load(tmp_path / "result.pt"), case.run(mask=mask), strict=True):
        torch.testing.assert_close(got, want, rtol=2**-6, atol=2**-6)


COPY = """
    import json, logging, sys
    # an editable installation would find the checkout's module
    sys.meta_path = [one for one in sys.meta_path if "Editable" not in str(one)]
    logging.basicConfig(format="LOG %(message)s", stream=sys.stderr)
    import dive
    from dive.decode import native
    from tiny_decoders import small
    from dive.decode.session import DecodeSession

    session = DecodeSession(small("llama"))
    print(json.dumps([dive.__file__, native.find().state, session.engine_choice().reason]))
"""


@pytest.mark.parametrize(
    ("state", "name", "data", "said"),
    [
        ("not built", None, b"", ["dive._C is not built here; install dive-mrg's wheel for"]),
        ("not built", "_C.cpython-399-x86_64-linux-gnu.so", b"",
         ["not built here for this Python: _C.cpython-399-x86_64-linux-gnu.so is there",
          f"loads _C{EXTENSION_SUFFIXES[0]}"]),
        ("not loadable", f"_C{EXTENSION_SUFFIXES[0]}", b"",
         ["there but cannot be loaded: ", "file too short", "force-reinstall"]),
        ("not loadable", f"_C{EXTENSION_SUFFIXES[0]}", b"\x7fELF" + 200 * b"?",
         ["there but cannot be loaded: "]),
        ("loaded", f"_C{EXTENSION_SUFFIXES[0]}", None, ["a Llama decoder in float32 on "]),
    ],
)  # fmt: skip
def test_missing_broken_and_loaded_are_told_apart(state, name, data, said, tmp_path):
    """In a copy without csrc/, as an installed package is."""
    own = Path(native.__file__).parents[1]
    shutil.copytree(own, tmp_path / "dive", ignore=shutil.ignore_patterns("_C.*so", "__pycache__"))
    if name is not None:
        data = Path(C.__file__).read_bytes() if data is None else data
        (tmp_path / "dive" / name).write_bytes(data)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1] / "models")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COPY)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    place, found, reason = json.loads(done.stdout)
    assert Path(place).parent == tmp_path / "dive" and found == state
    for words in said:
        assert words.lower() in reason.lower()
    assert "pip install -e" not in reason and "\n" not in reason
    assert done.stderr.count(reason) == (state != "loaded")


def test_a_checkout_is_told_to_build_it(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "setup.py").touch()
    assert "pip install -e ." in native._advice(tmp_path)


def test_ranks_and_activations_are_those_of_python():
    def packed(rank, activation="silu"):
        parts = (torch.zeros(rank, 4), torch.zeros(rank), torch.zeros(4, rank), torch.zeros(4))
        return C.Steering(*parts, 1.0, activation=activation)

    assert [packed(1, name).rank for name in ACTIVATIONS] == [1] * len(ACTIVATIONS)
    with pytest.raises(ValueError, match="want (.*)$") as refused:
        packed(1, "relu")
    named = re.split(", | or ", str(refused.value).partition("want ")[2])
    assert named == list(ACTIVATIONS)
    assert packed(MAX_RANK).rank == MAX_RANK
    with pytest.raises(ValueError, match=rf"want a rank up to {MAX_RANK} "):
        packed(MAX_RANK + 1)
