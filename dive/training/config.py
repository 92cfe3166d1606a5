"""The settings of a distillation, and the presets: every baseline is a configuration."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dive.adapter.config import SteeringConfig
from dive.decisive.tokens import check_unit
from dive.errors import DiveError, checks
from dive.radgraph import parse_source
from dive.training.workers import check_workers

VISUAL = "visual"  # decisive tokens by images, see dive/training/visual_weights.py
SEEDS = 1 << 32  # numpy, which Trainer seeds too, takes only seeds below this

# The paper's own values were not available; `live` and its weights are as LIVE (arXiv 2406.13185)
# published them, the rest is this project's choice (docs/choices.md).
_DIVE: dict[str, Any] = {
    "rank": 16,
    "activation": "silu",
    "norm_preserving": False,
    "pathology_weight": 2.5,
    "eos_weight": 2.5,
    "decisive_unit": "mention",
    "ce_weight": 1.0,
    "kd_weight": 0.5,
    "align_weight": 0.0,
    "learning_rate": 2e-3,
}
_FIXED: dict[str, Any] = {"rank": 0, "pathology_weight": 1.0, "eos_weight": 1.0}
PRESETS: dict[str, dict[str, Any]] = {
    "dive": _DIVE,
    "dive-ce": _DIVE | {"kd_weight": 0.0},
    "live": _DIVE
    | _FIXED
    | {"norm_preserving": True, "ce_weight": 0.5, "kd_weight": 1.0, "learning_rate": 1e-2},
    "fixed-ce": _DIVE | _FIXED | {"kd_weight": 0.0, "learning_rate": 1e-2},
}


@dataclass
class DistillConfig:
    """The settings of a distillation. A field that is None takes the preset's value.

    preset: "dive" (state-conditioned, decisive weights, CE + KL to the teacher), "dive-ce" (no
        teacher is run), "live" (one fixed vector per layer, norm preserving, uniform weights, KL +
        0.5 CE, as published), "fixed-ce" (fixed vectors, uniform CE).
    rank, layers, activation, norm_preserving, positions: the form of the edit, see SteeringConfig.
    pathology_weight, eos_weight: weight of a pathology token and of the end of the report; every
        other token of the report weighs 1. With "visual" tokens weigh from 1 to pathology_weight.
    polarity: "positive" (mentions asserted as present) or "all" (negated ones too).
    decisive: what finds the pathology in a report: "lexicon" (the built-in one), "radgraph" (the
        observations of the RadGraph model; its weights must be there, annotations are kept),
        "radgraph:X" (a type of model, a folder or archive of weights, or a file of annotations), or
        "visual": no list, but how much the image changes what the teacher expects at each token (so
        a teacher is run whatever the preset, with five prompts per study instead of one).
    decisive_unit: what is weighted of a statement: "mention" (the finding's words, by `polarity`),
        "clause" (all words of a clause that states a finding, present or absent) or "decision" (the
        one token of such a clause at which the training reports part present and absent). With the
        last two both sides carry the weight, and `polarity` and `modifiers` change nothing.
    class_floor: the least share of the weight on pathology tokens for each class of findings, from
        0 (none) to 1 by the number of classes; it tilts the model towards rare ones.
    modifiers: severity, side and location next to a mention are weighted with it.
    ce_weight, kd_weight, align_weight: weights of cross entropy, of KL to the teacher, and of the
        mean squared distance of teacher and student hidden states. 0 switches a term off.
    temperature: softmax temperature of the KL.
    redraw_demonstrations: where demonstrations are drawn from the training studies, draw anew in
        every epoch (the teacher then runs in every epoch, too).
    epochs, steps: length of the training; `steps` (optimiser steps) wins over `epochs`.
    batch_size, gradient_accumulation: studies per device and forward, and forwards per step. The
        loss is normalised over all of them (and all ranks), so how they are split changes nothing.
    learning_rate, scale_learning_rate: of the adapter, and of its one scale per layer. The
        optimiser is AdamW with `weight_decay`; the rate decays as a cosine after a linear warm-up
        over the share `warmup` of the steps.
    max_grad_norm: gradients are clipped to this norm.
    seed: of initial values, the order of studies and drawn demonstrations.
    gradient_checkpointing: recompute the decoder's layers in the backward pass, which takes less
        memory and about a third more time.
    cache_images: keep each study's projected image features (at most 4 GiB, in main memory), so
        that the vision tower runs once per study and not in every epoch and for every
        demonstration. A folder keeps them on disk, too: later trainings that name it run no vision
        tower for the images that they have in common.
    calibration_studies: studies on which the scale of each layer's residual stream is measured.
    logging_steps, eval_steps, save_steps: intervals in steps. Default: evaluation and a checkpoint
        at the end of every epoch, and at most 20 times.
    workers: processes that decode images ahead of the training, and survey the studies before it.
        Default: one per core but for one, at most 8 (0 for fewer than 64 images, and on macOS and
        Windows, where only 0 is possible). At most 32 of them survey the studies.
    """

    preset: str = "dive"
    rank: int | None = None
    layers: str | list[int] = "all"
    activation: str | None = None
    norm_preserving: bool | None = None
    positions: str = "all"
    pathology_weight: float | None = None
    eos_weight: float | None = None
    polarity: str = "positive"
    decisive: str = "lexicon"
    decisive_unit: str | None = None
    class_floor: float = 0.0
    modifiers: bool = True
    ce_weight: float | None = None
    kd_weight: float | None = None
    align_weight: float | None = None
    temperature: float = 1.0
    redraw_demonstrations: bool = False
    epochs: float = 4.0
    steps: int | None = None
    batch_size: int = 8
    gradient_accumulation: int = 1
    learning_rate: float | None = None
    scale_learning_rate: float = 1e-2
    weight_decay: float = 1e-3
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0
    gradient_checkpointing: bool = False
    cache_images: bool | str | Path = False
    calibration_studies: int = 16
    logging_steps: int = 10
    eval_steps: int | None = None
    save_steps: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.preset, str) or self.preset not in PRESETS:
            raise DiveError(
                f"DistillConfig: preset is {self.preset!r}, want one of {', '.join(PRESETS)}"
            )
        for field in fields(self):
            setattr(self, field.name, checks.plain(getattr(self, field.name)))
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self._check()
        self.steering()

    def _check(self) -> None:
        at_least = {
            "pathology_weight": 0, "eos_weight": 0, "ce_weight": 0, "kd_weight": 0,
            "align_weight": 0, "weight_decay": 0, "max_grad_norm": 0, "warmup": 0, "workers": 0,
            "batch_size": 1, "gradient_accumulation": 1, "calibration_studies": 1,
            "logging_steps": 1, "steps": 1, "eval_steps": 1, "save_steps": 1, "seed": 0,
        }  # fmt: skip
        above_zero = ("temperature", "epochs", "learning_rate", "scale_learning_rate")
        optional = {field.name for field in fields(self) if "None" in str(field.type)}
        whole = {field.name for field in fields(self) if "int" in str(field.type)}
        for name in (*at_least, *above_zero):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            wanted = "a whole number" if name in whole else "a number"
            least = at_least.get(name)
            bound = "> 0" if least is None else f">= {least}"
            if name in whole:
                good = checks.is_whole(value) and least is not None and value >= least
            else:
                good = checks.is_number(value) or (least == 0 and value == 0 and value is not False)
                bound += f" that float32 has (up to {checks.MOST:.3g})"
            if name == "temperature":  # its square and its reciprocal are used, too
                low, high = checks.LEAST_SQUARED, checks.MOST_SQUARED
                good, bound = checks.is_number(value, low, high), f"from {low:.3g} to {high:.3g}"
            if not good:
                raise DiveError(f"DistillConfig: {name} is {value!r}, want {wanted} {bound}")
        if self.seed >= SEEDS:
            raise DiveError(
                f"DistillConfig: seed is {self.seed!r}, want a whole number from 0 to {SEEDS - 1}"
            )
        check_workers(self.workers)
        if self.warmup >= 1:
            raise DiveError(f"DistillConfig: warmup is {self.warmup!r}, want a share below 1")
        for name in ("modifiers", "redraw_demonstrations", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise DiveError(
                    f"DistillConfig: {name} is {getattr(self, name)!r}, want True or False"
                )
        if isinstance(self.cache_images, os.PathLike):
            self.cache_images = os.fspath(self.cache_images)
        blank = isinstance(self.cache_images, str) and not self.cache_images.strip()
        if not isinstance(self.cache_images, (bool, str)) or blank:
            raise DiveError(
                f"DistillConfig: cache_images is {self.cache_images!r}, want true, false or a "
                "folder"
            )
        if self.polarity not in ("positive", "all"):
            raise DiveError(f"DistillConfig: polarity is {self.polarity!r}, want positive or all")
        self._check_decisive()
        if not (self.ce_weight or self.kd_weight or self.align_weight):
            raise DiveError(
                "DistillConfig: ce_weight, kd_weight and align_weight are all 0; nothing to learn"
            )

    def _check_decisive(self) -> None:
        check_unit(self.decisive_unit, self.class_floor, "DistillConfig", "decisive_unit")
        if self.class_floor and not self.pathology_weight:
            raise DiveError(
                f"DistillConfig: class_floor is {self.class_floor}, a share of the pathology "
                "tokens' weight, and pathology_weight is 0: want pathology_weight above 0"
            )
        if self.decisive not in ("lexicon", VISUAL):
            parse_source(self.decisive, "DistillConfig: decisive")
        if self.decisive != "lexicon" and self.class_floor:
            raise DiveError(
                f"DistillConfig: class_floor is {self.class_floor} with decisive "
                f"{self.decisive!r}, which has no classes of findings: want decisive 'lexicon'"
            )
        if self.decisive == VISUAL and self.decisive_unit != "mention":
            raise DiveError(
                f"DistillConfig: decisive_unit is {self.decisive_unit!r} with decisive 'visual', "
                "which reads no statements: want decisive 'lexicon' or 'radgraph'"
            )

    @property
    def learns_from_teacher(self) -> bool:
        """Whether the loss has a term of the teacher."""
        return bool(self.kd_weight or self.align_weight)

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is run: for the loss, or for the weights of tokens alone."""
        return self.learns_from_teacher or self.decisive == VISUAL

    def steering(self) -> SteeringConfig:
        """The part of the settings that decides the form of the edit."""
        return SteeringConfig(
            rank=self.rank,  # type: ignore[arg-type]  # __post_init__ has filled it
            layers=self.layers,
            activation=self.activation,  # type: ignore[arg-type]
            norm_preserving=self.norm_preserving,  # type: ignore[arg-type]
            positions=self.positions,
        )


def total_steps(config: DistillConfig, studies: int, ranks: int = 1) -> int:
    """Optimiser steps of the whole training."""
    if config.steps is not None:
        return config.steps
    batches = -(-studies // (config.batch_size * ranks))
    per_epoch = -(-batches // config.gradient_accumulation)
    return max(1, round(config.epochs * per_epoch))


def check_teacher(config: DistillConfig) -> None:
    """DiveError where there is no teacher to show demonstrations to."""
    if not config.needs_teacher:
        raise DiveError(
            f"preset {config.preset!r} with kd_weight 0 and align_weight 0 runs no teacher, so "
            f"demonstrations have no use; leave them out, or give kd_weight, or decisive={VISUAL!r}"
        )
