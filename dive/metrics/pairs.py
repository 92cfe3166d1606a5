"""The pairs of prediction and reference that can be scored."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import chain
from typing import Any

from dive.data.absent import is_absent, is_placeholder
from dive.data.reading_summary import PLACEHOLDERS
from dive.errors import DiveError

log = logging.getLogger(__name__)


class Seeds(tuple[Sequence[str], ...]):
    """Lists of texts for the same references, one list per training seed."""


class Pairs:
    """The pairs that can be scored, and their indices among all pairs.

    Attributes:
        reports: number of references.
        indices: of those that hold a text, and so are scored.
        references: the scored ones.
        placeholders: what -> how many texts were placeholders.
    """

    def __init__(self, references: Sequence[str]) -> None:
        self.placeholders: Counter[str] = Counter()
        references = self._texts("references", _listed("references", references))
        self.reports = len(references)
        self.indices = [i for i, text in enumerate(references) if text.strip()]
        if not self.indices:
            raise DiveError(
                f"nothing to score: of {self.reports} references none holds any text"
                if self.reports
                else "nothing to score: no references were given"
            )
        self.references = [references[i] for i in self.indices]

    def lists(self, values: Sequence[str] | Seeds, what: str) -> list[list[str]]:
        """The scored texts of every training seed; one list, unless `Seeds` are given."""
        if not isinstance(values, Seeds):
            return [self.scored(values, what)]
        if not values:
            raise DiveError(f"{what} is empty, want one list of texts per training seed")
        return [self.scored(one, f"{what} of seed {i + 1}") for i, one in enumerate(values)]

    def scored(self, values: Sequence[str], what: str) -> list[str]:
        """The texts that belong to scored references; `what` they are, in errors."""
        every = _listed(what, values)
        if len(every) != self.reports:
            raise DiveError(
                f"{what}: {len(every)} for {self.reports} references, want one per reference"
            )
        texts = self._texts(what, every)
        return [texts[i] for i in self.indices]

    def patients(self, values: Sequence[str | None] | None) -> list[str | None]:
        """The patient of each scored reference; blanks and placeholders are unknown ones."""
        if values is None:
            return [None] * len(self.indices)
        every = _listed("patients", values)
        if len(every) != self.reports:
            raise DiveError(
                f"patients: {len(every)} for {self.reports} references, want one per reference"
            )
        known: list[str | None] = []
        for i in self.indices:
            value = None if is_absent(every[i]) else every[i]
            if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
                raise DiveError(f"patients[{i}] is a {type(value).__name__}, want a text or None")
            known.append(None if value is None else str(value))
        return known

    def _texts(self, what: str, values: list[Any]) -> list[str]:
        empty = [is_placeholder(value) for value in values]
        texts = ["" if lost else value for lost, value in zip(empty, values, strict=True)]
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise DiveError(f"{what}[{i}] is a {type(text).__name__}, want a text")
        if any(empty):
            self.placeholders[what] = lost = sum(empty)
            log.warning("%s: %d of %d are empty (%s)", what, lost, len(texts), PLACEHOLDERS)
        return texts

    def counts(
        self, predictions: Iterable[Sequence[str]], what: str | None = None
    ) -> dict[str, Any]:
        """The counts that `dive.evaluate` returns; those of predictions are of all seeds.

        what: what was read whose placeholders are counted, beside the references'; None: all.
        """
        return {
            "placeholders": {
                name: count
                for name, count in self.placeholders.items()
                if what is None or name in ("references", what)
            },
            "reports": self.reports,
            "scored": len(self.indices),
            "empty_predictions": sum(not text.strip() for text in chain(*predictions)),
            "empty_references": self.reports - len(self.indices),
        }


def _listed(what: str, values: Any) -> list[Any]:
    """The values as a list, in their order: a pandas Series is indexed by its labels."""
    ordered = not isinstance(values, (str, bytes, Mapping, Set)) and not hasattr(values, "columns")
    if not ordered or not isinstance(values, Iterable):
        got = "one text" if isinstance(values, str) else f"a {type(values).__name__}"
        raise DiveError(f"{what} is {got}, want a list of texts")
    return list(values)
