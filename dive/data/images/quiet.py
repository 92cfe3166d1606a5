"""Suppression of the warnings of libraries while films are read.

Such warnings quote headers, and the important ones are errors or warnings of our own. Films are
read in threads, and `warnings.catch_warnings` is not thread-safe: it restores the earlier filters
for all threads. So the filters are set once, and stay.
"""

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

# modules of pydicom and its decoders
_MODULES = r"(pydicom|pylibjpeg|openjpeg|libjpeg|rle|jpeg_ls|gdcm)(\.|$)"
# Pillow warns of large images at 89 megapixels; the limit here is in `dive.data.images.bounds`.
_LARGE = Image.DecompressionBombWarning
_OURS: list[Any] = [
    ("ignore", None, Warning, re.compile(_MODULES), 0),
    ("ignore", None, _LARGE, None, 0),
]
_here = threading.local()


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings of these libraries, and of arithmetic in this thread."""
    if list(warnings.filters[: len(_OURS)]) != _OURS:  # other filters were added before them
        warnings.filterwarnings("ignore", category=_LARGE)
        warnings.filterwarnings("ignore", module=_MODULES)
    logger = logging.getLogger("pydicom")
    if _loud not in logger.filters:
        logger.addFilter(_loud)
    before = getattr(_here, "reading", False)
    _here.reading = True
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        _here.reading = before


def _loud(_record: logging.LogRecord) -> bool:
    """Whether a message of pydicom comes from other code, and is to be logged."""
    return not getattr(_here, "reading", False)
