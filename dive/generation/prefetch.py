"""Prefetching prompts: images are decoded while the model runs."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from dive.adapter.adapter import SteeringAdapter
from dive.data.datasets.json_lines import Skipped
from dive.data.study import Study
from dive.errors import DiveError
from dive.prompting.demonstrations import Demonstrations, case_names
from dive.prompting.prompter import Prompter

log = logging.getLogger(__name__)


@dataclass
class Job:
    """A study, its prompter and the adapter of its report.

    index: among the studies given.
    """

    index: int
    study: Study
    prompter: Prompter
    adapter: SteeringAdapter | None


class Prompts:
    """The jobs' prompts in order, with the images of the next `prefetch` studies decoded meanwhile.

    Consecutive jobs with the same prompt get the same object. error: of the first study that could
    not be prompted, at which iteration ends where errors are not skipped.

    encode: makes a prompt of a prompter, a study and its demonstrations.
    """

    def __init__(
        self,
        jobs: list[Job],
        demonstrations: Demonstrations | None,
        pool: ThreadPoolExecutor,
        prefetch: int,
        on_error: str,
        skipped: Skipped,
        bar: Callable[[int], None],
        encode: Callable[..., Any] = Prompter.encode,
    ) -> None:
        self.jobs, self.demonstrations, self.prefetch = jobs, demonstrations, prefetch
        self.on_error, self.skipped, self.bar = on_error, skipped, bar
        self.pool, self.encode = pool, encode
        self.error: DiveError | None = None

    def __iter__(self) -> Iterator[tuple[Job, Any]]:
        loading: deque[Future] = deque()
        following = iter(self.jobs)
        before: Job | None = None
        known: Any = None
        for job in self.jobs:
            for more in islice(following, self.prefetch + 1 - len(loading)):
                loading.append(self.pool.submit(_load, more.study))
            try:
                study = loading.popleft().result()
                if before is None or not self._same_prompt(before, job):
                    known = self._encode(study, job.prompter)
            except DiveError as error:
                if self.on_error == "fail":
                    for waiting in loading:
                        waiting.cancel()
                    self.error = error
                    return
                self.skipped.add(job.study.id, job.study.source, error)
                self.bar(1)
                before = None
                continue
            before = job
            yield job, known

    def _same_prompt(self, one: Job, other: Job) -> bool:
        a, b = one.study, other.study
        names = ("prompt", "target", "max_image_tokens", "template_hash")
        return (
            a.indication == b.indication
            and len(a.images) == len(b.images)
            and all(
                x is y or (isinstance(x, Path) and isinstance(y, Path) and x == y)
                for x, y in zip(a.images, b.images, strict=True)
            )
            # demonstrations of the query's own patient are left out
            and (self.demonstrations is None or case_names(a) == case_names(b))
            and all(getattr(one.prompter, n) == getattr(other.prompter, n) for n in names)
        )

    def _encode(self, study: Study, prompter: Prompter) -> Any:
        """The prompt, with the demonstrations that are not of the query's own study or patient."""
        if self.demonstrations is None:
            return self.encode(prompter, study)
        for index, same in self.demonstrations.own(study).items():
            left_out = self.demonstrations.pool[index].id
            log.warning(
                "%s: demonstration %r has the same %s and is left out", study.where, left_out, same
            )
        return self.encode(prompter, study, self.demonstrations.of(study))


def _load(study: Study) -> Study:
    study.check()
    return replace(study, images=tuple(study.load_images()))
