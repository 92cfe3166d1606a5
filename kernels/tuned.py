"""What benchmarks/tune.py measured, one row a key; empty until a GPU has run it.

(kernel, compute capability, dtype, padded rank, width bucket) -> block sizes and launch options.
"""

from typing import Any

TUNED: dict[tuple[str, int, str, int, int], dict[str, Any]] = {}
