"""Ahead-of-time compilation of the kernels without a GPU, and their resources by ptxas.

`make aot`, or `python tools/compile_kernels.py`, builds every configuration of the table for every
architecture. It exits with 1 if one spills more than is TOLERATED, or needs more shared memory than
the GPU has.
"""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dive.errors.checks import ACTIVATIONS
from dive.kernels import (
    cross_entropy_entries,
    cross_entropy_rows,
    steer,
    steer_backward,
    steer_grouped,
)
from dive.kernels.launch_table import BUCKETS, DTYPES, RANKS, configuration, with_fewest_tokens

ARCHITECTURES = (80, 90, 100)
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # at most per program
# Triton, kernel, architecture, dtype, padded rank -> bytes that a variant spills at most, where no
# configuration avoids it. None of them is of sm_90
TOLERATED = {
    ("3.6", "steer_backward", 100, "fp32", 64): 8,
    ("3.6", "steer_backward", 100, "fp32", 128): 40,
    ("3.6", "steer_parameters", 100, "fp16", 128): 48,
    ("3.6", "steer_parameters", 100, "bf16", 64): 32,
    ("3.6", "steer_parameters", 100, "bf16", 128): 16,
    ("3.6", "steer_parameters", 100, "fp32", 128): 32,
    ("3.9", "steer_forward", 80, "fp16", 128): 8,
    ("3.9", "steer_forward", 80, "bf16", 128): 8,
    ("3.9", "steer_forward", 100, "fp16", 16): 8,
    ("3.9", "steer_token", 100, "fp32", 16): 8,
    ("3.9", "steer_parameters", 80, "fp16", 128): 16,
    ("3.9", "steer_parameters", 100, "fp16", 64): 8,
    ("3.9", "steer_parameters", 100, "fp16", 128): 8,
    ("3.9", "steer_parameters", 100, "bf16", 64): 24,
}
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_LAUNCH = ("num_warps", "num_stages", "enable_fp_fusion")
# integers whose divisibility by 16 a launch is compiled for; the others are not specialised
# (do_not_specialize). A stride of 0 is a multiple, too
_SPECIALISED = ("width", "rank", "stride", "grad_stride", "gradient_stride", "vocab")
_INTEGERS = {*_SPECIALISED, "tokens", "first_token", "end", "span", "count", "total", "capacity"}
_INTEGERS.add("blocks")
# of `dive::steer_grouped_`, from a token, an adapter, ... to the next: multiples of 16, or of the
# rank where nothing else is between
_DISTANCES = ("hidden_t", "residual_t", "down_l", "down_r", "up_l", "static_l")
_OF_RANK = ("rank", "bias_l", "up_d")
_SPECIALISED += (*_DISTANCES, "bias_l", "up_d")
_INTEGERS |= {*_SPECIALISED, "count"}


@dataclass(frozen=True)
class Variant:
    """A kernel and everything that its machine code depends on."""

    kernel: str  # as the table names it
    architecture: int
    dtype: torch.dtype
    padded: int
    width: int
    flags: tuple[tuple[str, Any], ...]  # of the operator, by the kernel's names
    even: bool = (
        True  # rank and vocabulary are multiples of 16, as width and strides always are here
    )
    # smaller blocks, and float32 parameters without a cast; only the latter for steer_grouped_
    few_tokens: bool = False

    def __str__(self) -> str:
        flags = ",".join(f"{name}={value}" for name, value in self.flags)
        more = ("" if self.even else ",odd") + (",few tokens" if self.few_tokens else "")
        return (
            f"{self.kernel} sm_{self.architecture} {_TYPES[self.dtype]} rank {self.padded} "
            f"width {self.width} {flags}{more}"
        )

    @property
    def options(self) -> dict[str, Any]:
        """The block sizes and launch options."""
        found = configuration(self.kernel, self.architecture, self.dtype, self.padded, self.width)
        narrow = self.few_tokens and self.kernel in ("steer_forward", "steer_backward")
        return with_fewest_tokens(found) if narrow else found


@dataclass(frozen=True)
class KernelResources:
    """The resources of a GPU that one compiled kernel needs."""

    registers: int
    spills: int  # bytes stored and loaded
    shared: int  # bytes


_KERNELS = {
    "steer_forward": steer.forward_kernel,
    "steer_backward": steer_backward.backward_kernel,
    "steer_parameters": steer_backward.parameters_kernel,
    "steer_reduce": steer_backward.reduce_kernel,
    "steer_token": steer_grouped.token_kernel,
    "steer_block": steer_grouped.block_kernel,
    "cross_entropy_prepare": cross_entropy_entries.prepare_kernel,
    "cross_entropy_gather": cross_entropy_entries.gather_kernel,
    "cross_entropy_rows": cross_entropy_rows.rows_kernel,
    "cross_entropy_finish": cross_entropy_entries.finish_kernel,
    "cross_entropy_scale": cross_entropy_rows.scale_kernel,
}
# pointers with the dtype of the stream; all others are float32
_STREAMS: dict[str, tuple[str, ...]] = {
    "steer_forward": ("h", "down", "up", "out"),
    "steer_backward": ("grad", "h", "down", "up", "grad_h", "mix_out"),
    "steer_parameters": ("grad", "h", "up", "mix_in"),
    "steer_token": ("hidden", "residual", "down", "up"),
    "steer_block": ("hidden", "residual", "down", "up"),
    "cross_entropy_gather": ("states", "out"),
    "cross_entropy_rows": ("bias", "gradient"),
    "cross_entropy_scale": ("stored", "grad_hidden"),
}
_PARAMETERS = ("down", "up")  # float32 for few tokens
_SCALED = ("scaled_out", "scaled_in")  # bfloat16, or else float32
_BYTES = ("mask", "labelled", "distilled", "live", "keep")
_BYTES += ("live_out", "labelled_out", "distilled_out")
_LONGS = ("target", "targets", "rows", "index", "argmax", "token_class", "class_count")
_LONGS += ("adapters", "argmax_out", "index_out", "target_out", "row_argmax")
_POINTERS = {
    **dict.fromkeys(_BYTES, "*u8"),
    **dict.fromkeys(_LONGS, "*i64"),
    "status": "*fp64",
}
_NUMBERS = {"eps", "cap", "temperature", "ce_weight", "kd_weight", "gradient_scale"}


def steer_variants(
    architectures: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    ranks: tuple[int, ...],
    widths: tuple[int, ...],
    norms: tuple[bool, ...] = (False, True),
    activations: tuple[str, ...] = ("silu",),
    more: tuple[bool, ...] = (True,),
    even: bool = True,
    few_tokens: bool = False,
) -> Iterator[Variant]:
    """Yields forward, both backward kernels and their reduction.

    more: with mask, gradients and a second round of tokens, or without: neither always needs more
    registers.
    """
    axes = (architectures, dtypes, ranks, widths, norms, activations, more)
    for architecture, dtype, rank, width, norm, activation, most in itertools.product(*axes):
        common = (("NORM", norm), ("MASKED", most))
        active = (*common, ("ACTIVATION", activation))
        for kernel, flags in (
            ("steer_forward", (*active, ("SAVE", most))),
            ("steer_backward", (*active, ("ADD", most))),
            ("steer_parameters", (*common, ("ADD", most))),
            ("steer_reduce", (("NORM", norm),)),
        ):
            small = few_tokens and kernel != "steer_reduce"
            yield Variant(kernel, architecture, dtype, rank, width, flags, even, small)


def grouped_variants(
    architectures: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    ranks: tuple[int, ...],
    widths: tuple[int, ...],
    norms: tuple[bool, ...] = (False, True),
    activations: tuple[str, ...] = ("silu",),
    residual: tuple[bool, ...] = (True,),
    even: bool = True,
    wide: tuple[bool, ...] = (False,),
) -> Iterator[Variant]:
    """Yields both kernels of `dive::steer_grouped_`.

    wide: with parameters in float32, or in the dtype of the stream.
    """
    axes = (architectures, dtypes, ranks, widths, norms, activations, residual, wide)
    for architecture, dtype, rank, width, norm, activation, beside, given in itertools.product(
        *axes
    ):
        flags = (("ACTIVATION", activation), ("NORM", norm), ("RESIDUAL", beside))
        for kernel in ("steer_token", "steer_block"):
            yield Variant(kernel, architecture, dtype, rank, width, flags, even, given)


def cross_entropy_variants(
    architectures: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    widths: tuple[int, ...],
    teachers: tuple[bool, ...] = (False, True),
    more: tuple[bool, ...] = (True,),
    even: bool = True,
) -> Iterator[Variant]:
    """Yields the row pass with and without a teacher, and the two kernels that move rows.

    more: with bias, cap, temperature and gradient, or without any.
    """
    for architecture, dtype, width in itertools.product(architectures, dtypes, widths):
        for teacher, most in itertools.product(teachers, more):
            flags = {name: most for name in ("BIAS", "CAP", "GRADIENT")}
            flags |= {"TEMPERED": teacher and most, "DISTILS": teacher}
            given = tuple(flags.items())
            yield Variant("cross_entropy_rows", architecture, dtype, 0, width, given, even)
        for kernel, flags in (
            ("cross_entropy_gather", ()),
            ("cross_entropy_scale", (("HIDDEN", True),)),
        ):
            yield Variant(kernel, architecture, dtype, 0, width, flags)


def entries_variants(
    architectures: tuple[int, ...], more: tuple[bool, ...] = (True, False), even: bool = True
) -> Iterator[Variant]:
    """Yields the kernels of one program per call, whose code is the same for every dtype and size.

    more: with a teacher and every optional argument, or without any.
    """
    for architecture, most in itertools.product(architectures, more):
        common = (("DISTILS", most), ("KD_GIVEN", most))
        for kernel, flags in (
            ("cross_entropy_prepare", (("MEAN", True), ("GIVEN", most), ("KD_NORM_GIVEN", most))),
            ("cross_entropy_finish", (("CENTRED", True), ("BY_ROW", most), ("CLASSED", most))),
        ):
            given = (*common, *flags)
            yield Variant(kernel, architecture, torch.float32, 0, 1024, given, even)


def whole_table() -> list[Variant]:
    """Returns every configuration, without those that compile to the same code."""
    found = {}
    for variant in itertools.chain(
        steer_variants(ARCHITECTURES, DTYPES, RANKS, BUCKETS),
        grouped_variants(ARCHITECTURES, DTYPES, RANKS, BUCKETS),
        cross_entropy_variants(ARCHITECTURES, DTYPES, BUCKETS),
        entries_variants(ARCHITECTURES),
        # the other options of the code, once
        steer_variants(ARCHITECTURES, DTYPES, RANKS, BUCKETS[:1], more=(False,)),
        # float32 has the same code for few tokens
        steer_variants(ARCHITECTURES, DTYPES[:2], RANKS, BUCKETS[:1], few_tokens=True),
        steer_variants(ARCHITECTURES, DTYPES, RANKS[1:], BUCKETS[:1], even=False),
        grouped_variants(ARCHITECTURES, DTYPES[:2], RANKS, BUCKETS[:1], wide=(True,)),
        grouped_variants(ARCHITECTURES, DTYPES, RANKS[1:], BUCKETS[:1], even=False),
        grouped_variants((90,), DTYPES, (0, 16), BUCKETS[:1], (True,), ACTIVATIONS, (False,)),
        cross_entropy_variants(ARCHITECTURES, DTYPES, BUCKETS[-1:], even=False),
        steer_variants((90,), DTYPES, (0, 16), BUCKETS[:1], activations=ACTIVATIONS, more=(False,)),
        cross_entropy_variants((90,), DTYPES, BUCKETS[-1:], more=(False,)),
    ):
        code = replace(variant, width=0), tuple(sorted(variant.options.items()))
        found.setdefault(code, variant)
    return list(found.values())


def parameters(variant: Variant) -> dict[str, tuple[str, bool]]:
    """Returns the type of every argument of the kernel that is not constant, and whether its value
    (a pointer's address) is known to be a multiple of 16, as Triton compiles launches."""
    constants = _constants(variant)
    found = {}
    for name in _KERNELS[variant.kernel].arg_names:
        multiple = name in _SPECIALISED and (variant.even or name not in (*_OF_RANK, "vocab"))
        if name in constants:
            continue
        elif name in _NUMBERS:
            found[name] = "fp32", False
        elif name in _INTEGERS:
            found[name] = "i32", multiple
        else:
            found[name] = _POINTERS.get(name, f"*{_TYPES[_dtype(variant, name)]}"), True
    return found


def _dtype(variant: Variant, name: str) -> torch.dtype:
    """Returns the dtype of a tensor of floats."""
    narrow = name in _STREAMS.get(variant.kernel, ())
    if name in _PARAMETERS:
        narrow = narrow and not variant.few_tokens
    if name in _SCALED:
        narrow = variant.dtype == torch.bfloat16
    return variant.dtype if narrow else torch.float32


def _constants(variant: Variant) -> dict[str, Any]:
    named = {**variant.options, **dict(variant.flags), "PADDED": variant.padded}
    return {k: v for k, v in named.items() if k in _KERNELS[variant.kernel].arg_names}


def build(variant: Variant) -> Any:
    """Returns the kernel compiled by Triton, with its PTX in `asm`."""
    kernel, typed = _KERNELS[variant.kernel], parameters(variant)
    # in the order of the arguments
    signature = {name: typed.get(name, ("constexpr", False))[0] for name in kernel.arg_names}
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if name in typed and typed[name][1]
    }
    source = ASTSource(kernel, signature, _constants(variant), attributes)
    target = GPUTarget("cuda", variant.architecture, 32)
    launch = {k: v for k, v in variant.options.items() if k in _LAUNCH}
    return triton.compile(source, target=target, options=launch)


def kernel_resources(variant: Variant) -> KernelResources:
    """Compiles the kernel and reads the output of ptxas -v."""
    log = io.StringIO()
    with (
        knobs.compilation.scope(),
        knobs.nvidia.scope(),
        contextlib.redirect_stdout(log),
    ):
        knobs.compilation.always_compile = True  # a cached kernel prints nothing
        knobs.nvidia.dump_ptxas_log = True
        shared = build(variant).metadata.shared
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    assert registers is not None, log.getvalue()
    spills = sum(int(size) for size in re.findall(r"(\d+) bytes spill", log.getvalue()))
    return KernelResources(int(registers[1]), spills, shared)


def tolerated(variant: Variant) -> int:
    """Returns the known spills of a configuration with this Triton, in bytes."""
    version = ".".join(triton.__version__.split(".")[:2])
    dtype = _TYPES[variant.dtype]
    key = (version, variant.kernel, variant.architecture, dtype, variant.padded)
    return TOLERATED.get(key, 0)


def faults(variant: Variant, resources: KernelResources) -> list[str]:
    found = []
    if resources.spills > tolerated(variant):
        found.append(f"spills {resources.spills} bytes")
    if resources.shared > SHARED_BYTES[variant.architecture]:
        found.append(f"needs {resources.shared} bytes of shared memory")
    return found


def main() -> int:
    failures = 0
    variants = whole_table()
    for done, variant in enumerate(variants, 1):
        resources = kernel_resources(variant)
        bad = faults(variant, resources)
        failures += bool(bad)
        print(
            f"{done}/{len(variants)} {variant}: {resources.registers} registers, "
            f"{resources.shared} bytes shared {'; '.join(bad)}",
            flush=True,
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
