"""The common part of all readers: policy and filters turn candidates into studies, lazily."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from PIL import Image

from dive.data import text_edits
from dive.data.absent import count_placeholders, counts_text, is_absent
from dive.data.images.load import LazyImage
from dive.data.reading_summary import PLACEHOLDERS, ReadingSummary
from dive.data.skipping import Skipping
from dive.data.study import Study, check_target
from dive.errors import DiveError

log = logging.getLogger(__name__)

SPLITS = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("validate", "validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
_VIEW_GROUPS = {"frontal": ("PA", "AP", "FRONTAL"), "lateral": ("LATERAL", "LL")}
_VIEW_ORDER = {"PA": 0, "AP": 1, "FRONTAL": 2, "LATERAL": 3, "LL": 3}


@dataclass(frozen=True)
class Options:
    """The arguments of `dive.data.open_studies`, which documents them."""

    target: str | None = "findings"
    split: str | None = None
    views: str | Sequence[str] | None = None
    max_images: int | None = None
    min_words: int = 0
    images: Path | None = None
    reports: Path | None = None
    sections: Path | str = "auto"
    last_paragraph: bool = False
    labels: str | None = "auto"
    drop_comparisons: bool = False
    strip_placeholders: bool = False
    check_files: bool = True
    seed: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target is not None:
            check_target(self.target)
        if self.split is not None and str(self.split).casefold() not in SPLITS:
            raise DiveError(f"split is {self.split!r}, want one of {', '.join(SPLITS)}")
        self._want("min_words", _whole(self.min_words, 0), "a whole number, 0 or more")
        good = self.max_images is None or _whole(self.max_images, 1)
        self._want("max_images", good, "a whole number, 1 or more, or None")
        self._want("seed", _whole(self.seed, 0), "a whole number, 0 or more")
        for name in ("last_paragraph", "drop_comparisons", "strip_placeholders", "check_files"):
            self._want(name, isinstance(getattr(self, name), bool), "True or False")
        views = self.views
        if views is not None and not isinstance(views, str):
            good = isinstance(views, (list, tuple)) and all(isinstance(v, str) for v in views)
            self._want("views", good and len(views) > 0, "a name, or a list of names")
        self._want("labels", isinstance(self.labels, (str, type(None))), "a name or None")
        good = isinstance(self.columns, Mapping)
        self._want("columns", good, "a dict of our names to the data's")
        object.__setattr__(
            self, "columns", dict(self.columns)
        )  # a copy: the studies are read later

    def _want(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            raise DiveError(f"{name} is {getattr(self, name)!r}, want {wanted}")

    @property
    def wanted_split(self) -> str | None:
        """The common name of the split: train, validation, test or None."""
        return None if self.split is None else SPLITS[str(self.split).casefold()]


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class ImageRecord(NamedTuple):
    """An image as a table names it.

    key: identifies the file. view: in capitals, or "". number: of the record in the table.
    """

    key: Any
    view: str
    number: int


@dataclass(slots=True)
class Candidate:
    """A study as the tables have it, before the filters and before its texts are read."""

    id: str
    patient: str | None
    split: str | None
    images: list[ImageRecord]
    source: str
    data: Any = None
    labels: Mapping[str, float] | None = None
    origin: str | None = None  # if it differs from the reader's


class Reader:
    """The reader of a dataset.

    Subclasses find their files in `__init__` (a wrong root fails there) and read their tables when
    `candidates` is first iterated.
    """

    # common name -> the dataset's name of a split; None for a dataset without splits
    splits: ClassVar[Mapping[str, str] | None] = {
        "train": "train",
        "validation": "validate",
        "test": "test",
    }
    default_views: str = "frontal"
    default_max_images: int | None = 1
    origin: str | None = None  # the name of the dataset, if the reader is for a single one
    tidy = True  # line breaks in a section become spaces

    def __init__(self, name: str, options: Options, skipping: Skipping) -> None:
        self.options = options
        self.skipping = skipping
        self.summary = ReadingSummary(name)

    def candidates(self) -> Iterator[Candidate]:
        raise NotImplementedError

    def sections(self, candidate: Candidate) -> Mapping[str, str | None] | str:
        """findings, impression, indication, last_paragraph; absent or blank if there is none.

        Or the reason why the study is left out.
        """
        raise NotImplementedError

    def image_source(
        self, candidate: Candidate, image: ImageRecord
    ) -> Path | Image.Image | LazyImage:
        raise NotImplementedError

    def split_for(self, wanted: str) -> str:
        """The split of this dataset that is used as `wanted` (train, validation, test)."""
        if self.splits is None:
            raise DiveError(f"{self.summary.source} knows no splits; leave out split={wanted!r}")
        return self.splits[wanted]

    def state_policy(self) -> None:
        """Add the rules to the summary."""
        add_rule, options = self.summary.policy.append, self.options
        chosen = self.views
        many = self.max_images
        kind = {None: "any view", _names("frontal"): "frontal", _names("lateral"): "lateral"}
        words = kind.get(chosen, f"of the views {', '.join(sorted(chosen or ()))}")
        # A dataset without default views does not have them.
        known = self.default_views != "all"
        order = ", PA before AP before lateral" if known else ", in the order of the dataset"
        if many == 1:
            add_rule(f"one image per study ({words}{order})")
        else:
            add_rule(
                f"{'all' if many is None else f'up to {many}'} images per study ({words}{order})"
            )
        add_rule(
            "all splits together"
            if options.wanted_split is None
            else f"split {self.split_for(options.wanted_split)} only"
        )
        if options.target is not None:
            add_rule(f"studies without {_parts(options.target)} are left out")
        if options.last_paragraph:
            add_rule("the last paragraph of a report with neither findings nor impression is taken")
        if options.min_words:
            add_rule(f"reports of less than {options.min_words} words are left out")
        add_rule(
            "placeholders (___, XXXX) are stripped"
            if options.strip_placeholders
            else "placeholders (___, XXXX) are kept"
        )
        add_rule(
            "sentences that compare with an earlier examination are dropped"
            if options.drop_comparisons
            else "sentences that compare with an earlier examination are kept"
        )
        if self.tidy:
            add_rule("line breaks inside a section become spaces")
        if not options.check_files:
            add_rule("it is not checked that image files exist")

    @property
    def views(self) -> frozenset[str] | None:
        """The views to keep, in capitals; None for any view."""
        wanted = self.options.views
        if wanted is None:
            wanted = self.default_views
        names = wanted.split(",") if isinstance(wanted, str) else list(wanted)
        names = [name.strip() for name in names]
        if not names or not all(names):
            raise DiveError(
                f"views is {self.options.views!r}, want frontal, lateral, all or names such as PA"
            )
        if any(name.casefold() == "all" for name in names):
            return None
        return frozenset().union(*(_names(name) for name in names))

    @property
    def max_images(self) -> int | None:
        options = self.options
        if options.max_images is not None or options.views is not None:
            return options.max_images
        return self.default_max_images


def _names(view: str) -> frozenset[str]:
    return frozenset(_VIEW_GROUPS.get(view.casefold(), (view.upper(),)))


def _parts(target: str) -> str:
    return "findings and impression" if target == "both" else f"a section {target}"


def select(reader: Reader) -> Iterator[Study]:
    """Yields the studies that policy and filters keep, and counts them in `reader.summary`.

    Raises:
        DiveError: bad input with `on_error="fail"`; at the end, if no study is left.
    """
    summary, options = reader.summary, reader.options
    views, many = reader.views, reader.max_images
    split = None if options.wanted_split is None else reader.split_for(options.wanted_split)
    for candidate in reader.candidates():
        summary.studies += 1
        summary.images += len(candidate.images)
        lost = len(reader.skipping.skipped)
        try:
            outcome = _choose(reader, candidate, split, views, many)
        except DiveError as error:
            reader.skipping.skip_or_raise(candidate.id, candidate.source, error)
            outcome = None
        if isinstance(outcome, Study):
            summary.kept += 1
            summary.kept_images += len(outcome.images)
            if outcome.split is not None:
                summary.splits[outcome.split] += 1
            yield outcome
            continue
        if outcome is None or len(reader.skipping.skipped) > lost:
            summary.failed += 1
        else:
            summary.left_out[outcome] += 1
        if candidate.images:
            summary.images_left_out["of studies left out"] += len(candidate.images)
    summary.complete = True
    if summary.placeholders:
        log.warning(
            "%s: %s taken as absent (%s)",
            summary.source,
            counts_text(summary.placeholders),
            PLACEHOLDERS,
        )
    if not summary.kept:
        raise DiveError(f"{summary.source}: no study to work with; {summary.outcome()}")


def _choose(
    reader: Reader,
    candidate: Candidate,
    split: str | None,
    views: frozenset[str] | None,
    many: int | None,
) -> Study | str:
    """The study, or the reason why it is left out."""
    if split is not None and candidate.split != split:
        return f"in another split than {split}"
    if not candidate.images:
        return "without an image"
    wanted = [image for image in candidate.images if views is None or image.view in views]
    if not wanted:
        return "without an image of the wanted views"
    wanted.sort(key=lambda image: _VIEW_ORDER.get(image.view, len(_VIEW_ORDER)))
    texts = _texts(reader, candidate)
    if isinstance(texts, str):
        return texts
    images, kept, missing = _files(reader, candidate, wanted, many)
    if not images:
        return "without an image file"
    left = reader.summary.images_left_out
    for reason, count in (
        ("of other views", len(candidate.images) - len(wanted)),
        ("without a file", missing),
        (f"beyond {many} per study", len(wanted) - len(images) - missing),
    ):
        if count:
            left[reason] += count
    return Study(
        id=candidate.id,
        images=tuple(images),
        patient=candidate.patient,
        indication=texts["indication"],
        findings=texts["findings"],
        impression=texts["impression"],
        source=candidate.source,
        origin=candidate.origin or reader.origin,
        split=candidate.split,
        views=tuple(one.view for one in kept) if any(one.view for one in kept) else (),
        labels=candidate.labels,
    )


def _texts(reader: Reader, candidate: Candidate) -> dict[str, str | None] | str:
    """The sections after all changes, or the reason why the study is left out."""
    options, found = reader.options, reader.sections(candidate)
    if isinstance(found, str):
        return found
    texts_of = ("findings", "impression", "indication", "last_paragraph")
    found = count_placeholders(
        reader.summary.placeholders, {name: found.get(name) for name in texts_of}
    )
    target = options.target
    names = ("findings", "impression") if target == "both" else (target,)
    raw = {name: found[name] for name in ("findings", "impression", "indication")}
    last = (found["last_paragraph"] or "").strip()
    if last and target not in (None, "both") and not (raw["findings"] or raw["impression"]):
        if options.last_paragraph:
            raw[str(target)] = last
        else:
            return f"without {_parts(str(target))}, but with a last paragraph"
    texts: dict[str, str | None] = {}
    for name, text in raw.items():
        text = text or ""
        if options.strip_placeholders:
            text = text_edits.strip_placeholders(text)
        was_there = bool(text.strip())
        if options.drop_comparisons and name != "indication":
            text = text_edits.drop_comparisons(text)
        elif reader.tidy:
            text = text_edits.one_line(text)
        gone = is_absent(text)
        if target is not None and name in names and gone:
            if was_there:
                return f"with nothing but comparisons in {name}"
            return f"without {_parts(name)}"
        texts[name] = None if gone else text
    if target is not None:
        words = sum(len((texts[str(name)] or "").split()) for name in names)
        if words < options.min_words:
            return f"of less than {options.min_words} words"
    return texts


def _files(
    reader: Reader, candidate: Candidate, wanted: Sequence[ImageRecord], many: int | None
) -> tuple[list[Any], list[ImageRecord], int]:
    """The first `many` images whose files exist, their records, and the count of missing files."""
    images: list[Any] = []
    kept: list[ImageRecord] = []
    missing = 0
    for record in wanted:
        if many is not None and len(images) == many:
            break
        image = reader.image_source(candidate, record)
        if reader.options.check_files and isinstance(image, Path) and not os.path.isfile(image):
            missing += 1
            log.info("there is no %s", image)
            reader.skipping.skip_or_raise(
                candidate.id,
                f"{candidate.source}: study {candidate.id!r}",
                f"there is no image file ({wanted.index(record) + 1} of {len(wanted)}; -v shows it)"
                "; is the download complete? on_error='skip' continues and counts such files",
            )
            continue
        images.append(image)
        kept.append(record)
    return images, kept, missing
