"""Existing RadGraph annotations, read from a file and looked up by text."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dive.errors import DiveError, checks
from dive.errors.private import line_location
from dive.files.input import MAX_JSON_BYTES, read_file
from dive.radgraph.annotations import NO_ENTITIES, Annotation, as_annotated, check_annotation


class RadGraphFile:
    """Existing annotations, looked up by text.

    The file is JSON: {"0": annotation, ...} as the package returns it, a list of annotations, a
    list of such dicts (CheXpert Plus, whose order follows a filter of its authors), or one
    annotation per line. An annotation's text has spaces around its words and punctuation, so texts
    are compared without white space.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = checks.path("annotations", path)
        self.source = f"annotations from {self.path.name}"
        self.identity: list[str] = []  # of the content
        self._found: dict[str, Annotation] = {}
        self._conflicts: set[str] = set()
        for where, annotation in self._read_annotations():
            check_annotation(annotation, where)
            if not isinstance(annotation.get("text"), str):
                raise DiveError(f"{where}: `text` is missing")
            key = _letters(annotation["text"])
            earlier = self._found.setdefault(key, annotation)
            if earlier["entities"] != annotation["entities"]:
                self._conflicts.add(key)
        if not self._found:
            raise DiveError(f"{self.path.name}: holds no RadGraph annotation")

    def annotate(self, texts: Sequence[str]) -> list[Annotation]:
        """One annotation per text, in order; an empty text has no entities.

        Raises:
            DiveError: a text is not in the file, or twice with differing annotations.
        """
        wanted = [_letters(text) for text in texts]
        missing = [number for number, key in enumerate(wanted, 1) if key and key not in self._found]
        if missing:
            one = len(texts) == 1
            many = "this text" if one else f"{len(missing)} of {len(texts)} texts"
            first = "" if one else f", the first of them text {missing[0]}"
            raise DiveError(f"{self.path.name}: no annotation for {many}{first}")
        for number, key in enumerate(wanted, 1):
            if key in self._conflicts:
                raise DiveError(
                    f"{self.path.name}: differing annotations of one text, text {number} of "
                    f"{len(texts)}"
                )
        return [self._found[key] if key else NO_ENTITIES for key in wanted]

    def _read_annotations(self) -> Iterator[tuple[str, Any]]:
        try:
            data = read_file(self.path, MAX_JSON_BYTES, pipe=True)
            content = data.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DiveError(f"{self.path}: cannot read RadGraph annotations: {error}") from error
        self.identity = [hashlib.sha256(data).hexdigest()]
        try:
            table = json.loads(content)
        except RecursionError:
            raise DiveError(f"{self.path}: is nested too deeply for annotations") from None
        except ValueError:
            table = None
        if table is not None:
            yield from _flat(table, self.path.name)
            return
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    where = line_location(self.path, number)
                    raise DiveError(f"{where}: not JSON: {error}") from error
                yield from _flat(record, line_location(self.path, number))


def _flat(table: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(table, list):
        for i, record in enumerate(table):
            yield from _flat(record, f"{where}[{i}]")
    elif isinstance(table, dict) and "entities" not in table:
        for index, record in enumerate(table.values()):
            yield f"{where}[{index}]", record  # CheXpert Plus's keys are paths
    else:
        yield where, table


def _letters(text: str) -> str:
    return "".join(as_annotated(text).split())
