"""What libraries say of films while they are read here, by themselves: nothing.

Their warnings quote headers, and what matters in them comes as an error or a note of our own. Films
are read in threads, and `warnings.catch_warnings` is not made for them: it puts back, for all of
them, the filters that were there before. So these are set once, and stay.
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

# pydicom and the decoders that it calls, by the modules that warn
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
    """While a film is read: no warning of these libraries, and of this thread's arithmetic none."""
    if list(warnings.filters[: len(_OURS)]) != _OURS:  # others' filters came before them
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
    """Whether pydicom's log is anybody else's."""
    return not getattr(_here, "reading", False)
