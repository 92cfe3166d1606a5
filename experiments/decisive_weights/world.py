"""The long-tail world: some findings were seen twice, and reports end by content.

It differs from the world of `dive demo` in five ways, so that decisive weights have room to act:

- the findings of `RARE` have exactly `POSITIVES` training studies each, and at most one side;
- every sentence about a finding is worded in one of two forms of the hospital, drawn per report;
- the closing sentences are a function of the study: advice if a finding has severity 3, a notice if
  there are two findings or more, and nothing after them;
- "noisy" has `NOISY_POSITIVES` further training studies per rare finding, and a share `NOISE` of
  those is reported as normal of that finding;
- a second set of test studies, each with a rare finding, is scored and never written.

Styles, pictures and words come from dive/demo, so the bundled backbone and its vocabulary stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dive.data import Study
from dive.demo.style import ABSENT, ADVICE, LABELS, NOTICES, PRESENT, Style, hospital_style
from dive.demo.world import FINDINGS, Site, draw_images, draw_labels, to_image

RARE_CONCEPTS = ("pneumothorax", "nodule")
RARE = tuple(i for i, (concept, _, _) in enumerate(FINDINGS) if concept in RARE_CONCEPTS)
RARE_NAMES = {index: f"{FINDINGS[index][1]} {FINDINGS[index][0]}" for index in RARE}
_SIDES = tuple(
    tuple(i for i in RARE if FINDINGS[i][0] == concept) for concept in RARE_CONCEPTS
)  # the findings that exclude each other
# The fluid of an effusion would hide the air of a pneumothorax of its side.
_HIDDEN_BY = {3: 1, 4: 2}

SITE = Site(prevalence=0.5, contrast=0.4, noise=0.03)  # contrast by the gate (gate.py)
POSITIVES = 2
NOISY_POSITIVES = 8
NOISE = 0.2
TRAIN, TEST, ENRICHED = 128, 400, 400
DEMONSTRATIONS = 3
WORLDS = ("tail", "noisy")


@dataclass(frozen=True)
class Wording:
    """A hospital's style, with a second form of its sentences and its own closing sentences."""

    style: Style
    present: dict[str, tuple[str, str]]
    absent: dict[str, tuple[str, str]]
    advice: str
    notice: str


@dataclass(frozen=True)
class Written:
    """A report, and where its decisions are taken.

    slots: the text before the sentence about each rare concept. ends: the text before each point at
    which the report may end and need not, with whether it ends there.
    """

    text: str
    slots: dict[str, str]
    ends: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Cases:
    """Studies with their reports, and with what is true of them: severities, int64 [count, 13]."""

    studies: list[Study]
    reports: list[Written]
    severities: np.ndarray


@dataclass(frozen=True)
class Hospital:
    """One hospital of the long-tail world.

    test: as they come, with reports that are written and scored. enriched: each with a rare
    finding, scored alone. demonstrations: for a teacher.
    """

    number: int
    wording: Wording
    train: Cases
    test: Cases
    enriched: Cases
    demonstrations: list[Study]


def open_hospital(
    number: int,
    world: str = "tail",
    train: int = TRAIN,
    test: int = TEST,
    enriched: int = ENRICHED,
) -> Hospital:
    """Draws a hospital; the number decides everything but the counts of studies."""
    wording = draw_wording(number)
    groups = {}
    for stream, (name, count) in enumerate(
        (
            ("train", train),
            ("test", test),
            ("enriched", enriched),
            ("demonstration", DEMONSTRATIONS),
        )
    ):
        rng = np.random.default_rng([81, number, stream])
        severities = draw_severities(count, rng)
        if name == "train":
            extra = NOISY_POSITIVES if world == "noisy" else 0
            reported = _seen_rarely(severities, POSITIVES, extra, rng)
        else:
            if name == "enriched":
                enrich(severities, rng)
            reported = severities
        pictures = draw_images(severities, rng, SITE)
        reports = [write_report(wording, stated, rng) for stated in reported]
        studies = [
            Study(
                id=f"{world}{number}-{name}-{n:03d}",
                images=(to_image(picture),),
                findings=report.text,
                source=f"{world} hospital {number}",
            )
            for n, (picture, report) in enumerate(zip(pictures, reports, strict=True))
        ]
        groups[name] = Cases(studies, reports, severities)
    shown = groups.pop("demonstration").studies
    return Hospital(number, wording, **groups, demonstrations=shown)


def draw_wording(number: int) -> Wording:
    """Draws two forms of each sentence, and the two closing sentences."""
    rng = np.random.default_rng([82, number])
    style = hospital_style(number)

    def two(first: str, options: Sequence[str]) -> tuple[str, str]:
        others = [option for option in options if option != first]
        return first, others[int(rng.integers(len(others)))]

    def one(options: Sequence[str]) -> str:
        stated = [option for option in options if option]
        return stated[int(rng.integers(len(stated)))]

    return Wording(
        replace(style, closing=()),
        {concept: two(style.present[concept], PRESENT) for concept in style.present},
        {concept: two(style.absent[concept], ABSENT) for concept in style.absent},
        one(ADVICE),
        one(NOTICES),
    )


def draw_severities(count: int, rng: np.random.Generator) -> np.ndarray:
    severities = draw_labels(count, rng, SITE)
    for sides in _SIDES:  # at most one side, so that a slot has one answer
        both = np.flatnonzero((severities[:, sides] > 0).all(1))
        for row in both:
            severities[row, sides[int(rng.integers(2))]] = 0
    return severities


def _give(severities: np.ndarray, row: int, finding: int, rng: np.random.Generator) -> None:
    """Gives one study a rare finding, and takes away what excludes it."""
    for sides in _SIDES:
        if finding in sides:
            severities[row, sides] = 0
    if finding in _HIDDEN_BY:
        severities[row, _HIDDEN_BY[finding]] = 0
    severities[row, finding] = int(rng.integers(1, 4))


def _seen_rarely(
    severities: np.ndarray, exactly: int, extra: int, rng: np.random.Generator
) -> np.ndarray:
    """Leaves `exactly` + `extra` studies with each rare finding, and returns what is reported.

    A study has one rare finding at most. Of the extra ones the share `NOISE`, over all findings,
    is reported without it.
    """
    severities[:, RARE] = 0
    each = exactly + extra
    if len(severities) < each * len(RARE):
        raise ValueError(f"{len(severities)} training studies, want {each * len(RARE)} or more")
    rows = rng.permutation(len(severities))[: each * len(RARE)].reshape(len(RARE), each)
    for finding, own in zip(RARE, rows, strict=True):
        for row in own:
            _give(severities, row, finding, rng)
    reported = severities.copy()
    further = rows[:, exactly:].flatten()
    for row in rng.permutation(further)[: round(NOISE * len(further))]:
        reported[row, RARE] = 0
    return reported


def enrich(severities: np.ndarray, rng: np.random.Generator) -> None:
    """Gives every study one rare finding, as many of each; the rest stays as it was drawn."""
    severities[:, RARE] = 0
    for row in range(len(severities)):
        _give(severities, row, RARE[row % len(RARE)], rng)


def write_report(
    wording: Wording, severities: Sequence[int] | np.ndarray, rng: np.random.Generator
) -> Written:
    """Returns the report of one study, its forms drawn; `severities` [13]."""
    style = wording.style
    fixed = {"mediastinum": style.mediastinum, "bones": style.bones, "abdomen": style.abdomen}
    opening = (style.header, style.comparison, style.technique, style.boilerplate)
    parts = [part for part in opening if part]
    phrases, slots = [], {}
    for section in style.order:
        if style.labelled:
            parts.append(LABELS[section])
        if section in fixed:
            parts.append(fixed[section])
            continue
        if section in RARE_CONCEPTS:
            slots[section] = " ".join(parts)
        form = int(rng.integers(2))
        own = [i for i, (concept, _, _) in enumerate(FINDINGS) if concept == section]
        found = [style.phrase_for(i, int(severities[i])) for i in own if severities[i]]
        phrases += found
        if found:
            parts += [wording.present[section][form].format(phrase=phrase) for phrase in found]
        else:
            parts.append(wording.absent[section][form].format(term=style.terms[section]))
    parts.append(style.impression)
    parts.append(style.separator.join(phrases) + "." if phrases else style.normal)
    closing = closing_sentences(wording, severities)
    ends = [(" ".join(parts), not closing)]
    if closing[:1] == [wording.advice]:  # after a notice nothing follows: no decision
        ends.append((" ".join([*parts, wording.advice]), len(closing) == 1))
    return Written(" ".join([*parts, *closing]), slots, tuple(ends))


def closing_sentences(wording: Wording, severities: Sequence[int] | np.ndarray) -> list[str]:
    """Returns the closing sentences, which the findings decide."""
    severities = np.asarray(severities)
    sentences = [wording.advice] if (severities == 3).any() else []
    return sentences + ([wording.notice] if (severities > 0).sum() >= 2 else [])
