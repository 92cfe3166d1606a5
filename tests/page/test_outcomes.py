"""Reports read for the page: text in pieces, outcomes beside the reference, details in words."""

import pytest

from dive.page.outcomes import in_words, outcomes, pieces, read


def compared(truth: str, own: str) -> dict[str, str]:
    return outcomes(read(truth), read(own))


@pytest.mark.parametrize(
    "truth, own, expected",
    [
        ("Small left pleural effusion.", "Small left pleural effusion.", "hit"),
        ("Small left pleural effusion.", "Left small effusion is seen.", "hit"),
        ("Small left pleural effusion.", "Small right pleural effusion.", "side"),
        ("Small left pleural effusion.", "Large left pleural effusion.", "severity"),
        ("Small left pleural effusion.", "Large right pleural effusion.", "both"),
        ("Small left pleural effusion.", "Pleural effusion.", "both"),
        ("Left pleural effusion.", "Pleural effusion.", "side"),
        ("Bilateral pleural effusions.", "Left pleural effusion.", "side"),
        ("Small left pleural effusion.", "No pleural effusion.", "missed"),
        ("Small left pleural effusion.", "The heart is normal.", "missed"),
        ("No pleural effusion.", "Small left pleural effusion.", "invented"),
        ("The heart is normal.", "Possible pleural effusion.", "invented"),
        # hedged counts as stated, as in finding_f1
        ("Pleural effusion.", "Possible pleural effusion.", "hit"),
    ],
)
def test_the_outcome_of_an_effusion(truth, own, expected):
    assert compared(truth, own)["Pleural Effusion"] == expected


def test_two_sides_with_exchanged_sizes_are_wrong_in_both():
    truth = "Small left and large right pleural effusions."
    own = "Large left and small right pleural effusions."
    assert compared(truth, own) == {"Pleural Effusion": "both"}
    assert compared(truth, truth) == {"Pleural Effusion": "hit"}


def test_absent_on_both_sides_is_no_outcome():
    assert compared("No pneumothorax. Lungs are clear.", "No pneumothorax.") == {}


def test_every_stated_finding_has_one_outcome_and_the_references_come_first():
    truth = "Mild cardiomegaly. Left pleural effusion."
    own = "Right pneumothorax. Left pleural effusion."
    found = compared(truth, own)
    assert found == {
        "Cardiomegaly": "missed",
        "Pleural Effusion": "hit",
        "Pneumothorax": "invented",
    }
    assert list(found)[-1] == "Pneumothorax"


TEXTS = [
    "Small left pleural effusion with adjacent atelectasis. No pneumothorax.",
    "The heart is mildly enlarged.",
    "",
    "\n  \n",
    "Effusion",
    "🫁 Left \u202eeffusion\u202c; <b>no</b> pneumothorax </script>\x00 \u2028 end",
    "no effusion, effusion, effusion " * 20,
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text(text):
    reading = read(text)
    index_of = {mention.name: n for n, mention in enumerate(reading.mentions)}
    found = pieces(reading, index_of)
    assert "".join(one if isinstance(one, str) else one[0] for one in found) == text
    named = [one for one in found if not isinstance(one, str)]
    assert len(named) == sum(len(mention.spans) for mention in reading.mentions)
    assert all(one[0] for one in named)


def test_a_finding_takes_its_modifiers_along_but_not_those_of_another():
    reading = read("Small left pleural effusion. No acute pneumothorax.")
    found = pieces(reading, {"Pleural Effusion": 0, "Pneumothorax": 1})
    assert found[0] == ["Small left pleural effusion", 0, "positive"]
    assert [one[1:] for one in found if isinstance(one, list)] == [[0, "positive"], [1, "negative"]]


def test_details_in_words():
    assert in_words(None) == in_words([]) == in_words([(None, None)]) == ""
    assert in_words({("right", "large"), ("left", None)}) == "left; right, large"
    assert in_words({(None, "moderate"), (None, "small")}) == "small; moderate"
