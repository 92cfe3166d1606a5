"""A second reader: invented reports with the mentions that a radiologist would mark in them.

tests/data/second_reader.yaml was written apart from the lexicon and its cues. Its first reading was
a measure: recall 0.984, polarity 0.978. Lexicon and cues were repaired on what it showed, so it is
a development set since, and the floors below only keep what was reached.
"""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from tiny_tokenizers import gemma_tokenizer, llama2_tokenizer, qwen_tokenizer, unigram_tokenizer

from dive.decisive import PATHOLOGY, TEMPLATE, DecisiveTokens, Mention, find_mentions
from dive.lexicon.lexicon import CHEXPERT_CLASSES, OTHER

DATA = Path(__file__).parent / "data" / "second_reader.yaml"
REPORTS: list[dict[str, Any]] = yaml.safe_load(DATA.read_text(encoding="utf-8"))
IDS = [report["id"] for report in REPORTS]
POLARITIES = ("positive", "negative", "uncertain")
RECALL, POLARITY = 0.99, 0.99  # reached: 0.998 and 1.000
TOKENIZERS = {
    "llama2": llama2_tokenizer,
    "unigram": unigram_tokenizer,
    "gemma": gemma_tokenizer,
    "qwen": qwen_tokenizer,
}


class Expected(NamedTuple):
    """A mention that has to be found: characters [start, end) of the report."""

    words: str
    start: int
    end: int
    cls: str
    polarity: str


def expected(report: dict[str, Any]) -> list[Expected]:
    """The report's marked mentions with their places."""
    marked = []
    for words, cls, polarity, *which in report["mentions"]:
        places = [
            m.span() for m in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", report["text"])
        ]
        start, end = places[which[0] - 1 if which else 0]
        marked.append(Expected(words, start, end, cls, polarity))
    return marked


def hits(wanted: Expected, mentions: list[Mention]) -> list[Mention]:
    """Mentions of the wanted class that share a character with the wanted words."""
    return [
        m
        for m in mentions
        if wanted.cls in (OTHER, m.cls)
        and any(a < wanted.end and wanted.start < b for a, b in m.spans)
    ]


def test_the_reports_are_well_formed() -> None:
    assert len(REPORTS) == len(set(IDS)) == 120
    marked = [one for report in REPORTS for one in expected(report)]
    assert len(marked) > 450
    assert {one.polarity for one in marked} == set(POLARITIES)
    assert {one.cls for one in marked} == {*CHEXPERT_CLASSES, OTHER}


def test_recall_and_polarity() -> None:
    count = found = right = 0
    misses = []
    for report in REPORTS:
        mentions = find_mentions(report["text"])
        for wanted in expected(report):
            count += 1
            matching = hits(wanted, mentions)
            label = f"{report['id']}: {wanted.words!r} {wanted.cls} {wanted.polarity}"
            if not matching:
                near = [
                    (report["text"][m.start : m.end], m.cls)
                    for m in mentions
                    if m.start < wanted.end and wanted.start < m.end
                ]
                misses.append(f"{label}: not found; there: {near}")
                continue
            found += 1
            # one of them wrong is wrong: "edema" right and "pulmonary" beside it wrong is no pass
            if all(m.polarity == wanted.polarity for m in matching):
                right += 1
            else:
                got = [(report["text"][m.start : m.end], m.cls, m.polarity) for m in matching]
                misses.append(f"{label}: got {got}")
    recall, accuracy = found / count, right / found
    summary = f"recall {recall:.4f} ({found}/{count}), polarity {accuracy:.4f} ({right}/{found})"
    assert recall >= RECALL and accuracy >= POLARITY, "\n".join([summary, *misses])


@pytest.mark.parametrize(
    "report",
    [pytest.param(r, id=r["id"]) for r in REPORTS],
)
def test_mentions_are_in_range_and_apart(report: dict[str, Any]) -> None:
    text = report["text"]
    mentions = find_mentions(text)
    assert mentions, "every one of these reports says something"
    spans = sorted(span for m in mentions for span in m.spans)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(last[1] <= following[0] for last, following in pairwise(spans))
    for m in mentions:
        assert (m.start, m.end) == (m.spans[0][0], m.spans[-1][1])
        assert m.cls in (*CHEXPERT_CLASSES, OTHER) and m.polarity in POLARITIES


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_piece_of_a_positive_mention_is_pathology(name: str) -> None:
    """And no piece that lies outside all decisive mentions."""
    tokenizer = TOKENIZERS[name]()
    weigher = DecisiveTokens(tokenizer, uncertain=False)
    split_words = 0
    for report in REPORTS:
        text = report["text"]
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        classes = weigher.label(text, offsets, len(offsets))
        owned = {
            position
            for m in find_mentions(text)
            if m.polarity == "positive"
            for start, end in m.spans
            for position in range(start, end)
        }
        reached = set()
        for (start, end), kind in zip(offsets, classes, strict=True):
            inside = owned.intersection(range(start, end))
            wanted = PATHOLOGY if inside else TEMPLATE
            assert kind == wanted, f"{report['id']}: {text[start:end]!r} at {start}"
            reached |= inside
            split_words += bool(inside) and not text[start:end].startswith(" ")
        assert reached >= {p for p in owned if not text[p].isspace()}, report["id"]
    assert split_words > 500, "words of findings are to come in pieces, else this shows little"
