"""Scores of findings by class and by tercile: counts that add up, None where there is no score."""

import json
import random
from typing import Any

import numpy as np
import pytest

import dive
from dive.metrics.bootstrap import resamples
from dive.metrics.finding_groups import SCORES, TERCILES, FindingGroups, terciles
from dive.metrics.findings import finding_measure
from dive.metrics.measure import f1

PRECISION, RECALL, F1, DETAIL = SCORES
_SENTENCES = (
    "Small left pleural effusion.", "Large right pleural effusion.", "Mild cardiomegaly.",
    "No pneumothorax.", "Right lower lobe consolidation.", "Possible pneumonia.", "Rib fracture.",
    "Moderate pulmonary edema.", "Bibasilar atelectasis.", "Hiatal hernia.", "Scoliosis.",
    "Central venous catheter in place.", "The lungs are clear.", "Emphysema.",
)  # fmt: skip


def _reports(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.sample(_SENTENCES, rng.randint(0, 5))) or "Clear." for _ in range(count)]


def _strict(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def test_classes_by_hand() -> None:
    predictions = ["Small left pleural effusion. Rib fracture.", "No effusion.", "Pneumonia."]
    references = ["Large left pleural effusion.", "Right effusion. Edema.", "No pneumothorax."]
    classes = dive.evaluate(predictions, references, ["findings"])["classes"]
    assert list(classes)[-1] == "Other" and "No Finding" not in classes and len(classes) == 14
    assert classes["Pleural Effusion"] == {
        "references": 2,
        "scores": {
            PRECISION: 1.0,
            RECALL: 0.5,
            F1: pytest.approx(2 / 3),
            DETAIL: 0.0,  # the right finding in the wrong size
        },
    }
    # in a reference alone; in a prediction alone; negated; nowhere
    assert classes["Edema"]["scores"] == {PRECISION: None, RECALL: 0.0, F1: 0.0, DETAIL: 0.0}
    assert classes["Fracture"]["scores"] == {PRECISION: 0.0, RECALL: None, F1: 0.0, DETAIL: 0.0}
    assert classes["Pneumothorax"] == {"references": 0, "scores": dict.fromkeys(SCORES)}
    assert classes["Lung Lesion"] == {"references": 0, "scores": dict.fromkeys(SCORES)}


def test_uncertain_findings_count_and_others_of_the_class_do_not_match() -> None:
    got = dive.evaluate(["Emphysema."], ["Possible scoliosis. Hernia."], ["findings"])["classes"]
    assert got["Other"]["references"] == 1  # one reference, that states two findings of the class
    assert got["Other"]["scores"] == {PRECISION: 0.0, RECALL: 0.0, F1: 0.0, DETAIL: 0.0}


def test_only_where_findings_are_asked_for() -> None:
    got = dive.evaluate(["Edema."], ["Edema."], ["bleu"])
    assert not got.keys() & {"classes", "terciles"}


def test_references_that_are_left_out_do_not_count() -> None:
    got = dive.evaluate(["Edema.", "Edema."], ["Edema.", " "], ["findings"])
    assert got["classes"]["Edema"]["references"] == 1
    assert got["classes"]["Edema"]["scores"][PRECISION] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_groups_add_up_to_the_whole(seed: int) -> None:
    measure = finding_measure(_reports(80, seed), _reports(80, seed + 10))
    groups = FindingGroups([measure])
    whole = measure.statistics.sum(axis=0)
    present, details = whole[:3], whole[-3:]
    by_class = sum(one.statistics.sum(axis=0) for one in groups.by_class(measure).values())
    assert [*by_class] == [*present, *details]
    by_tercile = sum(one.statistics.sum(axis=0) for one in groups.by_tercile(measure).values())
    _, invented = groups.unreferenced(measure.predicted)
    assert [*by_tercile[:3]] == [present[0], present[1] - invented, present[2]]
    assert f1(*by_class[:3]) == measure.scores(whole)["finding_f1"]


def test_what_no_reference_states_is_counted() -> None:
    predictions = ["Edema. Rib fracture.", "Rib fracture. Scoliosis.", "Edema."]
    references = ["Edema.", "Edema. Atelectasis.", "No fracture."]
    got = dive.evaluate(predictions, references, ["findings"], baseline=references)["terciles"]
    assert list(got) == [*TERCILES, "unreferenced"]
    assert got["unreferenced"] == {
        "findings": ["Fracture", "Scoliosis or Kyphosis"],
        "predicted": 3,
        "baseline": {"findings": [], "predicted": 0},
    }
    assert got["rare"]["findings"] == ["Atelectasis"] and got["rare"]["references"] == [1, 1]
    assert got["common"]["findings"] == ["Edema"] and got["common"]["references"] == [2, 2]
    assert got["common"]["scores"][PRECISION] == got["common"]["scores"][RECALL] == 0.5
    # between the two there is none
    assert got["middle"]["findings"] == [] and got["middle"]["references"] == [0, 0]
    assert got["middle"]["scores"] == dict.fromkeys(SCORES)


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ([1, 2, 3], "rmc"),
        ([1, 2, 3, 4], "rmmc"),
        ([1, 2, 3, 4, 5], "rrmcc"),
        ([1, 2, 3, 4, 5, 6], "rrmmcc"),
        ([1, 2], "rc"),
        ([7], "m"),
        ([2, 2, 2, 2], "mmmm"),  # nothing is rarer than anything
        ([1, 1, 1, 5, 9], "rrrcc"),
        ([1, 1, 1, 1, 5, 9], "rrrrcc"),  # the middle of the four is the border: the outer third
        ([1, 1, 1, 1, 1, 9], "mmmmmc"),
        ([1, 1, 2], "rrc"),
        ([1, 2, 2], "rcc"),
        ([1, 5, 5, 5, 5, 9], "rmmmmc"),
        ([1, 2, 9, 9, 9, 9], "rrcccc"),
        ([], ""),
    ],
)
def test_thirds(counts: list[int], wanted: str) -> None:
    numbered = [(f"f{i}", count) for i, count in enumerate(counts)]
    expected = {
        name: {"r": "rare", "m": "middle", "c": "common"}[letter]
        for (name, _), letter in zip(numbered, wanted, strict=True)
    }
    assert terciles(dict(numbered)) == expected
    random.Random(1).shuffle(numbered)  # whatever the order of the references
    assert terciles(dict(numbered)) == expected


def test_thirds_without_ties_differ_by_one_at_most() -> None:
    for count in range(1, 40):
        groups = list(terciles({f"f{i:02d}": i + 1 for i in range(count)}).values())
        sizes = [groups.count(name) for name in TERCILES]
        assert max(sizes) - min(sizes) <= 1 and sum(sizes) == count
        assert groups == sorted(groups, key=TERCILES.index)


def test_intervals_are_over_the_resamples_that_define_the_score() -> None:
    """Against the score of lists that are drawn by hand; the terciles stay those of all reports."""
    predictions = ["Edema.", "Edema. Hernia.", "Rib fracture.", *["Scoliosis."] * 5]
    references = ["Edema. Hernia.", "No edema.", "Rib fracture.", *["Scoliosis."] * 5]
    got = dive.evaluate(
        predictions, references, ["findings"], baseline=references, bootstrap=300, seed=3
    )
    values: dict[str, list[float]] = {name: [] for name in SCORES}
    gaps: list[float] = []
    for counts in np.concatenate(list(resamples(8, 300, 3))):
        drawn = np.repeat(np.arange(8), counts)
        one = dive.evaluate(
            [predictions[i] for i in drawn],
            [references[i] for i in drawn],
            ["findings"],
            baseline=[references[i] for i in drawn],
        )["classes"]["Edema"]
        for name, column in values.items():
            if one["scores"][name] is not None:
                column.append(one["scores"][name])
        if one["differences"][F1]["difference"] is not None:
            gaps.append(one["differences"][F1]["difference"])
    edema = got["classes"]["Edema"]
    for name, column in values.items():
        assert 150 <= len(column) < 300
        assert edema["intervals"][name] == pytest.approx([*np.quantile(column, [0.025, 0.975])])
    shown = edema["differences"][F1]
    assert shown["interval"] == pytest.approx([*np.quantile(gaps, [0.025, 0.975])])
    smaller = min(sum(g <= 0 for g in gaps), sum(g >= 0 for g in gaps))
    assert shown["p"] == pytest.approx(min(1, 2 * (smaller + 1) / (len(gaps) + 1)))
    _strict(got)


def test_no_interval_where_most_resamples_leave_it_undefined() -> None:
    """Each precision is defined where its one report is drawn (63%), and both in 40%."""
    references = ["Edema.", "Edema.", *["Clear."] * 28]
    ours, theirs = (["Clear."] * 30 for _ in range(2))
    ours[0], theirs[1] = "Edema.", "Edema."
    got = dive.evaluate(ours, references, ["findings"], baseline=theirs, bootstrap=400)
    edema = got["classes"]["Edema"]
    assert edema["intervals"][PRECISION] == [1.0, 1.0]
    assert edema["differences"][PRECISION] == {"difference": 0.0, "interval": None, "p": None}
    assert edema["differences"][RECALL]["interval"] is not None
    lesion = got["classes"]["Lung Lesion"]
    assert lesion["intervals"] == lesion["baseline"] == dict.fromkeys(SCORES)
    assert lesion["differences"][F1] == {"difference": None, "interval": None, "p": None}
    _strict(got)


def test_the_same_draws_as_all_other_scores() -> None:
    """With findings of one class alone, the class is the whole."""
    predictions = ["Small left effusion.", "Clear.", "Right effusion.", "Effusion."] * 10
    references = ["Large left effusion.", "Left effusion.", "Right effusion.", "Clear."] * 10
    got = dive.evaluate(predictions, references, ["findings"], baseline=references, bootstrap=200)
    effusion = got["classes"]["Pleural Effusion"]
    for group in (effusion, got["terciles"]["middle"]):
        for name in SCORES:
            assert group["scores"][name] == got[name]
            assert group["intervals"][name] == got["intervals"][name]
            assert group["baseline"][name] == got["baseline"][name]
            assert group["differences"][name] == got["differences"][name]
    assert effusion["differences"][F1]["interval"][0] < effusion["differences"][F1]["interval"][1]
