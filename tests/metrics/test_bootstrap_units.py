"""The units of the bootstrap: reports, or patients with all their reports."""

import re

import numpy as np
import pytest

import dive
from dive.errors import DiveError
from dive.metrics.bootstrap import resamples

PREDICTIONS = [
    "Small left effusion. The heart is normal.", "No effusion.", "Edema and cardiomegaly.",
    "Rib fracture.", "The lungs are clear.", "Hiatal hernia. Scoliosis.", "Right effusion.",
    "Mild edema.", "Pneumonia is possible.", "The heart is large.",
]  # fmt: skip
REFERENCES = [
    "Large left effusion. Normal heart.", "No pleural effusion.", "Pulmonary edema.",
    "No rib fracture.", "Clear lungs.", "Scoliosis.", "Left effusion.",
    "Moderate pulmonary edema.", "Possible pneumonia.", "The heart is normal in size.",
]  # fmt: skip
PATIENTS = ["a", "b", "a", "c", "c", "c", "d", "a", "e", "e"]
METRICS = ["bleu", "rougeL", "findings"]


def _intervals(count: int = 1, **options):
    options = {"bootstrap": 60, "seed": 4} | options
    return dive.evaluate(PREDICTIONS * count, REFERENCES * count, METRICS, **options)


def test_patients_are_drawn_with_all_their_reports() -> None:
    got = _intervals(patients=PATIENTS, baseline=REFERENCES)
    assert got["bootstrap"] == {
        "samples": 60, "confidence": 0.95, "seed": 4, "unit": "patient", "units": 5,
        "patients_unknown": 0,
    }  # fmt: skip
    names = ["a", "b", "c", "d", "e"]  # in their order in the list
    values: dict[str, list[float]] = {"bleu2": [], "rougeL": [], "finding_f1": []}
    gaps: list[float] = []
    for counts in np.concatenate(list(resamples(5, 60, 4))):
        drawn = [
            i
            for name, count in zip(names, counts, strict=True)
            for _ in range(count)
            for i, patient in enumerate(PATIENTS)
            if patient == name
        ]
        one = dive.evaluate(
            [PREDICTIONS[i] for i in drawn], [REFERENCES[i] for i in drawn], METRICS
        )
        for name, column in values.items():
            column.append(one[name])
        gaps.append(one["rougeL"] - 1)
    for name, column in values.items():
        wanted = [*np.quantile(column, [0.025, 0.975])]
        assert got["intervals"][name] == pytest.approx(wanted, rel=1e-12)
    wanted = [*np.quantile(gaps, [0.025, 0.975])]
    assert got["differences"]["rougeL"]["interval"] == pytest.approx(wanted, rel=1e-12)


def test_reports_are_drawn_as_before() -> None:
    """The numbers of the draws that were there before patients could be."""
    plain, named = _intervals(), _intervals(patients=PATIENTS, bootstrap_unit="report")
    assert plain["intervals"] == named["intervals"]
    assert plain["bootstrap"]["unit"] == named["bootstrap"]["unit"] == "report"
    assert plain["bootstrap"]["units"] == 10
    assert (plain["bootstrap"]["patients_unknown"], named["bootstrap"]["patients_unknown"]) == (
        10,
        0,
    )


def test_patients_of_one_report_each_are_reports() -> None:
    alone = _intervals(patients=[f"p{i}" for i in range(10)])
    assert alone["bootstrap"]["unit"] == "patient"
    assert alone["intervals"] == _intervals()["intervals"]


def test_copies_of_a_study_make_no_interval_narrower() -> None:
    """Forty copies of every report are no more patients, and forty times the reports."""
    patients = [f"p{i}" for i in range(10)] * 40
    once, copied = _intervals(), _intervals(40, patients=patients)
    naive = _intervals(40, patients=patients, bootstrap_unit="report")
    for name in ("bleu1", "rougeL", "finding_f1"):
        # BLEU adds 1e-9 to its denominators, so counts times forty are not quite the same ratio
        assert copied["intervals"][name] == pytest.approx(once["intervals"][name], rel=1e-9)
        width, narrow = (np.diff(one["intervals"][name])[0] for one in (copied, naive))
        assert narrow < width / 3  # about width / sqrt(40)


@pytest.mark.parametrize(
    ("patients", "unit", "unknown"),
    [
        (None, "report", 10),
        (PATIENTS, "patient", 0),
        (np.array(PATIENTS), "patient", 0),
        ([7, 7, 8, 8, 9, 9, 9, 9, 9, 9], "patient", 0),
        ([*PATIENTS[:9], None], "report", 1),
        ([*PATIENTS[:7], "", "nan", float("nan")], "report", 3),
        (["a"] * 10, "report", 0),  # every draw of one patient is the same
    ],
)
def test_the_default_unit(patients, unit: str, unknown: int) -> None:
    got = _intervals(patients=patients)["bootstrap"]
    assert (got["unit"], got["patients_unknown"]) == (unit, unknown)


def test_patients_of_references_that_are_left_out_need_not_be_known() -> None:
    got = dive.evaluate(
        ["a b", "c", "d"], ["a b", " ", "d"], bootstrap=5, patients=["x", None, "y"]
    )
    assert got["bootstrap"]["unit"] == "patient" and got["bootstrap"]["units"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bootstrap_unit": "study"}, "bootstrap_unit is 'study', want one of report, patient"),
        ({"bootstrap_unit": "patient"}, "of 10 scored references 10 have no patient"),
        (
            {"bootstrap_unit": "patient", "patients": ["zyx", *[None] * 9]},
            "of 10 scored references 9 have no patient, want one for each",
        ),
        (
            {"bootstrap_unit": "patient", "patients": ["zyx"] * 10},
            "all 10 scored references are of one patient, want two or more, or bootstrap_unit",
        ),
        ({"patients": ["zyx"]}, "patients: 1 for 10 references, want one per reference"),
        ({"patients": "zyx"}, "patients is one text, want a list of texts"),
        ({"patients": [["zyx"]] * 10}, r"patients\[0\] is a list, want a text or None"),
        ({"patients": [True] * 10}, r"patients\[0\] is a bool, want a text or None"),
    ],
)
@pytest.mark.parametrize("bootstrap", [None, 10])
def test_bad_units(options, message: str, bootstrap) -> None:
    with pytest.raises(DiveError, match=message) as caught:
        _intervals(bootstrap=bootstrap, **options)
    assert not re.search("zyx", str(caught.value))  # whose name is the hospital's


def test_of_one_unit_there_is_no_interval() -> None:
    with pytest.raises(DiveError, match="bootstrap draws from 1 report, want two or more"):
        dive.evaluate(["Clear."], ["Clear."], bootstrap=10)
    assert "intervals" not in dive.evaluate(["Clear."], ["Clear."])


@pytest.mark.parametrize("confidence", [0, 1, 2, "0.9", None, True, float("nan")])
def test_a_confidence_out_of_range(confidence: object) -> None:
    with pytest.raises(DiveError, match="confidence is .*, want a number between 0 and 1"):
        dive.evaluate(["Clear."] * 2, ["Clear."] * 2, bootstrap=10, confidence=confidence)
