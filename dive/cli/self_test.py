"""A run of the fast paths on the bundled backbone: which are used on this machine, and correct.

`dive doctor` prints it. Each finding is the result of a call, not of what is installed.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dive import ops, reference
from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import steer
from dive.adapter.config import SteeringConfig
from dive.backbone.load import Backbone, load_backbone
from dive.backbone.structure import decoder_layers, last_hidden_state, output_head
from dive.decode.session import DecodeSession
from dive.errors import DiveError, FallbackWarning

BACKBONE = Path(__file__).parents[1] / "demo" / "backbone"
PROMPT, STEPS = 12, 24
ENGINE, STEER, LOSS = "dive._C", "Triton, steer", "Triton, decisive_cross_entropy"
# for both operators in float32 on these few tokens: the sums of kernels and reference only differ
# in their order
TOLERANCE = 1e-4


class Finding(NamedTuple):
    """One fast path on one device.

    state: "used", "not used" or "wrong". expected: whether it should be used here; a machine
        without a GPU does not use its kernels.
    """

    name: str
    device: str
    state: str
    why: str
    expected: bool

    @property
    def fine(self) -> bool:
        return self.state == "used" or (self.state == "not used" and not self.expected)


Check = Callable[[Backbone, SteeringAdapter], Finding]


def run() -> list[Finding]:
    """Runs every fast path on the CPU and on each GPU."""
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    findings = []
    with _quiet():
        for device in (torch.device("cpu"), *gpus):
            findings += _on(device)
    return findings


def _on(device: torch.device) -> list[Finding]:
    """Returns the findings of a device; one that cannot load the backbone fails every path."""
    try:
        backbone = load_backbone(BACKBONE, dtype="float32", device=device)
        adapter = _adapter(backbone)
    except Exception as error:
        return [Finding(name, str(device), "wrong", _line_of(error), True) for name in CHECKS]
    return [_guarded(name, check, backbone, adapter) for name, check in CHECKS.items()]


def decoding(backbone: Backbone, adapter: SteeringAdapter) -> Finding:
    """Compares a steered answer of the engine with transformers' own."""
    device, ids = backbone.device, _tokens(backbone)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    settings: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None}
    session = DecodeSession(backbone, adapter)
    model: Any = backbone.model
    got = session.generate(**inputs, **settings)
    with steer(backbone, adapter):
        want = model.generate(**inputs, **settings)
    assert session.ran is not None
    if session.ran.engine != "dive._C":
        return Finding(ENGINE, str(device), "not used", session.ran.reason, True)
    if not torch.equal(got, want):
        return Finding(ENGINE, str(device), "wrong", "tokens differ from transformers'", True)
    why = f"{session.ran.reason}; {STEPS} tokens equal to those of transformers"
    return Finding(ENGINE, str(device), "used", why, True)


def steering(backbone: Backbone, adapter: SteeringAdapter) -> Finding:
    """Compares one layer's steering and its gradients with `dive.reference`."""
    layer: Any = next(iter(adapter.layers.values()))
    with torch.no_grad():
        states = last_hidden_state(backbone.model, {"input_ids": _tokens(backbone)})
    tensors = (states, layer.down, layer.down_bias, layer.up, layer.static, layer.scale)

    def call(operator: Any) -> list[Tensor]:
        own = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        steered = operator(*own)
        return [steered.detach(), *torch.autograd.grad(steered.square().sum(), own)]

    path = ops.implementation("steer", backbone.device)
    return _compare(STEER, path, backbone.device, call(ops.steer), call(reference.steer))


def loss(backbone: Backbone, adapter: SteeringAdapter) -> Finding:
    """Compares the weighted loss over the backbone's head and its gradients with the reference."""
    head, ids = output_head(backbone.model), _tokens(backbone)
    with torch.no_grad():
        states = last_hidden_state(backbone.model, {"input_ids": ids})[0, :-1]
    weights = torch.arange(states.shape[0], device=states.device) % 3 * 1.5
    weight = head.weight.detach()

    def call(operator: Any) -> list[Tensor]:
        own = [states.clone().requires_grad_(), weights.clone().requires_grad_()]
        result = operator(own[0], weight, ids[0, 1:], own[1], softcap=head.softcap).loss
        return [result.detach(), *torch.autograd.grad(result, own)]

    path = ops.implementation("decisive_cross_entropy", backbone.device)
    got, want = call(ops.decisive_cross_entropy), call(reference.decisive_cross_entropy)
    return _compare(LOSS, path, backbone.device, got, want)


def _compare(
    name: str, path: str, device: torch.device, got: list[Tensor], want: list[Tensor]
) -> Finding:
    worst = max(
        ((one - other).abs().max() / other.abs().max()).item()
        for one, other in zip(got, want, strict=True)
    )
    if not worst <= TOLERANCE:  # also for NaN
        why = f"{path}: relative error {worst:.1e} against plain PyTorch, want {TOLERANCE:.0e}"
        return Finding(name, str(device), "wrong", why, True)
    if path != "triton":
        reason = "there is no GPU" if device.type == "cpu" else ops.missing()
        why = f"{reason}; the operator runs in PyTorch"
        return Finding(name, str(device), "not used", why, device.type == "cuda")
    why = f"relative error {worst:.1e} against plain PyTorch"
    return Finding(name, str(device), "used", why, True)


def _guarded(name: str, check: Check, backbone: Backbone, adapter: SteeringAdapter) -> Finding:
    """Runs a check; an exception is a finding, too, and the next check still runs."""
    try:
        return check(backbone, adapter)
    except Exception as error:  # of Triton, of a missing C compiler, of a driver ...
        return Finding(name, str(backbone.device), "wrong", _line_of(error), True)


def _line_of(error: Exception) -> str:
    kind = "" if isinstance(error, DiveError) else f"{type(error).__name__}: "
    return kind + (str(error).strip().splitlines() or ["no message"])[0]


CHECKS: dict[str, Check] = {ENGINE: decoding, STEER: steering, LOSS: loss}


def _tokens(backbone: Backbone) -> Tensor:
    return torch.arange(20, 20 + PROMPT, device=backbone.device)[None]


def _adapter(backbone: Backbone) -> SteeringAdapter:
    """Returns an adapter like a trained one: every tensor changes the answer."""
    drawn = torch.Generator().manual_seed(0)
    adapter = SteeringAdapter(SteeringConfig(rank=8), backbone)
    layers: Any = adapter.layers
    with torch.no_grad():
        for layer in layers.values():
            for tensor in (layer.down, layer.down_bias, layer.up, layer.static):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=drawn))
    return adapter.to(next(decoder_layers(backbone.model)[0].parameters()).device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences fallback warnings: a fallback is a finding here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        yield
