"""Checklists: headings and their answers, in the forms of reports and of their exports."""

import itertools
import time

import pytest

from dive.decisive.mentions import find_mentions
from dive.lexicon.checklist import answers as _answers
from dive.lexicon.markup import without_markup


def answers(text: str) -> list:
    """The answers of a text in which every word may be a finding."""
    return _answers(text, lambda start, stop: True)


SIGNS = {"+": "positive", "-": "negative", "?": "uncertain"}
JOINS = [
    ": ", ":", " : ", " - ", "- ", " – ", " — ", "=", " = ", "? ", " ? ", "?", "\t", "    ", " -> ",
    " → ", " => ", "...", "......... ", " | ", "|", " (%s)", " [%s]", "(%s)", " ", ":\n", "?\n",
    ": **%s**", " (Y/N): ", " Y/N: ", " [Y/N] ", " ___ ",
]  # fmt: skip
PARTS = ["\n", "; ", ", ", " | ", "<br>", "\\n", "\n\n", "\r\n", "  ", ". ", " / ", ";", "\t"]
ANSWERS = {
    "negative": [
        "No", "no", "N", "None", "Nil", "Neg", "neg.", "Negative", "Absent", "abs", "Not seen",
        "none seen", "No evidence", "-", "(-)", "-ve", "No definite", "nil significant",
        "not present", "Excluded", "Resolved", "no longer seen", "0",
    ],
    "positive": [
        "Yes", "Y", "yes", "Present", "+", "++", "pos", "Positive", "(+)", "+ve", "Small", "mild",
        "Yes, small", "Y (left)", "Present - small", "small left", "yes small", "unchanged",
        "moderate, left > right",
    ],
    "uncertain": [
        "?", "possible", "Possibly", "probable", "Likely", "equivocal", "indeterminate",
        "cannot exclude", "cannot be excluded", "not excluded", "maybe", "uncertain",
        "questionable", "suspected", "+/-", "unlikely", "possible small", "difficult to exclude",
    ],
}  # fmt: skip
CASES = [(state, answer) for state, given in ANSWERS.items() for answer in given]
FINDINGS = ["Pneumothorax", "Pleural Effusion", "Fracture", "Consolidation"]
# words without punctuation before them that other rules read, and differently where they are
# ambiguous
AMBIGUOUS = {(" ", "not present"), (" ", "Not seen"), (" ", "none seen"), (" ", "no longer seen")}


def item(finding: str, join: str, answer: str) -> str:
    return finding + (join % answer if "%s" in join else join + answer)


@pytest.mark.parametrize("join", JOINS, ids=repr)
def test_each_heading_has_its_own_answer(join):
    """Every separator of heading and answer, with every answer and two separators of items."""
    parts = [p for p in PARTS if "\n" not in join or p in ("\n", "\n\n", "\r\n", "<br>", "\\n")]
    turns, findings = itertools.cycle(parts), itertools.cycle(FINDINGS)
    for state, answer in CASES * 2:
        part, finding = next(turns), next(findings)
        if (join, answer) in AMBIGUOUS and part == ", ":
            continue
        if "%s" in join and answer[0] == "(":  # brackets in brackets
            continue
        items = [("Edema", "No"), (finding, answer), ("Cardiomegaly", "Yes"), ("Atelectasis", "No")]
        text = part.join(item(name, join, given) for name, given in items)
        wanted = [
            ("Edema", "negative"), (finding, state), ("Cardiomegaly", "positive"),
            ("Atelectasis", "negative"),
        ]  # fmt: skip
        assert [(m.cls, m.polarity) for m in find_mentions(text)] == wanted, repr(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Pneumothorax: No\nEffusion: Yes\n", "Pneumothorax- Pleural Effusion+"),
        ("PTX: N; effn: Y (small, L); edema: N; PNA: ?",
         "Pneumothorax- Pleural Effusion+ Edema- Pneumonia?"),
        ("[x] Effusion  [ ] Fracture", "Pleural Effusion+"),
        ("Effusion [x], fracture [ ]", "Pleural Effusion+"),
        ("☑ Effusion ☐ Fracture", "Pleural Effusion+"),
        ("(+) effusion, (-) pneumothorax", "Pleural Effusion+ Pneumothorax-"),
        ("(no) pneumothorax\n(yes) effusion\n(?) edema", "Pneumothorax- Pleural Effusion+ Edema?"),
        ("+ effusion\n- pneumothorax", "Pleural Effusion+ Pneumothorax-"),
        ("- effusion\n- pneumothorax", "Pleural Effusion+ Pneumothorax+"),
        ("Pneumothorax: [ ] Yes [x] No", "Pneumothorax-"),
        ("Effusion: ☒ Yes ☐ No", "Pleural Effusion+"),
        ("Pneumothorax: right no, left yes", "Pneumothorax+"),
        ("Pneumothorax: R: no  L: no", "Pneumothorax-"),
        ("Pneumothorax (right): no", "Pneumothorax-"),
        ("PTX/effusion: no", "Pneumothorax- Pleural Effusion-"),
        ("Effusion, pneumothorax: none", "Pleural Effusion- Pneumothorax-"),
        ("Small effusion, pneumothorax: none", "Pleural Effusion+ Pneumothorax-"),
        ("Absent: pneumothorax, effusion.\nPresent: edema.",
         "Pneumothorax- Pleural Effusion- Edema+"),
        ("Neg: pneumothorax; effusion", "Pneumothorax- Pleural Effusion-"),
        ("none - pneumothorax\nmild - edema", "Pneumothorax- Edema+"),
        ("Q: Pneumothorax? A: No", "Pneumothorax-"),
        ("Is there a pneumothorax? No. Is there an effusion? Yes.",
         "Pneumothorax- Pleural Effusion+"),
        ("Pneumothorax?", "Pneumothorax?"),
        ("Pneumothorax:", ""),
        ("Pneumothorax:\n\nEffusion: no", "Pleural Effusion-"),
        ("Pneumothorax: n/a\nEffusion: not assessed", ""),
        ("Pneumothorax: not mentioned", ""),
        ("PLEURAL EFFUSION:\nSmall right", "Pleural Effusion+"),
        ("Pneumothorax:\nNo evidence of pneumothorax.", "Pneumothorax- Pneumothorax-"),
        ("Lungs clear: no", "No Finding+"),
        ("Heart size normal? Y", "No Finding-"),
        ("LUNGS: Clear. PLEURA: No effusion or pneumothorax.",
         "No Finding- Pleural Effusion- Pneumothorax-"),
        ("HEART: Mildly enlarged. BONES: No fracture.", "Cardiomegaly+ Fracture-"),
        ("Pneumothorax: no change, still small.", "Pneumothorax+"),
        ('{"pneumothorax": "absent", "edema": "present"}', "Pneumothorax- Edema+"),
        ('{"pneumothorax": 0, "edema": 1}', "Pneumothorax- Edema+"),
        ("Pneumothorax,No\nEdema,Yes\n", "Pneumothorax- Edema+"),
        ("OBX|3|TX|71046^XR CHEST||Pneumothorax: No~Edema: Yes", "Pneumothorax- Edema+"),
        ('<finding name="Pneumothorax">absent</finding><finding name="Edema">present</finding>',
         "Pneumothorax- Edema+"),
        ("<p>Pneumothorax: No</p><p>Edema:&nbsp;Yes</p>", "Pneumothorax- Edema+"),
        ("<table><tr><td>Pneumothorax</td><td>No</td></tr><tr><td>Edema</td><td>Yes</td></tr></table>",
         "Pneumothorax- Edema+"),
        ("Pneumothorax: No_x000D_\nEdema: Yes", "Pneumothorax- Edema+"),
        ("Finding | Present\nPneumothorax | No\nEdema | Yes", "Pneumothorax- Edema+"),
    ],
)  # fmt: skip
def test_forms_of_checklists(text, wanted):
    got = [(m.cls, m.polarity) for m in find_mentions(text)]
    names = wanted.replace("Pleural ", "Pleural_").replace("No ", "No_").split()
    assert got == [(name[:-1].replace("_", " "), SIGNS[name[-1]]) for name in names]


@pytest.mark.parametrize(
    "text",
    [
        "Lungs are clear bilaterally, with no\npleural effusion or pneumothorax on either side.",
        "Large effusion and no\npneumothorax.",
        "No focal consolidation, effusion, or pneumothorax seen.",
        "Bibasilar opacities - no pneumothorax",
        "There is no effusion present, or pneumothorax.",
    ],
)
def test_prose_is_not_answered(text):
    assert answers(text) == []


def test_markup_keeps_every_place():
    text = "A<br/>B\\nC&nbsp;D &lt; E ~F<b>G</b>\u2028H & I 3 < 4 > 2 a~b ~3"
    plain = without_markup(text)
    assert len(plain) == len(text)
    for i, (a, b) in enumerate(zip(text, plain, strict=True)):
        if a in "ABCDEFGHI":
            assert a == b, i
    assert "3 < 4 > 2" in plain and "~3" in plain and "<br" not in plain and "nbsp" not in plain
    assert plain.count("\n") == 4


def test_a_long_text_of_almost_answers_takes_no_longer_than_its_length():
    def seconds(count: int) -> float:
        text = "Pneumothorax is: a b c (x) - " * count
        start = time.process_time()
        answers(text)
        return time.process_time() - start

    seconds(10)
    assert seconds(4000) < 40 * max(seconds(400), 1e-3)
