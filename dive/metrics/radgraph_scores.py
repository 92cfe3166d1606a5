"""RadGraph F1: how far two annotations of entities and relations agree, as sets.

An annotation is a dict as the `radgraph` package returns it and PhysioNet's files hold it:

    {"text": "no pleural effusion .",                    # words, separated by spaces
     "entities": {"1": {"tokens": "effusion", "label": "Observation::definitely absent",
                        "start_ix": 2, "end_ix": 2,      # words, both ends included
                        "relations": [["located_at", "2"]]}, ...}}

Three levels, each the F1 of two sets; 0 where either report has no entity; a corpus score is the
mean over reports:

- simple: (tokens, label);
- partial: (tokens, label, whether it has any relation), the one that is usually reported;
- complete: (tokens, label, relation, tokens of its target), one element a relation, and
  (tokens, label) where there is none.

Tokens are compared in lower case. The package on PyPI (0.1.18) compares them as written, except in
the relations of "complete": `case_sensitive=True` gives its numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dive.errors import DiveError
from dive.metrics.measure import Measure, means_measure

LEVELS = ("simple", "partial", "complete")
Annotation = Mapping[str, Any]
NO_ENTITIES: Annotation = {"text": "", "entities": {}}


class Annotator(Protocol):
    """Anything that gives annotations for texts, and says what it is."""

    source: str

    def annotate(self, texts: Sequence[str]) -> list[Annotation]: ...


def check_annotation(annotation: Any, where: str) -> None:
    """DiveError that names `where` unless this is an annotation as described above."""
    if not isinstance(annotation, Mapping) or not isinstance(annotation.get("entities"), Mapping):
        raise DiveError(f"{where}: not a RadGraph annotation: no mapping `entities`")
    entities = annotation["entities"]
    for key, entity in entities.items():
        entry = f"{where}: entity {key!r}"
        if not isinstance(entity, Mapping):
            raise DiveError(f"{entry} is not a mapping")
        for name in ("tokens", "label"):
            if not isinstance(entity.get(name), str):
                raise DiveError(f"{entry}: `{name}` must be a text, got {entity.get(name)!r}")
        relations = entity.get("relations", [])
        if not isinstance(relations, list):
            raise DiveError(f"{entry}: `relations` must be a list, got {relations!r}")
        for relation in relations:
            if not isinstance(relation, list | tuple) or len(relation) != 2:
                raise DiveError(f"{entry}: a relation is [name, entity], got {relation!r}")
            if relation[1] not in entities:
                raise DiveError(f"{entry}: relation to {relation[1]!r}, which is no entity")


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
        raise DiveError(f"RadGraph level {level!r} is not one of {', '.join(LEVELS)}")
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
    """radgraph_simple, radgraph_partial and radgraph_complete: means over reports. `source` says
    where the annotations come from, in the words of the variant."""
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


def entity_spans(text: str, annotation: Annotation) -> list[tuple[int, int, str]]:
    """(start, end, label) of every entity, as characters of `text`, in the order of the entities.

    The annotation's words are the text with spaces put in, so that its letters in order, spaces
    left out, are the text's. Raises DiveError where they are not: an annotation of another text.
    """
    places = np.array([i for i, letter in enumerate(text) if not letter.isspace()])
    annotated = annotation["text"].split()
    if "".join(annotated) != "".join(text.split()):
        raise DiveError(
            f"the RadGraph annotation is of another text: {annotation['text'][:60]!r}... is not "
            f"{text[:60]!r}..."
        )
    ends = np.cumsum([len(word) for word in annotated])
    spans = []
    for entity in annotation["entities"].values():
        first, last = int(entity["start_ix"]), int(entity["end_ix"])
        if not 0 <= first <= last < len(annotated):
            raise DiveError(
                f"RadGraph entity {entity['tokens']!r}: words {first} to {last} of {len(annotated)}"
            )
        start = ends[first] - len(annotated[first])
        spans.append((int(places[start]), int(places[ends[last] - 1]) + 1, entity["label"]))
    return spans
