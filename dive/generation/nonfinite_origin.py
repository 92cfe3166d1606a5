"""Where in a model numbers stopped being of use: one more forward, after the fact, that looks."""

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dive.backbone.structure import decoder_layers, forget_compiled, unwrap
from dive.decode.usable_logits import usable


class Origin(NamedTuple):
    """Where it began, in words, and whether it ended in finite logits that all are the same."""

    where: str
    same: bool = False


def early_end(tokens: int, origin: Origin | None) -> str:
    """What a report says that ended so: after how many tokens, and where it began, if known."""
    where = "; where it began is not known" if origin is None else f"; it began in {origin.where}"
    logits = "all the same" if origin is not None and origin.same else "not finite"
    return f"logits were {logits} after {tokens} token{'' if tokens == 1 else 's'}{where}"


@torch.no_grad()
def nonfinite_origin(model: Any, inputs: Mapping[str, Any], answer: list[int]) -> Origin | None:
    """The first part of the model that gives anything but finite numbers, or, where logits end up
    all the same, states whose squares are infinite: an RMS norm makes zeros of them.

    inputs: of one prompt, as `model.generate` takes them, on its device; answer: the tokens behind
    it. None: all is well in this forward (what wrote the answer sums in another order, or a
    processor made them), or it cannot be run.
    """
    model = unwrap(model)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not _finite(value):
            return Origin(f"the input {name}")
    seen: list[tuple[str, Tensor, Tensor]] = []
    layers = decoder_layers(model)
    thread = threading.get_ident()  # another's forward is not looked at

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
        # before the hook that steers, and behind it
        handles.append(layer.register_forward_hook(after(f"layer {index}"), prepend=True))
        edit = f"the adapter's edit behind layer {index}"
        handles.append(layer.register_forward_hook(after(edit)))
    try:
        outputs = model(**_longer(inputs, answer), use_cache=False, return_dict=True)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # this is only to help: the report is told of all the same
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
    """The inputs with the answer behind the prompt; masks go on with 1, kinds of tokens with 0."""
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
    """Whether the first of these that is a tensor of floating-point numbers is finite, and the mean
    of its squares over the last dimension, in float32 at least."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            wide = value if value.dtype == torch.float64 else value.float()
            return value.isfinite().all(), wide.square().mean(-1).isfinite().all()
    return torch.tensor(True), torch.tensor(True)
