"""The decision token: the first at which the training reports part present and absent."""

import numpy as np
import pytest
import tiny_tokenizers

from dive import DecisiveTokens
from dive.decisive.clauses import clauses
from dive.decisive.decision_tokens import Undecided
from dive.decisive.mentions import Mention, find_mentions
from dive.demo.reports import write_report
from dive.demo.style import TERMS, hospital_style
from dive.demo.world import FINDINGS, SHIFTED, draw_labels
from dive.errors import DiveError
from dive.lexicon import default_lexicon
from tools import measure_decisions

KINDS = ("qwen", "llama3", "llama2", "gemma", "unigram")
TRAINING = [
    "There is a small effusion. The heart is enlarged. Mild edema.",
    "There is no effusion. The heart is normal. No edema.",
    "No effusion or edema. The heart is normal in size.",
    "There is a large left effusion. The heart is mildly enlarged. No edema.",
    "Small left effusion. No cardiomegaly. Mild interstitial edema.",
    "There is no effusion or pneumothorax. The heart is not enlarged.",
]


def fitted(texts=TRAINING, tokenizer=None, **more):
    weigher = DecisiveTokens(tokenizer, unit="decision", **more)
    weigher.fit(texts)
    return weigher


def words(weigher, text):
    return [text[one.start : one.end] for one in weigher.marked(text)]


def decided(weigher, text):
    """The text with its decision words in brackets."""
    for one in reversed(weigher.marked(text)):
        text = f"{text[: one.start]}[{text[one.start : one.end]}]{text[one.end :]}"
    return text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("There is a small effusion.", "There is [a] small effusion."),
        ("There is no effusion.", "There is [no] effusion."),
        ("No effusion or edema.", "[No] effusion or edema."),
        ("The heart is normal.", "The heart is [normal]."),
        ("The heart is mildly enlarged.", "The heart is [mildly] enlarged."),
        ("The heart is not enlarged.", "The heart is [not] enlarged."),
        ("Heart: No cardiomegaly. Mild edema", "Heart: [No] cardiomegaly. [Mild] edema"),
        (
            "The heart is normal, and there is no effusion.",
            "The heart is [normal], and there is [no] effusion.",
        ),
    ],
)
def test_where_the_wording_parts(text, expected):
    assert decided(fitted(), text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("No effusion, pneumothorax or edema.", ["no effusion pneumothorax or edema"]),
        ("Small effusion and mild edema.", ["small effusion and", "mild edema"]),
        ("Small effusion, but no edema.", ["small effusion but", "no edema"]),
        ("Lungs are clear without effusion.", ["lungs are clear", "without effusion"]),
        ("Lungs are clear and heart is normal.", ["lungs are clear and", "heart is normal"]),
        ("Clear of effusion or edema.", ["clear of effusion or edema"]),
        ("Findings: Effusion; no edema.", ["effusion", "no edema"]),
        ("Pneumothorax: none.", ["pneumothorax none"]),
        ("Nodule of 12 mm. The liver.", ["nodule of # mm"]),
        ("The liver is large, and so on.", []),
        ("", []),
    ],
)
def test_clauses(text, expected):
    found = clauses(text, find_mentions(text))
    assert [" ".join(clause.words) for clause in found] == expected
    for clause in found:
        assert len({m.polarity == "negative" for m in clause.mentions}) == 1


def test_both_sides_weigh_one_token_per_clause():
    """Nothing tilts: as much weight for each clause, whatever it states."""
    weigher = fitted(pathology=3.0, eos=1.0)
    added = {True: 0.0, False: 0.0}
    count = {True: 0, False: 0}
    for text in TRAINING:
        for clause in weigher.clauses(text):
            start, end = clause.spans[0][0], clause.spans[-1][1]
            offsets = [span for span in clause.spans if start <= span[0] < end]
            _, weights = weigher.weigh(text, offsets, len(offsets))
            added[clause.present] += sum(weights) - len(weights)
            count[clause.present] += 1
    # of all clauses but one ("no cardiomegaly" is read; no pneumothorax is ever stated alone)
    assert added == {side: 2.0 * count[side] for side in count} and min(count.values()) >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_token_of_the_word(kind):
    tokenizer = getattr(tiny_tokenizers, f"{kind}_tokenizer")()
    weigher = fitted(tokenizer=tokenizer, pathology=3.0)
    for text in TRAINING:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        classes, weights = weigher.weigh(text, offsets, len(offsets) + 1)
        marked = weigher.marked(text)
        assert marked and classes.count(1) == len(marked)
        for one in marked:
            first = next(i for i, (a, b) in enumerate(offsets) if a < one.end and one.start < b)
            assert (classes[first], weights[first]) == (1, 3.0)
        assert weigher(text).tolist() == weights


def test_clause_weighs_all_of_it_and_mention_no_other():
    text = "The liver is large. There is no effusion. Small nodule."
    clause = DecisiveTokens(None, unit="clause", polarity="positive")
    assert words(clause, text) == ["There is no effusion", "Small nodule"]
    assert words(DecisiveTokens(None), text) == ["nodule"]
    assert words(DecisiveTokens(None, unit="mention"), text) == ["nodule"]


def test_a_misread_clause_moves_nothing():
    """One report in twenty that "states" the finding in the words that deny it."""
    texts = ["There is a nodule."] * 20 + ["There is no nodule."] * 200
    weigher = fitted(texts)
    clause = weigher.clauses("There is no nodule.")[0]
    wrong = clause._replace(
        mentions=tuple(m._replace(polarity="positive") for m in clause.mentions)
    )
    weigher.trees.add(wrong)
    assert decided(weigher, "There is no nodule.") == "There is [no] nodule."
    assert decided(weigher, "There is a nodule.") == "There is [a] nodule."


def test_a_rare_finding_parts_where_it_parts():
    """Twice stated, and denied hundreds of times, in words that others share."""
    texts = ["The image shows ptx. There is no effusion."] * 2
    texts += ["No ptx. There is a small effusion."] * 100 + ["No ptx. The heart is normal."] * 100
    texts += ["No ptx. There is no effusion."] * 100
    weigher = fitted(texts)
    assert decided(weigher, "The image shows ptx.") == "[The] image shows ptx."
    assert decided(weigher, "No ptx.") == "[No] ptx."


def test_unseen_clauses_walk_as_far_as_the_tree_is_known():
    weigher = fitted()
    assert decided(weigher, "There is no edema.") == "There is [no] edema."
    assert words(weigher, "Bibasilar effusion.") == []  # no report begins so


def test_a_finding_never_denied_has_no_decision_token():
    weigher = fitted([*TRAINING, "A nodule. No effusion.", "Small nodule."])
    assert words(weigher, "A nodule.") == []
    assert "nodule" not in " ".join(weigher.trees.findings)
    # its class is denied: two names of one class share what is known
    both = fitted(["Pulmonary mass.", "No nodule. Small granuloma."])
    assert find_mentions("Pulmonary mass.")[0].cls == find_mentions("No nodule.")[0].cls
    assert words(both, "No nodule.") == ["No"]


def test_radgraph_mentions_are_parted_too():
    class Pretend:
        source = "pretended"

        def annotate(self, texts):
            return [{"text": t, "entities": {}} for t in texts]

    class Weigher(DecisiveTokens):
        def mentions(self, text):
            spans = [(text.index(w), len(w)) for w in ("effusion", "normal") if w in text]
            return [
                Mention(
                    a, a + n, text[a : a + n], "Other",
                    "negative" if "no" in text.lower() else "positive", ((a, a + n),),
                    text[a : a + n] == "normal",
                )
                for a, n in spans
            ]  # fmt: skip

    weigher = Weigher(None, unit="decision", annotator=Pretend())
    weigher.fit(["There is effusion.", "There is no effusion.", "The heart is normal."])
    assert words(weigher, "There is no effusion.") == ["no"]
    assert words(weigher, "There is effusion.") == ["effusion"]
    with pytest.raises(DiveError, match=r"class_floor is 0\.1, and RadGraph's"):
        DecisiveTokens(None, annotator=Pretend(), class_floor=0.1)


@pytest.mark.parametrize("texts", [[], ["No effusion."], ["Small effusion. No nodule."]])
def test_reports_without_both_sides_are_refused(texts):
    with pytest.raises(Undecided, match=f"none of the findings of {len(texts)} training report"):
        fitted(texts)


def test_units_are_checked_and_need_fit():
    with pytest.raises(DiveError, match="unit is 'word', want one of mention, clause, decision"):
        DecisiveTokens(None, unit="word")
    with pytest.raises(DiveError, match="no decision tree was grown: want unit 'decision', and a"):
        DecisiveTokens(None, unit="decision").label("No edema.", [(0, 2)], 1)
    with pytest.raises(DiveError, match="unit is 'mention', and no decision tree"):
        _ = DecisiveTokens(None).trees
    assert not DecisiveTokens(None, unit="clause").needs_fit


def test_the_same_reports_give_the_same_tokens_however_they_are_read():
    again = DecisiveTokens(None, unit="decision")
    again.fit(reversed(TRAINING), lambda read, texts: [read(text) for text in texts])
    assert [words(again, text) for text in TRAINING] == [words(fitted(), t) for t in TRAINING]


def hospital(number, count=128):
    style = hospital_style(number)
    severities = draw_labels(count, np.random.default_rng(number), SHIFTED)
    return style, severities, [write_report(style, one) for one in severities]


def stated(style, severities):
    """The sentence about each finding of a report, and another that says the opposite of it."""
    for concept in TERMS:
        own = [i for i, (name, _, _) in enumerate(FINDINGS) if name == concept]
        absent = style.absent[concept].format(term=style.terms[concept])
        form = style.present[concept]
        present = [form.format(phrase=style.phrase_for(i, int(severities[i] or 1))) for i in own]
        found = [text for i, text in zip(own, present, strict=True) if severities[i]]
        yield from ((concept, text, absent) for text in found)
        if not found:
            yield concept, absent, present[0]


@pytest.mark.parametrize("number", range(11, 17))
def test_the_built_in_world_is_parted_where_its_forms_part(number):
    """In every report, for every finding: "the image shows ..." and "no ..." part at "the"."""
    style, severities, texts = hospital(number)
    weigher = fitted(texts)
    checked = set()
    for text, row in zip(texts, severities, strict=True):
        begins = {one.start for one in weigher.marked(text)}
        for concept, sentence, opposite in stated(style, row):
            words, others = sentence.split(), opposite.split()
            parted = next(k for k in range(len(words)) if words[: k + 1] != others[: k + 1])
            at = text.index(sentence) + len(" ".join([*words[:parted], ""]))
            assert at in begins, (concept, sentence)
            checked.add((concept, sentence == style.absent[concept].format(
                term=style.terms[concept])))  # fmt: skip
    assert len(checked) == 2 * len(TERMS)


def test_the_marks_of_real_sentences():
    """They can be read, and hold no text of a report."""
    for name, count in (("development", 50), ("held_out", 100)):
        marks = measure_decisions.marks(name)
        assert len(set(marks)) == len(marks) == count
        for mark in marks:
            assert measure_decisions.quarter(mark.report) == measure_decisions.SETS[name]
            assert mark.finding in default_lexicon().entries and mark.word >= 0


def test_a_marked_word_is_compared(monkeypatch):
    texts = {"a": "Clear. There is no effusion.", "b": "There is a small effusion."}
    marks = [
        measure_decisions.Mark("a", 1, "Pleural Effusion", 2),
        measure_decisions.Mark("b", 0, "Pleural Effusion", 3),
    ]
    monkeypatch.setattr(measure_decisions, "marks", lambda name: marks)
    lines = measure_decisions.measure(fitted([*texts.values()]), texts, "held_out")
    assert lines[0] == (
        "held_out, all: 1 of 2 the marked word, 2 within one word of it, 0 without one "
        "(0 of a finding that the trees' reports never deny, or never state)"
    )
    assert lines[-1] == "  b sentence 0, Pleural Effusion: 2"


@pytest.mark.parametrize(
    "texts, message",
    [
        ("No effusion. Effusion.", "texts is one text, want the training reports"),
        (["No effusion.", None], "report 2 is None, want a text"),
    ],
)
def test_reports_that_are_none_are_named(texts, message):
    with pytest.raises(DiveError, match=message):
        DecisiveTokens(None, unit="decision").fit(texts)
