"""Mistakes are refused at once: before the studies are read, an image is opened, a step is made."""

import json
import os
from dataclasses import replace

import pytest
import torch
from trainings import bare, short

import dive
from dive.data import read_studies
from dive.data.images import load
from dive.errors import DiveError
from dive.files.lock import hold_folder
from dive.training import fingerprint
from dive.training.trainer import DistillTrainer


@pytest.fixture
def studies(studies_folder):
    return read_studies(studies_folder / "studies.jsonl")


def too_late(what):
    def called(*_, **__):
        raise AssertionError(f"{what} before the mistake was refused")

    return called


@pytest.fixture
def no_image(monkeypatch):
    """Fail where an image or its header is read."""
    monkeypatch.setattr(load, "open_image", too_late("an image was opened"))


@pytest.fixture
def no_step(monkeypatch):
    monkeypatch.setattr(DistillTrainer, "training_step", too_late("a step was made"))


@pytest.fixture(scope="module")
def begun(tiny_llava, tmp_path_factory):
    """Checkpoints of an unfinished training on studies like those of `studies_folder`."""
    from tiny import save_studies

    folder = tmp_path_factory.mktemp("begun")
    studies = read_studies(save_studies(folder / "studies") / "studies.jsonl")
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    dive.distill(backbone, studies, config=bare(), output_dir=folder / "out")
    return folder / "out"


# before the studies are read: these do not exist, and the message is another one


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"output_dir": 3}, "output_dir is 3, want the name of a file or folder"),
        ({"output_dir": "FILE"}, "is a file, want"),
        ({"output_dir": "HELD"}, "another|this process|holds|since"),
        ({"config": dive.DistillConfig}, "config is the class DistillConfig"),
        ({"config": {"rnak": 3}}, "config has 'rnak'"),
        ({"config": {"rank": -3}}, "rank is -3"),
    ],
)
def test_before_the_studies_are_read(more, message, tiny_llava, tmp_path):
    held = None
    if more.get("output_dir") == "FILE":
        (tmp_path / "taken").write_text("mine")
        more = {"output_dir": tmp_path / "taken"}
    elif more.get("output_dir") == "HELD":
        held = hold_folder(tmp_path)
        more = {"output_dir": tmp_path}
    try:
        with pytest.raises(DiveError, match=message) as error:
            dive.distill(tiny_llava, "gone.jsonl", **more)
    finally:
        if held is not None:
            held.release()
    assert "gone.jsonl" not in str(error.value)


# before an image is opened


def of_one_patient(studies):
    return [replace(one, patient="p") for one in studies]


EARLY = {
    "no study": (lambda s: {"studies": []}, "no study to learn from"),
    "validation: empty": (lambda s: {"validation": []}, "validation is empty"),
    "validation: no share": (lambda s: {"validation": 1.5}, "validation is 1.5"),
    "validation: all": (lambda s: {"studies": s[:1], "validation": 0.5}, "leaves nothing to learn"),
    "validation: a patient in both": (
        lambda s: {"studies": s[:1], "validation": [s[1]]}, "same patient"
    ),
    "on_error": (lambda s: {"on_error": "ignore"}, "on_error is 'ignore'"),
    "skipped": (lambda s: {"on_error": "skip", "skipped": []}, r"skipped is \[\]"),
    "a report is missing": (
        lambda s: {"studies": [*s, replace(s[0], id="blank", patient=None, findings=None)]},
        "'findings' is absent",
    ),
    "demonstrations without a teacher": (lambda s: {"demonstrations": 2}, "runs no teacher"),
    "demonstrations: none": (
        lambda s: {"demonstrations": 0, "config": short()}, "demonstrations is 0, want 1 or more"
    ),
    "demonstrations: an empty list": (
        lambda s: {"demonstrations": [], "config": short()}, "demonstrations: the list is empty"
    ),
    "demonstrations: too few": (
        lambda s: {"demonstrations": 5, "config": short()}, "want 5 demonstrations, and there are 4"
    ),
    "demonstrations: all of one patient": (
        lambda s: {"studies": of_one_patient(s), "demonstrations": 1, "config": short()},
        "want 1 demonstrations, and there are 0",
    ),
    "demonstrations: another kind": (
        lambda s: {"demonstrations": "four", "config": short()}, "demonstrations is 'four'"
    ),
    "cache_images": (lambda s: {"config": bare(cache_images=__file__)}, "is a file, want"),
    "layers": (lambda s: {"config": bare(layers=[0, 99])}, "99"),
    "decisive": (lambda s: {"config": bare(decisive=f"radgraph:{__file__}")}, "not JSON"),
    "target": (lambda s: {"target": "history"}, "target"),
    "prompt": (lambda s: {"prompt": 3}, "prompt is 3, want a string"),
    "max_image_tokens": (lambda s: {"max_image_tokens": 0}, "max_image_tokens is 0"),
    "template": (lambda s: {"template": 3}, "template is 3, want the name of a file"),
    "template: not there": (lambda s: {"template": "/gone/t.jinja"}, "/gone/t.jinja"),
    "template_date": (lambda s: {"template_date": "yesterday"}, "template_date is 'yesterday'"),
    "processor": (lambda s: {"processor": "folder"}, "processor is 'folder'"),
    "resume": (lambda s: {"resume": True}, "resume is set and output_dir is None"),
}  # fmt: skip


@pytest.mark.parametrize("what", EARLY)
def test_before_an_image_is_opened(what, llava, studies, no_image):
    make, message = EARLY[what]
    given = {"studies": studies, "config": bare(), **make(studies)}
    with pytest.raises(DiveError, match=message):
        dive.distill(llava, **given)


def test_a_bare_model_before_an_image_is_opened(llava, studies, no_image):
    with pytest.raises(DiveError, match="Backbone from dive.load_backbone"):
        dive.distill(llava.model, studies, config=bare())


def test_an_attached_adapter_before_an_image_is_opened(llava, studies, no_image):
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=2), llava)
    with (
        dive.steer(llava, adapter),
        pytest.raises(DiveError, match="an adapter is attached to the backbone; detach it first"),
    ):
        dive.distill(llava, studies, config=bare())


def test_a_head_that_cannot_be_used_before_an_image_is_opened(tiny_llava, studies, no_image):
    backbone = dive.load_backbone(tiny_llava, device="cpu")

    class Head(torch.nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden).tanh()

    old = backbone.model.lm_head
    backbone.model.lm_head = Head(old.in_features, old.out_features, bias=False)
    with pytest.raises(DiveError, match="head|logits"):
        dive.distill(backbone, studies, config=bare())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: {"resume": False}, "holds the checkpoints of an unfinished training"),
        (lambda s: {"config": bare(learning_rate=0.5)}, r"learning_rate .* \(now 0.5\)"),
        (lambda s: {"target": "impression"}, r"target 'findings' \(now 'impression'\)"),
        (lambda s: {"prompt": "Write."}, r"prompt .* \(now 'Write.'\)"),
        (lambda s: {"config": short(), "demonstrations": 2}, "kd_weight|preset"),
    ],
)
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_another_training_before_an_image_is_opened(
    make, message, on_error, llava, studies, begun, no_image
):
    given = {"studies": studies, "config": bare(), "resume": True, **make(studies)}
    with pytest.raises(DiveError, match=message):
        dive.distill(llava, **given, output_dir=begun, on_error=on_error)


def test_other_studies_before_an_image_is_opened(llava, studies, begun, no_image):
    """With on_error="skip" it is known only later which studies are left."""
    with pytest.raises(DiveError, match="had other studies to learn from"):
        dive.distill(llava, studies[1:], config=bare(), output_dir=begun, resume=True)


# before the first step


def test_before_the_first_step(llava, studies, begun, no_step):
    def refused(message, **given):
        with pytest.raises(DiveError, match=message):
            dive.distill(llava, **{"studies": studies, "config": bare(), **given})

    gone = replace(studies[0], id="gone", patient=None, images=(studies[0].images[0] / "gone",))
    long = replace(studies[0], id="long", patient=None, findings="effusion " * 5000)
    blank = replace(studies[0], id="blank", patient=None, findings=None)
    refused("gone", studies=[*studies, gone])
    refused("'long'.*the model's context is", studies=[*studies, long])
    refused("gone", validation=[gone])
    refused("no study is left to learn from", studies=[blank], on_error="skip")
    refused("no study is left for validation", validation=[blank], on_error="skip")
    refused("gone", demonstrations=[gone], config=short())
    refused("no demonstration is left", demonstrations=[gone], config=short(), on_error="skip")
    refused("the teacher's prompt with 1 dem.* has", demonstrations=[
        replace(long, id="shown")], config=short())  # fmt: skip
    refused("had other studies to learn from", studies=studies[1:], on_error="skip",
            output_dir=begun, resume=True)  # fmt: skip


def test_nothing_is_written_before_the_last_refusal(llava, studies, tmp_path, no_step):
    long = replace(studies[0], id="long", patient=None, findings="effusion " * 5000)
    with pytest.raises(DiveError, match="the teacher's prompt"):
        dive.distill(llava, studies, [long], short(), output_dir=tmp_path / "out")
    assert [*tmp_path.glob("out/*")] == []


def test_what_was_refused_has_changed_nothing_of_an_unfinished_training(llava, studies, begun):
    before = {name: (begun / name).read_bytes() for name in os.listdir(begun)
              if (begun / name).is_file()}  # fmt: skip
    with pytest.raises(DiveError, match="had other studies"):
        dive.distill(llava, studies[1:], config=bare(), output_dir=begun, resume=True)
    assert before["run.json"] and json.loads(before["run.json"])["target"] == "findings"
    assert {name: (begun / name).read_bytes() for name in before} == before


def test_a_fingerprint_of_the_studies_is_taken_once(llava, studies, tmp_path, monkeypatch):
    """For 200,000 studies it takes seconds."""
    real, seen = fingerprint.films_of, []
    monkeypatch.setattr(fingerprint, "films_of", lambda *given: seen.append(1) or real(*given))
    for count, on_error in enumerate(("fail", "skip"), 1):
        dive.distill(
            llava, studies, config=bare(), on_error=on_error, output_dir=tmp_path / on_error
        )
        assert len(seen) == count


def test_a_warning_names_the_callers_line(llava, studies):
    german = "Kein Nachweis eines Ergusses. Das Herz ist nicht vergrößert. Die Lunge ist frei."
    others = [replace(one, findings=german) for one in studies]
    with pytest.warns(UserWarning, match="reads English") as seen:
        dive.distill(llava, others, config=bare(steps=1))
    assert [one.filename for one in seen if "English" in str(one.message)] == [__file__]
