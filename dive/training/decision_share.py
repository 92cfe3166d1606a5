"""The share of the loss's weight that lies on decision tokens, whatever is weighted."""

from collections.abc import Sequence
from typing import NamedTuple

from dive.data.study import Study
from dive.decisive.decision_tokens import Undecided
from dive.decisive.tokens import PATHOLOGY, DecisiveTokens
from dive.prompting.prompter import Prompter
from dive.training.workers import spread

SAMPLED = 2000  # reports, at most, from which the share is measured


class DecisionShare(NamedTuple):
    """The share of the weight on decision tokens, from 0 to 1; None where no finding is both stated
    and denied in the sampled reports, so that no token decides."""

    share: float | None
    reports: int

    def __str__(self) -> str:
        if self.share is None:
            return f"decision tokens: none, no finding is stated and denied in {self._reports}"
        return (
            f"decision tokens, at which present and absent part: {100 * self.share:.1f}% of the "
            f"loss's weight in {self._reports}"
        )

    @property
    def _reports(self) -> str:
        return "1 report" if self.reports == 1 else f"{self.reports:,} reports"


def decision_share(
    weigher: DecisiveTokens, studies: Sequence[Study], prompter: Prompter, workers: int = 0
) -> DecisionShare:
    """Measure the share in the training reports, or an evenly spaced sample of `SAMPLED` of them.

    Where the unit is another than "decision", the trees grow from the same sample.

    Args:
        workers: processes that read reports.
    """
    studies = studies[:: max(1, -(-len(studies) // SAMPLED))]
    answers = [prompter.response(study) for study in studies]
    decided = weigher
    if weigher.unit != "decision":
        decided = weigher.by("decision")
        try:
            decided.fit(
                [answer.text for answer in answers],
                lambda read, texts: spread(read, texts, workers),
            )
        except Undecided:
            return DecisionShare(None, len(studies))

    def weights_of(index: int) -> tuple[float, float]:
        """The weight on decision tokens, and on all, of one report."""
        answer = answers[index]
        given = answer.text, answer.offsets, len(answer.ids)
        _, weights = weigher.weigh(*given)
        kinds = decided.label(*given)
        on = sum(w for w, kind in zip(weights, kinds, strict=True) if kind == PATHOLOGY)
        return on, sum(weights)

    on, total = map(sum, zip(*spread(weights_of, range(len(answers)), workers), strict=True))
    return DecisionShare(on / total if total else None, len(studies))
