"""A second reader: invented reports with the mentions that a radiologist would mark in them.

sentences/second_reader.yaml was written apart from the lexicon and its cues. At first it
measured recall 0.984, polarity 0.978. Lexicon and cues were then repaired on it, so it is a
development set now, and the floors below only keep what was reached.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import gemma_tokenizer, llama2_tokenizer, qwen_tokenizer, unigram_tokenizer

from dive.decisive.mentions import find_mentions
from dive.decisive.tokens import PATHOLOGY, TEMPLATE, DecisiveTokens
from dive.lexicon.lexicon import CHEXPERT_CLASSES, OTHER
from tools import measure_lexicon

DATA = Path(__file__).parent / "sentences" / "second_reader.yaml"
REPORTS: list[dict[str, Any]] = measure_lexicon.marked_set(DATA)
IDS = [report["id"] for report in REPORTS]
POLARITIES = ("positive", "negative", "uncertain")
RECALL, POLARITY = 0.99, 0.99  # reached: 0.998 and 1.000
TOKENIZERS = {
    "llama2": llama2_tokenizer,
    "unigram": unigram_tokenizer,
    "gemma": gemma_tokenizer,
    "qwen": qwen_tokenizer,
}


def test_the_reports_are_well_formed() -> None:
    assert len(REPORTS) == len(set(IDS)) == 120
    marked = [one for report in REPORTS for one in measure_lexicon.expected(report)]
    assert len(marked) > 450
    assert {one.polarity for one in marked} == set(POLARITIES)
    assert {one.cls for one in marked} == {*CHEXPERT_CLASSES, OTHER}


def test_recall_and_polarity() -> None:
    reading = measure_lexicon.read_marked_set(REPORTS)
    recall, accuracy = reading.found / reading.marked, reading.right / reading.found
    assert recall >= RECALL and accuracy >= POLARITY, "\n".join([str(reading), *reading.wrong])


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
    """No piece outside all decisive mentions is decisive."""
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
