"""Where in a model values stopped being finite, found by one more forward after the fact."""

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dive.backbone.structure import decoder_layers, forget_compiled, unwrap
from dive.decode.usable_logits import usable


class Origin(NamedTuple):
    """The part of the model where it began, and whether the logits are finite but all the same."""

    where: str
    same: bool = False


def early_end(tokens: int, origin: Origin | None) -> str:
    """The error text of a report: after how many tokens it ended, and where it began, if known."""
    where = "; where it began is not known" if origin is None else f"; it began in {origin.where}"
    logits = "all the same" if origin is not None and origin.same else "not finite"
    return f"logits were {logits} after {tokens} token{'' if tokens == 1 else 's'}{where}"


@torch.no_grad()
def nonfinite_origin(model: Any, inputs: Mapping[str, Any], answer: list[int]) -> Origin | None:
    """The first part of the model whose output is not finite.

    Where logits end up all the same, the first one with states whose squares are infinite, of which
    an RMS norm makes zeros.

    inputs: of one prompt, as `model.generate` takes them, on its device; answer: the tokens after
    it. None: this forward is finite (the engine sums in another order, or a processor made the
    logits unusable), or it cannot be run.
    """
    model = unwrap(model)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not _finite(value):
            return Origin(f"the input {name}")
    seen: list[tuple[str, Tensor, Tensor]] = []
    layers = decoder_layers(model)
    thread = threading.get_ident()  # forwards of other threads do not count

    @torch._disable_dynamo
    def note(name: str, values: Any) -> None:
        if threading.get_ident() == thread:
            seen.append((name, *_good(values)))

    def before(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        note("the embeddings or the image features", args or kwargs.values())

    def after(name: str) -> Any:
        def look(_module: Any, _inputs: Any, output: Any) -> None:
            note(name, [output[0] if isinstance(output, tuple) else output])

        return look

    forget_compiled(model)
    handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    for index, layer in enumerate(layers):
        # before the hook that steers, and after it
        handles.append(layer.register_forward_hook(after(f"layer {index}"), prepend=True))
        edit = f"the adapter's edit after layer {index}"
        handles.append(layer.register_forward_hook(after(edit)))
    try:
        outputs = model(**_longer(inputs, answer), use_cache=False, return_dict=True)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # this only adds detail: the report has its error without it
    finally:
        for handle in handles:
            handle.remove()
        forget_compiled(model)
    head, last = "the final norm or lm_head", outputs.logits[:, -1]
    same = _finite(last) and not bool(usable(last).all())
    seen.append((head, *_good([outputs.logits])))
    for name, finite, squares in seen:
        if same and bool(finite) and not bool(squares) and name != head:
            return Origin(f"{name}, whose numbers are too large to be squared", same)
        if bool(finite):
            continue
        module = layers[int(name.split()[1])] if name.startswith("layer ") else None
        weights = () if module is None else module.named_parameters()
        broken = next((one for one, weight in weights if not _finite(weight)), None)
        return Origin(name if broken is None else f"{name}, whose {broken} is not finite")
    return Origin(head, same) if same else None


def _longer(inputs: Mapping[str, Any], answer: list[int]) -> dict[str, Any]:
    """The inputs with the answer after the prompt; masks are extended by 1, token types by 0."""
    ids = inputs["input_ids"]
    longer = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            more = value.new_full((1, len(answer)), int(name == "attention_mask"))
            if name == "input_ids":
                more = value.new_tensor([answer])
            longer[name] = torch.cat([value, more], -1)
    return longer


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _good(values: Any) -> tuple[Tensor, Tensor]:
    """Whether the first floating-point tensor of these is finite, and whether the mean square over
    its last dimension is, in float32 at least."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            wide = value if value.dtype == torch.float64 else value.float()
            return value.isfinite().all(), wide.square().mean(-1).isfinite().all()
    return torch.tensor(True), torch.tensor(True)
