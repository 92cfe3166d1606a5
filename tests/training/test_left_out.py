"""Studies that are found to be unreadable only when they are decoded, during a training."""

import json
import os
from dataclasses import replace
from itertools import pairwise
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import COUNT, Ranks
from trainings import RANK, Kill, bare, equal, short
from transformers import TrainerCallback

import dive
from dive.data import Skipped, read_studies
from dive.errors import DiveError
from dive.prompting.demonstrations import Demonstrations
from dive.prompting.prompter import Prompter
from dive.training import loop
from dive.training.checkpoints import checkpoints_in, harm_of
from dive.training.examples import Examples
from dive.training.feed import Feed, Loaded
from dive.training.teacher import Teacher
from dive.training.trainer import DistillTrainer


@pytest.fixture
def studies(tmp_path):
    """Eight studies of one patient each; the films are noise, so that files are long."""
    noise = np.random.default_rng(1)
    (tmp_path / "images").mkdir()
    rows = []
    words = ["effusion", "nodule", "edema", "opacity", "line", "fracture", "mass", "haze"]
    for number, word in enumerate(words):
        image = Image.fromarray(noise.integers(0, 255, (70, 60), np.uint8))
        image.save(tmp_path / "images" / f"{number}.png")
        text = f"There is {word} on the left. No pneumothorax {number}."
        row = {"id": f"s{number}", "images": [f"images/{number}.png"], "findings": text}
        rows.append({**row, "patient": f"p{number}"})
    path = tmp_path / "studies.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_studies(path)


def spoil(study, cut=True):
    """Keep the header of its file and damage the pixels. Returns a function that restores it."""
    path = study.images[0]
    whole = path.read_bytes()
    half = whole[: len(whole) // 2]
    path.write_bytes(half if cut else half + b"\1" * (len(whole) - len(half)))
    with pytest.raises(DiveError, match="cannot read the image"):
        study.load_images()
    return lambda: path.write_bytes(whole)


def without(studies, *ids):
    return [one for one in studies if one.id not in ids]


SKIP = {"on_error": "skip", "progress": False}


@pytest.mark.parametrize("more", [{"preset": "dive-ce"}, {"preset": "dive", "align_weight": 0.5}])
@pytest.mark.parametrize(("size", "parts"), [(8, 1), (2, 4), (1, 8)])
def test_the_gradient_is_that_of_the_rest(more, size, parts, llava, studies, recorder):
    """Normalisers are over the studies that are left, however the batch is split."""
    shown = None if more["preset"] == "dive-ce" else [replace(studies[7], id="own", patient="own")]
    settings = {"steps": 1, "max_grad_norm": 0.0, "calibration_studies": 1, **more}
    good = without(studies, "s3", "s4")
    config = short(batch_size=6, **settings)
    dive.distill(llava, good, shown, config, progress=False)
    spoil(studies[3]), spoil(studies[4])
    skipped = Skipped()
    config = short(batch_size=size, gradient_accumulation=parts, **settings)
    adapter = dive.distill(llava, studies, shown, config, skipped=skipped, **SKIP)
    assert sorted(one["id"] for one in skipped) == ["s3", "s4"]
    assert all("studies.jsonl" in one["source"] for one in skipped)
    wanted, got = recorder[0].gradients[0], recorder[1].gradients[0]
    assert max(gradient.abs().max() for gradient in wanted.values()) > 1e-4
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, got[name], rtol=1e-4, atol=1e-7), name
    assert sum(recorder[1].losses) == pytest.approx(recorder[0].losses[0], rel=1e-5)
    assert all(torch.isfinite(tensor).all() for tensor in adapter.state_dict().values())


def test_a_step_without_a_study_moves_nothing(llava, studies, monkeypatch, caplog):
    states = []

    class Watched(DistillTrainer):
        def __init__(self, *args):
            super().__init__(*args)
            trainer = self

            class Look(TrainerCallback):
                def on_step_end(self, *_args, **_more):
                    named = trainer._student.adapter.state_dict().items()
                    states.append(({n: t.clone() for n, t in named}, trainer.nothing_to_learn))

            self.add_callback(Look())

    monkeypatch.setattr(loop, "DistillTrainer", Watched)
    for number in (1, 4, 6):
        spoil(studies[number])
    skipped = Skipped()
    config = bare(steps=8, batch_size=1, calibration_studies=1, learning_rate=0.1)
    adapter = dive.distill(llava, studies, config=config, skipped=skipped, **SKIP)
    still = [
        all(torch.equal(before[name], after[name]) for name in before)
        for (before, _), (after, _) in pairwise(states)
    ]
    empty = [nothing for _, nothing in states]
    assert sum(empty) == 3 and len(states) == 8
    assert still == empty[1:]
    assert caplog.text.count("every study of its batch is left out") == 3
    assert {one["id"] for one in skipped} == {"s1", "s4", "s6"}
    assert all(torch.isfinite(tensor).all() for tensor in adapter.state_dict().values())


@pytest.mark.parametrize("more", [{}, {"redraw_demonstrations": True}, {"preset": "dive-ce"}])
def test_workers_change_nothing(more, llava, studies, recorder):
    """The same bit for bit over epochs, with a study that fails and is a demonstration."""
    spoil(studies[5])
    found = []
    for workers in (0, 2):
        config = short(steps=9, batch_size=2, calibration_studies=2, workers=workers, **more)
        skipped = Skipped()
        shots = None if "preset" in more else 2
        adapter = dive.distill(llava, studies, shots, config, skipped=skipped, **SKIP)
        found.append((adapter, skipped.entries, recorder[-1].losses))
    assert equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    assert [one["id"] for one in found[0][1]] == ["s5"]
    assert max(t.abs().max() for n, t in found[0][0].state_dict().items() if n[-2:] == "up") > 1e-3


def test_what_workers_read_is_kept_for_the_next_epochs(llava, studies, monkeypatch):
    """In the second epoch no process reads a file."""
    real, read = Examples.make, []

    def make(self, index, study=None):
        with (studies[0].images[0].parent / "read").open("a") as file:
            file.write(f"{index}\n")
        return real(self, index, study)

    monkeypatch.setattr(Examples, "make", make)
    for workers in (0, 2):
        config = bare(steps=12, batch_size=2, calibration_studies=1, workers=workers)
        dive.distill(llava, studies, config=config, progress=False)
        path = studies[0].images[0].parent / "read"
        read.append(sorted(path.read_text().split()))
        path.unlink()
    assert read == [[str(n) for n in range(8)]] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_training_leaves_out_the_same(workers, llava, studies, tmp_path, monkeypatch):
    """A study stays out even if its file is whole again: a network drive may fail for a moment."""

    class Killed(DistillTrainer):
        def __init__(self, *args):
            super().__init__(*args)
            self.add_callback(Kill(9))

    # epochs of 4 steps; killed in the third, two steps after a checkpoint
    config = short(steps=14, batch_size=2, save_steps=1, calibration_studies=1, workers=workers)
    mend = spoil(studies[5], cut=False), spoil(studies[2], cut=False)
    first, resumed, folder = Skipped(), Skipped(), tmp_path / "run"
    whole = dive.distill(llava, studies, 2, config, skipped=first, **SKIP)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "DistillTrainer", Killed)
        dive.distill(llava, studies, 2, config, output_dir=folder, **SKIP)
    for one in mend:
        one()
    again = dive.distill(
        llava, studies, 2, config, output_dir=folder, resume=True, skipped=resumed, **SKIP
    )
    assert equal(whole, again)
    assert {one["id"] for one in first} == {"s2", "s5"}
    key = lambda one: one["id"]  # noqa: E731
    assert sorted(first.entries, key=key) == sorted(resumed.entries, key=key)


@pytest.mark.parametrize("workers", [0, 2])
def test_where_nothing_is_skipped_the_training_stops_and_goes_on_once_mended(
    workers, llava, studies, tmp_path
):
    config = short(steps=9, batch_size=2, save_steps=1, calibration_studies=1, workers=workers)
    whole = dive.distill(llava, studies, 2, config, progress=False)
    # the first study is read for the calibration, and others by the first steps
    mend = spoil(studies[6])
    options = {"output_dir": tmp_path / "run", "progress": False}
    given = Demonstrations(studies, 2, seed=config.seed)
    shows = [one for one in studies if studies[6] in given.of(one)]
    assert shows  # it is a demonstration, too
    with pytest.raises(
        DiveError, match=r"studies\.jsonl:7: study 's6': cannot read the image .1 of 1."
    ):
        dive.distill(llava, studies, 2, config, **options)
    with pytest.raises(DiveError, match=r"studies\.jsonl:7"):  # nothing has changed
        dive.distill(llava, studies, 2, config, resume=True, **options)
    mend()
    assert equal(whole, dive.distill(llava, studies, 2, config, resume=True, **options))


def test_it_may_go_on_without_the_study_too(llava, studies, tmp_path, monkeypatch):
    config = bare(steps=8, batch_size=1, save_steps=1, calibration_studies=1)
    order = []
    monkeypatch.setattr(
        Feed, "__getitem__", lambda self, index, own=Feed.__getitem__: (
            order.append(index), own(self, index))[1],
    )  # fmt: skip
    dive.distill(llava, studies, config=config, progress=False)
    bad = studies[order[4]]  # of the fifth step
    spoil(bad)
    options = {"output_dir": tmp_path / "run", "progress": False}
    with pytest.raises(DiveError, match=rf"'{bad.id}': .* can be resumed from .*checkpoint-4, "):
        dive.distill(llava, studies, config=config, **options)
    assert not (tmp_path / "run" / "checkpoint-5").exists()
    saved = dive.SteeringAdapter.from_pretrained(tmp_path / "run" / "checkpoint-4")
    saved.check_backbone(llava)
    skipped = Skipped()
    resumed = dive.distill(
        llava, studies, config=config, resume=True, on_error="skip", skipped=skipped, **options
    )
    assert [one["id"] for one in skipped] == [bad.id]
    assert equal(resumed, dive.distill(llava, studies, config=config, **SKIP))
    others = [*studies[:-1], replace(studies[-1], id="another")]
    with pytest.raises(DiveError, match="other studies to learn from"):
        again = {**options, "resume": True}
        (tmp_path / "run" / "checkpoint-8").is_dir()
        dive.distill(llava, others, config=config, on_error="skip", **again)


def parts(backbone, studies, count, **more):
    from dive.decisive.tokens import DecisiveTokens

    examples = Examples(studies, Prompter(backbone), DecisiveTokens(backbone.tokenizer))
    return examples, Teacher(examples.prompter, examples, Demonstrations(studies, count, **more))


def test_a_demonstration_that_cannot_be_read_gives_way_to_the_next(llava, studies):
    examples, teacher = parts(llava, studies, 3)
    before = {n: Feed(examples, teacher)[n].teacher.shown for n in range(8)}
    assert before == {
        n: [studies.index(one) for one in teacher.demonstrations.of(studies[n])] for n in range(8)
    }
    spoil(studies[2])
    hit = 0
    for known in (False, True):  # the same whether it is found now or was known before
        examples, teacher = parts(llava, studies, 3)
        if known:
            examples.failed[2] = "known"
        for n in without_index(2):
            loaded = Feed(examples, teacher)[n]
            kept = [place for place in before[n] if place != 2]
            shown = loaded.teacher.shown
            assert loaded.error is None and len(shown) == 3 == len({*shown})
            assert shown[: len(kept)] == kept and not {2, n} & {*shown}
            assert list(loaded.bad) == ([2] if 2 in before[n] and not known else [])
            hit += len(kept) < 3
            expected = [studies[place] for place in shown]
            prompt = examples.prompter.encode(studies[n], expected)["input_ids"]
            assert torch.equal(loaded.teacher.inputs["input_ids"][:, : prompt.shape[1]], prompt)
    assert hit >= 2
    assert "studies.jsonl:3" in Feed(*parts(llava, studies, 3))[2].error


def without_index(bad):
    return [n for n in range(8) if n != bad]


def test_where_none_is_left_to_draw_fewer_are_shown(llava, studies):
    examples, teacher = parts(llava, studies[:4], 3)
    spoil(studies[1])
    assert sorted(Feed(examples, teacher)[0].teacher.shown) == [2, 3]
    spoil(studies[2]), spoil(studies[3])
    loaded = Feed(examples, teacher)[0]
    assert "'s0': none of its demonstrations can be read" in loaded.error
    assert sorted(loaded.bad) == [1, 2, 3]


def test_a_processor_that_refuses_a_demonstration(tiny_qwen, studies):
    """The aspect ratio of a film is too extreme for Qwen's processor; the query stays usable."""
    backbone = dive.load_backbone(tiny_qwen, device="cpu")
    odd = replace(studies[2], images=(Image.new("L", (2000, 5)),))
    pool = [*studies[:2], odd, *studies[3:]]
    examples, teacher = parts(backbone, pool, 7)
    loaded = Feed(examples, teacher)[0]
    assert loaded.error is None and len(loaded.teacher.shown) == 6
    assert "processor refuses" in loaded.bad[2]


def test_a_fault_of_the_processor_is_one_studys(llava, studies, monkeypatch):
    images = llava.processor.image_processor
    own = type(images).__call__
    calls = []

    def faulty(self, given, *args, **more):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of luck")
        return own(self, given, *args, **more)

    monkeypatch.setattr(type(images), "__call__", faulty)
    examples, _ = parts(llava, studies, None)
    loaded = [Feed(examples)[n] for n in range(8)]
    assert [one.error is None for one in loaded] == [n != 3 for n in range(8)]
    assert "studies.jsonl:4: study 's3': the processor refuses the prompt: out of luck" in (
        loaded[3].error
    )


def test_validation_goes_on_with_the_rest(llava, studies, tmp_path):
    train, held_out = studies[:4], studies[4:]
    config = bare(steps=4, batch_size=2, eval_steps=2, save_steps=2, calibration_studies=1)
    logs = []
    for name, checked in (("all", without(held_out, "s5")), ("some", held_out)):
        if name == "some":
            spoil(studies[5])
        skipped = Skipped()
        dive.distill(
            llava, train, config=config, validation=checked, output_dir=tmp_path / name,
            skipped=skipped, **SKIP,
        )  # fmt: skip
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(one) for one in lines if "eval_loss" in one])
    assert [one["id"] for one in skipped] == ["s5"]
    assert len(logs[0]) == 2
    for wanted, got in zip(*logs, strict=True):
        for key in ("eval_loss", "eval_loss_eos", "eval_accuracy_template"):
            assert got[key] == pytest.approx(wanted[key], rel=1e-5), key
    kept = json.loads((tmp_path / "some" / "checkpoint-4" / "left_out.json").read_text())
    assert [row[:2] for row in kept["validation"]] == [[1, "s5"]] and kept["training"] == []
    with pytest.raises(DiveError, match=r"studies\.jsonl:6: study 's5': cannot read"):
        dive.distill(llava, train, config=config, validation=held_out, progress=False)
    for one in held_out:
        if one.id != "s5":
            spoil(one)
    with pytest.raises(DiveError, match="no study is left for validation: 4 studies skipped"):
        dive.distill(llava, train, config=config, validation=held_out, **SKIP)


def test_the_calibration_takes_the_next(llava, studies):
    config = bare(steps=1, batch_size=2, calibration_studies=3)
    wanted = dive.distill(llava, without(studies, "s1"), config=config, progress=False)
    mend = spoil(studies[1])
    skipped = Skipped()
    got = dive.distill(llava, studies, config=config, skipped=skipped, **SKIP)
    assert "s1" in {one["id"] for one in skipped}
    for name, layer in wanted.layers.items():
        assert torch.equal(layer.sigma, got.layers[name].sigma)
    mend()
    for one in studies:
        spoil(one)
    with pytest.raises(DiveError, match="no study is left to learn from: 8 studies skipped"):
        dive.distill(llava, studies, config=config, **SKIP)


def test_chosen_demonstrations_are_looked_at_first(llava, studies):
    shown = [replace(one, id=f"d-{one.id}", patient=None) for one in studies[6:]]
    spoil(studies[6])
    with pytest.raises(DiveError, match="'d-s6': cannot read"):
        dive.distill(llava, studies[:6], shown, short(steps=1), progress=False)
    skipped = Skipped()
    adapter = dive.distill(llava, studies[:6], shown, short(steps=1), skipped=skipped, **SKIP)
    assert [one["id"] for one in skipped] == ["d-s6"]
    assert equal(adapter, dive.distill(llava, studies[:6], shown[1:], short(steps=1)))
    with pytest.raises(DiveError, match="no demonstration is left: 1 study skipped"):
        dive.distill(llava, studies[:6], shown[:1], short(steps=1), **SKIP)


def test_what_a_worker_sends_is_what_it_made(llava, studies):
    import pickle

    examples, teacher = parts(llava, studies, 2)
    loaded = Feed(examples, teacher)[1]
    again = pickle.loads(pickle.dumps(loaded))
    assert isinstance(again, Loaded) and again.example.response == loaded.example.response
    for part in ("example", "teacher"):
        one, other = getattr(loaded, part).inputs, getattr(again, part).inputs
        assert one.keys() == other.keys()
        assert all(torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one)


_RANK = (
    RANK
    + """import json
config = short(
    steps={steps}, batch_size={batch}, max_grad_norm=0.0, calibration_studies=1, **{more!r}
)
skipped = Skipped()
studies = read_studies({studies!r})
validation = studies[6:] if {folder!r} else None
if validation:
    studies = studies[:6]
{before}
adapter = dive.distill(
    backbone, studies, 2, config, on_error={on_error!r}, skipped=skipped,
    validation=validation, output_dir={folder!r},
)
if Recorder.made[0].is_world_process_zero():
    found = {{"gradients": Recorder.made[0].gradients, "skipped": [e["id"] for e in skipped]}}
    torch.save(found, {out!r})
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""
)


@pytest.fixture(scope="module")
def two_ranks():
    if not hasattr(os, "fork"):
        pytest.skip("the ranks of these tests are forked")
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.fixture
def on_two_ranks(two_ranks, tiny_llava, studies, tmp_path):
    """Trains on two ranks; returns their exit statuses, their words, and what rank 0 found."""

    def run(**more):
        script, log, out = (tmp_path / name for name in ("rank.py", "ranks.log", "found.pt"))
        values = {
            "steps": 1, "batch": 4, "on_error": "skip", "more": {}, "folder": None, "before": "",
            "helpers": str(Path(__file__).parents[1] / "helpers"), "backbone": str(tiny_llava),
            "studies": str(studies[0].images[0].parents[1] / "studies.jsonl"), "out": str(out),
        }  # fmt: skip
        script.write_text(_RANK.format(**values | more))
        codes = two_ranks.run(script, log)
        found = torch.load(out, weights_only=True) if out.exists() else None
        return codes, log.read_text(), found

    return run


def test_ranks_leave_out_the_same(llava, studies, recorder, on_two_ranks):
    spoil(studies[3])
    skipped = Skipped()
    config = short(steps=2, batch_size=8, max_grad_norm=0.0, calibration_studies=1)
    dive.distill(llava, studies, 2, config, skipped=skipped, **SKIP)
    codes, words, found = on_two_ranks(steps=2)
    assert codes == [0, 0], words
    assert found["skipped"] == ["s3"] == [one["id"] for one in skipped]
    for step in (0, 1):
        for name, gradient in recorder[0].gradients[step].items():
            other = found["gradients"][step]
            other = other.get(name, other.get(f"module.{name}"))
            assert torch.allclose(gradient, other, rtol=1e-3, atol=1e-6), (step, name)


def test_ranks_wait_for_one_that_has_nothing_left(studies, on_two_ranks):
    """One study per rank; one of the two, and in one step both, are left out."""
    for number in (1, 3, 4, 6):
        spoil(studies[number])
    codes, words, found = on_two_ranks(batch=1, steps=4)
    assert codes == [0, 0], words
    assert sorted(found["skipped"]) == ["s1", "s3", "s4", "s6"]
    assert all(g.isfinite().all() for step in found["gradients"] for g in step.values())


def test_ranks_without_a_row_log_with_the_others(llava, studies, tmp_path, caplog, on_two_ranks):
    """One study per rank and a line of log per step. In two of three steps one rank has none, and
    its whole share of the validation cannot be read. Every line is that of one process with both
    studies."""
    for number in (1, 2, 7):
        spoil(studies[number])
    more = {"logging_steps": 1, "eval_steps": 1, "save_steps": 1}
    config = short(steps=3, batch_size=2, max_grad_norm=0.0, calibration_studies=1, **more)
    options = {"validation": studies[6:], "output_dir": tmp_path / "one", **SKIP}
    dive.distill(llava, studies[:6], 2, config, **options)
    assert "every study of its batch" not in caplog.text  # the other rank has one
    codes, words, found = on_two_ranks(batch=1, steps=3, more=more, folder=str(tmp_path / "two"))
    assert codes == [0, 0], words
    assert sorted(found["skipped"]) == ["s1", "s2", "s7"]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    compared = 0
    assert len(one) == len(two) == 7  # training and validation per step, and the end
    for wanted, got in zip(one[:6], two[:6], strict=True):
        assert wanted.keys() == got.keys()
        for key in wanted:
            if "loss" in key or "accuracy" in key:
                assert got[key] == pytest.approx(wanted[key], rel=1e-4), key
                compared += 1
    assert compared >= 6 * 5
    kept = json.loads((tmp_path / "two" / "checkpoint-3" / "left_out.json").read_text())
    assert [row[1] for row in kept["validation"]] == ["s7"]
    last, before = checkpoints_in(tmp_path / "two")
    assert (last.name, harm_of(last), before.name) == ("checkpoint-3", None, "checkpoint-2")
    listed = json.loads((last / "whole.json").read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {*listed}  # when the last rank had written


def test_ranks_that_see_different_studies_stop_at_once(on_two_ranks):
    """A rank that lost its network drive for a moment would make another number of steps."""
    before = "import os\nif os.environ['RANK'] == '1':\n    studies = studies[:-1]"
    codes, words, found = on_two_ranks(before=before)
    assert codes == [1, 1] and found is None, words
    assert words.count("DiveError: the ranks found different studies (7 and 8 of them)") == COUNT


def test_what_one_rank_could_not_read_before_the_first_step_is_left_out_by_all(on_two_ranks):
    """Every rank reads studies for the calibration; on one of them a file is broken."""
    before = """
import os
from dive.data import Study
from dive.errors import DiveError
own, late = Study.load_images, []
def load_images(self):
    if os.environ["RANK"] == "1" and self.id == "s0" and not late:
        late.append(1)
        raise DiveError("a mood of the network")
    return own(self)
Study.load_images = load_images
"""
    codes, words, found = on_two_ranks(before=before, steps=1)
    assert codes == [0, 0], words
    assert found["skipped"] == ["s0"]  # as rank 0 has it, which could read it


def test_one_process_waits_for_no_device(llava, studies, monkeypatch):
    """No step reads a value from the device: a meta device has none."""

    class Far(DistillTrainer):
        def get_batch_samples(self, epoch_iterator, num_batches, device):
            return super().get_batch_samples(epoch_iterator, num_batches, torch.device("meta"))

    config = bare(steps=2, batch_size=2, calibration_studies=1)
    wanted = dive.distill(llava, studies, config=config, progress=False)
    monkeypatch.setattr(loop, "DistillTrainer", Far)
    assert equal(wanted, dive.distill(llava, studies, config=config, progress=False))


def test_all_ranks_stop_where_nothing_is_skipped(studies, on_two_ranks):
    spoil(studies[3])
    codes, words, found = on_two_ranks(on_error="fail")
    assert codes == [1, 1] and found is None, words
    assert words.count("studies.jsonl:4: study 's3': cannot read") >= 2


def test_a_worker_that_dies_is_said(llava, studies, monkeypatch):
    own = Examples.make

    def make(self, index, study=None):
        if index == 3 and os.getpid() != here:
            os._exit(9)
        return own(self, index, study)

    here = os.getpid()
    monkeypatch.setattr(Examples, "make", make)
    with pytest.raises(DiveError, match=r"process that decodes images died .* fewer workers"):
        config = bare(steps=8, batch_size=1, calibration_studies=1, workers=2)
        dive.distill(llava, studies, config=config, progress=False)


def test_an_error_in_a_worker_stays_what_it_is(llava, studies, monkeypatch):
    """torch wraps it: "Caught RuntimeError in DataLoader worker process 0." is no death."""
    own = Examples.make
    here = os.getpid()
    config = bare(steps=8, batch_size=1, calibration_studies=1, workers=2)
    for kind in (RuntimeError, KeyError):

        def make(self, index, study=None, kind=kind):
            if index == 3 and os.getpid() != here:
                raise kind("the shapes do not match")
            return own(self, index, study)

        with monkeypatch.context() as patch:
            patch.setattr(Examples, "make", make)
            with pytest.raises(
                kind, match="(?s)worker process .*the shapes do not match"
            ) as caught:
                dive.distill(llava, studies, config=config, progress=False)
        assert not isinstance(caught.value, DiveError)
        assert active_children() == []  # while the error and its traceback are still held


@pytest.mark.parametrize("step", ["training_step", "prediction"])
def test_workers_end_with_an_interrupted_training(step, llava, studies, monkeypatch):
    """Ctrl-C in a notebook, which keeps the last traceback: in a step, or in a validation."""
    seen = []

    def interrupted(*_, **__):
        seen.append(len(active_children()))
        raise KeyboardInterrupt

    if step == "training_step":
        monkeypatch.setattr(DistillTrainer, step, interrupted)
    else:
        collate = Examples.collate

        def in_validation(self, *given):
            return interrupted() if len(self.studies) == 3 else collate(self, *given)

        monkeypatch.setattr(Examples, "collate", in_validation)
    config = bare(steps=8, batch_size=1, workers=2, eval_steps=1, calibration_studies=1)
    with pytest.raises(KeyboardInterrupt) as caught:
        dive.distill(llava, studies[:5], config=config, validation=studies[5:], progress=False)
    # two workers, and in a validation its own two beside them
    assert seen == [2 if step == "training_step" else 4] and active_children() == []
    assert caught.tb is not None


def test_in_half_precision_the_same_is_learnt_from_half_the_bytes(tiny_llava, studies, recorder):
    backbone = dive.load_backbone(tiny_llava, device="cpu", dtype="bfloat16")
    examples, teacher = parts(backbone, studies, 2)
    loaded = Feed(examples, teacher)[0]
    pixels = examples.prompter.encode(studies[0])["pixel_values"]
    assert pixels.dtype == torch.float32
    assert loaded.example.inputs["pixel_values"].dtype == torch.bfloat16
    assert torch.equal(loaded.example.inputs["pixel_values"], pixels.to(torch.bfloat16))
    adapters = [
        dive.distill(
            backbone, studies, 1, short(steps=4, workers=count, calibration_studies=1),
            progress=False,
        )
        for count in (0, 1)
    ]  # fmt: skip
    assert equal(*adapters)
    assert recorder[0].losses == recorder[1].losses


def test_from_the_command_line(tiny_llava, studies, tmp_path):
    from command_line import call, rows

    path, out = studies[0].images[0].parents[1] / "studies.jsonl", tmp_path / "adapter"
    command = [
        "distill", "--backbone", tiny_llava, "--studies", path, "--out", out, "--preset", "dive-ce",
        "--steps", 8, "--batch-size", 1, "--rank", 2, "--set", "save_steps=1",
        "--set", "calibration_studies=1",
    ]  # fmt: skip
    mend = spoil(studies[6])
    with pytest.raises(DiveError, match=r"studies\.jsonl:7: study 's6'.* .--on-error skip"):
        call(*command)
    checkpoints = list((out / "checkpoints").glob("checkpoint-*"))
    assert checkpoints and all((one / "adapter.safetensors").is_file() for one in checkpoints)
    result = call(*command, "--resume", "--on-error", "skip")
    assert result.exit_code == 0 and "8 steps on 7 studies" in result.stderr
    (entry,) = rows(out / "skipped.jsonl")
    assert entry["id"] == "s6" and "cannot read the image (1 of 1)" in entry["reason"]
    mend()
    result = call(*command, "--overwrite")
    assert "8 steps on 8 studies" in result.stderr
