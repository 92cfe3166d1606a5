"""Placeholders for an absent text or value: "nan", "N/A", "-", "___", a float NaN."""

import numbers
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

# Words that programs write for a missing value, and people for a missing text.
_WORDS = {
    "nan", "none", "null", "na", "n/a", "n/a n/a", "n.a", "nil", "nat", "undefined", "missing",
    "empty", "unavailable", "void", "1.#ind", "1.#qnan", "ref!", "value!", "name?", "div/0!",
    "num!", "blank", "pd.na", "not available", "not applicable", "not provided", "not given",
    "not recorded",
    "none available", "none given", "none provided", "none recorded", "no report",
    "no report available", "report not available", "no data", "no data available", "not stated",
    "not specified", "not documented", "unknown", "redacted",
}  # fmt: skip
# Markup in the empty cells of exports.
_EXPORT = re.compile(
    r"</?(?:br|p|div|span|li|ul|ol|table|tbody|tr|td|th|b|i|u|em|strong|font|pre|html|head|body|hr"
    r"|h[1-6])(?:\s[^<>]{0,99})?/?>|&(?:nbsp|#160|#xa0|#13|#10|lt|gt|amp|quot);|\\[nrt]",
    re.IGNORECASE,
)
# These words, and the section names that joined columns are written under.
_SIGNS = re.compile(
    r"\b(?:findings?|impressions?|conclusions?|indications?|comparisons?|techniques?"
    r"|examination|report|(?:clinical[ ])?(?:history|information))[ \t]*[:=]"
    rf"|(?<![^\W_])(?:{'|'.join(map(re.escape, sorted(_WORDS, key=len, reverse=True)))})(?![^\W_])",
    re.IGNORECASE,
)
_LONGEST = 400  # characters up to which a text is searched for these words
_SLASH = re.compile(r"\s*[/\\]\s*")
_DEIDENTIFIED = re.compile(r"x{3,}|_+", re.IGNORECASE)  # of Open-i and MIMIC-CXR


def is_absent(value: Any) -> bool:
    """Whether a value is None, blank, or a placeholder.

    Absent are None, NaN and pandas' NA; a text without any letter or digit; one of the words that
    programs write for a missing value ("nan", "None", "N/A", "null", "<NA>", ...), in any case;
    several of them, or one under a section's name, as joined columns have them ("nan nan",
    "FINDINGS: nan"); the markup of an empty cell ("<br>", "&nbsp;"); and a text of nothing but
    de-identification marks (`___`, `XXXX`, `[REDACTED]`).
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
    """Whether a value is absent, and neither None nor blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return False
    return is_absent(value)


def _is_missing(value: Any) -> bool:
    """Whether a value is a NaN of any library, or pandas' NA or NaT."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, numbers.Real) and bool(value != value)


def first_present(*values: Any) -> Any:
    """The first value that is not absent; None where all of them are."""
    return next((value for value in values if not is_absent(value)), None)


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts of absent values as text: "12 findings, 1 view"."""
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def count_placeholders(counts: Counter[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the placeholders in `values` by None, and adds them to `counts` by their names."""
    found = dict(values)
    for name, value in values.items():
        if is_placeholder(value):
            counts[name] += 1
            found[name] = None
    return found
