"""Lets pytest, started from anywhere, import `benchmarks.timing`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
