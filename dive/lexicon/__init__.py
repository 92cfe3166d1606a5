"""The pathology lexicon: readable data files, their loader and the word automaton."""

from dive.lexicon.lexicon import (
    CHEXPERT_CLASSES,
    OTHER,
    Entry,
    Lexicon,
    default_cues,
    default_lexicon,
    lexicon_version,
    load_lexicon,
)

__all__ = [
    "CHEXPERT_CLASSES", "OTHER", "Entry", "Lexicon", "default_cues", "default_lexicon",
    "lexicon_version", "load_lexicon",
]  # fmt: skip
