"""The inside of one report: two forwards over it, with the adapter and without it.

Nothing of the model is changed. The adapter is attached as for decoding, and what it does is read
by hooks on its own modules, which see the states before and after each edit.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dive.adapter.adapter import SteeringAdapter
from dive.adapter.attach import Attachment, unsteered
from dive.backbone.model_lock import model_lock
from dive.backbone.structure import Head, last_hidden_state
from dive.decode.steered import steered
from dive.errors import DiveError
from dive.prompting.batch import response_positions
from dive.reference import mixing_weights

_AT_ONCE = 32  # positions whose logits are in memory together: 64 MiB for 256k tokens in float64


@dataclass
class Inside:
    """What the model and the adapter compute where a report's T tokens are predicted; on the CPU.

    probability, end: float64 [T], with the adapter: of the token that stands there, and of the end
        of the turn. probability_without, end_without: the same without it.
    strength: float64 [L, T]: per steered layer the norm of the edit over that of the state.
    weights: float32 [L, T, R]: the mixing weights of its vectors.
    """

    probability: Tensor
    probability_without: Tensor
    end: Tensor
    end_without: Tensor
    strength: Tensor
    weights: Tensor

    @property
    def finite(self) -> bool:
        return all(bool(one.isfinite().all()) for one in vars(self).values())


def inside_of(
    attachment: Attachment,
    head: Head,
    inputs: Mapping[str, Tensor],
    answer: Sequence[int],
    ends: Sequence[int],
) -> Inside:
    """The inside of one report, by two forwards.

    attachment: of the adapter, in effect only inside `working`; its mask is set.
    inputs: of the model, on its device: the prompt, then the answer but for its last token.
    answer: the T tokens of the report, the last of which is the end of the turn. ends: all tokens
        that end it; for the last one the probability is that of any of them.

    Raises:
        DiveError: a number is not finite.
    """
    adapter, model, count = attachment.adapter, attachment.model, len(answer)
    assert adapter is not None
    length = inputs["input_ids"].shape[1]
    first = length - count  # the last position of the prompt predicts the first token
    # as decoding steers: the last position of the prompt, then each token
    own = response_positions([first + 1], [count], length)
    with model_lock(model):
        with unsteered(model):
            hidden = last_hidden_state(model, dict(inputs))[0, first:]
        without = _probabilities(head, hidden, answer, ends)
        attachment.mask = own if adapter.config.positions == "response" else None
        with edits_of(adapter, first) as edits, steered(model, None, attachment):
            hidden = last_hidden_state(model, dict(inputs))[0, first:]
        with_adapter = _probabilities(head, hidden, answer, ends)
    layers = [edits[index] for index in layers_of(adapter)]
    found = Inside(
        probability=with_adapter[0],
        probability_without=without[0],
        end=with_adapter[1],
        end_without=without[1],
        strength=torch.stack([strength for strength, _ in layers]),
        weights=torch.stack([weights for _, weights in layers]),
    )
    if not found.finite:
        raise DiveError(
            "the model's probabilities or states are not finite over this report, so that its "
            "inside cannot be shown"
        )
    return found


def layers_of(adapter: SteeringAdapter) -> list[int]:
    """The layers that an adapter steers, in the order in which they run."""
    return sorted(int(index) for index in adapter.layers)


@contextmanager
def edits_of(adapter: SteeringAdapter, first: int) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Notes, per layer, what the adapter does in this thread's next forward of one sample.

    Yields a dict that the forward fills: the strength [T] and the mixing weights [T, R] at the
    positions from `first` on. The states themselves are not kept.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    thread = threading.get_ident()

    def note(index: int) -> Any:
        @torch._disable_dynamo
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if threading.get_ident() == thread:  # forwards of other threads do not count
                found[index] = _edit(layer, inputs[0][0, first:], output[0, first:])

        return hook

    handles = []
    try:
        for index, layer in adapter.layers.items():
            handles.append(layer.register_forward_hook(note(int(index))))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _edit(layer: Any, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The strength [T] and mixing weights [T, R] of one layer's edit of states [T, D]."""
    state = before.double()
    size = torch.linalg.vector_norm(state, dim=-1)
    edit = torch.linalg.vector_norm(after.double() - state, dim=-1)
    strength = torch.where(edit > 0, edit / size, edit)  # 0 where nothing was edited
    config = layer.config
    weights = mixing_weights(
        before, layer.down, layer.down_bias, activation=config.activation, eps=config.eps
    )
    return strength.cpu(), weights.float().cpu()


def _probabilities(
    head: Head, hidden: Tensor, answer: Sequence[int], ends: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The probabilities [T] of the answer's tokens and of the turn's end, of states [T, D].

    By softmax over all logits, in float64; a few positions at a time.
    """
    vocabulary = head.weight.shape[0]
    known = torch.tensor([one for one in ends if one < vocabulary])
    targets = torch.tensor(answer)
    tokens, turns = [], []
    for states, wanted in zip(hidden.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True):
        odds = head(states).double().softmax(-1)
        tokens.append(odds.gather(1, wanted.to(odds.device)[:, None])[:, 0].cpu())
        turns.append(odds.index_select(1, known.to(odds.device)).sum(-1).clamp(max=1.0).cpu())
    probability, end = torch.cat(tokens), torch.cat(turns)
    probability[-1] = end[-1]  # any token that ends the turn is the end that stands there
    return probability, end
