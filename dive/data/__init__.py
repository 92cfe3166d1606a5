"""Studies: an image or several of one examination, with what is written about them."""

from dive.data.datasets.json_lines import read_studies
from dive.data.open import open_studies
from dive.data.reading_summary import ReadingReport
from dive.data.skipping import Skipped
from dive.data.studies import Studies
from dive.data.study import TARGETS, Study, check_target

__all__ = [
    "TARGETS",
    "ReadingReport",
    "Skipped",
    "Studies",
    "Study",
    "check_target",
    "open_studies",
    "read_studies",
]
