"""The data of the page: what is compared, what is counted, what a note says."""

import json

import pytest

import dive
from dive.data import Study
from dive.errors import DiveError
from dive.page import Predictions, build_page, worst_first
from dive.page.schema import Metric, Score

TRUTHS = {
    "a": "Small left pleural effusion. No pneumothorax.",
    "b": "The lungs are clear.",
    "c": "Mild cardiomegaly. Right pleural effusion.",
    "d": "Left pneumothorax.",
}
GOOD = dict(TRUTHS)
BAD = {
    "a": "Large right pleural effusion. No pneumothorax.",
    "b": "Moderate cardiomegaly. Left pneumothorax.",
    "c": "The heart is normal. Left pleural effusion.",
    "d": "Left pneumothorax.",
}


def studies(texts=TRUTHS, **fields):
    return [Study(id=name, images=(), findings=text, **fields) for name, text in texts.items()]


def method(name, texts, **fields):
    return Predictions(name, {key: {"report": text} | fields for key, text in texts.items()})


@pytest.fixture(scope="module")
def page():
    return build_page(
        studies(),
        [
            method("good", GOOD, finish_reason="eos", prompt_tokens=20, seconds=0.5),
            method("bad", BAD, finish_reason="length"),
        ],
        bootstrap=50,
    )


def test_outcomes_by_report(page):
    names = [one["name"] for one in page["findings"]]
    found = [
        {names[one["finding"]]: one["outcome"] for one in study["reports"][1]["found"]}
        for study in page["studies"]
    ]
    assert found == [
        {"Pleural Effusion": "both"},
        {"Cardiomegaly": "invented", "Pneumothorax": "invented"},
        {"Cardiomegaly": "missed", "Pleural Effusion": "side"},
        {"Pneumothorax": "hit"},
    ]
    assert [study["reports"][1]["errors"] for study in page["studies"]] == [1, 2, 2, 0]
    assert all(study["reports"][0]["errors"] == 0 for study in page["studies"])
    words = page["studies"][0]["reports"][1]["found"][0]
    assert (words["truth"], words["stated"]) == ("left, small", "right, large")


def test_findings_are_counted_and_ordered_by_the_references(page):
    table = {one["name"]: one for one in page["findings"]}
    assert [one["references"] for one in page["findings"]] == sorted(
        (one["references"] for one in page["findings"]), reverse=True
    )
    effusion = table["Pleural Effusion"]
    assert (effusion["references"], effusion["cls"]) == (2, "Pleural Effusion")
    assert effusion["counts"][0] == dict.fromkeys(
        ("side", "severity", "both", "missed", "invented"), 0
    ) | {"hit": 2}
    assert effusion["counts"][1]["side"] == effusion["counts"][1]["both"] == 1
    assert table["Cardiomegaly"]["counts"][1]["missed"] == 1
    assert table["Cardiomegaly"]["counts"][1]["invented"] == 1


def test_the_scores_are_those_of_evaluate(page):
    ids = list(TRUTHS)
    scores = dive.evaluate(
        [BAD[name] for name in ids],
        [TRUTHS[name] for name in ids],
        ("bleu", "rougeL", "findings"),
        finish_reasons=["length"] * 4,
        baseline=[GOOD[name] for name in ids],
        bootstrap=50,
        per_report=True,
    )
    shown = page["scores"][1]
    assert {key: one["value"] for key, one in shown.items()} == {
        key: scores[key] for key in scores["variants"]
    }
    assert shown["bleu4"]["interval"] == scores["intervals"]["bleu4"]
    (difference,) = page["differences"]
    assert (difference["method"], difference["baseline"]) == (1, 0)
    assert difference["scores"] == scores["differences"]
    for number, study in enumerate(page["studies"]):
        own = study["reports"][1]["scores"]
        assert own["rougeL"] == round(scores["per_report"]["rougeL"][number], 4)
    assert page["classes"][1] == scores["classes"]
    assert page["terciles"][1] == scores["terciles"]


def test_methods(page):
    good, bad = page["methods"]
    assert (good["prompt_tokens"], good["seconds"], good["ended"], good["reports"]) == (
        20,
        0.5,
        1,
        4,
    )
    assert (bad["prompt_tokens"], bad["ended"]) == (None, 0)
    assert [study["reports"][1]["ended"] for study in page["studies"]] == [False] * 4


def test_it_is_strict_json(page):
    assert json.loads(json.dumps(page, allow_nan=False)) == page


def test_the_worst_come_first_and_equal_ones_as_given(page):
    assert worst_first(page, 1) == [1, 2, 0, 3]
    assert worst_first(page, 0) == [0, 1, 2, 3]


def test_methods_with_other_sets_of_studies_are_scored_on_what_all_have():
    less = {name: text for name, text in BAD.items() if name != "b"}
    page = build_page(studies(), [method("good", GOOD), method("less", less)], bootstrap=None)
    assert page["notes"] == [
        "less has no report for 1 study: b. Scores are of the studies that every method has a "
        "report for."
    ]
    assert page["studies"][1]["reports"][1] is None
    assert page["studies"][1]["reports"][0]["scores"] == {}
    assert sum(page["findings"][0]["counts"][0].values()) == 2
    assert page["scores"][0]["bleu4"]["interval"] is None
    alone = build_page(
        studies({k: TRUTHS[k] for k in less}), [method("good", less)], bootstrap=None
    )
    assert page["scores"][1] == alone["scores"][0]
    assert worst_first(page, 1) == [2, 0, 3]


def test_an_empty_reference_is_shown_and_not_scored():
    page = build_page(studies(TRUTHS | {"b": "N/A"}), [method("bad", BAD)], bootstrap=None)
    assert page["notes"] == ["1 reference without a text, shown and not scored: b."]
    assert page["studies"][1]["reports"][0]["found"] == []
    assert page["findings"][0]["counts"][0]["invented"] == 0


def test_an_empty_report_misses_everything():
    page = build_page(studies(), [method("none", TRUTHS | {"a": "nan"})], bootstrap=None)
    report = page["studies"][0]["reports"][0]
    assert (report["pieces"], report["errors"]) == ([], 1)
    assert report["found"][0]["outcome"] == "missed"


def test_films_that_are_gone_are_noted(tmp_path):
    (tmp_path / "x").mkdir()
    given = [Study("a", (tmp_path / "gone.png",), findings=TRUTHS["a"])]
    page = build_page(given, [method("bad", {"a": BAD["a"]})], bootstrap=None)
    assert page["notes"] == ["Films of 1 study are gone or cannot be read: a."]
    assert page["studies"][0]["images"][0]["src"] is None
    assert str(tmp_path) not in json.dumps(page)  # paths may name the patient


def test_scores_of_the_callers_own():
    own = Metric(key="style", label="style F1", variant="made", better="higher", unit="fraction")
    page = build_page(
        studies(),
        [method("good", GOOD), method("bad", BAD)],
        bootstrap=None,
        more_scores=[(own, [Score(value=1.0, interval=None), Score(value=0.5, interval=None)])],
    )
    assert page["metrics"][0] == own
    assert [one["style"]["value"] for one in page["scores"]] == [1.0, 0.5]


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(predictions=[]), "predictions are empty, want one method or more"),
        (
            dict(predictions=[method("x", GOOD), method("x", BAD)]),
            "the method 'x' comes 2 times, want each once",
        ),
        (
            dict(predictions=[method("x", GOOD | {"z": "No effusion."})]),
            "x has reports for 1 study without a reference: z",
        ),
        (
            dict(studies=[*studies(), *studies()], predictions=[method("x", GOOD)]),
            "the study 'a' comes 2 times, want each once",
        ),
        (dict(predictions=[method("x", GOOD)], baseline="y"), "baseline is 'y', want one of 'x'"),
        (
            dict(predictions=[method("x", {"a": ""}), method("y", {"b": ""})]),
            "no study has a reference and a report of every method",
        ),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(DiveError, match=message) as raised:
        build_page(**{"studies": studies(), "bootstrap": None} | given)
    assert "effusion" not in str(raised.value)
