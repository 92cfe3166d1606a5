"""The pairs of prediction and reference that can be scored."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from dive.data.absent import is_placeholder
from dive.data.reading_summary import PLACEHOLDERS
from dive.errors import DiveError

log = logging.getLogger(__name__)


class Pairs:
    """The pairs that can be scored, and their indices among all pairs."""

    def __init__(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        baseline: Sequence[str] | None,
    ) -> None:
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
        self.predictions = self.scored(predictions, "predictions")
        self.baseline = None if baseline is None else self.scored(baseline, "baseline")

    def scored(self, values: Sequence[str], what: str) -> list[str]:
        every = _listed(what, values)
        if len(every) != self.reports:
            raise DiveError(
                f"{what}: {len(every)} for {self.reports} references, want one per reference"
            )
        texts = self._texts(what, every)
        return [texts[i] for i in self.indices]

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

    def texts(self) -> dict[str, list[str]]:
        found = {"references": self.references, "predictions": self.predictions}
        return found | ({} if self.baseline is None else {"baseline": self.baseline})

    def counts(self) -> dict[str, Any]:
        return {
            "placeholders": dict(self.placeholders),
            "reports": self.reports,
            "scored": len(self.indices),
            "empty_predictions": sum(not text.strip() for text in self.predictions),
            "empty_references": self.reports - len(self.indices),
        }


def _listed(what: str, values: Any) -> list[Any]:
    """The values as a list, in their order: a pandas Series is indexed by its labels."""
    ordered = not isinstance(values, (str, bytes, Mapping, Set)) and not hasattr(values, "columns")
    if not ordered or not isinstance(values, Iterable):
        got = "one text" if isinstance(values, str) else f"a {type(values).__name__}"
        raise DiveError(f"{what} is {got}, want a list of texts")
    return list(values)
