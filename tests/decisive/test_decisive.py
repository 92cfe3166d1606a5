"""From mentions to tokens: every piece of a decisive word is weighted, with any tokenizer."""

import re

import pytest
import tiny_tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marked_reports import marked_reports, read_marked

from dive import DecisiveTokens
from dive.decisive.mentions import find_mentions
from dive.decisive.tokens import CLASS_NAMES, EOS, PATHOLOGY, TEMPLATE, share
from dive.errors import DiveError
from dive.lexicon import load_lexicon

KINDS = ("qwen", "llama3", "llama2", "gemma", "unigram")
TEXT = (
    "There is a small right pleural effusion. No pneumothorax.\nPossible pneumoperitoneum; the "
    "heart is not enlarged, and the aorta is very tortuous."
)


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: getattr(tiny_tokenizers, f"{kind}_tokenizer")() for kind in KINDS}


def plain(marked: str) -> str:
    return read_marked(marked.rstrip("\n"))[0]


def offsets_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("polarity", ["positive", "all"])
def test_every_piece_and_no_other(tokenizers, kind, polarity):
    """A token is pathology exactly where it holds a character of a decisive word."""
    weigher = DecisiveTokens(tokenizers[kind], polarity=polarity)
    split_words = 0
    for text in [TEXT, *map(plain, marked_reports()[::4])]:
        offsets = offsets_of(tokenizers[kind], text)
        classes = weigher.label(text, offsets, len(offsets) + 1)
        spans = [span for mention in weigher.decisive(text) for span in mention.spans]
        inside = {i for start, end in spans for i in range(start, end)}
        assert classes[-1] == EOS
        for (start, end), kind_ in zip(offsets, classes[:-1], strict=True):
            touched = not inside.isdisjoint(range(start, end))
            assert kind_ == (PATHOLOGY if touched else TEMPLATE)
        for start, end in spans:
            pieces = [k for k, (a, b) in enumerate(offsets) if a < end and b > start]
            assert {classes[k] for k in pieces} == {PATHOLOGY}
            covered = {i for k in pieces for i in range(*offsets[k])}
            assert covered >= set(range(start, end))
            split_words += len(pieces) > 1
    assert split_words > 20  # the tokenizers are small enough to cut words


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_text_and_of_its_ids(tokenizers, kind):
    tokenizer = tokenizers[kind]
    weigher = DecisiveTokens(tokenizer, pathology=3.0, eos=5.0)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    weights = weigher(TEXT)
    assert weights.dtype == torch.float32
    assert weights.shape == (len(ids) + 1,)
    assert set(weights[:-1].tolist()) == {1.0, 3.0}
    assert weights[-1] == 5.0
    assert torch.equal(weigher(ids), weights)
    assert torch.equal(weigher(torch.tensor(ids)), weights)
    # the end token is the EOS event, not one more token; a bos in front stays
    assert torch.equal(weigher([*ids, tokenizer.eos_token_id]), weights)
    if tokenizer.bos_token_id is not None:
        first = weigher([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id])
        assert torch.equal(first, torch.cat([torch.ones(1), weights]))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_the_tokenizer_would_not_choose(tokenizers, kind):
    """Generated ids may cut words otherwise, down to single characters and bytes."""
    tokenizer = tokenizers[kind]
    weigher = DecisiveTokens(tokenizer, pathology=3.0)
    ids = []
    for piece in tokenizer.tokenize("Small effusion; no œdema. Cardiomegaly."):
        letters = tokenizer.convert_tokens_to_ids([piece] if piece.startswith("<") else list(piece))
        ids += letters
    assert tokenizer.unk_token_id not in ids
    assert "effusion; no œdema" in tokenizer.decode(ids)
    weights = weigher(ids)
    assert weights.shape == (len(ids) + 1,)
    # the letters of effusion and cardiomegaly; the space before a word may be part of no letter
    assert int((weights == 3.0).sum()) == len("effusionCardiomegaly")


def test_empty_texts(tokenizers):
    weigher = DecisiveTokens(tokenizers["qwen"], eos=2.0)
    assert weigher("").tolist() == [2.0]
    assert weigher([]).tolist() == [2.0]
    assert find_mentions("") == [] and find_mentions(" \n.,;") == []


def test_polarity_and_uncertainty(tokenizers):
    def decisive(**options):
        return [m.name for m in DecisiveTokens(tokenizers["qwen"], **options).decisive(TEXT)]

    stated = ["Pleural Effusion", "Aortic Change"]
    assert decisive() == ["Pleural Effusion", "Pneumoperitoneum", "Aortic Change"]
    assert decisive(uncertain=False) == stated
    assert decisive(polarity="all") == decisive(polarity="all", uncertain=False)
    assert decisive(polarity="all") == [
        "Pleural Effusion", "Pneumothorax", "Pneumoperitoneum", "Cardiomegaly", "Aortic Change",
    ]  # fmt: skip


def test_own_lexicon(tokenizers, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("entries:\n  - {name: Puddle, terms: [puddle(s)]}\n")
    weigher = DecisiveTokens(tokenizers["gemma"], lexicon=load_lexicon(own, default=False))
    assert [m.name for m in weigher.decisive("Effusion. Two puddles.")] == ["Puddle"]


def test_label_without_an_end_token():
    weigher = DecisiveTokens(None)
    assert weigher.label("effusion", [(0, 8)], 1) == [PATHOLOGY]
    assert weigher.label("effusion", [(0, 4), (4, 8), (0, 0)], 4) == [1, 1, 0, EOS]
    assert weigher.weights_of([TEMPLATE, PATHOLOGY, EOS]) == [1.0, 4.0, 4.0]
    # byte pieces of one character share its offsets
    assert weigher.label("œdema", [(0, 1), (0, 1), (1, 5)], 3) == [1, 1, 1]


class Slow:
    is_fast = False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokenizer": Slow()}, "Slow returns no character offsets"),
        ({"tokenizer": None, "polarity": "negative"}, "polarity is 'negative'"),
        ({"tokenizer": None, "pathology": -1}, "pathology is -1"),
        ({"tokenizer": None, "eos": float("nan")}, "eos is nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(DiveError, match=message):
        DecisiveTokens(**arguments)


def test_bad_calls():
    weigher = DecisiveTokens(None)
    with pytest.raises(DiveError, match="cannot tokenise"):
        weigher("effusion")
    with pytest.raises(DiveError, match="response of 3 tokens with 1 offsets"):
        weigher.label("effusion", [(0, 8)], 3)
    with pytest.raises(DiveError, match="2 classes and 1 weights"):
        share([0, 1], [1.0])


def test_share():
    assert CLASS_NAMES == ("template", "pathology", "eos")
    classes = [TEMPLATE, TEMPLATE, PATHOLOGY, EOS]
    table = share(classes, DecisiveTokens(None, pathology=4, eos=2).weights_of(classes))
    assert table == {0: (0.5, 0.25), 1: (0.25, 0.5), 2: (0.25, 0.25)}
    assert share([], []) == {0: (0.0, 0.0), 1: (0.0, 0.0), 2: (0.0, 0.0)}


def test_under_all_three_words_in_ten_at_most():
    """On reports in the manner of a public collection: findings and impression, mostly normal."""
    reports = [plain(marked) for marked in marked_reports()[:20]]
    decisive = words = 0
    for text in reports:
        offsets = [match.span() for match in re.finditer(r"\S+", text)]
        classes = DecisiveTokens(None, polarity="all").label(text, offsets, len(offsets))
        words += len(offsets)
        decisive += classes.count(PATHOLOGY)
    assert words > 500
    assert 0.10 < decisive / words < 0.30


SAMPLE = """
no not without is are seen pneumothorax effusion effusions pleural heart enlarged lungs clear normal
possible may represent versus or and , . ; : ? XXXX ___ opacity the a small left calcified granuloma
cannot be excluded resolved has which but 5.2 cm No. 3 Dr. - / ( ) 1. œdema naïve İstanbul ﬁbrosis
心 T8 compression deformity
"""
WORDS = st.sampled_from([*SAMPLE.split(), "\n"])


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=40).map(" ".join) | st.text(max_size=80))
def test_spans_are_in_range_and_apart(text):
    mentions = find_mentions(text)
    assert mentions == sorted(mentions, key=lambda m: (m.start, m.end))
    taken: set[int] = set()
    for mention in mentions:
        assert (mention.start, mention.end) == (mention.spans[0][0], mention.spans[-1][1])
        assert mention.polarity in ("positive", "negative", "uncertain")
        for start, end in mention.spans:
            assert 0 <= start < end <= len(text)
            assert taken.isdisjoint(range(start, end))
            taken.update(range(start, end))
            # whole words: no letter is cut off at either side
            assert not (start and text[start - 1].isalpha() and text[start].isalpha())
            assert not (end < len(text) and text[end - 1].isalpha() and text[end].isalpha())


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, max_size=30).map(" ".join))
def test_case_does_not_matter_to_what_is_found(text):
    def found(t):
        return [(m.name, m.polarity, m.spans) for m in find_mentions(t)]

    if "\n" not in text and len(text.lower()) == len(text) and "ﬁ" not in text:
        assert found(text.lower()) == found(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=25).map(" ".join), st.sampled_from(KINDS))
def test_every_character_of_a_mention_is_weighted(tokenizers, text, kind):
    offsets = offsets_of(tokenizers[kind], text)
    classes = DecisiveTokens(None, polarity="all").label(text, offsets, len(offsets))
    covered = {i for (a, b), c in zip(offsets, classes, strict=True) if c for i in range(a, b)}
    for mention in find_mentions(text):
        for start, end in mention.spans:
            assert covered >= set(range(start, end))
