"""Studies: an image or several of one examination, with what is written about them."""

from dive.data.jsonl import Skipped, read_studies
from dive.data.study import TARGETS, Study, check_target

__all__ = ["TARGETS", "Skipped", "Study", "check_target", "read_studies"]
