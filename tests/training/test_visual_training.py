"""Trainings with visual weights: their loss, the prompts that are run, resuming, ranks, errors."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from PIL import Image
from safetensors.torch import load_file
from trainings import RANK, Kill, equal, short

import dive
from dive.backbone.structure import decoder_layers, output_head
from dive.data import Skipped, read_studies
from dive.errors import DiveError
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import Prompter
from dive.training import fingerprint, loop
from dive.training.checkpoints import checkpoints_in
from dive.training.feed import Feed
from dive.training.forecast import forecast_text
from dive.training.other_images import Patch
from dive.training.trainer import DistillTrainer
from dive.training.visual_weights import SOURCE, VISUAL_FILE, visual_values

WORDS = ["effusion", "nodule", "edema", "opacity", "line", "fracture", "mass", "haze"]


@pytest.fixture
def studies(tmp_path):
    """Eight studies of one patient each; the films are noise, so that they differ."""
    noise = np.random.default_rng(1)
    (tmp_path / "images").mkdir()
    rows = []
    for number, word in enumerate(WORDS):
        image = Image.fromarray(noise.integers(0, 255, (70, 60), np.uint8))
        image.save(tmp_path / "images" / f"{number}.png")
        text = f"There is {word} on the left. No pneumothorax {number}."
        row = {"id": f"s{number}", "images": [f"images/{number}.png"], "findings": text}
        rows.append({**row, "patient": f"p{number}"})
    path = tmp_path / "studies.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_studies(path)


@pytest.fixture(scope="module")
def llava(tiny_llava):
    """With sharper expectations: those of a random model hardly depend on the image."""
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    with torch.no_grad():
        backbone.model.get_output_embeddings().weight.mul_(40.0)
    output_head(backbone)  # runs the model once, to check its head
    return backbone


def visual(**more):
    return short(decisive="visual", calibration_studies=1, **more)


def spoil(study):
    """Damage the pixels behind the header of its file. Returns a function that restores it."""
    path = study.images[0]
    whole = path.read_bytes()
    half = len(whole) // 2
    path.write_bytes(whole[:half] + b"\1" * (len(whole) - half))
    return lambda: path.write_bytes(whole)


class Runs:
    """Counts the forwards of the backbone, and those that are not steered."""

    def __init__(self, backbone):
        self.backbone, self.bare = backbone, 0

    def __enter__(self):
        layer = decoder_layers(self.backbone)[0]

        def count(*_):
            self.bare += not torch.is_grad_enabled()

        self.handle = layer.register_forward_hook(count)
        return self

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("preset", ["dive", "dive-ce"])
def test_the_loss_is_that_of_plain_pytorch(preset, llava, studies, recorder):
    """Cross entropy of the first step, weighted by what the teacher saw; with "dive" the KL too."""
    config = visual(preset=preset, steps=1, batch_size=8, eos_weight=3.0)
    adapter = dive.distill(llava, studies, 2, config)
    prompter, shown = Prompter(llava), Demonstrations(studies, 2)
    each = visual_values(prompter, studies, shown)
    total = weight = kd = rows = extra = 0.0
    for study, values in zip(studies, each, strict=True):
        ids = prompter.response(study).ids

        def logs(demonstrations, study=study, ids=ids):
            prompt = prompter.encode(study, demonstrations)
            inputs = prompter.to_device(prompter.with_response(prompt, ids))
            with torch.no_grad():
                logits = llava.model(**inputs).logits[0, -len(ids) - 1 : -1]
            return logits.double().log_softmax(-1)

        weights = 1 + 1.5 * (1 - torch.exp(-values.double()))
        weights[-1] = 3.0
        own, teacher = logs([]), logs(shown.of(study))
        total -= float((weights * own.gather(1, torch.tensor(ids)[:, None])[:, 0]).sum())
        weight += float(weights.sum())
        kd += float((teacher.exp() * (teacher - own)).sum())
        rows += len(ids)
        extra += float((weights[:-1] - 1).sum())
    expected = total / weight + (0.5 * kd / rows if preset == "dive" else 0.0)
    assert recorder[0].losses[0] == pytest.approx(expected, rel=1e-4)
    assert extra > 0.3
    kept = adapter.metadata["distillation"]
    assert kept["visual_share"] == pytest.approx(extra / weight, rel=1e-4)
    assert kept["decisive_source"] == SOURCE and kept["config"]["decisive"] == "visual"
    assert kept["demonstrations"] == 2


def test_five_prompts_per_study_once_and_no_sixth(llava, studies):
    runs = {}
    settings = {"steps": 4, "batch_size": 4}  # two epochs
    for preset in ("dive", "dive-ce"):
        for decisive in ("lexicon", "visual"):
            config = short(preset=preset, decisive=decisive, calibration_studies=1, **settings)
            shown = None if (preset, decisive) == ("dive-ce", "lexicon") else 2
            with Runs(llava) as count:
                dive.distill(llava, studies, shown, config)
            runs[preset, decisive] = count.bare
    assert runs["dive", "lexicon"] - runs["dive-ce", "lexicon"] == 8
    assert runs["dive", "visual"] - runs["dive-ce", "lexicon"] == 5 * 8
    assert runs["dive-ce", "visual"] == runs["dive", "visual"]


def test_states_that_are_not_kept_serve_the_step_all_the_same(llava, studies, monkeypatch):
    config = visual(steps=4, batch_size=4)
    whole = dive.distill(llava, studies, 2, config)
    monkeypatch.setattr("dive.training.teacher.KEPT_BYTES", 0)
    with Runs(llava) as count:
        again = dive.distill(llava, studies, 2, config)
    assert equal(whole, again)
    # the first epoch's states are those of the weights, the second's are computed
    with Runs(llava) as bare:
        dive.distill(llava, studies, config=short(preset="dive-ce", calibration_studies=1))
    assert count.bare - bare.bare == 5 * 8 + 8


def test_redrawn_demonstrations_leave_the_weights_alone(llava, studies, recorder):
    """They are those of the first epoch's draw, also where a study's turn comes later."""
    weights = {}
    for redraw in (False, True):
        config = visual(steps=6, batch_size=4, redraw_demonstrations=redraw)
        with Runs(llava) as count:
            dive.distill(llava, studies, 1, config)
        images = recorder[-1]._visual
        weights[redraw] = count.bare, [images.of(index) for index in range(8)]
    assert all(map(torch.equal, weights[False][1], weights[True][1]))
    assert weights[True][0] - weights[False][0] == 2 * 8  # two more epochs of states

    feed = recorder[-1]._feed
    feed.epoch = 1
    late = Feed(feed.examples, feed.teacher, type(images)(images.images, 1.0, 1.0))
    late.epoch = 1
    loaded = late[0]
    assert loaded.teacher is not None  # other demonstrations than those of the weights
    states = late.visual.compute(feed.examples[0], loaded.visual)
    assert torch.equal(late.visual.of(0), images.of(0))
    assert not torch.equal(states, feed.teacher.hidden([0], 1))
    assert feed[0].visual is None and feed[0].teacher is not None


def test_one_gradient_however_the_batch_is_split(llava, studies, recorder):
    for size, parts in ((8, 1), (2, 4)):
        config = visual(steps=1, batch_size=size, gradient_accumulation=parts, max_grad_norm=0.0)
        dive.distill(llava, studies, 2, config)
    config = visual(steps=1, batch_size=8, max_grad_norm=0.0, gradient_checkpointing=True)
    dive.distill(llava, studies, 2, config)
    whole, split, recomputed = [trainer.gradients[0] for trainer in recorder]
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-4
    for name, gradient in whole.items():
        assert torch.allclose(gradient, split[name], rtol=1e-4, atol=1e-7), name
        assert torch.equal(gradient, recomputed[name]), name


@pytest.mark.parametrize("cache", [False, True])
def test_workers_and_cached_images_change_nothing(cache, llava, studies, recorder):
    """Over epochs, with a study that fails, and whose image was to replace others'."""
    spoil(studies[5])
    found = []
    for workers in (0, 2):
        config = visual(steps=9, batch_size=2, workers=workers, cache_images=cache)
        skipped = Skipped()
        adapter = dive.distill(llava, studies, 2, config, on_error="skip", skipped=skipped)
        found.append((adapter, recorder[-1]))
        assert [one["id"] for one in skipped] == ["s5"]
    (one, first), (other, second) = found
    assert equal(one, other) and first.losses == second.losses
    drawn = [index for index in range(8) if 5 in first._visual.images.others(index)]
    assert drawn  # it would have been used
    # as without that study
    images = first._visual
    for index in drawn:
        if index != 5:
            prompts = images.images.prompts(
                first._examples[index], studies[index], bad := {}, others := {}
            )
            assert len(prompts.others) == 4 and not bad and not others
            assert 5 not in [one.index for one in prompts.others]


def test_an_image_that_cannot_be_read_stops_a_training_that_is_to_fail(llava, studies):
    spoil(studies[5])
    config = visual(steps=9, batch_size=8)
    with pytest.raises(DiveError, match="study 's5': cannot read the image"):
        dive.distill(llava, studies, studies[:1], config)


def test_no_other_image_can_be_read(llava, studies):
    for one in studies[1:]:
        spoil(one)
    own = replace(studies[0], id="shown", patient="shown", images=(studies[0].load_images()[0],))
    skipped, config = Skipped(), visual(steps=1, batch_size=8)
    adapter = dive.distill(llava, studies, [own], config, on_error="skip", skipped=skipped)
    reasons = {one["id"]: one["reason"] for one in skipped}
    assert set(reasons) == {f"s{n}" for n in range(8)}
    assert "study 's0': no image of another patient can be read" in reasons["s0"]
    assert all("cannot read the image" in reasons[f"s{n}"] for n in range(1, 8))
    assert adapter.metadata["distillation"]["visual_share"] is None


@pytest.mark.parametrize("more", [{}, {"preset": "dive-ce", "redraw_demonstrations": True}])
def test_resumed_bit_for_bit_and_without_the_prompts_again(
    more, llava, studies, tmp_path, monkeypatch, recorder
):
    class Killed(DistillTrainer):
        def __init__(self, *args):
            super().__init__(*args)
            self.add_callback(Kill(6))

    config = visual(steps=10, batch_size=2, save_steps=1, **more)  # epochs of four steps
    spoil(studies[5])
    skip, folder = {"on_error": "skip"}, tmp_path / "run"
    whole = dive.distill(llava, studies, 2, config, **skip)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "DistillTrainer", Killed)
        dive.distill(llava, studies, 2, config, output_dir=folder, **skip)
    last = checkpoints_in(folder)[0]
    kept = load_file(last / VISUAL_FILE)
    assert len(kept["studies"]) == 7 and kept["lengths"].sum() == len(kept["values"])
    computed = []
    real = dive.training.visual_weights.VisualWeights.compute
    monkeypatch.setattr(
        dive.training.visual_weights.VisualWeights,
        "compute",
        lambda self, *args: computed.append(1) or real(self, *args),
    )
    again = dive.distill(llava, studies, 2, config, output_dir=folder, resume=True, **skip)
    assert equal(whole, again) and not computed
    share = whole.metadata["distillation"]["visual_share"]
    assert share > 0.001 and again.metadata["distillation"]["visual_share"] == share


def test_a_damaged_file_of_weights(llava, studies, tmp_path, recorder):
    dive.distill(llava, studies, 2, visual(steps=1, batch_size=8))
    known = recorder[0]._visual
    known.save(tmp_path)
    again = type(known)(known.images, 1.0, 1.0)
    again.load(tmp_path)
    assert all(torch.equal(again.of(index), known.of(index)) for index in range(8))
    for harm in (lambda path: path.write_bytes(b"nothing"), Path.unlink):
        harm(tmp_path / VISUAL_FILE)
        with pytest.raises(DiveError, match=r"visual_weights.safetensors cannot be read"):
            again.load(tmp_path)


def test_an_item_goes_between_processes_and_is_small(llava, studies, recorder):
    """The images of demonstrations are sent once, and not with each of the five prompts."""
    dive.distill(llava, studies, 3, visual(steps=1, batch_size=1))
    trainer = recorder[0]
    images = trainer._visual
    index = next(index for index in range(8) if not images.knows(index))
    loaded = trainer._feed[index]
    again = pickle.loads(pickle.dumps(loaded))
    assert len(loaded.visual.others) == len(again.visual.others) == 4
    for one, other in zip(loaded.visual.others, again.visual.others, strict=True):
        assert one.index == other.index
        pixels = one.changed["pixel_values"]
        assert isinstance(pixels, Patch) and pixels.index.tolist() == [3]
        assert one.changed["input_ids"].index.tolist() == []
        for name, patch in one.changed.items():
            assert torch.equal(patch.values, other.changed[name].values)
            assert torch.equal(patch.index, other.changed[name].index)
    images.compute(trainer._examples[index], loaded.visual)
    value = images.of(index)
    images.compute(trainer._examples[index], again.visual)
    assert torch.equal(images.of(index), value)


def test_validation_weighs_the_end_alone(llava, studies, tmp_path):
    """No teacher runs for it, so there are no visual weights there."""
    config = visual(steps=2, batch_size=6, eval_steps=1, logging_steps=1)
    dive.distill(llava, studies[:6], 2, config, validation=studies[6:], output_dir=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "eval_loss" in line]
    assert len(scores) == 2
    assert all("eval_loss_template" in line and "eval_loss_eos" in line for line in scores)
    assert not any("eval_loss_pathology" in line for line in scores)
    assert any("loss_eos" in line for line in lines)


def test_tokens_that_the_image_decides_are_logged_as_pathology(llava, studies, tmp_path):
    dive.distill(llava, studies, 2, visual(steps=1, logging_steps=1), output_dir=tmp_path / "run")
    values = visual_values(Prompter(llava), studies, Demonstrations(studies, 2))
    most = max(float(v[:-1].max()) for v in values)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert logged and ("loss_pathology" in logged[0]) == (most >= 0.6931)


# what is said of it


def test_the_forecast_counts_the_prompts(llava, studies, monkeypatch):
    texts = []
    monkeypatch.setattr(
        loop, "forecast_text", lambda prepared: texts.append(forecast_text(prepared)) or texts[-1]
    )
    for preset in ("dive", "dive-ce"):
        dive.distill(llava, studies, 2, visual(preset=preset, steps=1), progress=True)
    dive.distill(llava, studies, config=short(preset="dive-ce", steps=1), progress=True)
    assert "visual weights: 5 teacher prompts per study instead of 1" in texts[0]
    assert "visual weights: 5 teacher prompts per study instead of 0" in texts[1]
    assert "no teacher is run" not in texts[1] and "pathology" not in texts[1]
    assert "visual" not in texts[2] and "no teacher is run" in texts[2]


def test_no_lexicon_is_asked(llava, studies, recwarn, monkeypatch):
    """Reports in any language, without a warning, and a training of another lexicon goes on."""
    german = [replace(one, findings="Kein Erguss. Das Herz ist normal groß.") for one in studies]
    monkeypatch.setattr("dive.decisive.tokens.find_mentions", lambda *_: 1 / 0)
    adapter = dive.distill(llava, german, 1, visual(steps=1))
    assert not [one for one in recwarn if "English" in str(one.message)]
    one = adapter.metadata["distillation"]["decisive_hash"]
    monkeypatch.setattr(fingerprint, "lexicon_version", lambda: "another")
    adapter = dive.distill(llava, german, 1, visual(steps=1))
    assert adapter.metadata["distillation"]["decisive_hash"] == one


def test_a_report_alone_has_no_visual_weights(tmp_path):
    (tmp_path / "report.txt").write_text("No effusion.")
    with pytest.raises(DiveError, match="--decisive is 'visual', whose weights need the study's"):
        call("inspect", "tokens", tmp_path / "report.txt", "--decisive", "visual")


def test_another_word_for_it():
    with pytest.raises(DiveError, match="decisive is 'images', want lexicon, visual, radgraph"):
        short(decisive="images")


@pytest.mark.parametrize("more", [{"decisive_unit": "clause"}, {"decisive_unit": "decision"}])
def test_statements_have_no_part_in_it(more):
    with pytest.raises(DiveError, match="decisive_unit is '.*' with decisive 'visual', which read"):
        short(decisive="visual", **more)
    with pytest.raises(DiveError, match="class_floor is 0.05 with decisive 'visual'"):
        short(decisive="visual", class_floor=0.05)


def test_a_teacher_is_needed_for_the_weights_alone():
    weights = visual(preset="dive-ce")
    assert weights.needs_teacher and not weights.learns_from_teacher
    assert not short(preset="dive-ce").needs_teacher
    assert short().needs_teacher and short().learns_from_teacher


_RANK = (
    RANK
    + """with torch.no_grad():
    backbone.model.get_output_embeddings().weight.mul_(40.0)
config = short(
    steps=1, batch_size=4, max_grad_norm=0.0, calibration_studies=1, decisive="visual"
)
adapter = dive.distill(backbone, read_studies({studies!r}), demonstrations=2, config=config)
share = adapter.metadata["distillation"]["visual_share"]
if Recorder.made[0].is_world_process_zero():
    torch.save((Recorder.made[0].gradients[0], share), {out!r})
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""
)


def test_two_ranks_give_the_gradient_and_share_of_one(
    llava, tiny_llava, studies, recorder, tmp_path
):
    config = visual(steps=1, batch_size=8, max_grad_norm=0.0)
    adapter = dive.distill(llava, studies, demonstrations=2, config=config)
    script, out, root = tmp_path / "rank.py", tmp_path / "found.pt", Path(__file__).parents[2]
    names = {"backbone": str(tiny_llava), "studies": str(tmp_path / "studies.jsonl")}
    script.write_text(_RANK.format(helpers=str(root / "tests/helpers"), out=str(out), **names))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         str(script)],
        check=True, timeout=240, cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )  # fmt: skip
    gradients, share = torch.load(out, weights_only=True)
    assert share == pytest.approx(adapter.metadata["distillation"]["visual_share"], rel=1e-6)
    for name, gradient in recorder[0].gradients[0].items():
        other = gradients.get(name, gradients.get(f"module.{name}"))
        assert torch.allclose(gradient, other, rtol=1e-4, atol=1e-7), name
