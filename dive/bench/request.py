"""What a run can be requested to do, checked without torch: a misspelt option costs no import."""

import math
import re
from collections.abc import Sequence

from dive.errors import DiveError

CROSS_ENTROPY, STEER, DECODE = OPERATORS = ("cross-entropy", "steer", "decode")
DTYPES = ("float32", "bfloat16", "float16")
_DEVICE = re.compile(r"auto|(cpu|cuda)(:\d+)?")


def operators_of(given: Sequence[str]) -> list[str]:
    """Returns each operator named once, or all if none is; cross_entropy means cross-entropy."""
    names = [name.replace("_", "-") for name in given]
    for name, meant in zip(given, names, strict=True):
        if meant not in OPERATORS:
            raise DiveError(f"bench: operator is {name!r}, want one of {', '.join(OPERATORS)}")
    return list(dict.fromkeys(names)) or list(OPERATORS)


def check(
    operators: Sequence[str], device: str, dtype: str, seconds: float, threads: int | None
) -> None:
    """Raises a DiveError for what no machine could run; does not look for the device."""
    operators_of(operators)
    if not 0 < seconds < math.inf:
        raise DiveError(f"bench: seconds is {seconds}, want a finite number above 0")
    if not _DEVICE.fullmatch(device):
        raise DiveError(f"bench: device is {device!r}, want auto, cpu, cuda, cuda:1 ...")
    if dtype != "auto" and dtype not in DTYPES:
        raise DiveError(f"bench: dtype is {dtype!r}, want auto, {', '.join(DTYPES)}")
    if threads is not None and threads < 1:
        raise DiveError(f"bench: threads is {threads}, want 1 or more")
