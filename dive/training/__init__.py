"""Distillation: `dive.distill`, from studies to a steering adapter."""

from dive.training.config import DistillConfig
from dive.training.distillation import distill

__all__ = ["DistillConfig", "distill"]
