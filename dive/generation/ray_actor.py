"""The side of an archive's run that lives in an actor of Ray: one engine, which writes reports.

Nothing here imports Ray; the class is an ordinary one. It raises no error of a study or of the
engine: an exception would be printed in Ray's logs, with what it quotes. All that happens is a
message to the driver, which is in no log.
"""

import logging
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dive.data.skipping import Skipped
from dive.data.study import Study
from dive.errors import DiveError, FallbackWarning, checks
from dive.generation.report_writer import Report
from dive.generation.resume import WatchedStudy, watched
from dive.generation.run_request import RunInputs, RunRequest, Write, inputs_fingerprint


@dataclass(frozen=True)
class Begun:
    """The engine is open, and a group of studies begins in this process."""

    pid: int
    host: str


@dataclass(frozen=True)
class Written:
    """A report. seen: of its films, as `WatchedStudy.seen`."""

    report: Report
    seen: list[Any]


@dataclass(frozen=True)
class LeftOut:
    """A study that cannot be prompted. missing: it has a film that is not on this node's disks."""

    id: str
    source: str
    reason: str
    missing: bool


@dataclass(frozen=True)
class Refused:
    """Why this actor writes nothing: its error, for the driver to raise."""

    reason: str


@dataclass(frozen=True)
class Broken:
    """A bug: the traceback of an exception that is no `DiveError`."""

    trace: str


Message = Begun | Written | LeftOut | Refused | Broken


@dataclass(frozen=True)
class Sent:
    """A message with the warnings before it: (category's name, or a logger's level; the text)."""

    message: Message
    host: str
    said: list[tuple[str | int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Opening:
    """How an actor opens its engine: two functions that the actor's Python can import.

    read_inputs: reads what a request names. open_engine: returns the function that writes, which
        may have a function `close`.
    """

    read_inputs: Callable[[RunRequest], RunInputs]
    open_engine: Callable[[RunRequest, RunInputs], Write]


class StudyWriter:
    """Writes reports for groups of studies, with an engine that it opens at the first one.

    Args:
        request: what the run asks for; on_error is the driver's choice and counts as "skip" here.
        opening: the functions that open it.
        expected: the driver's `inputs_fingerprint`, which this node's must equal.
    """

    def __init__(self, request: RunRequest, opening: Opening, expected: Mapping[str, Any]) -> None:
        self._request, self._opening, self._expected = request, opening, expected
        self._write: Write | None = None
        self._host = socket.gethostname()
        self._said: list[tuple[str | int, str]] = []
        self._listen()

    def ready(self) -> str:
        """The host's name, once Ray has started this actor."""
        return self._host

    def write(self, studies: Sequence[Study]) -> Iterator[Sent]:
        """The messages of a group, the first of them when the engine is open."""
        try:
            for message in self._messages(studies):
                yield self._sent(message)
        except DiveError as error:
            yield self._sent(Refused(str(error)))
        except Exception:
            yield self._sent(Broken(traceback.format_exc()))

    def close(self) -> None:
        """End the engine, if it is one that has to be ended."""
        if (close := getattr(self._write, "close", None)) is not None:
            close()

    def _messages(self, studies: Sequence[Study]) -> Iterator[Message]:
        if self._write is None:
            self._write = self._open()
        yield Begun(os.getpid(), self._host)
        watching = {study.id: watched(study) for study in studies}
        skipped, noted = Skipped(), 0
        for report in self._write(list(watching.values()), skipped):
            for entry in skipped.entries[noted:]:
                yield _left_out(entry, watching)
            noted = len(skipped)
            yield Written(report, watching[report.id].seen)
        for entry in skipped.entries[noted:]:
            yield _left_out(entry, watching)

    def _open(self) -> Write:
        """The engine, after its inputs have been compared with the driver's."""
        inputs = self._opening.read_inputs(self._request)
        own = inputs_fingerprint(self._request, inputs)
        if difference := differing(self._expected, own):
            raise DiveError(
                f"the node {self._host} has other files or packages than the driver: {difference}; "
                "want the same under the same paths on every node"
            )
        return self._opening.open_engine(self._request, inputs)

    def _sent(self, message: Message) -> Sent:
        said, self._said = self._said, []
        return Sent(message, self._host, said)

    def _listen(self) -> None:
        """Keep this process's warnings for the driver: on stderr they would be Ray's to log."""

        def warned(text: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            fallback = issubclass(category, FallbackWarning)
            self._said.append(("FallbackWarning" if fallback else "UserWarning", str(text)))

        warnings.showwarning = warned  # type: ignore[assignment]
        logger, handler = logging.getLogger("dive"), _Kept(self._said_of_logs)
        logger.addHandler(handler)
        logger.propagate = False
        for name in ("pydicom", "PIL"):  # as in the commands: a bad image is one DiveError
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def _said_of_logs(self, level: int, text: str) -> None:
        self._said.append((level, text))


class _Kept(logging.Handler):
    """A handler that gives level and text of warnings to a function."""

    def __init__(self, keep: Callable[[int, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._keep = keep

    def emit(self, record: logging.LogRecord) -> None:
        self._keep(record.levelno, record.getMessage())


def differing(expected: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The fields in which two fingerprints differ, with the parts of those that have parts."""
    found = []
    for name in sorted(expected.keys() | own.keys()):
        one, other = expected.get(name), own.get(name)
        if one == other:
            continue
        parts = ""
        if isinstance(one, dict) and isinstance(other, dict):
            inside = sorted(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))
            parts = f" ({', '.join(inside[:3])}{' ...' if len(inside) > 3 else ''})"
        found.append(f"{name.replace('_', ' ')}{parts}")
    return ", ".join(found)


def _left_out(entry: Mapping[str, str | None], watching: Mapping[str, WatchedStudy]) -> LeftOut:
    name = str(entry["id"])
    paths = [image for image in watching[name].images if checks.names_a_path(image)]
    missing = any(not os.path.exists(os.fspath(path)) for path in paths)  # type: ignore[arg-type]
    return LeftOut(name, entry["source"] or "", str(entry["reason"]), missing)
