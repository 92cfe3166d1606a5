"""Trainings that weight clauses or decision tokens, and ones with a floor for each class."""

import json
from dataclasses import replace

import pytest
import torch
from trainings import Kill, bare, equal

import dive
from dive.adapter.hub import model_card
from dive.data import Skipped, Study
from dive.errors import DiveError
from dive.training import decision_share as share_module
from dive.training.decision_share import DecisionShare, decision_share
from dive.training.fingerprint import settings_fingerprint


def config(**more):
    return bare(**{"steps": 4, "batch_size": 2, "pathology_weight": 3.0} | more)


def distil(backbone, studies, **more):
    settings = {name: more.pop(name) for name in ("output_dir", "resume") if name in more}
    options = {name: more.pop(name) for name in ("on_error", "skipped", "validation")
               if name in more}  # fmt: skip
    return dive.distill(
        backbone, studies, config=config(**more), progress=False, **options, **settings
    )


def test_settings_at_their_defaults_leave_the_fingerprint_as_it_was():
    """An unfinished training of a release that knew neither goes on."""
    fingerprint = settings_fingerprint(dive.DistillConfig(), "findings", None, None)
    assert not {"decisive_unit", "class_floor"} & fingerprint["config"].keys()
    other = dive.DistillConfig(decisive_unit="decision", class_floor=0.05)
    found = settings_fingerprint(other, "findings", None, None)["config"]
    assert (found["decisive_unit"], found["class_floor"]) == ("decision", 0.05)


@pytest.mark.parametrize("preset", ["dive", "dive-ce", "live", "fixed-ce"])
def test_every_preset_weights_mentions(preset):
    found = dive.DistillConfig(preset=preset)
    assert (found.decisive_unit, found.class_floor) == ("mention", 0.0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"decisive_unit": "word"}, "decisive_unit is 'word', want one of mention, clause, "),
        ({"decisive_unit": 3}, "DistillConfig: decisive_unit is 3, want one of"),
        ({"class_floor": -0.1}, r"class_floor is -0\.1, want a share from 0 to below 1"),
        ({"class_floor": "a"}, "DistillConfig: class_floor is 'a', want a share"),
        ({"class_floor": True}, "class_floor is True, want a share"),
        ({"class_floor": 0.1, "pathology_weight": 0}, "pathology_weight is 0: want"),
        ({"class_floor": 0.1, "decisive": "radgraph"}, "which has no classes of findings"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(DiveError, match=message):
        dive.DistillConfig(**settings)


@pytest.mark.parametrize("unit", ["clause", "decision"])
def test_a_unit_changes_what_is_learnt_and_is_recorded(unit, llava, studies):
    adapter, plain = distil(llava, studies, decisive_unit=unit), distil(llava, studies)
    assert not equal(adapter, plain)
    run = adapter.metadata["distillation"]
    assert run["config"]["decisive_unit"] == unit and 0 < run["decision_share"] < 1
    assert "decisive_unit" not in plain.metadata["distillation"]["config"]
    card = model_card(adapter)
    assert f"decisive_unit {unit}" in card and "polarity" not in card
    assert "polarity positive" in model_card(plain)
    json.dumps(adapter.metadata)


def test_a_floor_changes_what_is_learnt_and_is_recorded(llava, studies):
    adapter = distil(llava, studies, class_floor=0.15)
    assert not equal(adapter, distil(llava, studies))
    assert adapter.metadata["distillation"]["config"]["class_floor"] == 0.15
    with pytest.raises(DiveError, match=r"class_floor is 0\.9, .* finding classes"):
        distil(llava, studies, class_floor=0.9)


def test_resumed_bit_for_bit(llava, studies, tmp_path, monkeypatch):
    settings = {"decisive_unit": "decision", "class_floor": 0.2, "save_steps": 1, "steps": 4}
    whole = distil(llava, studies, **settings)
    from dive.training import trainer

    made = trainer.DistillTrainer.__init__

    def killed(self, *args, **more):
        made(self, *args, **more)
        self.add_callback(Kill(2))

    with monkeypatch.context() as patched:
        patched.setattr(trainer.DistillTrainer, "__init__", killed)
        with pytest.raises(KeyboardInterrupt):
            distil(llava, studies, output_dir=tmp_path, **settings)
    with pytest.raises(DiveError, match=r"class_floor 0\.2 \(now 0\.1\)"):
        distil(llava, studies, output_dir=tmp_path, resume=True, **settings | {"class_floor": 0.1})
    again = distil(llava, studies, output_dir=tmp_path, resume=True, **settings)
    assert equal(whole, again)
    ours, theirs = (one.metadata["distillation"] for one in (whole, again))
    assert ours["decision_share"] == theirs["decision_share"]


def test_the_tree_is_of_the_studies_that_are_learnt_from(llava, studies, tmp_path):
    """Neither of those for validation, nor of those that are left out."""
    odd = replace(studies[0], id="odd", images=(tmp_path / "none.png",), patient="q",
                  findings="Effusion is seen. No granuloma.")  # fmt: skip
    skipped = Skipped()
    adapter = distil(
        llava, [odd, *studies], decisive_unit="decision", on_error="skip", skipped=skipped
    )
    assert [entry["id"] for entry in skipped] == ["odd"]
    assert equal(adapter, distil(llava, studies, decisive_unit="decision"))
    held_out = replace(studies[0], id="v", patient="v", findings="A small right effusion.")
    other = distil(llava, studies, decisive_unit="decision", validation=[held_out])
    assert equal(adapter, other)


def test_reports_that_decide_nothing(llava, studies):
    some = [replace(study, findings="There is a nodule.") for study in studies[:3]]
    with pytest.raises(DiveError, match="decisive_unit is 'decision', and none of the findings"):
        distil(llava, some, decisive_unit="decision")
    adapter = distil(llava, some)
    assert adapter.metadata["distillation"]["decision_share"] is None


def texts(*reports):
    return [Study(id=str(n), images=(), findings=text) for n, text in enumerate(reports)]


def test_the_share_is_that_of_the_loss(tiny_llama):
    from dive import DecisiveTokens
    from dive.prompting.prompter import Prompter

    backbone = dive.load_backbone(tiny_llama, device="cpu")
    studies = texts("There is a nodule.", "There is no nodule.")
    prompter = Prompter(backbone)
    weigher = DecisiveTokens(backbone.tokenizer, 3.0, 2.0, unit="decision")
    weigher.fit([study.report() for study in studies])
    total = on = 0.0
    for study in studies:
        _, weights = weigher.weigh(*(lambda r: (r.text, r.offsets, len(r.ids)))(
            prompter.response(study)))  # fmt: skip
        total, on = total + sum(weights), on + 3.0
    assert decision_share(weigher, studies, prompter) == (pytest.approx(on / total), 2)
    # weighted by mention, the same tokens weigh 1
    found = decision_share(DecisiveTokens(backbone.tokenizer, 3.0, 2.0), studies, prompter)
    assert found.share is not None and found.share < on / total


def test_a_sample_of_many_reports(tiny_llama, monkeypatch):
    from dive import DecisiveTokens
    from dive.prompting.prompter import Prompter

    backbone = dive.load_backbone(tiny_llama, device="cpu")
    monkeypatch.setattr(share_module, "SAMPLED", 4)
    studies = texts(*["There is a nodule.", "There is no nodule.", "No nodule."] * 3)
    found = decision_share(DecisiveTokens(backbone.tokenizer), studies, Prompter(backbone))
    assert found.reports == 3 and "in 3 reports" in str(found)
    assert str(DecisionShare(None, 1)).endswith("no finding is stated and denied in 1 report")


def test_the_forecast_tells_the_share(llava, studies, capsys):
    dive.distill(llava, studies, config=config(), progress=True)
    lines = capsys.readouterr().err
    assert "decision tokens, at which present and absent part: " in lines


def test_weights_reach_the_loss(llava, studies, monkeypatch):
    """The weights of a batch are those of the fitted weigher, floor included."""
    seen: list[torch.Tensor] = []
    from dive.training.student import Student

    forward = Student.forward

    def noted(self, *args, **more):
        seen.append(more["weights"] if "weights" in more else args[4])
        return forward(self, *args, **more)

    monkeypatch.setattr(Student, "forward", noted)
    distil(llava, studies, decisive_unit="clause", class_floor=0.1, batch_size=6, steps=1)
    values = {round(float(w), 4) for w in torch.cat(seen)}
    assert {1.0, 2.5, 3.0} <= values and any(v > 3.0 for v in values)


@pytest.mark.parametrize("weight, warned", [(1.0, True), (3.0, False)])
def test_a_unit_that_weights_nothing_warns(llava, studies, caplog, weight, warned):
    distil(llava, studies, steps=1, decisive_unit="clause", pathology_weight=weight)
    assert ("pathology_weight is 1 (preset" in caplog.text) == warned
