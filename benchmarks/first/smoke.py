"""Every operator and decoding once, at small size, against the reference.

The other parts do not time what fails here.
"""

import itertools
import json
import platform
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.first.look import gpu
from benchmarks.first.steps import Step
from benchmarks.timing import TOY
from dive import ops, reference
from dive.bench import observe, rates
from dive.bench.case import TOLERANCES, Setup, off, reseed
from dive.decode import native as extension

SMI = "name,driver_version,power.limit,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
SMI += "temperature.gpu,memory.used,memory.total,mig.mode.current,ecc.mode.current"
TOKENS, WIDTH, RANK, VOCABULARY = (12, 64, 4, 131) if TOY else (300, 1024, 16, 5003)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Wrong(Exception):
    """A result differs from the reference."""


def machine() -> dict[str, Any]:
    """Returns GPU, driver, clocks and versions."""
    device = gpu()
    found: dict[str, Any] = {**timing.machine(device), "kernel": platform.release()}
    found["nvidia-smi"] = smi()
    if device.type == "cuda":
        seen = torch.cuda.get_device_properties(device)
        found |= {
            "capability": f"{seen.major}.{seen.minor}",
            "multiprocessors": seen.multi_processor_count,
            "L2_MiB": seen.L2_cache_size >> 20,
            "memory_GiB": round(seen.total_memory / 2**30, 1),
        }
    versions = found["versions"]
    said = f"{found['device']}, driver {found.get('driver, power limit, top clock')}, "
    said += f"torch {found['torch']}, triton {versions['triton']}, "
    said += f"transformers {versions['transformers']}, python {found['python']}, {found['commit']}"
    return {"summary": said, **found}


def smi() -> dict[str, str] | str:
    """Returns the output of nvidia-smi for the first GPU, or its error."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={SMI}", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return (done.stdout + done.stderr).strip()[:300]
    return dict(zip(SMI.split(","), map(str.strip, lines[0].split(",")), strict=False))


def compiled_module() -> dict[str, Any]:
    """Checks `dive._C` with its CUDA kernels."""
    gpu()
    found = extension.find()
    if found.module is None:
        raise Wrong(found.reason)
    info = found.module.build_info()
    if not info.get("cuda") and not TOY:
        raise Wrong(f"dive._C was built without CUDA: {json.dumps(info)}")
    return {"summary": f"for {', '.join(info.get('cuda_archs') or ['the CPU'])}", **info}


def compare(
    call: Callable[[Any], tuple[dict[str, Tensor], dict[str, Tensor]]],
    given: dict[str, Tensor],
    own: Any,
    plain: Any,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Returns how far each result and gradient is off, as a share of its norm; raises Wrong.

    Small sums that cancel (a scalar's gradient) may be off by a rounding of their terms, which the
    tests account for; here ten times the tolerance suffices to detect an error.
    """
    want, wanted = call(plain)
    on_triton = gpu().type == "cuda"
    ran = observe.operator(lambda: call(own), gpu())
    if on_triton and ran != "triton":
        raise Wrong(f"{ran} ran, want triton")
    got, gradients = call(own)
    distances = {}
    for name, tensor in {**got, **{f"d {k}": v for k, v in gradients.items()}}.items():
        truth = {**want, **{f"d {k}": v for k, v in wanted.items()}}[name]
        if not bool(torch.isfinite(tensor.float()).all()):
            raise Wrong(f"{name} is not finite")
        distances[name] = off(tensor, truth)
        most = TOLERANCES[dtype] * (10 if tensor.numel() < 256 else 1)
        if not distances[name] <= most:
            raise Wrong(f"{name} is {distances[name]:.1e} off the reference, want {most:.1e}")
    return distances


def steer(norm_preserving: bool) -> dict[str, Any]:
    """Checks `ops.steer`, masked, in every dtype."""
    device, found = gpu(), {}
    for dtype in DTYPES:
        reseed(0, device)
        shapes = ((RANK, WIDTH), (RANK,), (WIDTH, RANK), (WIDTH,), ())
        h = torch.randn(TOKENS, WIDTH, device=device).to(dtype)
        parameters = [torch.randn(s, device=device).mul_(0.3) for s in shapes]
        names = ("h", "down", "down_bias", "up", "static", "scale")
        given = dict(zip(names, (x.requires_grad_() for x in (h, *parameters)), strict=True))
        options: dict[str, Any] = {"mask": torch.arange(TOKENS, device=device) % 5 != 2}
        options["norm_preserving"] = norm_preserving
        # the edit itself, as sums over tokens with random signs would show little; h where masked
        with torch.no_grad():
            edit = reference.steer(*given.values(), **options) - h
            upstream = torch.where(options["mask"][:, None], edit, h)

        def call(
            operator: Any,
            given: dict[str, Tensor] = given,
            options: dict[str, Any] = options,
            upstream: Tensor = upstream,
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            out = operator(**given, **options)
            gradients = torch.autograd.grad(out, list(given.values()), upstream)
            return {"out": out.detach()}, dict(zip(given, gradients, strict=True))

        found[str(dtype)] = compare(call, given, ops.steer, reference.steer, dtype)
    return {"summary": worst(found), "off": found}


def steer_grouped() -> dict[str, Any]:
    """Checks `ops.steer_grouped_` in every dtype, with few and with many tokens."""
    device, found = gpu(), {}
    for dtype, tokens in itertools.product(DTYPES, (7, TOKENS)):
        reseed(0, device)
        shapes = ((RANK, WIDTH), (RANK,), (WIDTH, RANK), (WIDTH,), ())
        parameters = [torch.randn(3, *s, device=device).mul_(0.3) for s in shapes]
        hidden, residual = (torch.randn(tokens, WIDTH, device=device).to(dtype) for _ in range(2))
        own = torch.arange(tokens, device=device) % 5 - 1
        for norm_preserving in (False, True):

            def call(
                operator: Any,
                before: Tensor = hidden,
                others: list[Tensor] = [residual, own, *parameters],  # noqa: B006
                keeping: bool = norm_preserving,
            ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
                after = before.clone()
                operator(after, *others, norm_preserving=keeping)
                return {"change": after.float() - before.float()}, {}

            name = f"{dtype}, {tokens} tokens" + (", norm preserving" if norm_preserving else "")
            own_way, plain = ops.steer_grouped_, reference.steer_grouped_
            found[name] = compare(call, {}, own_way, plain, dtype)
    return {"summary": worst(found), "off": found}


def cross_entropy(distils: bool) -> dict[str, Any]:
    """Checks `ops.decisive_cross_entropy` with dead rows, in every dtype, or all its options."""
    device, found = gpu(), {}
    for dtype in DTYPES:
        reseed(0, device)
        hidden = torch.randn(TOKENS, WIDTH, device=device).to(dtype).requires_grad_()
        head = (torch.randn(VOCABULARY, WIDTH, device=device) / WIDTH**0.5).to(dtype)
        targets = torch.randint(VOCABULARY, (TOKENS,), device=device)
        live = torch.arange(TOKENS, device=device) % 3 != 1
        weights = ((torch.rand(TOKENS, device=device) + 0.5) * live).requires_grad_()
        more: dict[str, Any] = {"token_class": torch.arange(TOKENS, device=device) % 3}
        if distils:
            more["teacher_hidden"] = torch.randn(TOKENS, WIDTH, device=device).to(dtype)
            more["bias"] = torch.randn(VOCABULARY, device=device).to(dtype)
            more |= {"kd_weight": 0.5, "temperature": 2.0, "softcap": 20.0}
        given = {"hidden": hidden, "weights": weights}

        def call(
            operator: Any,
            given: dict[str, Tensor] = given,
            fixed: tuple[Tensor, Tensor] = (head, targets),
            more: dict[str, Any] = more,
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            out = operator(given["hidden"], fixed[0], fixed[1], given["weights"], **more)
            gradients = torch.autograd.grad(out.loss, list(given.values()))
            results = {"loss": out.loss.detach(), "row_ce": out.row_ce, "lse": out.lse}
            if out.row_kl is not None:
                results["row_kl"] = out.row_kl
            return results, dict(zip(given, gradients, strict=True))

        own, plain = ops.decisive_cross_entropy, reference.decisive_cross_entropy
        found[str(dtype)] = compare(call, given, own, plain, dtype)
    return {"summary": worst(found), "off": found}


def worst(found: dict[str, dict[str, float]]) -> str:
    said = []
    for dtype, distances in found.items():
        name = max(distances, key=lambda key: distances[key])
        said.append(f"{dtype.removeprefix('torch.')} {distances[name]:.1e} ({name})")
    return "off the reference at most " + ", ".join(said)


def decode(batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compares tokens and logits of the engine, steered and not, with the model's forward."""
    from dive.bench.decode import WAYS, Bench, Decode

    device = gpu()
    nothing = rates.Rates(1.0, 1.0, 1.0, "sum", 1 << 20)
    bench = Bench(Decode("512x4", 12, 21e6, batch=batch), Setup(device, dtype, TOY, nothing))
    difference = bench.difference()
    if difference:
        raise Wrong(difference)
    for way in WAYS[:2]:
        bench.answer(way, 4)
        ran = bench.session.ran
        if ran is None or ran.engine != "dive._C":
            raise Wrong(f"{way}: {ran.engine if ran else 'nothing'} decoded: "
                        f"{ran.reason if ran else ''}")  # fmt: skip
    return {"summary": f"tokens and logits as the model's own forward; {ran}"}


def ceilings() -> dict[str, Any]:
    """Measures products, copies and reads, from which the floors are computed."""
    found = rates.measure(gpu(), torch.bfloat16, TOY)
    said = f"products {found.products / 1e12:.0f} TFLOP/s, copies {found.copies / 1e9:.0f} GB/s, "
    said += f"reads {found.reads / 1e9:.0f} GB/s by {found.read_by}; now {smi()}"
    return {"summary": said, **found._asdict()}


MACHINE, MODULE = "machine", "dive._C"
STEER, KEEPING, SEVERAL = "steer", "steer, norm preserving", "steer, several adapters"
LOSS, DISTILLING = "cross entropy", "cross entropy, teacher"
ALONE, BATCH = "decode, batch 1", "decode, batch 8"
STEPS = {
    MACHINE: Step(machine, 60),
    MODULE: Step(compiled_module),
    STEER: Step(partial(steer, False)),
    KEEPING: Step(partial(steer, True)),
    SEVERAL: Step(steer_grouped),
    LOSS: Step(partial(cross_entropy, False)),
    DISTILLING: Step(partial(cross_entropy, True)),
    ALONE: Step(partial(decode, 1, torch.bfloat16), 45),  # includes transformers' first call
    BATCH: Step(partial(decode, 8, torch.bfloat16)),  # tensor cores
    "ceilings": Step(ceilings),
}
