"""Studies that turn out to be unreadable during the training, which are left out from then on.

The image of a study that passed the survey may have a broken body behind its header. Once it has
failed, the study stays out for the rest of the training. Checkpoints list such studies, so that a
resumed training leaves them out too, even if the file has been repaired.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from dive.data.datasets.json_lines import Skipped
from dive.data.study import Study
from dive.errors import DiveError
from dive.errors.counting import counted
from dive.files.atomic import write_text
from dive.training.examples import Example, Examples

log = logging.getLogger(__name__)

LEFT_OUT_FILE = "left_out.json"


class UnreadableStudy(DiveError):
    """The error of a study that could not be read during the training, with the `study`."""

    def __init__(self, message: str, study: Study) -> None:
        super().__init__(message)
        self.study = study


class LeftOut:
    """The handling of unreadable studies: raise ("fail"), or go on without them ("skip")."""

    def __init__(self, on_error: str, skipped: Skipped) -> None:
        self._on_error = on_error
        self._skipped = skipped

    def add(self, examples: Examples, index: int, reason: str) -> None:
        """Leave a study out of `examples` from now on.

        Raises:
            UnreadableStudy: with on_error="fail".
        """
        if index in examples.failed:
            return
        if self._on_error == "fail":
            raise UnreadableStudy(reason, examples.studies[index])
        log.warning("%s; the study is left out", reason)
        self._put(examples, index, reason)

    def readable(self, examples: Examples) -> Iterator[Example]:
        """The examples in their order, without those that cannot be read."""
        for index in range(len(examples)):
            if index in examples.failed:
                continue
            try:
                one = examples[index]
            except DiveError as error:
                self.add(examples, index, str(error))
                continue
            yield one
        if len(examples.failed) == len(examples):
            # those that the survey skipped count, too
            count = counted(max(len(self._skipped), len(examples)), "study")
            raise DiveError(f"no study is left to learn from: {count} skipped")

    def save(self, folder: Path, parts: dict[str, Examples | None]) -> None:
        """Write the list into a checkpoint."""
        entries = {
            name: [[index, one.studies[index].id, why] for index, why in sorted(one.failed.items())]
            for name, one in parts.items()
            if one is not None
        }
        write_text(folder / LEFT_OUT_FILE, json.dumps(entries, indent=1) + "\n")

    def load(self, folder: Path, parts: dict[str, Examples | None]) -> None:
        """Read the list from a checkpoint; studies that are no longer there are ignored."""
        try:
            entries = json.loads((folder / LEFT_OUT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DiveError(f"{folder / LEFT_OUT_FILE} cannot be read: {error}") from error
        for name, one in parts.items():
            if one is None:
                continue
            for index, identifier, reason in entries.get(name, []):
                there = index < len(one) and one.studies[index].id == identifier
                if there and index not in one.failed:
                    self._put(one, index, reason)

    def _put(self, examples: Examples, index: int, reason: str) -> None:
        study = examples.studies[index]
        examples.failed[index] = reason
        self._skipped.add(study.id, study.source, reason)


def left_out_ids(checkpoint: Path) -> list[str]:
    """The ids that a checkpoint lists as left out, whose images may have been repaired since."""
    try:
        entries = json.loads((checkpoint / LEFT_OUT_FILE).read_text(encoding="utf-8"))
        return [entry[1] for part in entries.values() for entry in part]
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return []  # `LeftOut.load` raises
