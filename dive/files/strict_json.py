"""JSON of untrusted origin: no duplicate keys, only finite numbers, limited nesting."""

import json
import math
from typing import Any

from dive.errors import DiveError

DEEPEST = 64
_WHOLE = 1 << 63


def parse(text: str, name: str) -> Any:
    """The value of a JSON text; error messages begin with `name`.

    Raises:
        DiveError: no JSON; a duplicate key in an object; NaN, infinity or a number that float64
            does not have; an integer of more than 64 bits; more than `DEEPEST` levels.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(found)
        if len(table) < len(found):
            seen: set[str] = set()
            twice = next(key for key, _ in found if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise DiveError(f"{name}: has the key {short(twice)} twice")
        return table

    def constant(word: str) -> Any:
        raise DiveError(f"{name}: has {word}, which is no number of JSON")

    def number(word: str) -> float:
        value = float(word)
        if not math.isfinite(value):
            raise DiveError(f"{name}: has the number {short(word)}, which is too large for float64")
        return value

    def whole(word: str) -> int:
        value = int(word) if len(word) <= 20 else _WHOLE
        if not -_WHOLE <= value < _WHOLE:
            shown = word if len(word) <= 80 else short(word)
            raise DiveError(
                f"{name}: has the whole number {shown}, which does not fit 64 bits with a sign "
                f"({-_WHOLE} to {_WHOLE - 1})"
            )
        return value

    try:
        value = json.loads(
            text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number,
            parse_int=whole,
        )  # fmt: skip
    except DiveError:
        raise
    except RecursionError:
        raise DiveError(f"{name}: is nested more than {DEEPEST} levels deep") from None
    except ValueError as error:
        raise DiveError(f"{name}: not readable as JSON: {error}") from error
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return value
    raise DiveError(f"{name}: is nested more than {DEEPEST} levels deep")


def short(value: Any) -> str:
    """A value as a message shows it, shortened where it is long."""
    text = repr(value[:80] if isinstance(value, (str, list)) else value)
    many = f" ({len(value):,} in all)" if isinstance(value, (str, list)) and value[80:] else ""
    return (text if len(text) <= 160 else text[:120] + "...") + many


def _inside(value: Any) -> list[Any]:
    held = (
        value if isinstance(value, list) else [*value.values()] if isinstance(value, dict) else []
    )
    return [one for one in held if isinstance(one, (list, dict))]
