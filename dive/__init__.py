"""DIVE: the effect of in-context demonstrations, distilled into a small steering adapter.

Names are loaded on first use, so `import dive` and `dive --help` do not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# public name -> module that defines it
_EXPORTS = {
    "Backbone": "dive.backbone",
    "load_backbone": "dive.backbone",
    "SteeringAdapter": "dive.adapter",
    "SteeringConfig": "dive.adapter",
    "steer": "dive.attach",
    "DecisiveTokens": "dive.decisive",
    "Study": "dive.data",
    "DistillConfig": "dive.distillation",
    "distill": "dive.distillation",
    "DiveError": "dive.errors",
    "FallbackWarning": "dive.errors",
    "Report": "dive.generation",
    "generate": "dive.generation",
    "evaluate": "dive.metrics",
}

__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from dive.adapter import SteeringAdapter as SteeringAdapter
    from dive.adapter import SteeringConfig as SteeringConfig
    from dive.attach import steer as steer
    from dive.backbone import Backbone as Backbone
    from dive.backbone import load_backbone as load_backbone
    from dive.data import Study as Study
    from dive.decisive import DecisiveTokens as DecisiveTokens
    from dive.distillation import DistillConfig as DistillConfig
    from dive.distillation import distill as distill
    from dive.errors import DiveError as DiveError
    from dive.errors import FallbackWarning as FallbackWarning
    from dive.generation import Report as Report
    from dive.generation import generate as generate
    from dive.metrics import evaluate as evaluate


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    if name == "ops":
        return import_module("dive.ops")
    raise AttributeError(f"module 'dive' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "ops"]
