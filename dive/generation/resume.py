"""What makes two runs of `dive generate` one: all that decides what its reports are.

Files count by their content, not by their places: a backbone's (dive/backbone/files.py), the films
of the demonstrations, and those of every report that is written already; films that are still to
come by their names. What may differ: batch size,
engine, on_error, which of several devices of a kind - the reports are the same by promise.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from PIL import Image

from dive.adapter.adapter import SteeringAdapter
from dive.data.films import name_of
from dive.data.images.digests import digest_of_image
from dive.data.study import Study
from dive.errors import DiveError, checks
from dive.files.digests import of_json
from dive.files.json_lines import JsonlWriter

# A file that was changed a moment before may be changed again in the same tick of its clock.
_SETTLED = 2_000_000_000  # nanoseconds


def device_kind(device: str) -> str:
    """ "cuda" or "cpu" for what --device takes; one kind computes the same on any of them."""
    if device in ("auto", "map"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device.partition(":")[0]


def describe_adapter(adapter: SteeringAdapter | None) -> dict[str, str] | None:
    """Parameters, form and metadata of an adapter; not how its training went."""
    if adapter is None:
        return None
    weights = hashlib.sha256()
    for name, tensor in sorted(adapter.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    settings = {one.name: getattr(adapter.config, one.name) for one in fields(adapter.config)}
    known = {n: of_json(value) for n, value in adapter.metadata.items() if n != "distillation"}
    return known | {"parameters": weights.hexdigest()[:32], "form": of_json(settings)}


def describe_studies(studies: Iterable[Study]) -> str:
    """All of the studies that reaches a prompt, but for what the images show: of those the files'
    names, wherever they lie."""
    return of_json(
        [[one.id, [name_of(image) for image in one.images], one.indication, one.patient]
         for one in studies]
    )  # fmt: skip


def describe_demonstrations(shown: Sequence[Study] | None) -> str | None:
    """All of the demonstrations that reaches a prompt, images included."""
    if shown is None:
        return None
    return of_json(
        [
            [one.id, one.indication, one.patient, one.findings, one.impression]
            + [
                _content(image, one.where, name)
                for image, name in zip(one.images, one.image_names, strict=True)
            ]
            for one in shown
        ]
    )


@dataclass(frozen=True)
class WatchedStudy(Study):
    """A study that keeps what its images were when they were decoded.

    seen: for each image its digest and, of a file that had lain there unchanged for a while, what
        tells that it still does (size, times, inode). JSON values.
    """

    seen: list[Any] = field(default_factory=list, compare=False, repr=False)

    def load_images(self) -> list[Image.Image]:
        self.check()
        if self.seen:  # the images are in memory by now
            return super().load_images()
        before = [_stat_of(image) for image in self.images]
        now, contents = time.time_ns(), []
        try:
            contents = [
                _content(image, self.where, name)
                for image, name in zip(self.images, self.image_names, strict=True)
            ]
        except DiveError:
            super().load_images()  # which says more of what is wrong with an image
            raise
        self.seen[:] = [
            [content, stat if stat and now - stat[2] > _SETTLED else None]
            for content, stat in zip(contents, before, strict=True)
        ]
        images = super().load_images()
        for image, name, stat in zip(self.images, self.image_names, before, strict=True):
            if _stat_of(image) != stat:
                raise DiveError(f"{self.where}: the image ({name}) was changed while it was read")
        return images


def watched(study: Study) -> WatchedStudy:
    """The same study."""
    given = {one.name: getattr(study, one.name) for one in fields(study) if one.init}
    made = WatchedStudy(**given)
    dict.update(made.placeholders, study.placeholders)  # type: ignore[arg-type]
    return made


def check_images(writer: JsonlWriter, studies: Iterable[Study], verify: bool = False) -> None:
    """DiveError where a report that is written already was made of other images.

    Files of which size, times and inode are as they were are not read again, but with `verify`.
    """

    def changed(study: Study) -> str | None:
        seen = writer.done[study.id]
        if not _says_what_was_seen(seen, len(study.images)):
            raise writer.bad_note(study.id)
        for place, (image, known) in enumerate(zip(study.images, seen, strict=True)):
            if not verify and known[1] is not None and _stat_of(image) == known[1]:
                continue
            if _content(image, study.where, study.image_names[place]) != known[0]:
                what = "its image" if len(seen) == 1 else f"image {place + 1}"
                return f"wrote the report of study {study.id!r} when {what} was another"
        return None

    done = [study for study in studies if study.id in writer.done]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for reason in pool.map(changed, done):
            if reason is not None:
                raise writer.another(reason)


def _says_what_was_seen(seen: Any, images: int) -> bool:
    """Whether a note has what `WatchedStudy.seen` had, of so many images."""
    return (
        isinstance(seen, list)
        and len(seen) == images
        and all(
            isinstance(one, list)
            and len(one) == 2
            and isinstance(one[0], str)
            and (one[1] is None or (isinstance(one[1], list) and all(map(checks.is_whole, one[1]))))
            for one in seen
        )
    )


def _stat_of(image: Any) -> list[int] | None:
    """What changes with a file: size, its two times (ns) and its inode."""
    if not checks.names_a_path(image):
        return None
    try:
        found = os.stat(checks.path("the image", image))
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _content(image: Any, where: str, name: str) -> str:
    return digest_of_image(image, where, name)[:32]
