"""docs/measure_lexicon.py as a module: the marked sets, and how they are read."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def _load() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "measure_lexicon.py"
    spec = importlib.util.spec_from_file_location("measure_lexicon", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its named tuples look themselves up there
    spec.loader.exec_module(module)
    return module


measure_lexicon = _load()
