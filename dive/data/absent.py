"""What stands where a text would be and is none: "nan", "N/A", "-", "___", a float NaN."""

import numbers
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

# What programs write for a missing value, and people for a missing text.
_WORDS = {
    "nan", "none", "null", "na", "n/a", "n/a n/a", "n.a", "nil", "nat", "undefined", "missing",
    "empty", "unavailable", "void", "1.#ind", "1.#qnan", "ref!", "value!", "name?", "div/0!",
    "num!", "blank", "pd.na", "not available", "not applicable", "not provided", "not given",
    "not recorded",
    "none available", "none given", "none provided", "none recorded", "no report",
    "no report available", "report not available", "no data", "no data available", "not stated",
    "not specified", "not documented", "unknown", "redacted",
}  # fmt: skip
# What is left in empty cells of exports.
_EXPORT = re.compile(
    r"</?(?:br|p|div|span|li|ul|ol|table|tbody|tr|td|th|b|i|u|em|strong|font|pre|html|head|body|hr"
    r"|h[1-6])(?:\s[^<>]{0,99})?/?>|&(?:nbsp|#160|#xa0|#13|#10|lt|gt|amp|quot);|\\[nrt]",
    re.IGNORECASE,
)
# Those words, and the names that joined columns are written under.
_SIGNS = re.compile(
    r"\b(?:findings?|impressions?|conclusions?|indications?|comparisons?|techniques?"
    r"|examination|report|(?:clinical[ ])?(?:history|information))[ \t]*[:=]"
    rf"|(?<![^\W_])(?:{'|'.join(map(re.escape, sorted(_WORDS, key=len, reverse=True)))})(?![^\W_])",
    re.IGNORECASE,
)
_LONGEST = 400  # characters of what may be nothing but signs
_SLASH = re.compile(r"\s*[/\\]\s*")
_DEIDENTIFIED = re.compile(r"x{3,}|_+", re.IGNORECASE)  # of Open-i and MIMIC-CXR


def is_absent(value: Any) -> bool:
    """Whether a value is none, blank, or a sign that there is none.

    None, NaN and pandas' NA; a text without any letter or digit; one of the words that programs
    write for a missing value ("nan", "None", "N/A", "null", "<NA>", ...), in any case; several of
    them, or one under a section's name, as joined columns leave them ("nan nan", "FINDINGS: nan");
    the markup of an empty cell ("<br>", "&nbsp;"); nothing but what de-identification put there
    (`___`, `XXXX`, `[REDACTED]`).
    """
    if value is None:
        return True
    if not isinstance(value, str):
        return _is_missing(value)
    if value.strip().casefold() == "\\n":  # SQL's \N
        return True
    if len(value) <= _LONGEST:
        value = _SIGNS.sub(" ", _SLASH.sub("/", _EXPORT.sub(" ", value)))
    return not any(map(str.isalnum, _DEIDENTIFIED.sub("", value)))


def is_placeholder(value: Any) -> bool:
    """Whether it is absent, and something stands in its place: no None, and not blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return False
    return is_absent(value)


def _is_missing(value: Any) -> bool:
    """NaN of any library's numbers, and pandas' NA and NaT, which equal nothing."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, numbers.Real) and bool(value != value)


def first_present(*values: Any) -> Any:
    """The first value that is not absent; None where all are."""
    return next((value for value in values if not is_absent(value)), None)


def counts_text(counts: Mapping[str, int]) -> str:
    """The counts of what was taken as absent, in words: "12 findings, 1 view"."""
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def count_placeholders(counts: Counter[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with None in the place of placeholders, which `counts` counts by their names."""
    found = dict(values)
    for name, value in values.items():
        if is_placeholder(value):
            counts[name] += 1
            found[name] = None
    return found
