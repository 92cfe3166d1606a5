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
    """Raise DiveError unless `target` names a section that a report can be written from."""
    if target not in TARGETS:
        raise DiveError(f"target is {target!r}; wants one of {', '.join(TARGETS)}")


@dataclass(frozen=True)
class Study:
    """The images of one examination, and what was written about them.

    Attributes:
        id: unique name.
        images: paths, PIL images already in memory, or `LazyImage`s (rows of a dataset object), in
            the order in which they are shown.
        patient: name of the patient, so that no study demonstrates for another of the same person.
        indication: why the examination was asked for; goes into the prompt where it is known.
        findings, impression: sections of the report; None where unknown.
        source: where the study came from ("studies.jsonl:12": a file's last name, and the line),
            for error messages.
        origin: the dataset that it is of ("mimic-cxr"), where a reader or a row says it; an
            adapter remembers where its studies are from.
        split: the dataset's own name of the split ("train", "validate", "valid", ...).
        views: one name an image where they are known ("PA", "AP", "FRONTAL", "LATERAL", ...).
        labels: what the dataset's label file says, blank entries left out: 1 positive, 0 negative,
            -1 uncertain. None: no label file was read, or it has no row of this study.
        placeholders: what was given for a text or the patient and is none ("nan", "N/A", "-",
            "___", NaN; see `dive.data.absent`), by field; such a field is None.
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
        """What a message may say of it: no text, no patient, no path."""
        known = [name for name in (*_TEXTS, "labels") if getattr(self, name) is not None]
        return f"Study({self.id!r}, {len(self.images)} images; {', '.join(known) or 'no report'})"

    @property
    def where(self) -> str:
        """The study as error messages name it."""
        own = f"study {self.id!r}"
        return visible(f"{self.source}: {own}") if self.source else own

    @property
    def texts(self) -> list[str]:
        """What is private of it, and may come back in a library's words."""
        return [value for name in _TEXTS if isinstance(value := getattr(self, name), str)]

    @property
    def image_names(self) -> list[str]:
        """Its images as error messages name them, for a path may hold the patient: "1 of 2"."""
        return [f"{number + 1} of {len(self.images)}" for number in range(len(self.images))]

    def check(self) -> None:
        """Raise DiveError where a field is of another kind than it is to be; no file is opened."""
        names: dict[str, tuple[type, ...]] = {"id": (str, int), "patient": (str, int)}
        names |= dict.fromkeys(("indication", "findings", "impression"), (str,))
        for name, kinds in names.items():
            value = getattr(self, name)
            good = isinstance(value, kinds) and not isinstance(value, bool)
            if not good and (value is not None or name == "id"):
                raise DiveError(f"{self.where}: {name!r} is a {type(value).__name__}; wants a text")
        if not isinstance(self.images, (tuple, list)):
            raise DiveError(
                f"{self.where}: 'images' is a {type(self.images).__name__}; wants a sequence, each "
                f"of it {IMAGES}"
            )
        for image in self.images:
            if not is_image(image):
                raise DiveError(
                    f"{self.where}: 'images' holds a {type(image).__name__}; wants {IMAGES}"
                )

    def report(self, target: str = "findings") -> str:
        """The text to write: one section, or both as "Findings: ... Impression: ...".

        Raises:
            DiveError: a section that `target` needs is absent or blank, or a field is of another
                kind.
        """
        check_target(target)
        self.check()
        names = ("findings", "impression") if target == "both" else (target,)
        sections = {name: (getattr(self, name) or "").strip() for name in names}
        for name, text in sections.items():
            if not text:
                state = "absent" if getattr(self, name) is None else "empty"
                if name in self.placeholders:
                    state += f" ({self.placeholders[name]} stands in its place)"
                raise DiveError(f"{self.where}: {name!r} is {state}; the target is {target!r}")
        if target == "both":
            return f"Findings: {sections['findings']} Impression: {sections['impression']}"
        return sections[target]

    def load_images(self) -> list[Image.Image]:
        """Every image, decoded to the last pixel, as RGB.

        Raises:
            DiveError: an image is missing, damaged or no image at all; names the study, and
            which of its images.
        """
        self.check()
        return [
            load_rgb(image, self.where, name=name)
            for image, name in zip(self.images, self.image_names, strict=True)
        ]
