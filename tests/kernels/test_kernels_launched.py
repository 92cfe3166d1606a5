"""tools/compile_kernels.py compiles what the operators launch: every argument's type, its known
divisibility, and every constant. Without a GPU: launches are recorded and nothing runs.
"""

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under the interpreter", allow_module_level=True)

from triton.runtime.jit import JITFunction

from dive.kernels import cross_entropy_rows, steer, steer_backward, steer_grouped
from dive.ops import triton_path
from tools import compile_kernels as aot

TOKENS, WIDTH, VOCAB = 40, 64, 128
TYPES = {torch.uint8: "u8", torch.int64: "i64", torch.float64: "fp64", **aot._TYPES}
KERNELS = {kernel: name for name, kernel in aot._KERNELS.items()}
Launch = tuple[str, dict[str, Any], dict[str, Any]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Records kernel, arguments and constants of launches."""
    noted: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        names = [name for name in kernel.arg_names if name not in options]
        given = dict(zip(names, args, strict=True))
        constants = {k: v for k, v in options.items() if k in kernel.arg_names}
        noted.append((KERNELS[kernel], given, constants))

    monkeypatch.setattr(JITFunction, "run", run)
    return noted


def as_triton_sees_it(kernel: str, name: str, value: Any) -> tuple[str, bool]:
    parameters = {parameter.name: parameter for parameter in aot._KERNELS[kernel].params}
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}", value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    assert isinstance(value, int) and value != 1, name  # which would be a constant
    return "i32", value % 16 == 0 and not parameters[name].do_not_specialize


def with_flags(variant: aot.Variant, **flags: bool) -> aot.Variant:
    return replace(variant, flags=tuple((k, flags.get(k, v)) for k, v in variant.flags))


def assert_compiled(launches: list[Launch], variants: list[aot.Variant]) -> None:
    known = {variant.kernel: variant for variant in variants}
    assert {kernel for kernel, _, _ in launches} <= set(known)
    for kernel, given, constants in launches:
        variant = known[kernel]
        seen = {name: as_triton_sees_it(kernel, name, value) for name, value in given.items()}
        assert seen == aot.parameters(variant), variant
        assert constants == aot._constants(variant), variant


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("rank", [0, 16, 24])
@pytest.mark.parametrize("dtype", aot.DTYPES)
def test_steer(
    dtype: torch.dtype, rank: int, few: bool, launches: list[Launch], monkeypatch: Any
) -> None:
    for module in (steer, steer_backward):
        monkeypatch.setattr(module, "has_few_tokens", lambda *_: few)
    h, grad = (torch.randn(TOKENS, WIDTH).to(dtype) for _ in range(2))
    shapes = ((rank, WIDTH), (rank,), (WIDTH, rank), (WIDTH,), ())
    args = [h, *(torch.randn(shape) for shape in shapes), torch.ones(TOKENS).bool()]
    _, pre, rstd = steer.forward(*args, "silu", True, 1e-6, True)
    steer_backward.backward(grad, *args, pre, rstd, "silu", True)
    assert len(launches) == 4
    padded = steer.padded_rank(rank)
    even = rank % 16 == 0
    # of capability 0: the configuration for a machine without a GPU
    variants = aot.steer_variants(
        (0,), (dtype,), (padded,), (WIDTH,), (True,), even=even, few_tokens=few
    )
    assert_compiled(launches, [with_flags(v, ADD=False) for v in variants])  # one round of tokens


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("rank", [0, 16, 24])
@pytest.mark.parametrize("dtype", aot.DTYPES)
def test_steer_grouped(
    dtype: torch.dtype, rank: int, few: bool, wide: bool, launches: list[Launch], monkeypatch: Any
) -> None:
    monkeypatch.setattr(steer_grouped, "has_few_tokens", lambda *_: few)
    hidden, residual = (torch.randn(TOKENS, WIDTH).to(dtype) for _ in range(2))
    own = torch.zeros(TOKENS + 3, dtype=torch.int64)
    given = torch.float32 if wide else dtype
    down, up = torch.randn(3, rank, WIDTH).to(given), torch.randn(3, WIDTH, rank).to(given)
    rest = torch.randn(3, rank), up, torch.randn(3, WIDTH), torch.randn(3)
    for beside in (None, residual):
        args = (hidden, beside, own, down, *rest, "silu", True, 1e-6)
        triton_path._steer_grouped(*args)
    assert [kernel for kernel, _, _ in launches] == ["steer_token" if few else "steer_block"] * 2
    padded = steer.padded_rank(rank)
    for launch, beside in zip(launches, (False, True), strict=True):
        variants = aot.grouped_variants(
            (0,), (dtype,), (padded,), (WIDTH,), (True,), ("silu",), (beside,), rank % 16 == 0,
            (wide and dtype != torch.float32,),
        )  # fmt: skip
        assert_compiled([launch], list(variants))


@pytest.mark.parametrize("vocab", [VOCAB, VOCAB + 3])
@pytest.mark.parametrize("dtype", aot.DTYPES)
def test_decisive_cross_entropy(dtype: torch.dtype, vocab: int, launches: list[Launch]) -> None:
    hidden, teacher = (torch.randn(TOKENS, WIDTH).to(dtype) for _ in range(2))
    one, rows = torch.ones(TOKENS), torch.arange(TOKENS)
    *_, stored, scale, slope = triton_path._loss(
        hidden, torch.zeros(vocab, WIDTH, dtype=dtype), rows * 0, one, rows,
        torch.zeros(vocab, dtype=dtype), teacher, one, torch.tensor(1.0), torch.tensor(1.0),
        rows * 0, 5.0, 1.0, 0.5, 2.0, "mean", 2**20, False, True,
    )  # fmt: skip
    cross_entropy_rows.backward(torch.tensor(1.0), rows, stored, scale, slope, TOKENS)
    even = vocab % 16 == 0
    variants = [
        *aot.entries_variants((0,), (True,), even),
        *aot.cross_entropy_variants((0,), (dtype,), (WIDTH,), (True,), even=even),
    ]
    # with a given normaliser, and as a mean
    variants = [with_flags(v, CENTRED=False, BY_ROW=False) for v in variants]
    assert len(launches) == 6
    assert_compiled(launches, variants)
