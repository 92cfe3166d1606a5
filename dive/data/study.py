"""One study: the images of an examination and the sections of its report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from dive.data.absent import is_placeholder
from dive.data.images.load import IMAGES, LazyImage, is_image, load_rgb
from dive.errors import DiveError
from dive.errors.visible import visible

Target = Literal["findings", "impression", "both"]
TARGETS: tuple[str, ...] = get_args(Target)
_TEXTS = ("patient", "indication", "findings", "impression")


def check_target(target: str) -> None:
    """Raise DiveError unless `target` is one of `TARGETS`."""
    if target not in TARGETS:
        raise DiveError(f"target is {target!r}, want one of {', '.join(TARGETS)}")


@dataclass(frozen=True)
class Study:
    """The images of an examination and the sections of its report.

    Attributes:
        id: unique name.
        images: paths, PIL images, or `LazyImage`s (of a dataset object), in the order in which they
            are shown.
        patient: name of the patient; no study is a demonstration for one of the same patient.
        indication: the reason for the examination; part of the prompt if it is known.
        findings, impression: sections of the report; None where unknown.
        source: location of the study for error messages ("studies.jsonl:12": the last name of its
            file, and the line).
        origin: the dataset ("mimic-cxr"), if a reader or a record names it; an adapter records the
            origins of its studies.
        split: the dataset's name of the split ("train", "validate", "valid", ...).
        views: one name per image if they are known ("PA", "AP", "FRONTAL", "LATERAL", ...).
        labels: labels from the dataset's label file, without blank entries: 1 positive, 0 negative,
            -1 uncertain. None: no label file was read, or it has no record of this study.
        placeholders: field -> the placeholder that was passed for a text or the patient ("nan",
            "N/A", "-", "___", NaN; see `dive.data.absent`); the field itself is None.
    """

    id: str
    images: tuple[Path | Image.Image | LazyImage, ...]
    patient: str | None = None
    indication: str | None = None
    findings: str | None = None
    impression: str | None = None
    source: str = ""
    origin: str | None = None
    split: str | None = None
    views: tuple[str, ...] = ()
    labels: Mapping[str, float] | None = field(default=None, hash=False)
    placeholders: Mapping[str, str] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name in _TEXTS:
            value = getattr(self, name)
            if is_placeholder(value):
                self.placeholders[name] = repr(value)  # type: ignore[index]
                object.__setattr__(self, name, None)

    def __repr__(self) -> str:
        """A description without any text, patient or path."""
        known = [name for name in (*_TEXTS, "labels") if getattr(self, name) is not None]
        return f"Study({self.id!r}, {len(self.images)} images; {', '.join(known) or 'no report'})"

    @property
    def where(self) -> str:
        """The study as error messages name it: its source and id."""
        own = f"study {self.id!r}"
        return visible(f"{self.source}: {own}") if self.source else own

    @property
    def texts(self) -> list[str]:
        """The private texts of the study, which the messages of libraries may quote."""
        return [value for name in _TEXTS if isinstance(value := getattr(self, name), str)]

    @property
    def image_names(self) -> list[str]:
        """The images as error messages name them, because a path may name the patient: "1 of 2"."""
        return [f"{number + 1} of {len(self.images)}" for number in range(len(self.images))]

    def check(self) -> None:
        """Raise DiveError where a field has a wrong type; no file is opened."""
        names: dict[str, tuple[type, ...]] = {"id": (str, int), "patient": (str, int)}
        names |= dict.fromkeys(("indication", "findings", "impression"), (str,))
        for name, kinds in names.items():
            value = getattr(self, name)
            good = isinstance(value, kinds) and not isinstance(value, bool)
            if not good and (value is not None or name == "id"):
                raise DiveError(
                    f"{self.where}: {name!r} is a {type(value).__name__}, want a string"
                )
        if not isinstance(self.images, (tuple, list)):
            raise DiveError(
                f"{self.where}: 'images' is a {type(self.images).__name__}, want a sequence, each "
                f"item {IMAGES}"
            )
        for image in self.images:
            if not is_image(image):
                raise DiveError(
                    f"{self.where}: 'images' holds a {type(image).__name__}, want {IMAGES}"
                )

    def report(self, target: str = "findings") -> str:
        """The target text: one section, or both as "Findings: ... Impression: ...".

        Raises:
            DiveError: a section that `target` needs is absent or blank, or a field has a wrong
                type.
        """
        check_target(target)
        self.check()
        names = ("findings", "impression") if target == "both" else (target,)
        sections = {name: (getattr(self, name) or "").strip() for name in names}
        for name, text in sections.items():
            if not text:
                state = "absent" if getattr(self, name) is None else "empty"
                if name in self.placeholders:
                    state += f" (its value is {self.placeholders[name]})"
                raise DiveError(f"{self.where}: {name!r} is {state}; the target is {target!r}")
        if target == "both":
            return f"Findings: {sections['findings']} Impression: {sections['impression']}"
        return sections[target]

    def load_images(self) -> list[Image.Image]:
        """Decode all images completely, as RGB.

        Raises:
            DiveError: an image is missing, damaged or no image; names the study and the number of
                the image.
        """
        self.check()
        return [
            load_rgb(image, self.where, name=name)
            for image, name in zip(self.images, self.image_names, strict=True)
        ]
