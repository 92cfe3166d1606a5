"""The decision word of a clause: the first at which training reports part present and absent."""

from collections.abc import Iterable, Sequence

from dive.decisive.clauses import Clause
from dive.decisive.mentions import Mention
from dive.errors import DiveError
from dive.lexicon import OTHER

DEPTH = 16  # words of a clause, at most, that the trees hold
SURE = 0.9  # share of one side from which a beginning is decided
PRIOR = 1.0  # clauses of a side for which those of all findings stand in
_ALL = ""  # the name of the tree of all findings; no finding is called so

Counts = list[float]  # clauses [absent, present]


class Undecided(DiveError):
    """No finding of the training reports is both stated and denied."""


class DecisionTrees:
    """Prefix trees of the clauses that state each finding, with how many state it present and
    absent.

    Of the n_y clauses that state a finding on side y (present, absent), n_y(v) begin with the words
    v; of those of all findings, N_y(v) of N_y. The estimate of how often side y begins so is

        q_y(v) = (n_y(v) + PRIOR N_y(v) / N_y) / (n_y + PRIOR)
        s_y(v) = q_y(v) / (q_present(v) + q_absent(v))

    and the decision word of a clause of side y is the first with s_y(v) >= SURE, where v ends with
    it. Shares and not counts, so that a finding denied in a thousand reports and stated in ten is
    parted where the wording parts; SURE below 1 and the clauses of all findings, so that neither a
    clause that was misread nor one that stands alone decides much. Of a clause that states several
    findings ("no effusion or pneumothorax") q_y is the mean over them.

    A finding is looked up by its name; where the reports never deny, or never state, that name, by
    its class (not "Other"). Where they do neither, it has no decision word: nothing says what the
    other statement looks like. A statement of normality ("the heart is normal") names no finding:
    it counts, and is looked up, among the clauses of all findings. A clause that leaves what the
    trees know before it is decided has no decision word.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, dict[tuple[str, ...], Counts]] = {}
        self._totals: dict[str, Counts] = {}

    def add(self, clause: Clause) -> None:
        """Count a clause of a training report: once for each finding that it states."""
        for key in {_ALL, *(key for one in clause.mentions for key in _keys(one))}:
            self._totals.setdefault(key, [0.0, 0.0])[clause.present] += 1
            nodes = self._nodes.setdefault(key, {})
            for depth in range(1, min(len(clause.words), DEPTH) + 1):
                counts = nodes.setdefault(clause.words[:depth], [0.0, 0.0])
                counts[clause.present] += 1

    @property
    def findings(self) -> list[str]:
        """The names that the reports state both present and absent, sorted."""
        return sorted(
            key[1:] for key, total in self._totals.items() if key[:1] == "=" and all(total)
        )

    def index(self, clause: Clause) -> int | None:
        """The index of a clause's decision word, or None."""
        every = self._totals.get(_ALL, _NONE)
        owners = self._owners(clause)
        if not owners or not all(every):
            return None
        for depth in range(1, min(len(clause.words), DEPTH) + 1):
            shares = self._shares(clause.words[:depth], owners)
            total = sum(shares)
            if not total:
                return None
            if shares[clause.present] >= SURE * total:
                return depth - 1
        return None

    def _owners(self, clause: Clause) -> list[str]:
        """The tree in which each of a clause's mentions is looked up, if there is one."""
        owners = []
        for mention in clause.mentions:
            keys = _keys(mention) or [_ALL]
            own = next((key for key in keys if all(self._totals.get(key, _NONE))), None)
            if own is not None:
                owners.append(own)
        return owners

    def _shares(self, words: tuple[str, ...], owners: Sequence[str]) -> tuple[float, float]:
        """(q_absent, q_present) of a clause's beginning."""
        shares = [0.0, 0.0]
        for side in (False, True):
            everywhere = self._nodes[_ALL].get(words, _NONE)[side] / self._totals[_ALL][side]
            for own in owners:
                count, total = self._nodes[own].get(words, _NONE)[side], self._totals[own][side]
                shares[side] += (count + PRIOR * everywhere) / (total + PRIOR)
        return shares[0], shares[1]


_NONE: Sequence[float] = (0.0, 0.0)


def _keys(mention: Mention) -> list[str]:
    """The trees that a mention counts in, besides that of all findings; the most specific first."""
    if mention.normal:
        return []
    return [f"={mention.name.casefold()}"] + ([] if mention.cls == OTHER else [f":{mention.cls}"])


def grown(clauses: Iterable[Clause], reports: int) -> DecisionTrees:
    """The trees of all clauses of `reports` training reports.

    Raises:
        Undecided: no finding is both stated and denied.
    """
    trees = DecisionTrees()
    for clause in clauses:
        trees.add(clause)
    if not trees.findings:
        raise Undecided(
            f"decisive_unit is 'decision', and none of the findings of {reports} training reports "
            "is stated as present in one and absent in another: want reports with both, or "
            "decisive_unit 'mention' or 'clause'"
        )
    return trees
