"""RadGraph F1: the agreement of two annotations of entities and relations, as sets.

Three levels, each the F1 of two sets; 0 where either report has no entity; a corpus score is the
mean over reports:

- simple: (tokens, label);
- partial: (tokens, label, whether it has any relation), the one that is usually reported;
- complete: (tokens, label, relation, tokens of its target), one element per relation, and
  (tokens, label) where there is none.

Tokens are compared in lower case. The package on PyPI (0.1.18) compares them as written, except in
the relations of "complete": `case_sensitive=True` returns its numbers.
"""

from collections.abc import Sequence

from dive.errors import DiveError
from dive.metrics.measure import Measure, means_measure
from dive.radgraph import Annotation

LEVELS = ("simple", "partial", "complete")


def elements(annotation: Annotation, level: str, case_sensitive: bool = False) -> set[tuple]:
    """The set that is compared at `level`."""
    entities = annotation["entities"]
    found: set[tuple] = set()
    for entity in entities.values():
        tokens, label = entity["tokens"], entity["label"]
        relations = entity.get("relations") or []
        if not case_sensitive:
            tokens = tokens.lower()
        if level == "simple" or not relations:
            found.add((tokens, label))
        elif level == "partial":
            found.add((tokens, label, True))
        else:
            for name, target in relations:
                # lower-cased in every release
                found.add((tokens.lower(), label, name, entities[target]["tokens"].lower()))
    return found


def radgraph_f1(
    prediction: Annotation, reference: Annotation, level: str, case_sensitive: bool = False
) -> float:
    """F1 of one report, 0 to 1."""
    if level not in LEVELS:
        raise DiveError(f"RadGraph level is {level!r}, want one of {', '.join(LEVELS)}")
    mine = elements(prediction, level, case_sensitive)
    theirs = elements(reference, level, case_sensitive)
    if not mine or not theirs:
        return 0.0
    return 2 * len(mine & theirs) / (len(mine) + len(theirs))


def radgraph_measure(
    predictions: Sequence[Annotation],
    references: Sequence[Annotation],
    *,
    case_sensitive: bool = False,
    source: str,
) -> Measure:
    """The measure of radgraph_simple, radgraph_partial and radgraph_complete, means over reports.

    source: the origin of the annotations, in the words of the variant.
    """
    values = {
        f"radgraph_{level}": [
            radgraph_f1(mine, theirs, level, case_sensitive)
            for mine, theirs in zip(predictions, references, strict=True)
        ]
        for level in LEVELS
    }
    case = "case-sensitive as in radgraph 0.1.18" if case_sensitive else "lower-cased"
    variants = {
        name: f"RadGraph F1 {name.split('_')[1]}, {case}, mean over reports, {source}"
        for name in values
    }
    return means_measure(values, variants)
