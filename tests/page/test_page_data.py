"""The data of the page: what is compared, what is counted, what a note says."""

import json
import warnings

import pytest
from PIL import Image

import dive
from dive.data import Study
from dive.errors import DiveError
from dive.page import FilmOptions, Predictions, build_page, worst_first
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


def notes(predictions, **more):
    return build_page(studies(), [predictions], **{"bootstrap": None} | more)["notes"]


def test_what_cannot_be_used_is_noted():
    texts = GOOD | {"a": "", "b": "nan"}
    assert notes(method("x", texts)) == ["x has 2 empty reports, scored as the worst: a, b."]
    odd = Predictions(
        "x",
        {
            name: {"report": text} | more
            for (name, text), more in zip(
                GOOD.items(),
                (
                    {"prompt_tokens": float("nan"), "seconds": 1, "finish_reason": "eos"},
                    {"prompt_tokens": 10**400, "seconds": 1},
                    {"prompt_tokens": "12", "seconds": 1},
                    {"prompt_tokens": 12, "seconds": 1},
                ),
                strict=True,
            )
        },
    )
    page = build_page(studies(), [odd], bootstrap=None)
    assert page["notes"] == [
        "x: no prompt length, because prompt_tokens is no number in 3 of 4 records.",
        "x: no share of reports that the model ended, because 3 of 4 records have no "
        "finish_reason.",
    ]
    assert (page["methods"][0]["prompt_tokens"], page["methods"][0]["seconds"]) == (None, 1.0)
    # large, and not infinite
    assert build_page(studies(), [method("x", GOOD, seconds=1e308)], bootstrap=None)["methods"][0][
        "seconds"
    ] == pytest.approx(1e308)


def test_patients_of_whom_some_are_unknown_are_noted():
    given = [*studies({"a": TRUTHS["a"]}, patient="p"), *studies({"b": TRUTHS["b"]})]
    page = build_page(given, [method("x", {k: GOOD[k] for k in "ab"})], bootstrap=5)
    assert page["bootstrap"]["unit"] == "report"
    assert page["notes"] == [
        "1 scored study of no known patient: intervals are of reports drawn anew, and too narrow "
        "where patients have several."
    ]


def test_of_one_study_there_is_no_interval():
    page = build_page(studies({"a": TRUTHS["a"]}), [method("x", {"a": BAD["a"]})], bootstrap=50)
    assert page["notes"] == ["One study is scored, and of one there is no interval."]
    assert page["bootstrap"] is None and page["scores"][0]["bleu4"]["interval"] is None


def test_no_finding_on_either_side_is_no_score_of_findings():
    page = build_page(studies(), [method("good", GOOD), method("bad", BAD)], bootstrap=None)
    right, wrong = (page["studies"][1]["reports"][n]["scores"] for n in (0, 1))
    assert (right["finding_f1"], right["rougeL"]) == (None, 1.0)
    assert wrong["finding_f1"] == 0


def test_warnings_about_films_are_one_note(tmp_path):
    for name in TRUTHS:
        Image.new("L", (40, 40), 9).save(tmp_path / f"{name}.png")
    given = [
        Study(name, (tmp_path / f"{name}.png",), findings=text) for name, text in TRUTHS.items()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = build_page(given, [method("x", GOOD)], bootstrap=None)
    (note,) = page["notes"]
    assert note.startswith("4 warnings about films; the first: study ") and "contrast" in note
    assert str(tmp_path) not in note


def test_films_of_the_studies_are_not_replaced(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    Image.new("L", (40, 40), 9).save(folder / "000000.jpg")
    before = (folder / "000000.jpg").read_bytes()
    given = [Study("a", (folder / "000000.jpg",), findings=TRUTHS["a"])]
    with pytest.raises(DiveError, match="000000.jpg: is one of the files to read"):
        build_page(
            given, [method("x", {"a": "x"})], bootstrap=None,
            images=FilmOptions("beside", folder=folder),
        )  # fmt: skip
    assert (folder / "000000.jpg").read_bytes() == before


@pytest.mark.parametrize(
    "name, records, message",
    [
        (" ", {}, "the name of a method is ' ', want a text"),
        ("x", ["No effusion."], "x: records is a list, want a mapping of id to record"),
        ("x", {"a": "No effusion."}, "x: the record of study 'a' has no \"report\""),
        ("x", {"a": {"text": "No effusion."}}, "x: the record of study 'a' has no \"report\""),
        ("x", {"a": {"report": 5}}, "x: the report of study 'a' is a int, want a text"),
    ],
)
def test_predictions_of_another_form(name, records, message):
    with pytest.raises(DiveError, match=message) as raised:
        Predictions(name, records)
    assert "effusion" not in str(raised.value)
