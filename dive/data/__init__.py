"""Studies: the images of an examination and the sections of its report."""

from dive.data.datasets.json_lines import read_studies
from dive.data.open import open_studies
from dive.data.reading_summary import ReadingSummary
from dive.data.skipping import Skipped
from dive.data.studies import Studies
from dive.data.study import TARGETS, Study, check_target
from dive.errors.renamed import warn_renamed

__all__ = [
    "TARGETS",
    "ReadingSummary",
    "Skipped",
    "Studies",
    "Study",
    "check_target",
    "open_studies",
    "read_studies",
]


def __getattr__(name: str) -> object:
    if name != "ReadingReport":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_renamed("dive.data.ReadingReport", "dive.data.ReadingSummary")
    return ReadingSummary
