"""Launch configurations measured by benchmarks/tune.py, one per key; empty until it ran on a GPU.

(kernel, compute capability, dtype, padded rank, width bucket) -> block sizes and launch options.
"""

from typing import Any

TUNED: dict[tuple[str, int, str, int, int], dict[str, Any]] = {}
