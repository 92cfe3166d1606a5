"""The launches of the CUDA path, without a device: tensors without data, on "meta", and kernels
that only record their launch. As there are no values, a host sync is an error."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="the kernels are Triton's")

from dive.kernels import (
    cross_entropy_entries,
    cross_entropy_rows,
    steer,
    steer_backward,
    steer_grouped,
)
from dive.ops import triton_path
from dive.ops.chunks import default_chunk_bytes

FREE = (
    "empty",
    "new_empty",
    "view",
    "slice",
    "select",
    "unbind",
    "t",
    "detach",
)  # nothing is launched
META = torch.device("meta")
KERNELS = (
    (cross_entropy_entries, ("prepare_kernel", "gather_kernel", "finish_kernel")),
    (cross_entropy_rows, ("rows_kernel", "scale_kernel")),
    (steer, ("forward_kernel",)),
    (steer_backward, ("backward_kernel", "parameters_kernel", "reduce_kernel")),
    (steer_grouped, ("token_kernel", "block_kernel")),
)


class Launches(TorchDispatchMode):
    """The names of launches in order: kernels of DIVE and operations of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.names.append(name)
        result = func(*args, **(kwargs or {}))
        if name in ("empty", "new_empty") or name not in FREE:
            self.elements = max(self.elements, result.numel())
        return result


class Noted:
    """A mock of a kernel: kernel[grid](...)."""

    def __init__(self, name: str, seen: Launches) -> None:
        self.name, self.seen = name, seen

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            assert all(isinstance(n, int) and n > 0 for n in grid)
            assert all(x.is_meta for x in args if isinstance(x, Tensor))
            self.seen.names.append(self.name)

        return launch


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    seen = Launches()
    for module, names in KERNELS:
        for name in names:
            monkeypatch.setattr(module, name, Noted(name, seen))
    with seen:
        yield seen


def arguments(
    count: int, vocab: int, width: int, dtype: torch.dtype, teacher: bool, **more: Any
) -> list[Any]:
    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    rows = new(count, dtype=torch.int64)
    given = {
        "bias": new(vocab, dtype=dtype) if teacher else None,
        "kd_weights": new(count) if teacher else None,
        "normalizer": new(),
        "chunk_bytes": 2**40,
        "reduction": "mean",
        **more,
    }
    return [
        new(count, width, dtype=dtype), new(vocab, width, dtype=dtype), rows, new(count), rows,
        given["bias"], new(count, width, dtype=dtype) if teacher else None, given["kd_weights"],
        given["normalizer"], new() if teacher else None, rows, 30.0, 1.0, 0.5 if teacher else 0.0,
        2.0, given["reduction"], given["chunk_bytes"], False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("teacher", [False, True])
def test_a_loss_is_a_few_launches_and_no_host_sync(
    launches: Launches, teacher: bool, dtype: torch.dtype, reduction: str
) -> None:
    results = triton_path._loss(*arguments(300, 5000, 64, dtype, teacher, reduction=reduction))
    chunk = ["gather_kernel", "mm"] * (1 + teacher) + ["rows_kernel", "mm"]
    chunk += [] if dtype == torch.float32 else ["copy_"]  # summed in float32
    assert launches.names == ["prepare_kernel", *chunk, "finish_kernel"]
    loss, stored = results[0], results[-3]
    assert loss.shape == ((300,) if reduction == "none" else ()) and loss.dtype == torch.float32
    assert stored.dtype == dtype and stored.shape == (300, 64)

    launches.names.clear()
    grad = torch.empty(loss.shape, device=META)
    rows = torch.empty(300, dtype=torch.int64, device=META)
    launches.names.clear()
    triton_path._loss_backward(grad, rows, *results[-3:], 300)
    assert launches.names == ["new_zeros", "new_zeros", "scale_kernel"]


def test_without_gradients_none_is_made_or_stored(launches: Launches) -> None:
    given = arguments(300, 5000, 64, torch.bfloat16, True)
    given[-1] = False
    results = triton_path._loss(*given)
    assert launches.names.count("mm") == 2 and results[-3].shape == (0, 64)


@pytest.mark.parametrize("teacher", [False, True])
def test_no_tensor_is_larger_than_a_chunk(launches: Launches, teacher: bool) -> None:
    """At the size of a real model: nothing is allocated here."""
    count, vocab, width = 8192, 128256, 4096
    budget = default_chunk_bytes(torch.device("cuda"), teacher)
    given = arguments(count, vocab, width, torch.bfloat16, teacher, chunk_bytes=budget)
    launches.elements = 0
    triton_path._loss(*given)
    chunks = launches.names.count("rows_kernel")
    rows = launches.elements // cross_entropy_rows.row_stride(vocab)
    assert chunks >= 4 and rows * chunks >= count and rows % 128 == 0
    assert rows * vocab * 4 * (1 + teacher) <= budget
    assert launches.elements == rows * cross_entropy_rows.row_stride(vocab)
    assert launches.elements > count * width  # the stored gradient differs from the result


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("norm_preserving", [False, True])
def test_steering_is_one_launch_and_three_back(
    launches: Launches, norm_preserving: bool, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And two casts of the parameters to the stream's dtype, unless there are few tokens."""
    for module in (steer, steer_backward):
        monkeypatch.setattr(module, "has_few_tokens", lambda *_: few)
    brought = [] if few else ["_to_copy"] * 2

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    h = new(4, 4096, 4096, dtype=torch.bfloat16)
    args = [h, new(16, 4096), new(16), new(4096, 16), new(4096), new(), None]
    out, pre, rstd = triton_path._steer(*args, "silu", norm_preserving, 1e-6, True)
    assert launches.names == [*brought, "forward_kernel"]
    assert out.shape == h.shape and pre.shape == (4 * 4096, 16) and rstd.shape == (4 * 4096,)
    launches.elements = 0
    triton_path._steer_backward(out, *args, pre, rstd, "silu", norm_preserving)
    kernels = ["backward_kernel", "parameters_kernel", "reduce_kernel"]
    assert launches.names[len(brought) + 1 :] == [*brought, *kernels]
    assert launches.elements == h.numel()


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_grouped_steering_is_one_launch_and_no_memory(
    launches: Launches,
    dtype: torch.dtype,
    norm_preserving: bool,
    few: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the adapters are: nothing of them is read on the host."""
    monkeypatch.setattr(steer_grouped, "has_few_tokens", lambda *_: few)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    hidden, residual = new(64, 4096, dtype=dtype), new(64, 4096, dtype=dtype)
    own = new(8192, dtype=torch.int64)
    for down, up in (
        (new(5, 16, 4096), new(5, 4096, 16)),
        (new(5, 17, 4097)[:, 1:, :-1], new(5, 4096, 17, dtype=dtype)[..., 1:]),
    ):
        rest = new(5, 16), up, new(5, 4096), new(5)
        for beside in (residual, None):
            launches.names.clear()
            launches.elements = 0
            args = (hidden, beside, own, down, *rest, "silu", norm_preserving, 1e-6)
            triton_path._steer_grouped(*args)
            assert launches.names == ["token_kernel" if few else "block_kernel"]
            assert launches.elements == 0


def test_kernels_run_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]

    class Entered:
        def __init__(self, device: torch.device) -> None:
            self.index = device.index

        def __enter__(self) -> None:
            now.append(self.index)

        def __exit__(self, *_error: object) -> None:
            now.pop()

    class OnSecond:
        device = torch.device("cuda", 1)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: now[-1])
    monkeypatch.setattr(torch.cuda, "device", Entered)
    kernel = triton_path._on_its_device(lambda first, *args: (now[-1], len(now), args))
    assert kernel(OnSecond(), 7) == (1, 2, (7,)) and now == [0]
    now.append(1)
    assert kernel(OnSecond()) == (1, 2, ())  # nothing is entered if it is the current device
