"""RadGraph annotations: their form, and the positions of their entities in a report.

An annotation is a dict as the `radgraph` package returns it and PhysioNet's files hold it:

    {"text": "no pleural effusion .",                    # words, separated by spaces
     "entities": {"1": {"tokens": "effusion", "label": "Observation::definitely absent",
                        "start_ix": 2, "end_ix": 2,      # words, both ends included
                        "relations": [["located_at", "2"]]}, ...}}
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dive.errors import DiveError

Annotation = Mapping[str, Any]
NO_ENTITIES: Annotation = {"text": "", "entities": {}}


class Annotator(Protocol):
    """A source of annotations for texts, with its name."""

    @property
    def source(self) -> str: ...

    def annotate(self, texts: Sequence[str]) -> list[Annotation]: ...


def check_annotation(annotation: Any, where: str) -> None:
    """Raise DiveError with `where` unless this is an annotation as described above."""
    if not isinstance(annotation, Mapping) or not isinstance(annotation.get("entities"), Mapping):
        raise DiveError(f"{where}: not a RadGraph annotation: no mapping `entities`")
    entities = annotation["entities"]
    for index, entity in enumerate(entities.values()):
        entry = f"{where}: entity {index}"
        if not isinstance(entity, Mapping):
            raise DiveError(f"{entry} is not a mapping")
        for name in ("tokens", "label"):
            if not isinstance(entity.get(name), str):
                got = type(entity.get(name)).__name__
                raise DiveError(f"{entry}: `{name}` is a {got}, want a text")
        relations = entity.get("relations", [])
        if not isinstance(relations, list):
            got = type(relations).__name__
            raise DiveError(f"{entry}: `relations` is a {got}, want a list")
        for relation in relations:
            if not isinstance(relation, list | tuple) or len(relation) != 2:
                raise DiveError(f"{entry}: a relation is [name, entity], got something else")
            if relation[1] not in entities:
                raise DiveError(f"{entry}: a relation to what is no entity")


def as_annotated(text: str) -> str:
    """A text of the same length as RadGraph-XL reads it.

    Escapes that a table has kept (CheXpert Plus) become spaces and quotation marks.
    """
    for escape in ("\\n", "\\f", "\\u2122"):
        text = text.replace(escape, " " * len(escape))
    return text.replace('\\"', "``")


def entity_spans(text: str, annotation: Annotation) -> list[tuple[int, int, str]]:
    """(start, end, label) of every entity, as characters of `text`, in the order of the entities.

    The annotation's words are those of the text with more spaces, so that both are the same without
    spaces.

    Raises:
        DiveError: an annotation of another text.
    """
    letters, annotated = text, annotation["text"].split()
    if "".join(annotated) != "".join(letters.split()):
        letters = as_annotated(text)
    positions = np.array([i for i, letter in enumerate(letters) if not letter.isspace()])
    if "".join(annotated) != "".join(letters.split()):
        raise DiveError("the RadGraph annotation is of another text")
    ends = np.cumsum([len(word) for word in annotated])
    spans = []
    for entity in annotation["entities"].values():
        first, last = int(entity["start_ix"]), int(entity["end_ix"])
        if not 0 <= first <= last < len(annotated):
            raise DiveError(
                f"a RadGraph entity has the words {first} to {last} of {len(annotated)}"
            )
        start = ends[first] - len(annotated[first])
        spans.append((int(positions[start]), int(positions[ends[last] - 1]) + 1, entity["label"]))
    return spans


_KINDS = {
    "obs": "observation",
    "anat": "anatomy",
    "observation": "observation",
    "anatomy": "anatomy",
}
_STATES = {
    "dp": "positive", "da": "negative", "u": "uncertain",
    "definitely present": "positive", "definitely absent": "negative", "uncertain": "uncertain",
}  # fmt: skip


def entity_kind(label: str) -> tuple[str, str]:
    """("observation" or "anatomy", "positive", "negative" or "uncertain") of a label.

    Labels of every model: "OBS-DA", "Observation::measurement::definitely present", ...

    Raises:
        DiveError: a label of no RadGraph model.
    """
    parts = re.split("::|-", label.casefold())
    kind, state = _KINDS.get(parts[0]), _STATES.get(parts[-1])
    if kind is None or state is None:
        raise DiveError(
            "a RadGraph label is none of its models': want OBS-DP, Observation::uncertain or the "
            "like"
        )
    return kind, state
