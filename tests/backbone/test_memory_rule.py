"""`[N, V]` logits exist nowhere in training, with any backbone: not in the student's forward
and backward, nor in the teacher's pass, in evaluation or under gradient checkpointing."""

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from tiny import FINDINGS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dive
from dive.data import Study
from dive.ops import chunks, cross_entropy_torch
from dive.ops.loss_arguments import LossArguments
from dive.training import trainer

LEAST = 32  # rows of a chunk on a CPU, when the budget holds less
BATCH = 2


class Widest(TorchDispatchMode):
    """The largest tensor that is created with a dimension as long as the vocabulary."""

    INSIDE: ClassVar[dict[Any, Any]] = {
        torch.ops.dive.decisive_cross_entropy.default: lambda *args: cross_entropy_torch.forward(
            LossArguments(*args)
        ),
        torch.ops.dive.decisive_cross_entropy_backward.default: cross_entropy_torch.backward,
    }

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.elements, self.name = 0, "nothing"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.INSIDE:
            with self:  # an operator is opaque from outside: its implementation is traced
                return self.INSIDE[func](*args)
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            wide = isinstance(tensor, Tensor) and self.vocab in tensor.shape
            if wide and tensor.numel() > self.elements:
                self.elements, self.name = tensor.numel(), f"{func} {list(tensor.shape)}"
        return result


def long_studies(studies: list[Study]) -> list[Study]:
    """Reports with enough tokens for at least four chunks of rows per batch."""
    text = " ".join(findings for findings, _ in FINDINGS * 2)
    return [replace(study, findings=f"{text} {study.findings}") for study in studies]


def train(backbone: dive.Backbone, studies: list[Study], **more: Any) -> dive.SteeringAdapter:
    settings = {"rank": 2, "steps": 2, "batch_size": BATCH, "eval_steps": 1, **more}
    config = dive.DistillConfig(preset="dive", **settings)
    return dive.distill(
        backbone, studies[:4], demonstrations=1, config=config, validation=studies[4:]
    )


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every loss of a student, whose chunks are as small as they get."""
    counted: list[int] = []
    forward = trainer.Student.forward

    def counting(self: Any, inputs: Any, positions: Tensor, *args: Any, **more: Any) -> Any:
        counted.append(int(positions.sum()))
        return forward(self, inputs, positions, *args, **more)

    monkeypatch.setattr(trainer.Student, "forward", counting)
    monkeypatch.setattr(chunks, "default_chunk_bytes", lambda *_: 1)
    return counted


def check(backbone: dive.Backbone, studies: list[Study], rows: list[int], **more: Any) -> None:
    vocab = backbone.model.get_output_embeddings().weight.shape[0]
    with Widest(vocab) as seen:
        train(backbone, studies, **more)
    assert len(rows) >= 4 and min(rows) >= 4 * LEAST, "otherwise this would say nothing"
    assert 0 < seen.elements <= LEAST * vocab, seen.name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_family_makes_logits_in_training(
    family: Any,
    checkpointing: bool,
    studies: list[Study],
    rows: list[int],
) -> None:
    backbone = dive.load_backbone(family[1], device="cpu")
    check(backbone, long_studies(studies), rows, gradient_checkpointing=checkpointing)


def test_a_text_model_makes_none_either(tiny_llama: Any, rows: list[int]) -> None:
    text = " ".join(findings for findings, _ in FINDINGS * 2)
    studies = [Study(id=str(n), images=(), findings=f"{text} No edema.") for n in range(6)]
    check(dive.load_backbone(tiny_llama, device="cpu"), studies, rows)


def test_logits_would_be_seen(tiny_llama: Any) -> None:
    model = dive.load_backbone(tiny_llama, device="cpu").model
    vocab = model.get_output_embeddings().weight.shape[0]
    ids = torch.arange(2, 2 + 4 * LEAST)[None] % vocab
    with Widest(vocab) as seen:
        model(input_ids=ids)
    assert seen.elements >= 4 * LEAST * vocab
