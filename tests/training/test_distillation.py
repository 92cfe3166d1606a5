"""Distillation, from studies to an adapter: objective, checkpoints, resuming, errors."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trainings import RANK, Kill, Recorder, bare, equal, short

import dive
from dive.backbone.structure import decoder_layers
from dive.data import Skipped, Study, read_studies
from dive.errors import DiveError, NonFiniteLoss
from dive.prompting.prompter import Prompter
from dive.training import loop, preparation, selection
from dive.training.trainer import DistillTrainer


@pytest.fixture
def studies(studies_folder):
    return read_studies(studies_folder / "studies.jsonl")


@pytest.mark.parametrize("folder", ["tiny_llava", "tiny_llava_mistral", "tiny_qwen", "tiny_gemma"])
def test_every_family_learns(folder, request, studies, recorder):
    backbone = dive.load_backbone(request.getfixturevalue(folder), device="cpu")
    before = {n: p.clone() for n, p in backbone.model.named_parameters()}
    config = short(rank=4, steps=12, batch_size=6, learning_rate=0.3)
    adapter = dive.distill(backbone, studies, demonstrations=1, config=config)
    losses = recorder[0].losses
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(p, before[n]) for n, p in backbone.model.named_parameters())
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not any(layer._forward_hooks for layer in decoder_layers(backbone))
    assert adapter.metadata["prompt"] and adapter.metadata["template_hash"]
    assert adapter.metadata["distillation"]["config"]["preset"] == "dive"
    assert adapter.metadata["distillation"]["steps"] == 12
    json.dumps(adapter.metadata)
    # its own prompt is the default of generate
    report = dive.generate(backbone, studies[0], adapter=adapter, max_new_tokens=4)[0]
    assert report.num_tokens >= 1


def test_a_text_model_learns_from_reports(tiny_llama):
    backbone = dive.load_backbone(tiny_llama, device="cpu")
    texts = ["No effusion. Mild cardiomegaly.", "Clear lungs.", "Left nodule. No edema."]
    studies = [Study(id=str(n), images=(), findings=text) for n, text in enumerate(texts)]
    adapter = dive.distill(backbone, studies, demonstrations=1, config=short())
    assert any(layer.up.abs().sum() > 0 for layer in adapter.layers.values())


@pytest.mark.parametrize(
    ("preset", "rank", "norm_preserving"),
    [("dive", 16, False), ("dive-ce", 16, False), ("live", 0, True), ("fixed-ce", 0, False)],
)
def test_presets(preset, rank, norm_preserving, llava, studies, recorder):
    config = dive.DistillConfig(preset=preset, steps=2, batch_size=3)
    assert (config.rank, config.norm_preserving) == (rank, norm_preserving)
    adapter = dive.distill(llava, studies, config=config)
    assert (recorder[0]._teacher is None) == (preset.endswith("-ce"))
    assert adapter.metadata["distillation"]["demonstrations"] == (
        None if preset.endswith("-ce") else 4
    )
    weights = {"dive": (2.5, 2.5), "live": (1.0, 1.0)}
    if preset in weights:
        assert (config.pathology_weight, config.eos_weight) == weights[preset]


@pytest.mark.parametrize(
    "terms",
    [
        {"ce_weight": 0.0, "kd_weight": 1.0},
        {"ce_weight": 1.0, "kd_weight": 0.0, "align_weight": 1.0},
        {"ce_weight": 0.0, "kd_weight": 0.0, "align_weight": 1.0},
    ],
)
def test_each_term_alone_goes_down(terms, llava, studies, recorder):
    config = short(rank=4, steps=10, batch_size=6, learning_rate=0.05, **terms)
    dive.distill(llava, studies, demonstrations=1, config=config)
    losses = recorder[0].losses
    assert losses[-1] < losses[0]


def test_the_loss_is_that_of_plain_pytorch(llava, studies, recorder):
    """The loss of the first step is the bare model's cross entropy, weighted and normalised."""
    config = bare(batch_size=6, steps=1)
    dive.distill(llava, studies, config=config)
    prompter = recorder[0]._examples.prompter
    total = weight = 0.0
    for study in studies:
        response = prompter.response(study)
        inputs = prompter.to_device(prompter.with_response(prompter.encode(study), response.ids))
        with torch.no_grad():
            logits = llava.model(**inputs).logits[0].float()
        example = recorder[0]._examples[studies.index(study)]
        rows = logits[-len(response.ids) - 1 : -1].log_softmax(-1)
        picked = rows.gather(1, torch.tensor(response.ids)[:, None])[:, 0]
        weights = torch.tensor(example.weights)
        assert weights[-1] == 2.5
        total -= float((weights * picked).sum())
        weight += float(weights.sum())
    assert recorder[0].losses[0] == pytest.approx(total / weight, rel=1e-5)


def test_one_gradient_however_the_batch_is_split(llava, studies, recorder):
    for size, parts in ((6, 1), (2, 3), (1, 6)):
        config = short(steps=1, batch_size=size, gradient_accumulation=parts, max_grad_norm=0.0)
        dive.distill(llava, studies, demonstrations=2, config=config)
    whole, *others = [trainer.gradients[0] for trainer in recorder]
    assert max(g.abs().max() for g in whole.values()) > 1e-4
    for gradients in others:
        for name, gradient in whole.items():
            assert torch.allclose(gradient, gradients[name], rtol=1e-4, atol=1e-7), name
    assert sum(recorder[1].losses) == pytest.approx(recorder[0].losses[0], rel=1e-5)


_RANK = (
    RANK
    + """config = short(steps=1, batch_size=3, max_grad_norm=0.0)
dive.distill(backbone, read_studies({studies!r}), demonstrations=2, config=config)
if Recorder.made[0].is_world_process_zero():
    torch.save(Recorder.made[0].gradients[0], {out!r})
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""
)


def test_two_ranks_give_the_gradient_of_one(llava, tiny_llava, studies, recorder, tmp_path):
    config = short(steps=1, batch_size=6, max_grad_norm=0.0)
    dive.distill(llava, studies, demonstrations=2, config=config)
    script, out = tmp_path / "rank.py", tmp_path / "gradients.pt"
    source = studies[0].images[0].parents[1] / "studies.jsonl"
    script.write_text(
        _RANK.format(
            helpers=str(Path(__file__).parents[1] / "helpers"),
            backbone=str(tiny_llava),
            studies=str(source),
            out=str(out),
        )
    )
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         str(script)],
        check=True, timeout=240, cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    two = torch.load(out, weights_only=True)
    for name, gradient in recorder[0].gradients[0].items():
        other = two.get(name, two.get(f"module.{name}"))
        assert torch.allclose(gradient, other, rtol=1e-4, atol=1e-7), name


def test_dropout_in_the_backbone_stays_off(tiny_llava, studies, recorder):
    backbone = dive.load_backbone(tiny_llava, device="cpu", attn_implementation="eager")
    for module in backbone.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    batch = [studies[0]] * 1
    config = bare(steps=2, batch_size=1, learning_rate=1e-12, scale_learning_rate=1e-12)
    dive.distill(backbone, batch, config=config)
    assert recorder[0].losses[0] == recorder[0].losses[1]
    assert not any(module.training for module in backbone.model.modules())


def test_gradient_checkpointing_changes_memory_and_nothing_else(llava, studies, recorder):
    for positions in ("all", "response"):
        for checkpointing in (False, True):
            config = short(steps=1, positions=positions, gradient_checkpointing=checkpointing)
            dive.distill(llava, studies, demonstrations=1, config=config)
    for plain, recomputed in (recorder[:2], recorder[2:]):
        for name, gradient in plain.gradients[0].items():
            assert torch.equal(gradient, recomputed.gradients[0][name]), name
    first, third = recorder[0].gradients[0], recorder[2].gradients[0]
    assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.fixture
def killed(llava, studies, tmp_path, monkeypatch):
    """A function that trains into `tmp_path` and is killed in step 5 of 7, after checkpoint 4."""

    class Killed(DistillTrainer):
        def __init__(self, *args):
            super().__init__(*args)
            self.add_callback(Kill(5))

    def train(**more):
        config = short(steps=7, batch_size=2, save_steps=2, logging_steps=1, **more)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "DistillTrainer", Killed)
            with pytest.raises(KeyboardInterrupt):
                dive.distill(llava, studies, config=config, output_dir=tmp_path)
        assert (tmp_path / "checkpoint-4").is_dir()
        return config

    return train


@pytest.mark.parametrize("preset", ["dive", "dive-ce"])
def test_killed_and_resumed_is_the_same_bit_for_bit(preset, llava, studies, tmp_path, killed):
    config = killed(preset=preset)
    whole = dive.distill(llava, studies, config=config)
    resumed = dive.distill(llava, studies, config=config, output_dir=tmp_path, resume=True)
    assert equal(whole, resumed)
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 8))


def test_what_does_not_reach_the_adapter_may_change_on_the_way(llava, studies, tmp_path, killed):
    """Another interval of logging applies at once, and the adapter is the same bit for bit."""
    config = killed(preset="dive-ce")
    whole = dive.distill(llava, studies, config=config)
    watched = replace(
        config, logging_steps=2, eval_steps=3, save_steps=9, gradient_checkpointing=True, workers=1
    )
    others = [replace(one, id=f"new-{one.id}", patient=None) for one in studies[:2]]
    resumed = dive.distill(
        llava, studies, config=watched, output_dir=tmp_path, resume=True, validation=others
    )
    assert equal(whole, resumed)
    logs = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    # 1 to 4 before; 7 is the end, whose checkpoint ends an interval
    assert [line["step"] for line in logs if "loss" in line] == [1, 2, 3, 4, 6, 7]
    assert [line["step"] for line in logs if "eval_loss" in line] == [6, 7]  # 7: the end


def test_another_training_is_refused_before_the_studies_are_read(
    llava, studies, tmp_path, killed, monkeypatch
):
    config = killed(preset="dive-ce")

    def unread(*_, **__):
        raise AssertionError("studies were read before the folder was refused")

    monkeypatch.setattr(preparation, "survey", unread)
    again = {"output_dir": tmp_path, "resume": True}
    with pytest.raises(DiveError, match="unfinished training; resume it"):
        dive.distill(llava, studies, config=config, output_dir=tmp_path)
    with pytest.raises(DiveError, match=r"had learning_rate .* \(now 0.5\); it cannot"):
        dive.distill(llava, studies, config=replace(config, learning_rate=0.5), **again)
    with pytest.raises(DiveError, match="had other studies to learn from"):
        dive.distill(llava, studies[1:], config=config, **again)
    monkeypatch.undo()
    # which studies are skipped is known only when all were read
    with pytest.raises(DiveError, match="had other studies to learn from"):
        dive.distill(llava, studies[1:], config=config, on_error="skip", **again)


def test_checkpoints_hold_the_adapter_alone(llava, studies, tmp_path):
    dive.distill(llava, studies, config=bare(save_steps=3), output_dir=tmp_path)
    names = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    assert {"adapter.safetensors", "adapter_config.json", "optimizer.pt"} <= names
    assert not any(name.startswith(("model", "pytorch_model")) for name in names)
    saved = dive.SteeringAdapter.from_pretrained(tmp_path / "checkpoint-3")
    saved.check_backbone(llava)


def test_logs_hold_loss_and_accuracy_by_class(llava, studies, tmp_path):
    config = bare(logging_steps=1, eval_steps=2, steps=2)
    dive.distill(llava, studies, config=config, validation=0.3, output_dir=tmp_path)
    logs = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    training = next(line for line in logs if "loss" in line)
    held_out = next(line for line in logs if "eval_loss" in line)
    for name in ("template", "pathology", "eos"):
        for prefix, line in (("", training), ("eval_", held_out)):
            assert math.isfinite(line[f"{prefix}loss_{name}"])
            assert 0 <= line[f"{prefix}accuracy_{name}"] <= 1


def test_the_scale_has_a_learning_rate_of_its_own(llava, studies):
    config = bare(steps=1, learning_rate=1e-9, scale_learning_rate=0.05, warmup=0.0)
    adapter = dive.distill(llava, studies, config=replace(config, steps=2, learning_rate=1e-3))
    moved = {layer.scale.item() for layer in adapter.layers.values()}
    assert any(abs(value - 0.1) > 0.01 for value in moved)  # far more than 2 steps of 1e-3


def test_calibration_is_stored(llava, studies):
    adapter = dive.distill(llava, studies, config=bare(steps=1))
    sigmas = [layer.sigma.item() for layer in adapter.layers.values()]
    assert all(math.isfinite(value) and value > 0 and value != 1.0 for value in sigmas)


def test_the_callers_random_numbers_are_left_alone(llava, studies):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dive.distill(llava, studies, config=bare(steps=1))
    assert torch.equal(torch.rand(3), expected)


def test_the_same_seed_gives_the_same_adapter(llava, studies):
    one, two = (dive.distill(llava, studies, config=bare(seed=1)) for _ in range(2))
    other = dive.distill(llava, studies, config=bare(seed=2))
    assert equal(one, two) and not equal(one, other)


def test_a_loss_that_is_not_finite_names_the_study(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    bad = studies[3]
    token = Prompter(backbone).response(bad).ids[0]

    def poison(_module, inputs, output):
        ids = inputs[0]
        rows = (ids == marker).any(-1)
        output[rows] = float("nan")
        return output

    # a word that only this report contains
    ids = {s.id: set(Prompter(backbone).response(s).ids) for s in studies}
    others = set().union(*(v for k, v in ids.items() if k != bad.id))
    marker = next(iter(sorted(ids[bad.id] - others)), token)
    handle = backbone.model.get_input_embeddings().register_forward_hook(poison)
    try:
        with pytest.raises(NonFiniteLoss, match=bad.id) as caught:
            dive.distill(backbone, studies, config=bare(batch_size=6, calibration_studies=2))
    finally:
        handle.remove()
    assert studies[1].id not in str(caught.value)
    assert not any(layer._forward_hooks for layer in decoder_layers(backbone))


class Spoilt(Recorder):
    """A value of the first batch is bad, and is found when the trainer logs or saves."""

    name, row, value, at_once = "targets", 2, 10**6, False

    def __init__(self, *args):
        super().__init__(*args)
        assert self._look_at_once  # the backbone is on a CPU
        self._look_at_once = self.at_once

    def get_batch_samples(self, *args, **more):
        batches, count = super().get_batch_samples(*args, **more)
        if self.state.global_step == 0:
            batches[0][self.name][self.row] = self.value
        return batches, count


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("targets", 10**6, r"targets\[2\] is 1e\+06, want an index into the rows of lm_head"),
        ("weights", -1.0, r"weights\[2\] is -1, want a finite number >= 0"),
        ("weights", math.nan, r"weights\[2\] is nan"),
    ],
)
def test_a_bad_value_is_told_at_the_next_line_of_log(
    name, value, message, llava, studies, recorder, monkeypatch
):
    """As on a GPU, where the device is not read in between."""
    monkeypatch.setattr(Spoilt, "name", name)
    monkeypatch.setattr(Spoilt, "value", value)
    monkeypatch.setattr(loop, "DistillTrainer", Spoilt)
    for logging_steps, at_once, forwards in ((2, False, 2), (2, True, 0), (50, False, 3)):
        monkeypatch.setattr(Spoilt, "at_once", at_once)
        with pytest.raises(DiveError, match=f"step 1, .*'study-0.*: .*{message}"):
            dive.distill(llava, studies, config=bare(logging_steps=logging_steps))
        losses = recorder[-1].losses
        assert len(losses) == forwards and all(map(math.isnan, losses[:1]))


def test_no_checkpoint_is_written_after_a_bad_value(
    llava, studies, recorder, monkeypatch, tmp_path
):
    monkeypatch.setattr(loop, "DistillTrainer", Spoilt)
    with pytest.raises(DiveError, match="step 1, "):
        config = bare(logging_steps=50, save_steps=2)
        dive.distill(llava, studies, config=config, output_dir=tmp_path)
    assert len(recorder[0].losses) == 2 and not list(tmp_path.rglob("adapter.safetensors"))


def test_demonstrations_without_a_teacher_are_an_error(llava, studies):
    with pytest.raises(DiveError, match="runs no teacher"):
        dive.distill(llava, studies, demonstrations=2, config=bare())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("four", "demonstrations is 'four', want a whole number or a list of studies"),
        (2.5, "demonstrations is 2.5, want a whole number or"),
        (True, "demonstrations is True, want a whole number or"),
        (["film.png"], "demonstrations has a str as item 0, want studies"),
        (0, "demonstrations is 0, want 1 or more"),
    ],
)
def test_demonstrations_are_a_number_or_studies(given, message, llava, studies):
    with pytest.raises(DiveError, match=message):
        dive.distill(llava, studies, given, short(), progress=False)


def test_without_a_folder_nothing_is_left_behind(llava, studies, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    dive.distill(llava, studies, config=bare())
    assert list(here.iterdir()) == []


def test_bad_input_before_the_first_step(llava, studies, tmp_path):
    with pytest.raises(DiveError, match="no study"):
        dive.distill(llava, [], config=bare())
    with pytest.raises(DiveError, match="validation is 1.5"):
        dive.distill(llava, studies, config=bare(), validation=1.5)
    with pytest.raises(DiveError, match="same patient"):
        dive.distill(llava, studies[:1], config=bare(), validation=[studies[1]])
    with pytest.raises(DiveError, match="Backbone"):
        dive.distill(llava.model, studies, config=bare())
    with pytest.raises(DiveError, match="resume is set and output_dir is None, want the folder"):
        dive.distill(llava, studies, config=bare(), resume=True)
    blank = replace(studies[0], id="blank", patient=None, findings=None, source="f.jsonl:9")
    with pytest.raises(DiveError, match="f.jsonl:9.*'findings' is absent"):
        dive.distill(llava, [*studies, blank], config=bare())
    with pytest.raises(
        DiveError, match="keep 0.1% apart .* nothing to learn from, of 1 study of 1 patient"
    ):
        dive.distill(llava, studies[:1], config=bare(), validation=0.001)
    with pytest.raises(DiveError, match="no study is left for validation: 1 study skipped"):
        dive.distill(llava, studies, config=bare(), validation=[blank], on_error="skip")
    skipped = Skipped()
    adapter = dive.distill(
        llava, [blank, *studies], config=bare(), on_error="skip", skipped=skipped
    )
    assert [entry["id"] for entry in skipped] == ["blank"]
    assert adapter.metadata["distillation"]["studies"] == len(studies)


def test_an_overlong_report_is_an_error_with_its_length(llava, studies):
    long = replace(studies[0], id="long", findings="effusion " * 5000)
    with pytest.raises(DiveError, match=r"'long'.*tokens.*the model's context is 4096"):
        dive.distill(llava, [long], config=bare())


def test_validation_keeps_patients_together(studies):
    train, held_out = selection.split(studies, 0.3, seed=0)
    assert {s.patient for s in train} & {s.patient for s in held_out} == set()
    assert len(train) + len(held_out) == len(studies) and held_out
    assert selection.split(studies, 0.3, seed=0)[1] == held_out


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"preset": "best"}, "preset"),
        ({"rank": -1}, "rank"),
        ({"pathology_weight": -1.0}, "pathology_weight"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": 1e39}, "learning_rate"),
        ({"weight_decay": 1e-40}, "weight_decay"),
        ({"ce_weight": 10**400}, "ce_weight"),
        ({"kd_weight": False}, "kd_weight"),
        ({"temperature": 1e-300}, "temperature"),
        ({"temperature": 1e20}, "temperature is 1e\\+20, want a number from 1.08e-19 to 9.22e"),
        ({"seed": 10**400}, "seed"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"polarity": "negative"}, "polarity"),
        ({"ce_weight": 0.0, "kd_weight": 0.0}, "nothing to learn"),
        ({"warmup": 1.0}, "warmup"),
    ],
)
def test_bad_settings_name_the_field(settings, named):
    with pytest.raises(DiveError, match=named):
        dive.DistillConfig(**settings)


def test_in_bfloat16_parameters_stay_float32(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava, device="cpu", dtype="bfloat16")
    adapter = dive.distill(backbone, studies, demonstrations=1, config=short())
    assert {t.dtype for t in adapter.state_dict().values()} == {torch.float32}
    assert any(layer.up.abs().sum() > 0 for layer in adapter.layers.values())
