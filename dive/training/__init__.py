"""Distillation: `dive.distill`, from studies to a steering adapter."""

from typing import TYPE_CHECKING

from dive import face

if TYPE_CHECKING:
    from dive.training.config import DistillConfig as DistillConfig
    from dive.training.distillation import distill as distill

__all__ = ["DistillConfig", "distill"]

# `config` does not import transformers' Trainer, so that a bad setting is refused at once
__getattr__ = face(__name__, {"DistillConfig": "config", "distill": "distillation"})
