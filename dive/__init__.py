"""DIVE: the effect of in-context demonstrations, distilled into a small steering adapter.

Names and modules are loaded on first use, so `import dive` and `dive --help` do not import torch.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# public name -> package that has it
_EXPORTS = {
    "Backbone": "dive.backbone",
    "load_backbone": "dive.backbone",
    "SteeringAdapter": "dive.adapter",
    "SteeringConfig": "dive.adapter",
    "steer": "dive.adapter",
    "DecisiveTokens": "dive.decisive",
    "Study": "dive.data",
    "DistillConfig": "dive.training",
    "distill": "dive.training",
    "DiveError": "dive.errors",
    "FallbackWarning": "dive.errors",
    "Report": "dive.generation",
    "generate": "dive.generation",
    "evaluate": "dive.metrics",
    "evaluate_methods": "dive.metrics",
    "evaluate_seeds": "dive.metrics",
}
# every package is an attribute without an import of its own
_PACKAGES = (
    "adapter", "backbone", "bench", "cli", "data", "decisive", "decode", "demo", "errors", "files",
    "generation", "kernels", "lexicon", "metrics", "ops", "prompting", "radgraph", "reference",
    "training", "vllm",
)  # fmt: skip
# modules that stood at the top once, as attributes
_MOVED = {
    "attach": "dive.adapter.attach",
    "distillation": "dive.training.distillation",
    "extension": "dive.decode.native",
    "fingerprint": "dive.backbone.fingerprint",
    "hub": "dive.adapter.hub",
    "image_cache": "dive.training.image_features",
    "polarity": "dive.decisive.polarity",
    "presets": "dive.training.config",
    "structure": "dive.backbone.structure",
    "teacher": "dive.training.teacher",
    "templates": "dive.prompting.templates",
    "trainer": "dive.training.trainer",
}

__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from dive import adapter as adapter
    from dive import backbone as backbone
    from dive import bench as bench
    from dive import cli as cli
    from dive import data as data
    from dive import decisive as decisive
    from dive import decode as decode
    from dive import demo as demo
    from dive import errors as errors
    from dive import files as files
    from dive import generation as generation
    from dive import kernels as kernels
    from dive import lexicon as lexicon
    from dive import metrics as metrics
    from dive import ops as ops
    from dive import prompting as prompting
    from dive import radgraph as radgraph
    from dive import reference as reference
    from dive import training as training
    from dive import vllm as vllm
    from dive.adapter import SteeringAdapter as SteeringAdapter
    from dive.adapter import SteeringConfig as SteeringConfig
    from dive.adapter import attach as attach
    from dive.adapter import steer as steer
    from dive.backbone import Backbone as Backbone
    from dive.backbone import load_backbone as load_backbone
    from dive.data import Study as Study
    from dive.decisive import DecisiveTokens as DecisiveTokens
    from dive.errors import DiveError as DiveError
    from dive.errors import FallbackWarning as FallbackWarning
    from dive.generation import Report as Report
    from dive.generation import generate as generate
    from dive.metrics import evaluate as evaluate
    from dive.metrics import evaluate_methods as evaluate_methods
    from dive.metrics import evaluate_seeds as evaluate_seeds
    from dive.training import DistillConfig as DistillConfig
    from dive.training import distill as distill


def face(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """`__getattr__` of a package whose public names are imported when they are asked for.

    homes: public name -> module of the package that has it.
    """

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    if name.startswith("_"):
        raise AttributeError(f"module 'dive' has no attribute {name!r}")
    try:
        return import_module(_MOVED.get(name, f"dive.{name}"))
    except ImportError as error:  # kernels without triton: hasattr() is to answer, not to raise
        if error.name == f"dive.{name}":
            raise AttributeError(f"module 'dive' has no attribute {name!r}") from None
        raise AttributeError(f"dive.{name} cannot be imported here: {error}") from error


def __dir__() -> list[str]:
    return [*__all__, *_PACKAGES]
