"""The scores of findings by CheXpert class, and by how common a finding is in the references.

Both divide the members of `finding_f1` and `finding_detail_f1` (`dive.metrics.findings`): the
counts of all classes add up to those of the whole, and so do those of the terciles and of the
findings that no reference states. All scores are micro averages within their group, so the right
class with another finding of that class (an opacity for an infiltrate) is a miss, as in the whole.

A score without a denominator is NaN, and not 0: the recall of what no reference states, the
precision of what no prediction states.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np

from dive.lexicon import CHEXPERT_CLASSES, OTHER
from dive.metrics.findings import FindingMeasure, Stated
from dive.metrics.measure import Measure, ratio

SCORES = ("finding_precision", "finding_recall", "finding_f1", "finding_detail_f1")
TERCILES = ("rare", "middle", "common")
_CLASSES = (*(name for name in CHEXPERT_CLASSES if name != "No Finding"), OTHER)


class FindingGroups:
    """The classes and terciles of what the scored references state.

    Attributes:
        classes: class -> number of references that state one of its findings as present or
            uncertain; all classes of CheXpert without "No Finding", and "Other".
        findings: name -> number of references that state it as present or uncertain, the rarest
            first; names in alphabetical order where the numbers are equal.
        tercile_of: name -> "rare", "middle" or "common".
        class_of: name -> class, for all that any text mentions.
    """

    def __init__(self, measures: Sequence[FindingMeasure]) -> None:
        references = measures[0].referenced
        self.class_of: dict[str, str] = {}
        for measure in measures:
            for stated in (*references, *measure.predicted):
                self.class_of |= stated.classes
        counts = Counter(name for stated in references for name in stated.present)
        self.findings = dict(sorted(counts.items(), key=lambda item: (item[1], item[0])))
        self.tercile_of = terciles(self.findings)
        in_classes = Counter(
            cls for stated in references for cls in {self.class_of[name] for name in stated.present}
        )
        known = dict.fromkeys((*_CLASSES, *sorted(set(self.class_of.values()) - {"No Finding"})))
        self.classes = {cls: in_classes[cls] for cls in known}

    def of_tercile(self, tercile: str) -> dict[str, int]:
        """The findings of a tercile, and how many references state each."""
        return {
            name: count for name, count in self.findings.items() if self.tercile_of[name] == tercile
        }

    def unreferenced(self, predicted: Iterable[Stated]) -> tuple[list[str], int]:
        """The findings that predictions state and no reference does, and how often in all."""
        counts = Counter(
            name for stated in predicted for name in stated.present if name not in self.findings
        )
        return sorted(counts), counts.total()

    def by_class(self, measure: FindingMeasure) -> dict[str, Measure]:
        """The measure of each class."""
        return dict(zip(self.classes, _divided(measure, self.class_of, self.classes), strict=True))

    def by_tercile(self, measure: FindingMeasure) -> dict[str, Measure]:
        """The measure of each tercile."""
        return dict(zip(TERCILES, _divided(measure, self.tercile_of, TERCILES), strict=True))


def terciles(counts: Mapping[str, int]) -> dict[str, str]:
    """name -> "rare", "middle" or "common": thirds of the findings, by their counts.

    Findings with the same count stay together, in the third in which the middle of them lies (on
    a border between two, in the outer one). Without equal counts the thirds differ by one finding
    at most; with many they may differ by more, and one may be empty.
    """
    found: dict[str, str] = {}
    ordered = sorted(counts, key=lambda name: (counts[name], name))
    for _, equal in groupby(ordered, key=lambda name: counts[name]):
        names, before = list(equal), len(found)
        middle, whole = 3 * (2 * before + len(names)), 2 * len(ordered)
        third = 0 if middle <= whole else 2 if middle >= 2 * whole else 1
        found |= dict.fromkeys(names, TERCILES[third])
    return found


def _divided(
    measure: FindingMeasure, group_of: Mapping[str, str], groups: Iterable[str]
) -> list[Measure]:
    """A measure per group, of the findings that belong to it."""
    numbers = {group: i for i, group in enumerate(groups)}
    number_of = {name: numbers[group] for name, group in group_of.items() if group in numbers}
    counts = np.zeros((len(numbers), len(measure.predicted), 6), dtype=np.int64)
    pairs = zip(measure.predicted, measure.referenced, strict=True)
    for report, (said, true) in enumerate(pairs):
        columns = (
            [*said.present & true.present],
            [*said.present],
            [*true.present],
            [name for name, *_ in said.details & true.details],
            [name for name, *_ in said.details],
            [name for name, *_ in true.details],
        )
        for column, names in enumerate(columns):
            for name in names:
                if name in number_of:
                    counts[number_of[name], report, column] += 1
    return [Measure(one, _scores, {}, ()) for one in counts]


def _scores(totals: np.ndarray) -> dict[str, np.ndarray]:
    true, predicted, actual, *detailed = (totals[..., k] for k in range(6))
    values = (
        ratio(true, predicted, np.nan),
        ratio(true, actual, np.nan),
        ratio(2 * true, predicted + actual, np.nan),
        ratio(2 * detailed[0], detailed[1] + detailed[2], np.nan),
    )
    return dict(zip(SCORES, values, strict=True))
