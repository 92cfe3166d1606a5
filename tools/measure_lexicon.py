"""Accuracy of the lexicon on sentences written independently of its rules, and Open-i's reports.

    python tools/measure_lexicon.py [indiana_reports.csv | a folder of ecgen-radiology/*.xml]

Without a path Open-i's reports are those of an installed torchxrayvision, which ships the XML
files (`pip install --no-deps torchxrayvision==1.5.7`); none of them is in this project.

Every Open-i report has headings that a human tagged. A tag counts as found if findings and
impression of the report have a mention of an entry with that heading; whether the text states it is
unknown, so the share is a lower bound of recall. For the 14 observations, precision is the share of
reports read as having one that have one of its tags, recall the share of tagged reports read so:
tags name the main findings of a film and not all of them, so precision is a lower bound.
"""

import csv
import importlib.util
import re
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dive.decisive.mentions import Mention, find_mentions
from dive.decisive.tokens import DecisiveTokens
from dive.lexicon import CHEXPERT_CLASSES, OTHER, Entry, Lexicon, default_lexicon

DATA = Path(__file__).parents[1] / "tests" / "lexicon" / "sentences"
SETS = {
    "hard_sentences": "hard sentences, which no rule was written for",
    "dev_sentences": "sentences that rules were corrected on",
    "second_reader": "reports that rules were corrected on",
}
ARCHIVE = "torchxrayvision/data/NLMCXR_reports.tgz"
_NO_FINDING = {"normal", "no indexing", "technical quality of image unsatisfactory"}
# the tags that have the same meaning as the observation
_TAGS = {
    "Enlarged Cardiomediastinum": ["Mediastinum"],
    "Cardiomegaly": ["Cardiomegaly"],
    "Lung Opacity": ["Opacity", "Airspace Disease", "Infiltrate"],
    "Lung Lesion": ["Nodule", "Mass", "Lung Neoplasms"],
    "Edema": ["Pulmonary Edema", "Pulmonary Congestion", "Heart Failure"],
    "Consolidation": ["Consolidation"],
    "Pneumonia": ["Pneumonia"],
    "Atelectasis": ["Pulmonary Atelectasis"],
    "Pneumothorax": ["Pneumothorax", "Hydropneumothorax"],
    "Pleural Effusion": ["Pleural Effusion", "Hydropneumothorax"],
    "Pleural Other": ["Thickening/pleura", "Fibrothorax"],
    "Fracture": ["Fractures, Bone"],
    "Support Devices": [
        "Catheters, Indwelling", "Medical Device", "Implanted Medical Device", "Stents",
        "Tube, Inserted",
    ],
}  # fmt: skip


class Expected(NamedTuple):
    """A mention that must be found: characters [start, end) of the report."""

    words: str
    start: int
    end: int
    cls: str
    polarity: str


class Reading(NamedTuple):
    """The accuracy on a marked set; `wrong` has one line per mention that was read wrongly."""

    marked: int
    found: int
    right: int
    entries: int
    entries_right: int
    wrong: list[str]

    def __str__(self) -> str:
        return (
            f"found {self.found} of {self.marked} ({self.found / self.marked:.1%}), their polarity "
            f"right {self.right} ({self.right / self.found:.1%}); without any fault "
            f"{self.entries_right} of {self.entries} texts "
            f"({self.entries_right / self.entries:.1%})"
        )


def marked_set(path: Path) -> list[dict[str, Any]]:
    """Returns a marked set: `text`, and `mentions` as [words, class, polarity(, which)]."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def spans_of(words: str, text: str) -> list[tuple[int, int]]:
    """Returns the spans of the words in the text, as whole words; a literal "\\n" is no letter."""
    return [
        m.span() for m in re.finditer(rf"(?:(?<!\w)|(?<=\\[nrt])){re.escape(words)}(?!\w)", text)
    ]


def expected(entry: dict[str, Any]) -> list[Expected]:
    """Returns the entry's marked mentions with their spans."""
    marked = []
    for words, cls, polarity, *which in entry.get("mentions") or ():
        start, end = spans_of(words, entry["text"])[which[0] - 1 if which else 0]
        marked.append(Expected(words, start, end, cls, polarity))
    return marked


def hits(wanted: Expected, mentions: list[Mention]) -> list[Mention]:
    """Returns the mentions of the wanted class that overlap the wanted words."""
    return [
        m
        for m in mentions
        if wanted.cls in (OTHER, m.cls)
        and any(a < wanted.end and wanted.start < b for a, b in m.spans)
    ]


def read_marked_set(entries: Iterable[dict[str, Any]]) -> Reading:
    """Reads a marked set.

    A mention is right if all mentions of its class on its words have its polarity: "edema" right
    and "pulmonary" before it wrong does not pass. Words under `whole` must lie in one mention each,
    words under `none` in no mention that is decisive.
    """
    marked = found = right = count = without_fault = 0
    wrong: list[str] = []
    for entry in entries:
        text, before = entry["text"], len(wrong)
        mentions = find_mentions(text)
        for wanted in expected(entry):
            marked += 1
            matching = hits(wanted, mentions)
            found += bool(matching)
            if matching and all(m.polarity == wanted.polarity for m in matching):
                right += 1
                continue
            got = [
                (text[m.start : m.end], m.cls, m.polarity)
                for m in mentions
                if any(a < wanted.end and wanted.start < b for a, b in m.spans)
            ]
            what = f"{wanted.words!r} {wanted.cls} {wanted.polarity}"
            wrong.append(f"{entry['id']}: {text!r}: {what}: got {got}")
        for words in entry.get("whole") or ():
            if not any(text[a:b].find(words) >= 0 for m in mentions for a, b in m.spans):
                wrong.append(f"{entry['id']}: {text!r}: {words!r} is not within one mention")
        for words in entry.get("none") or ():
            for start, end in spans_of(words, text):
                if seen := [
                    (text[m.start : m.end], m.cls, m.polarity)
                    for m in mentions
                    if m.polarity != "negative" and any(a < end and start < b for a, b in m.spans)
                ]:
                    wrong.append(f"{entry['id']}: {text!r}: {words!r} is no finding: got {seen}")
        count += 1
        without_fault += len(wrong) == before
    return Reading(marked, found, right, count, without_fault, wrong)


def open_i(path: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Yields (findings and impression, human tags) of every Open-i report that has text."""
    if path is not None and path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            for record in csv.DictReader(file):
                yield from _text_and_tags(
                    record["findings"], record["impression"], record["MeSH"].split(";")
                )
        return
    for data in xml_files(path):
        root = ElementTree.fromstring(data)
        texts = {part.get("Label"): part.text or "" for part in root.iter("AbstractText")}
        tags = [tag.text or "" for tag in root.iter("major")]
        yield from _text_and_tags(texts.get("FINDINGS", ""), texts.get("IMPRESSION", ""), tags)


def _text_and_tags(
    findings: str, impression: str, tags: list[str]
) -> Iterator[tuple[str, list[str]]]:
    if text := f"{findings.strip()}\n{impression.strip()}".strip():
        yield text, [tag for tag in map(str.strip, tags) if tag]


def xml_files(path: Path | None) -> Iterator[bytes]:
    """Yields Open-i's files, from a folder or (None) from torchxrayvision."""
    if path is not None:
        for file in sorted(path.rglob("*.xml")):
            yield file.read_bytes()
        return
    archive = shipped()
    assert archive is not None
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(".xml") and (stream := tar.extractfile(member)) is not None:
                yield stream.read()


def shipped() -> Path | None:
    """Returns the archive of an installed torchxrayvision, which is not imported."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or spec.origin is None:
        return None
    archive = Path(spec.origin).parents[1] / ARCHIVE
    return archive if archive.exists() else None


def with_heading(lexicon: Lexicon, heading: str) -> list[Entry]:
    """Returns the entries that have this MeSH heading, compared without case.

    A heading with qualifiers, as the Open-i collection writes them, finds the entries whose own
    heading and qualifiers are all among its parts: `Lung/hypoinflation` is found by
    `Lung/hypoinflation/mild` and not by `Lung/hyperdistention`. A heading without qualifiers
    finds all entries that begin with it.
    """
    head, *qualifiers = _parts(heading)
    return [
        entry
        for entry in lexicon
        if any(
            own[0] == head and (not qualifiers or set(own[1:]) <= set(qualifiers))
            for own in map(_parts, entry.mesh)
        )
    ]


def _parts(heading: str) -> list[str]:
    return [part.strip().casefold() for part in heading.split("/")]


def measure(reports: Iterable[tuple[str, list[str]]]) -> None:
    """Prints the accuracy on Open-i's reports."""
    lexicon, start = default_lexicon(), time.perf_counter()
    weighers = {name: DecisiveTokens(None, polarity=name) for name in ("all", "positive")}
    tags = found = words = count = 0
    decisive: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    both: Counter[str] = Counter()
    read_as: Counter[str] = Counter()
    tagged: Counter[str] = Counter()
    for text, own in reports:
        count += 1
        offsets = [match.span() for match in re.finditer(r"\w+", text)]
        words += len(offsets)
        for name, weigher in weighers.items():
            decisive[name] += sum(weigher.label(text, offsets, len(offsets)))
        mentions = find_mentions(text)
        named = {mention.name for mention in mentions}
        for tag in own:
            head = tag.split("/")[0].strip()
            if head.casefold() in _NO_FINDING:
                continue
            tags += 1
            entries = with_heading(lexicon, tag) or with_heading(lexicon, head)
            if named & {entry.name for entry in entries}:
                found += 1
            else:
                missed[head] += 1
        present = {m.cls for m in mentions if m.polarity != "negative"} - {"No Finding", OTHER}
        if not any(m.polarity != "negative" for m in mentions):
            present = {"No Finding"}
        truth = {c for c, wanted in _TAGS.items() if any(_has(own, tag) for tag in wanted)}
        if own and all(tag.partition("/")[0].casefold() in _NO_FINDING for tag in own):
            truth.add("No Finding")
        read_as.update(present)
        tagged.update(truth)
        both.update(present & truth)
    print(f"Open-i: {count:,} reports, {words:,} words, {time.perf_counter() - start:.1f} s")
    print(f"tags found in their report: {found:,} of {tags:,}, {found / tags:.1%}")
    for name in weighers:
        print(f"words decisive with polarity {name}: {decisive[name] / words:.1%}")
    print("most missed:", ", ".join(f"{head} {n}" for head, n in missed.most_common(8)))
    print(f"{'observation':<28}{'tagged':>7}{'read':>7}{'precision':>11}{'recall':>8}")
    for cls in CHEXPERT_CLASSES:
        precision = both[cls] / read_as[cls] if read_as[cls] else 0.0
        recall = both[cls] / tagged[cls] if tagged[cls] else 0.0
        print(f"{cls:<28}{tagged[cls]:>7}{read_as[cls]:>7}{precision:>11.1%}{recall:>8.1%}")


def _has(own: list[str], wanted: str) -> bool:
    """Whether a tag names the heading, with all its qualifiers."""
    return any(set(wanted.split("/")) <= set(tag.split("/")) for tag in own)


def main(arguments: list[str]) -> None:
    for name, title in SETS.items():
        print(f"{title}: {read_marked_set(marked_set(DATA / f'{name}.yaml'))}")
    path = Path(arguments[0]) if arguments else None
    if path is None and shipped() is None:
        print("Open-i: not read; `pip install --no-deps torchxrayvision==1.5.7` brings its reports")
        return
    measure(open_i(path))


if __name__ == "__main__":
    main(sys.argv[1:])
