"""Lets `dive bench`, which is run from anywhere, import `benchmarks.timing`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
