"""The fingerprint by which `dive generate` resumes a run: all that determines its reports.

Files count by their content, not by their paths: a backbone's (dive/backbone/files.py), the films
of the demonstrations, and those of every report that is written already; films that are still to
come count by their names. What may differ: batch size, engine, on_error, and which of several
devices of a kind, as the reports do not depend on them.
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

# A file that was changed just before may be changed again within the clock's resolution.
_SETTLED = 2_000_000_000  # nanoseconds


def device_kind(device: str) -> str:
    """The kind, "cuda" or "cpu", of a value of --device; all of a kind give the same reports."""
    if device in ("auto", "map"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device.partition(":")[0]


def adapter_digests(adapter: SteeringAdapter | None) -> dict[str, str] | None:
    """Digests of an adapter's parameters, form and metadata, without the course of its training."""
    if adapter is None:
        return None
    weights = hashlib.sha256()
    for name, tensor in sorted(adapter.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    settings = {one.name: getattr(adapter.config, one.name) for one in fields(adapter.config)}
    known = {n: of_json(value) for n, value in adapter.metadata.items() if n != "distillation"}
    return known | {"parameters": weights.hexdigest()[:32], "form": of_json(settings)}


def studies_digest(studies: Iterable[Study]) -> str:
    """A digest of what the studies contribute to prompts; images count by their files' names."""
    return of_json(
        [[one.id, [name_of(image) for image in one.images], one.indication, one.patient]
         for one in studies]
    )  # fmt: skip


def demonstrations_digest(shown: Sequence[Study] | None) -> str | None:
    """A digest of what the demonstrations contribute to prompts, with the images' content."""
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
    """A study that records which images it had when they were decoded.

    seen: per image its digest and, for a file whose last change was some time ago, the size, times
        and inode by which it is recognised as unchanged. JSON values.
    """

    seen: list[Any] = field(default_factory=list, compare=False, repr=False)

    def load_images(self) -> list[Image.Image]:
        self.check()
        if self.seen:  # the images have been recorded before
            return super().load_images()
        before = [_stat_of(image) for image in self.images]
        now, contents = time.time_ns(), []
        try:
            contents = [
                _content(image, self.where, name)
                for image, name in zip(self.images, self.image_names, strict=True)
            ]
        except DiveError:
            super().load_images()  # whose error is more precise
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
    """The same study as a `WatchedStudy`."""
    given = {one.name: getattr(study, one.name) for one in fields(study) if one.init}
    made = WatchedStudy(**given)
    dict.update(made.placeholders, study.placeholders)  # type: ignore[arg-type]
    return made


def check_images(writer: JsonlWriter, studies: Iterable[Study], verify: bool = False) -> None:
    """Raises DiveError where a report that is written already was made of other images.

    Files with the same size, times and inode are not read again, except with `verify`.
    """

    def changed(study: Study) -> str | None:
        seen = writer.done[study.id]
        if not _is_seen(seen, len(study.images)):
            raise writer.bad_note(study.id)
        for index, (image, known) in enumerate(zip(study.images, seen, strict=True)):
            if not verify and known[1] is not None and _stat_of(image) == known[1]:
                continue
            if _content(image, study.where, study.image_names[index]) != known[0]:
                what = "its image" if len(seen) == 1 else f"image {index + 1}"
                return f"wrote the report of study {study.id!r} when {what} was another"
        return None

    done = [study for study in studies if study.id in writer.done]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for reason in pool.map(changed, done):
            if reason is not None:
                raise writer.another(reason)


def _is_seen(seen: Any, images: int) -> bool:
    """Whether a note has the form of `WatchedStudy.seen`, for this number of images."""
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
    """A file's size, two times (ns) and inode, which change with it; None without a file."""
    if not checks.names_a_path(image):
        return None
    try:
        found = os.stat(checks.path("the image", image))
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _content(image: Any, where: str, name: str) -> str:
    return digest_of_image(image, where, name)[:32]
