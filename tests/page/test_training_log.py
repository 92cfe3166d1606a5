"""The curves of a training's log."""

import json

import pytest

from dive.errors import DiveError
from dive.page.training_log import training_of


def log(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_curves_by_name_in_the_order_of_steps(tmp_path):
    log(
        tmp_path / "log.jsonl",
        {"loss": 2.0, "loss_eos": 1.0, "epoch": 0.5, "step": 5},
        {"loss": 1.5, "loss_eos": 0.5, "epoch": 1.0, "step": 10},
        {"eval_loss": 1.25, "epoch": 1.0, "step": 10},
        {"train_runtime": 3.0, "train_loss": 1.7, "step": 10},
    )
    found, lost = training_of("DIVE", tmp_path)  # the folder, or its file
    assert training_of("DIVE", tmp_path / "log.jsonl") == (found, lost)
    assert (found["name"], lost) == ("DIVE", 0)
    assert {curve["name"]: (curve["steps"], curve["values"]) for curve in found["curves"]} == {
        "loss": ([5, 10], [2.0, 1.5]),
        "loss_eos": ([5, 10], [1.0, 0.5]),
        "eval_loss": ([10], [1.25]),
    }


def test_values_that_are_no_finite_number_are_counted(tmp_path):
    path = log(tmp_path / "l", {"loss": float("nan"), "step": 1}, {"loss": 1.0, "step": 2})
    found, lost = training_of("x", path)
    assert (found["curves"][0]["steps"], lost) == ([2], 1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no curve"),
        ('{"id": "s1", "report": "No effusion."}\n', "l:1: has no step"),
        ('{"step": 1}\n', "holds no curve"),
        ("[1]\n", "has no step"),
        ("{\n", "l:1: is not JSON"),
    ],
)
def test_what_is_no_log_is_refused_without_its_text(tmp_path, text, message):
    (tmp_path / "l").write_text(text)
    with pytest.raises(DiveError, match=message) as raised:
        training_of("x", tmp_path / "l")
    assert "effusion" not in str(raised.value)


def test_a_missing_log(tmp_path):
    with pytest.raises(DiveError, match="cannot read"):
        training_of("x", tmp_path / "gone")
