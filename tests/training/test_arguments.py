"""The arguments of distill and generate (paths, records, dicts), and the caller's modes."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_steering import for_backbone, prompts, randomised
from trainings import equal
from typer.testing import CliRunner

import dive
from dive.adapter.config import CONFIG_FILE, WEIGHTS_FILE
from dive.cli import app
from dive.data import Skipped
from dive.decode.session import DecodeSession
from dive.errors import DiveError

SMALL = dict(preset="dive-ce", steps=2, batch_size=2, rank=2)


@pytest.fixture(scope="module")
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava)


@pytest.fixture(scope="module")
def learnt(llava, studies):
    """The adapter of a training on `studies`."""
    return dive.distill(llava, studies, config=dive.DistillConfig(**SMALL))


@pytest.fixture
def file(studies_folder):
    return studies_folder / "studies.jsonl"


def rows_of(file):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [r | {"images": [str(file.parent / i) for i in r["images"]]} for r in rows]


# studies


@pytest.mark.parametrize("form", ["str", "path", "spec", "rows", "generator", "tuple", "Studies"])
def test_studies_in_every_form_teach_the_same(form, llava, learnt, file):
    given = {
        "str": lambda: str(file),
        "path": lambda: file,
        "spec": lambda: f"jsonl:{file}",
        "rows": lambda: rows_of(file),
        "generator": lambda: iter(dive.data.read_studies(file)),
        "tuple": lambda: tuple(dive.data.read_studies(file)),
        "Studies": lambda: dive.data.open_studies(file),
    }[form]()
    assert equal(dive.distill(llava, given, config=SMALL), learnt)


def test_one_study_alone_is_enough(llava, studies):
    adapter = dive.distill(llava, studies[0], config=SMALL)
    assert adapter.metadata["distillation"]["studies"] == 1


def test_a_bad_line_is_skipped_where_that_is_asked_for(llava, file):
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], "no json", *lines[3:]]))
    with pytest.raises(DiveError, match="studies.jsonl:4"):
        dive.distill(llava, file, config=SMALL)
    skipped = Skipped()
    adapter = dive.distill(llava, file, config=SMALL, on_error="skip", skipped=skipped)
    assert adapter.metadata["distillation"]["studies"] == 6 and len(skipped) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there is no study to learn from"),
        (iter([]), "there is no study to learn from"),
        ("train.jsonl", "there is no file train.jsonl"),
        (Path("folder/train"), "studies is 'folder/train', want a list of studies, or a file"),
        ("mimic-cxr:/no/such/root", "/no/such/root"),
        (["a.png"], "studies has a str as item 0, want studies"),
        (3, "studies is 3, want a list of studies"),
        (None, "studies is None, want a list of studies"),
    ],
)
def test_what_are_no_studies(llava, given, message):
    with pytest.raises(DiveError, match=message):
        dive.distill(llava, given, config=SMALL)


def test_studies_mixed_with_something_else(llava, studies):
    with pytest.raises(DiveError, match="studies has a dict as item 1, want studies"):
        dive.distill(llava, [studies[0], {"id": "x"}], config=SMALL)


@pytest.mark.parametrize("form", ["path", "rows", "Study"])
def test_demonstrations_and_validation_in_every_form(form, llava, studies, file):
    given = {"path": file, "rows": rows_of(file), "Study": studies[5]}[form]
    count = 1 if form == "Study" else 6
    config = SMALL | {"preset": "dive"}
    adapter = dive.distill(llava, studies, given, config)
    assert adapter.metadata["distillation"]["demonstrations"] == count
    shown = dive.generate(llava, studies[0], demonstrations=given, max_new_tokens=2)[0]
    assert shown.prompt_tokens > dive.generate(llava, studies[0], max_new_tokens=2)[0].prompt_tokens
    held_out = studies[4:] if form == "path" else studies[4]
    adapter = dive.distill(llava, studies[:4], config=SMALL, validation=held_out)
    assert adapter.metadata["distillation"]["validation_studies"] == len(
        held_out if form == "path" else [held_out]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (-1, "demonstrations is -1, want 1 or more"),
        (True, "demonstrations is True, want a whole number or"),
        ("4", "demonstrations is '4', want a whole number or"),
        ("gone.jsonl", "there is no file gone.jsonl"),
    ],
)
def test_demonstrations_that_are_none(llava, studies, given, message):
    with pytest.raises(DiveError, match=message):
        dive.distill(llava, studies, given)


def test_a_number_of_numpys_is_a_number(llava, studies):
    adapter = dive.distill(llava, studies, np.int64(2), SMALL | {"preset": "dive"})
    assert adapter.metadata["distillation"]["demonstrations"] == 2


def test_an_empty_validation_is_refused(llava, studies):
    with pytest.raises(DiveError, match="validation is empty"):
        dive.distill(llava, studies, config=SMALL, validation=[])


# settings


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dive.DistillConfig, "config is the class DistillConfig, want a DistillConfig"),
        ({"rnak": 3}, "config has 'rnak', want fields of DistillConfig: preset"),
        ({"rank": -3}, "rank is -3"),
        ("dive", "config is 'dive', want a DistillConfig, such as"),
        (dive.SteeringConfig(), "config is SteeringConfig.*want a DistillConfig"),
    ],
)
def test_what_is_no_config(llava, studies, config, message):
    with pytest.raises(DiveError, match=message):
        dive.distill(llava, studies, config=config)


def test_a_backbone_by_its_path(tiny_llava, llava, learnt, studies):
    assert equal(dive.distill(tiny_llava, studies, config=SMALL), learnt)
    for path in (tiny_llava, str(tiny_llava)):
        got = dive.generate(path, studies[0], max_new_tokens=4)
        assert got[0].token_ids == dive.generate(llava, studies[0], max_new_tokens=4)[0].token_ids
    with pytest.raises(DiveError, match="is no folder, want that of a backbone"):
        dive.generate("./gone", studies[0])


# adapters


@pytest.mark.parametrize("kind", [str, Path])
def test_an_adapter_by_its_folder(kind, llava, studies, tmp_path):
    adapter = randomised(llava)
    adapter.save_pretrained(kind(tmp_path / "a"))
    folder = kind(tmp_path / "a")

    def ids(given):
        reports = dive.generate(llava, studies[:2], adapter=given, max_new_tokens=6)
        return [report.token_ids for report in reports]

    wanted, bare = ids(adapter), ids(None)
    assert wanted != bare and ids(folder) == wanted
    assert ids([folder, None]) == [wanted[0], bare[1]]
    assert ids({"study-00": None, "study-01": folder}) == [bare[0], wanted[1]]
    with dive.steer(llava, folder):
        assert ids(None) == wanted
    batch = prompts(llava, studies[:1])
    got = DecodeSession(llava, folder).generate(**batch, max_new_tokens=4)
    assert torch.equal(got, DecodeSession(llava, adapter).generate(**batch, max_new_tokens=4))
    assert len(DecodeSession(llava, [folder, None]).adapters) == 2


@pytest.mark.parametrize("form", ["jsonl", "spec", "rows"])
def test_generate_takes_files_of_studies_and_rows(form, llava, studies, file):
    given = {"jsonl": str(file), "spec": f"jsonl:{file}", "rows": rows_of(file)}[form]
    wanted = dive.generate(llava, studies, max_new_tokens=3)
    got = dive.generate(llava, given, max_new_tokens=3)
    assert [r.id for r in got] == [s.id for s in studies]
    assert [r.token_ids for r in got] == [r.token_ids for r in wanted]


# paths of outputs


def test_an_adapter_is_saved_into_folders_only(llava, tmp_path):
    adapter = randomised(llava)
    taken = tmp_path / "file"
    taken.write_text("mine")
    for place, message in [
        (taken, "file is a file, want a folder"),
        (taken / "under", "cannot write into .*under: .*file is a file"),
        (tmp_path / ("x" * 300), r"folder is '/.* \(\d+ letters\), too long for a file's name"),
    ]:
        with pytest.raises(DiveError, match=message):
            adapter.save_pretrained(place)
    assert taken.read_text() == "mine"
    (tmp_path / "odd" / WEIGHTS_FILE).mkdir(parents=True)
    with pytest.raises(DiveError, match="odd/adapter.safetensors is a folder"):
        adapter.save_pretrained(tmp_path / "odd")
    adapter.save_pretrained(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep" / CONFIG_FILE).is_file()


@pytest.mark.parametrize("place", ["output_dir", "cache_images"])
def test_distill_refuses_a_place_that_cannot_be_written_before_images(place, llava, file):
    for image in (file.parent / "images").iterdir():
        image.write_bytes(b"not an image")
    options = {"config": SMALL}
    if place == "output_dir":
        options["output_dir"] = file / "checkpoints"
    else:
        options["config"] = SMALL | {"cache_images": str(file)}
    with pytest.raises(DiveError, match="studies.jsonl is a file"):
        dive.distill(llava, file, **options)


# modes


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast", "set_grad_enabled"])
def test_distill_in_every_mode_learns_the_same(mode, llava, learnt, studies):
    context = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    }[mode]
    with context():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        adapter = dive.distill(llava, studies, config=SMALL)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert torch.is_autocast_enabled("cpu") == (mode == "autocast")
    assert torch.is_grad_enabled()
    assert equal(adapter, learnt)
    assert not any(tensor.is_inference() for tensor in adapter.state_dict().values())


def test_distill_gives_the_mode_back_after_an_error(llava):
    with torch.no_grad():
        with pytest.raises(DiveError):
            dive.distill(llava, [], config=SMALL)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast"])
def test_generate_in_every_mode_writes_the_same(mode, llava, studies, tmp_path):
    adapter = randomised(llava)
    adapter.save_pretrained(tmp_path)
    options = {"max_new_tokens": 6, "batch_size": 2}
    wanted = [r.token_ids for r in dive.generate(llava, studies[:3], adapter=adapter, **options)]
    context = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }[mode]
    with context():
        for given in (adapter, tmp_path):
            reports = dive.generate(llava, studies[:3], adapter=given, **options)
            assert [r.token_ids for r in reports] == wanted
        assert torch.is_autocast_enabled("cpu") == (mode == "autocast")
    reports = dive.generate(llava, studies[:3], adapter=tmp_path, **options)
    assert [r.token_ids for r in reports] == wanted


def test_a_session_under_autocast_is_transformers_and_says_why(tiny_llama, studies):
    backbone = dive.load_backbone(tiny_llama)
    session = DecodeSession(backbone)
    batch = prompts(backbone, for_backbone(backbone, studies[:1]))
    with torch.autocast("cpu", torch.bfloat16):
        choice = session.engine_choice()
        assert choice.engine == "transformers" and "autocast" in choice.reason
        got = session.generate(**batch, max_new_tokens=4, do_sample=False)
        wanted = backbone.model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert torch.equal(got, wanted)
    assert session.engine_choice().engine == "dive._C"


def test_what_was_loaded_in_inference_mode_can_be_learnt_through(tiny_llava, learnt, studies):
    with torch.inference_mode():
        backbone = dive.load_backbone(tiny_llava)
        adapter = randomised(backbone)
    assert not any(p.is_inference() for p in backbone.model.parameters())
    assert not any(p.is_inference() for p in adapter.parameters())
    assert equal(dive.distill(backbone, studies, config=SMALL), learnt)


def test_weights_made_in_inference_mode_are_refused_in_words(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava)
    with torch.inference_mode():
        for module in backbone.model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(parameter.clone(), requires_grad=False))
    assert dive.generate(backbone, studies[0], max_new_tokens=2)[0].num_tokens == 2
    with pytest.raises(DiveError, match="weights were made under torch.inference_mode"):
        dive.distill(backbone, studies, config=SMALL)


def test_what_runs_between_two_reports_is_in_the_callers_mode(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava)
    backbone.model.train()
    for _ in dive.generation.iter_reports(backbone, studies[:3], max_new_tokens=2, batch_size=1):
        assert backbone.model.training and torch.is_grad_enabled()
    assert all(module.training for module in backbone.model.modules())


WRONG = {
    "processor": ("folder", "processor is 'folder', want a processor or tokenizer"),
    "prompt": (3, "prompt is 3, want a string"),
    "max_image_tokens": ("x", "max_image_tokens is 'x', want a whole number from 1 on"),
    "template": (3, "template is 3, want the name of a file"),
    "output_dir": (3, "output_dir is 3, want the name of a file or folder"),
    "skipped": ([], r"skipped is \[\], want a dive.data.Skipped"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_another_kind_are_one_error(name, tiny_llava, studies):
    value, said = WRONG[name]
    with pytest.raises(DiveError, match=said):
        dive.distill(dive.load_backbone(tiny_llava), studies, **{name: value})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"preset": ["dive"]}, r"preset is \['dive'\], want one of"),
        ({"warmup": None}, "warmup is None, want a number >= 0"),
        ({"epochs": None}, "epochs is None, want a number > 0"),
        ({"batch_size": None}, "batch_size is None, want a whole number >= 1"),
    ],
)
def test_settings_of_another_kind_are_one_error(settings, said):
    with pytest.raises(DiveError, match=said):
        dive.DistillConfig(**settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # max_new_tokens=None is the default
        *(("max_new_tokens", value) for value in (2.5, "4", True, 0)),
        *(("batch_size", value) for value in (2.5, "4", None, True, 0)),
    ],
)
def test_numbers_of_generate_are_whole(name, value, tiny_llava, studies):
    with pytest.raises(DiveError, match=f"{name} is {value!r}, want a whole number from 1 on"):
        dive.generate(dive.load_backbone(tiny_llava), studies[:1], **{name: value})


def test_numbers_of_numpy_and_torch_are_numbers():
    got = dive.DistillConfig(
        preset="dive-ce", rank=np.int64(2), learning_rate=np.float32(0.5), steps=torch.tensor(3)
    )
    assert got == dive.DistillConfig(preset="dive-ce", rank=2, learning_rate=0.5, steps=3)
    json.dumps(asdict(got))
    assert dive.SteeringConfig(layers=[np.int64(1), 0], eps=1).layers == [0, 1]


def test_arguments_of_the_other_calls(tiny_llava):
    backbone = dive.load_backbone(tiny_llava)
    session = DecodeSession(backbone)
    for call, said in [
        (lambda: session.stream([], slots="4"), "slots is '4', want a whole number from 1 on"),
        (
            lambda: session.stream(3),
            "requests is 3, want an iterable of dive.decode.continuous.Request",
        ),
        (lambda: [*session.stream([3])], "request 0 is 3, want a dive.decode.continuous.Request"),
        (lambda: dive.SteeringAdapter(None, backbone), "config is None, want a SteeringConfig"),
        (lambda: dive.load_backbone(tiny_llava, device=3.5), "device is 3.5, want auto, cpu"),
        (lambda: dive.data.open_studies("s.jsonl", columns=3), "columns is 3, want a dict"),
        (lambda: dive.data.open_studies("s.jsonl", images=""), "images is empty, want the name"),
    ]:
        with pytest.raises(DiveError, match=said):
            call()


def test_names_of_another_kind_and_empty_ones(tiny_llava, studies, tmp_path, monkeypatch):
    """To pathlib an empty name is the current folder; a shell passes it for an unset variable."""
    monkeypatch.chdir(tmp_path)
    backbone = dive.load_backbone(tiny_llava)
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=2), backbone)
    for bad in (None, 3, ""):
        for call in (adapter.save_pretrained, dive.load_backbone):
            with pytest.raises(DiveError, match="want the name of a file or folder"):
                call(bad)
    with pytest.raises(DiveError, match="output_dir is empty"):
        dive.distill(backbone, studies, output_dir="")
    with pytest.raises(DiveError, match="adapter is empty"):
        dive.generate(backbone, studies[:1], adapter="")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "command",
    [
        "distill --backbone b --studies s.jsonl --out",
        "distill --backbone b --studies s.jsonl --out o --image-cache",
        "distill --backbone b --studies s.jsonl --out o --images-root",
        "distill --backbone b --studies s.jsonl --out o --reports-root",
        "distill --backbone b --studies s.jsonl --out o --template",
        "generate --backbone b --studies s.jsonl --out",
        "generate --backbone b --studies s.jsonl --out o --demonstrations",
        "evaluate --references r.jsonl --predictions",
        "evaluate --predictions p --references r.jsonl --baseline",
        "evaluate --predictions p --references r.jsonl --per-report",
        "bench --toy --json",
        "demo --out",
    ],
)
def test_an_option_with_an_empty_name_is_not_the_current_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, [*command.split(), ""])
    assert told.exit_code == 2 and command.split()[-1] in told.output
    said = " ".join(told.output.replace("│", "").split())
    assert "the name is empty, want the name of a file or folder" in said
    assert [*tmp_path.iterdir()] == []


def test_distill_leaves_the_callers_generators_alone(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava)
    draws = (random.random, np.random.rand, lambda: float(torch.rand(1)))

    def seed():
        for one in (random.seed, np.random.seed, torch.manual_seed):
            one(5)

    seed()
    wanted = [draw() for draw in draws]
    seed()
    config = dive.DistillConfig(preset="dive-ce", steps=1, batch_size=2, rank=2)
    dive.distill(backbone, studies, config=config)
    assert [draw() for draw in draws] == wanted
