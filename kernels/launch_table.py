"""The launch configuration of every kernel: a table, not a search at run time.

A search would change the order of summation between runs and run kernels inside a graph capture.
`kernels/tuned.py` holds what was measured on a GPU (benchmarks/tune.py writes it); for any other
key the defaults below hold, which are reasoned and not measured.
"""

import functools
from typing import Any

import torch

from dive.kernels.tuned import TUNED

BUCKETS = (1024, 2048, 4096, 8192, 16384)  # of a width; larger widths belong to the last
RANKS = (0, 16, 32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# fused multiply-add: passed to every launch, so that a build's default cannot change results
ENABLE_FP_FUSION = True
# kernels with a number of loads in flight (STAGES) for sweeps whose loads feed no product; None:
# Triton's own choice, which is one
SWEEPING = ("cross_entropy_rows", "steer_forward", "steer_token")
# options of a configuration that are the host's and not the kernel's, with their defaults:
# residents: programs per multiprocessor, of which one works while the other waits for memory
# buffers: of logits, see kernels/schedule.py
# casts: whether float32 parameters are rounded before the launch, and not by every program
RESIDENTS = 2
_HOST = {"residents": RESIDENTS, "buffers": 1, "casts": 1}


def padded_rank(rank: int) -> int:
    """Returns 0, or the next power of two, at least 16: the least size of a tile product."""
    return 0 if rank == 0 else max(16, 1 << (rank - 1).bit_length())


def cdiv(count: int, size: int) -> int:
    """Returns count / size rounded up; triton.cdiv takes a microsecond longer."""
    return -(-count // size)


@functools.cache
def bucket(width: int) -> int:
    return next((size for size in BUCKETS if width <= size), BUCKETS[-1])


# Configurations that spill neither under Triton 3.6 nor 3.9, except where tools/compile_kernels.py
# tolerates it; some look arbitrary for that (tests/kernels/test_kernels_compiled.py, make aot).


def _steer_forward(capability: int, wide: bool, padded: int, width: int) -> dict[str, int]:
    # 32 tokens halve the L2 traffic of the parameters against 16. Their part of the stream fits
    # into L2 for one program per multiprocessor, not for two: 4096 columns are 66 MiB on an H100
    if padded >= 128:
        tokens, columns, stages = (16, 16, 2) if wide else (32, 32, 3)
        return {"BLOCK_T": tokens, "BLOCK_D": columns, "num_warps": 8, "num_stages": stages}
    if wide:
        columns, warps = (64, 8 if padded == 32 else 4) if padded in (0, 32) else (32, 4)
        return {"BLOCK_T": 16, "BLOCK_D": columns, "num_warps": warps}
    if padded >= 64:
        return {"BLOCK_T": 32, "BLOCK_D": 32, "num_warps": 4}
    # prefetches a few tiles: too few bytes are in flight otherwise
    return {"BLOCK_T": 32, "BLOCK_D": 64, "num_warps": 4, "num_stages": 4}


def _steer_backward(capability: int, wide: bool, padded: int, width: int) -> dict[str, int]:
    if padded >= 128:
        return {"BLOCK_T": 16, "BLOCK_D": 16 if wide else 32, "num_warps": 8, "num_stages": 3}
    if wide:
        columns, warps = 64 if padded == 16 and capability >= 90 else 32, 8 if padded >= 64 else 4
        return {"BLOCK_T": 16, "BLOCK_D": columns, "num_warps": warps}
    columns = 32 if padded >= 32 else 64
    return {"BLOCK_T": 32, "BLOCK_D": columns, "num_warps": 8 if padded >= 16 else 4}


def _steer_parameters(capability: int, wide: bool, padded: int, width: int) -> dict[str, int]:
    # wide blocks: every one of them reads the stored values of each token again
    if padded >= 128:
        stages = 3 if wide and capability < 90 else 2
        tokens = 16 if wide else 32
        return {"BLOCK_T": tokens, "BLOCK_D": 32, "num_warps": 8, "num_stages": stages}
    if wide and padded >= 64:
        return {"BLOCK_T": 16, "BLOCK_D": 32, "num_warps": 8 if capability < 90 else 4}
    if wide:
        narrow = (padded == 16 and capability < 90) or (padded == 32 and capability >= 100)
        columns = 32 if narrow else 64
        return {"BLOCK_T": 16, "BLOCK_D": columns, "num_warps": 4}
    if padded == 0:
        return {"BLOCK_T": 32, "BLOCK_D": 128, "num_warps": 4}
    if capability < 90 and padded >= 32:
        return {"BLOCK_T": 32 if padded == 32 else 16, "BLOCK_D": 32, "num_warps": 8}
    stages = 3 if padded == 32 else 2
    return {
        "BLOCK_T": 32, "BLOCK_D": 64, "num_warps": 8 if padded >= 64 else 4, "num_stages": stages,
    }  # fmt: skip


def _steer_reduce(capability: int, wide: bool, padded: int, width: int) -> dict[str, int]:
    return {"BLOCK_D": 64, "BLOCK_P": 16, "num_warps": 4}


def _steer_token(capability: int, wide: bool, padded: int, width: int) -> dict[str, int]:
    # 16 KiB of parameters at a time and two steps ahead: a program has a multiprocessor for itself,
    # and what a step takes is the time of its loads
    columns = (4096 if wide else 8192) // max(padded, 16)
    return {"BLOCK_D": columns, "num_warps": 8, "STAGES": 3}


def _steer_block(capability: int, wide: bool, padded: int, width: int) -> dict[str, int]:
    # few tokens and many columns: a program goes through the width twice, and there are few of them
    columns = 4096 // max(padded, 16)
    narrow = wide or (padded >= 128 and capability >= 100)
    return {"BLOCK_T": 16, "BLOCK_D": columns // 2 if narrow else columns, "num_warps": 8}


def _rows(capability: int, wide: bool, padded: int, width: int) -> dict[str, int]:
    # one program fills much of a multiprocessor, so that few rows are in flight; the second sweep
    # goes backwards and begins with the part of them that is still in the L2 cache
    if width <= 1024:
        return {"BLOCK": 1024, "num_warps": 4}
    return {"BLOCK": 4096, "num_warps": 32 if wide else 16}


def _scale(capability: int, wide: bool, padded: int, width: int) -> dict[str, int]:
    return {"BLOCK": 1024 if width <= 1024 else 4096, "num_warps": 4}


def _one_program(capability: int, wide: bool, padded: int, width: int) -> dict[str, int]:
    return {"BLOCK": 1024, "num_warps": 16}  # a few numbers per row: bound by latency


_DEFAULTS = {
    "cross_entropy_prepare": _one_program,
    "cross_entropy_gather": _scale,
    "cross_entropy_rows": _rows,
    "cross_entropy_finish": _one_program,
    "cross_entropy_scale": _scale,
    "steer_forward": _steer_forward,
    "steer_backward": _steer_backward,
    "steer_parameters": _steer_parameters,
    "steer_reduce": _steer_reduce,
    "steer_token": _steer_token,
    "steer_block": _steer_block,
}


@functools.cache
def _capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@functools.cache
def _configured(kernel: str, capability: int, dtype: torch.dtype, padded: int, width: int) -> Any:
    tuned = TUNED.get((kernel, capability, str(dtype).removeprefix("torch."), padded, width))
    chosen = tuned or _DEFAULTS[kernel](capability, dtype == torch.float32, padded, width)
    options = {"num_stages": 2, **chosen, "enable_fp_fusion": ENABLE_FP_FUSION}
    if kernel in SWEEPING:
        options.setdefault("STAGES", None)
    return options, {name: options.pop(name, value) for name, value in _HOST.items()}


def _found(kernel: str, device: Any, dtype: torch.dtype, padded: int, width: int) -> Any:
    capability = device if isinstance(device, int) else 0
    if isinstance(device, torch.device) and device.type == "cuda":
        capability = _capability(device.index)
    return _configured(kernel, capability, dtype, padded, bucket(width))


def configuration(
    kernel: str, device: torch.device | int, dtype: torch.dtype, padded: int, width: int
) -> dict[str, Any]:
    """Returns the block sizes and launch options of a kernel.

    device: where it runs, or a compute capability such as 90. padded: `padded_rank` of the adapter,
    0 for kernels without a rank. width: hidden size or vocabulary.
    """
    return _found(kernel, device, dtype, padded, width)[0]


def with_fewest_tokens(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options with the least tokens per block of a tile product, for few tokens."""
    return {**options, "BLOCK_T": 16}


def residents(
    kernel: str, device: torch.device | int, dtype: torch.dtype, padded: int, width: int
) -> int:
    """Returns the least number of programs per multiprocessor, even if L2 holds those of fewer.

    For the kernels of `dive::steer` that read their tokens more than once.
    """
    return host(kernel, device, dtype, padded, width)["residents"]


def host(
    kernel: str, device: torch.device | int, dtype: torch.dtype, padded: int, width: int
) -> dict[str, int]:
    """Returns the options of the host: residents, buffers, casts."""
    found: dict[str, int] = _found(kernel, device, dtype, padded, width)[1]
    return found
