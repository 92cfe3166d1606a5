"""An archive's reports by actors of Ray, one engine an actor; the driver alone has the output.

Actors of our own, and not `ray.data`'s map_batches, which was tried first (Ray 2.60): it calls a
block whose actor died again for ever and shows the driver neither the death nor the block, so that
a study that kills its actor can be neither named nor left out; the arguments that would limit this
(max_restarts, max_task_retries) are deprecated there, to be removed in Ray 2.64. A retried task
also gives its results again by their number, which is right only where it repeats them exactly.
`ray.data.llm`'s processor has the same retries, makes prompts and images its own way, and loads no
steering adapter. What Ray is used for here: where actors live, films' nodes included, the GPUs that
each one sees, and the way of a message between machines.

Only the studies' records travel: id, source, patient, indication and the paths of films, which the
actors open. At most one group of studies per actor is in flight (`dive.generation.attempts`).
"""

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dive.data.skipping import Skipped
from dive.data.study import Study
from dive.errors import DiveError, FallbackWarning, checks
from dive.errors.counting import counted
from dive.errors.private import public_reason
from dive.generation.attempts import TRIES, Attempts
from dive.generation.ray_actor import (
    Begun,
    Broken,
    LeftOut,
    Opening,
    Refused,
    Sent,
    StudyWriter,
    Written,
)
from dive.generation.ray_cluster import ActorDied, Cluster
from dive.generation.report_writer import Report, progress_bar
from dive.generation.resume import WatchedStudy
from dive.generation.run_request import RunRequest

log = logging.getLogger(__name__)

_OPENINGS = 3  # deaths one after the other, of actors whose engine was not open yet
_CLOSING = 30.0  # seconds for engines to end
_DEATHS = 4  # deaths per actor without a report between them


class RayReports:
    """The reports of `studies` as actors write them, in any order; an iterator.

    Args:
        cluster: a connected one.
        request: what the run asks for; its paths are made absolute. Its on_error: "fail" raises at
            the first study that cannot be prompted or that kills its actor `TRIES` times; "skip"
            adds it to `skipped` and goes on.
        opening, expected: see `StudyWriter`.
        studies: by their ids; their images are files. `seen` is set before a report is given out.

    Raises:
        DiveError: an actor cannot open its engine, or has other files than this process; actors
            die one after the other; a study, with on_error="fail".
    """

    def __init__(
        self,
        cluster: Cluster,
        request: RunRequest,
        opening: Opening,
        expected: Mapping[str, Any],
        studies: Mapping[str, WatchedStudy],
        skipped: Skipped,
    ) -> None:
        self._cluster, self._studies = cluster, studies
        self._request = _travelling_request(request)
        self._opening, self._expected = opening, expected
        self._on_error, self._skipped = request.on_error, skipped
        self._left = {name: _travelling(study) for name, study in studies.items()}
        self._attempts = Attempts(self._left.values(), request.batch_size, cluster.actors)
        self._working: dict[Any, _Worker] = {}  # what `ray.wait` waits for -> whose it is
        self._idle: list[Any] = []  # actors without a group
        self._openings = self._deaths = 0
        self._said: set[tuple[str | int, str]] = set()

    def __iter__(self) -> Iterator[Report]:
        with progress_bar(len(self._left), self._request.batch_size, None) as bar:
            try:
                for _ in range(min(self._cluster.actors, len(self._left))):
                    self._start()
                while self._left:
                    before = len(self._left)
                    yield from self._step()
                    bar(before - len(self._left))
                # one that Ray has found no node for yet has nothing to close
                last = [worker.actor for worker in self._working.values() if worker.group]
                closing = [actor.close.remote() for actor in (*self._idle, *last)]
                self._cluster.all_of(closing, _CLOSING)
            finally:
                for actor in (*self._idle, *(one.actor for one in self._working.values())):
                    self._cluster.kill(actor)

    def _start(self) -> None:
        """Start an actor; it gets its first group when Ray has found it a node."""
        actor = self._cluster.start(StudyWriter, self._request, self._opening, self._expected)
        self._working[actor.ready.remote()] = _Worker(actor)

    def _step(self) -> Iterator[Report]:
        """Wait for one message, and act on it."""
        waited = self._cluster.first_of(list(self._working))
        if waited is None:
            return
        worker = self._working[waited]
        try:
            sent = self._cluster.message(waited)
        except ActorDied as error:
            self._died(waited, error)
            return
        if isinstance(sent, Sent):
            yield from self._act(worker, sent)
            return
        # it was not a message: the actor is ready, or at the end of its group
        del self._working[waited]
        if unwritten := self._unwritten(worker):
            raise DiveError(
                f"an actor ended its group without a word on {counted(len(unwritten), 'study')}; "
                "that is a fault of dive"
            )
        self._idle.append(worker.actor)
        self._employ()

    def _employ(self) -> None:
        """Give groups to the actors that have none, while there are any."""
        while self._idle and (group := self._attempts.group()):
            actor = self._idle.pop()
            call = actor.write.options(num_returns="streaming").remote(group)
            self._working[call] = _Worker(actor, group)

    def _act(self, worker: "_Worker", sent: Sent) -> Iterator[Report]:
        self._repeat(sent.said)
        message = sent.message
        if isinstance(message, Begun):
            worker.begun = True
            self._openings = 0
            log.info("process %d on %s writes %s", message.pid, message.host,
                     counted(len(worker.group), "study"))  # fmt: skip
        elif isinstance(message, Written):
            study = self._studies[message.report.id]
            if self._left.pop(study.id, None) is not None:
                self._deaths = 0
                study.seen[:] = message.seen
                # as this command was given them, and not as they travelled
                yield replace(message.report, images=[str(image) for image in study.images])
        elif isinstance(message, LeftOut):
            self._check_node(message, sent.host)
            self._leave_out(self._studies[message.id], message.reason)
        elif isinstance(message, Refused):
            raise DiveError(message.reason)
        elif isinstance(message, Broken):
            raise RuntimeError(f"an actor on {sent.host} failed:\n{message.trace}")

    def _repeat(self, said: Sequence[tuple[str | int, str]]) -> None:
        """Give out an actor's warnings here, each once, whichever actors had it."""
        for one in said:
            if one in self._said:
                continue
            self._said.add(one)
            kind, text = one
            if isinstance(kind, int):
                log.log(kind, "%s", text)
            else:
                category = FallbackWarning if kind == "FallbackWarning" else UserWarning
                warnings.warn(text, category, stacklevel=2)

    def _check_node(self, message: LeftOut, host: str) -> None:
        """Raise DiveError where a node lacks films that this one has: no fault of the study."""
        if not message.missing or host == socket.gethostname():
            return
        paths = [str(image) for image in self._left[message.id].images]
        if all(os.path.exists(path) for path in paths):
            raise DiveError(
                f"{self._studies[message.id].where}: its films are on this machine, and not on the "
                f"node {host}; want the same paths on every node"
            )

    def _leave_out(self, study: Study, reason: str) -> None:
        if self._on_error == "fail":
            raise DiveError(reason)
        del self._left[study.id]
        self._skipped.add(study.id, study.source, reason)

    def _unwritten(self, worker: "_Worker") -> list[Study]:
        return [study for study in worker.group if study.id in self._left]

    def _died(self, waited: Any, error: Exception) -> None:
        """Start another actor, and have the group's studies tried again."""
        worker = self._working.pop(waited)
        self._cluster.kill(worker.actor)  # if it is only out of reach, it must not go on
        group = self._unwritten(worker)
        self._deaths += 1
        log.info("an actor died; %s of its group without a result", counted(len(group), "study"))
        if not worker.begun:
            self._openings += 1
            self._attempts.return_group(group)
            if self._openings >= _OPENINGS:
                raise DiveError(
                    f"{self._openings} actors died one after the other before their engine was "
                    f"open: {_reason(error)}; the logs of Ray have more"
                )
        else:
            for study in self._attempts.died(group):
                self._deaths = 0  # they have been accounted for
                self._leave_out(
                    study,
                    f"{study.where}: its actor died {TRIES} times while the report was written, "
                    "the last time of this one alone",
                )
        if self._deaths >= max(8, _DEATHS * self._cluster.actors):
            raise DiveError(
                f"{self._deaths} actors died one after the other without a report between them: "
                f"{_reason(error)}; the logs of Ray have more"
            )
        self._employ()
        if self._attempts.waiting:
            self._start()


class _Worker:
    """An actor, the group that it writes, and whether it has begun it."""

    def __init__(self, actor: Any, group: Sequence[Study] = ()) -> None:
        self.actor, self.group, self.begun = actor, group, False


def _reason(error: Exception) -> str:
    """Ray's message about a dead actor, in one line and without paths; of a traceback its end."""
    lines = [line for line in public_reason(error).splitlines() if line.strip()]
    text = " ".join(lines[-1].split() if "creation task" in lines[0] else " ".join(lines).split())
    return text if len(text) < 300 else f"{text[:300]} ..."


def _travelling(study: Study) -> Study:
    """What of a study an actor needs: no report of it, and absolute paths."""
    for image in study.images:
        if not checks.names_a_path(image):
            raise DiveError(
                f"{study.where}: an image is a {type(image).__name__}, want files: an actor opens "
                "them on its own machine"
            )
    images = tuple(_absolute(checks.path("the image", image)) for image in study.images)
    return Study(
        id=study.id,
        images=images,
        patient=study.patient,
        indication=study.indication,
        source=study.source,
    )


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))


def _travelling_request(request: RunRequest) -> RunRequest:
    """The request with absolute paths; names on the hub stay."""
    paths: dict[str, Any] = {
        name: str(_absolute(named))
        for name in ("backbone", "adapter")
        if (named := getattr(request, name)) is not None and os.path.exists(named)
    }
    paths |= {
        name: _absolute(named)
        for name in ("demonstrations", "template")
        if (named := getattr(request, name)) is not None
    }
    return replace(request, on_error="skip", **paths)
