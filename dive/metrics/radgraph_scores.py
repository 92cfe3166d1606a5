"""RadGraph F1: the agreement of two annotations of entities and relations, as sets.

Three levels, each the F1 of two sets; 0 where either report has no entity; a corpus score is the
mean over reports:

- simple: (tokens, label);
- partial: (tokens, label, whether it has any relation), the one that is usually reported;
- complete: (tokens, label, relation, tokens of its target), one element per relation, and
  (tokens, label) where there is none.

Tokens are compared in lower case. The package on PyPI (0.1.18) compares them as written, except in
the relations of "complete": `case_sensitive=True` returns its numbers.

`radgraph_combined` is another score, that of CXR-Report-Metric (radgraph_evaluate_model.py) and
ReXrank, and a part of RadCliQ: the mean of two F1, of the entities (tokens, label) and of the
relations (tokens and label of either end, relation), each 0 where nothing agrees. Tokens are
compared as written. RadEval's `radgraph_radcliq` has the same definition.
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


def radgraph_combined(prediction: Annotation, reference: Annotation) -> float:
    """The mean of entity F1 and relation F1 of one report, 0 to 1."""
    parts = zip(
        _entities_and_relations(prediction), _entities_and_relations(reference), strict=True
    )
    return sum(_f1(mine, theirs) for mine, theirs in parts) / 2


def _entities_and_relations(annotation: Annotation) -> tuple[set[tuple], set[tuple]]:
    entities = annotation["entities"]
    ends = {key: (entity["tokens"], entity["label"]) for key, entity in entities.items()}
    relations = {
        (ends[key], ends[target], name)
        for key, entity in entities.items()
        for name, target in entity.get("relations") or []
    }
    return set(ends.values()), relations


def _f1(mine: set[tuple], theirs: set[tuple]) -> float:
    common = len(mine & theirs)
    return 2 * common / (len(mine) + len(theirs)) if common else 0.0


def radgraph_measure(
    predictions: Sequence[Annotation],
    references: Sequence[Annotation],
    *,
    case_sensitive: bool = False,
    source: str,
) -> Measure:
    """The measure of radgraph_{simple,partial,complete,combined}, means over reports.

    source: the origin of the annotations, in the words of the variant.
    """
    values = {
        f"radgraph_{level}": [
            radgraph_f1(mine, theirs, level, case_sensitive)
            for mine, theirs in zip(predictions, references, strict=True)
        ]
        for level in LEVELS
    }
    pairs = zip(predictions, references, strict=True)
    values["radgraph_combined"] = [radgraph_combined(mine, theirs) for mine, theirs in pairs]
    case = "case-sensitive as in radgraph 0.1.18" if case_sensitive else "lower-cased"
    variants = {
        name: f"RadGraph F1 {name.split('_')[1]}, {case}, mean over reports, {source}"
        for name in values
    } | {
        "radgraph_combined": "mean of entity and relation F1 as in CXR-Report-Metric (RadGraph of "
        f"ReXrank), as written, mean over reports, {source}"
    }
    return means_measure(values, variants)
