"""Precision, recall and F1 of the findings that reports state, by the project's lexicon.

A report's mentions are reduced to one state a finding: stated as present in one place and absent in
another ("no left effusion; small right effusion"), it is present; uncertain comes in between.

- `finding_*`: findings present. Uncertain ones count as present, as CheXbert F1 in its usual
  reading has it. Negated findings and statements of normality do not count.
- `finding_state_f1`: every finding that is mentioned, together with its state (present, uncertain,
  absent): what is said to be absent, and that the lungs are clear, counts too.

Both are micro averages: true positives, predicted and reference findings are summed over reports.
Most normal reports share their negated statements: `finding_state_f1` is the easier number.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dive.lexicon import lexicon_version
from dive.metrics.measure import Measure, f1, ratio

_RANK = {"negative": 0, "uncertain": 1, "positive": 2}
_NAMES = ("finding_precision", "finding_recall", "finding_f1", "finding_state_f1")


def states(text: str) -> dict[str, str]:
    """name of finding -> "positive", "uncertain" or "negative", for all that `text` mentions."""
    from dive.decisive import find_mentions  # the lexicon is compiled on first use

    found: dict[str, str] = {}
    for mention in find_mentions(text):
        polarity = str(mention.polarity)
        earlier = found.get(mention.name)
        if earlier is None or _RANK[polarity] > _RANK[earlier]:
            found[mention.name] = polarity
    return found


def finding_measure(predictions: Sequence[str], references: Sequence[str]) -> Measure:
    """Statistics: true, predicted and reference counts of present findings, then of states."""
    cache: dict[str, tuple[set[Any], set[Any]]] = {}
    rows = np.zeros((len(predictions), 6), dtype=np.int64)
    for row, prediction, reference in zip(rows, predictions, references, strict=True):
        (said, said_states), (true, true_states) = _sets(prediction, cache), _sets(reference, cache)
        row[:3] = len(said & true), len(said), len(true)
        row[3:] = len(said_states & true_states), len(said_states), len(true_states)
    lexicon = f"the lexicon of dive {lexicon_version()}"
    variant = f"micro over findings of {lexicon}, uncertain counted as present"
    variants = dict.fromkeys(_NAMES[:3], f"{variant}, negated and normal statements left out")
    variants["finding_state_f1"] = (
        f"micro over (finding of {lexicon}, present / uncertain / absent), all mentions"
    )
    return Measure(rows, _scores, variants, _NAMES)


def _sets(text: str, cache: dict[str, tuple[set[Any], set[Any]]]) -> tuple[set[Any], set[Any]]:
    if text not in cache:
        found = states(text)
        present = {name for name, state in found.items() if state != "negative"}
        cache[text] = present, set(found.items())
    return cache[text]


def _scores(totals: np.ndarray) -> dict[str, np.ndarray]:
    true, said, actual = totals[..., 0], totals[..., 1], totals[..., 2]
    values = ratio(true, said), ratio(true, actual), f1(true, said, actual)
    state = f1(totals[..., 3], totals[..., 4], totals[..., 5])
    return dict(zip(_NAMES, (*values, state), strict=True))
