"""Paths of files and folders, as users pass them for reading and writing."""

import json
import shutil
import subprocess
import sys
from pathlib import PurePosixPath

import pytest
from tiny_steering import randomised
from trainings import equal
from typer.testing import CliRunner

import dive
from dive.adapter.config import CONFIG_FILE
from dive.cli import app
from dive.data import Skipped
from dive.errors import DiveError
from dive.prompting.prompter import Prompter
from dive.training.feature_store import FeatureStore

STEP = {"preset": "dive-ce", "steps": 1, "batch_size": 2, "rank": 2, "warmup": 0.0}


@pytest.fixture(scope="module")
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava)


class Named:
    """What `os.fspath` takes, and pathlib did not make."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder beside the current one, which stays empty."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert [*(tmp_path / "here").iterdir()] == []


def test_the_home_folder_is_read_and_written_alike(home, llava, tiny_llava, studies_folder):
    shutil.copytree(studies_folder, home / "studies")
    shutil.copytree(tiny_llava, home / "model")
    config = {**STEP, "cache_images": "~/cache", "save_steps": 1}
    adapter = dive.distill("~/model", "~/studies/studies.jsonl", config=config, output_dir="~/out")
    assert (home / "out" / "checkpoint-1").is_dir()
    # not every version of transformers takes features, so that a training may leave none
    assert FeatureStore("~/cache", Prompter(llava)).root == home / "cache"
    adapter.save_pretrained("~/adapter")
    assert equal(dive.SteeringAdapter.from_pretrained("~/adapter"), adapter)
    assert (home / "adapter" / CONFIG_FILE).is_file()
    film = next((home / "studies" / "images").iterdir()).name
    (home / "rows.jsonl").write_text(
        json.dumps({"id": "a", "images": [f"~/studies/images/{film}"], "findings": "Clear."})
    )
    rows = [{"id": "a", "image": f"~/studies/images/{film}", "findings": "Clear."}]
    for given in ("~/rows.jsonl", rows, [dive.Study("a", (f"~/studies/images/{film}",))]):
        one = dive.generate(llava, given, adapter="~/adapter", max_new_tokens=2)
        assert len(one) == 1
    (home / "t.jinja").write_text(llava.processor.chat_template)
    dive.generate(llava, rows, template="~/t.jinja", max_new_tokens=2)
    Skipped([{"id": "a"}]).write("~/skipped.jsonl")
    assert (home / "skipped.jsonl").is_file()


def test_the_home_folder_on_the_command_line(home, tiny_llava, studies_folder):
    shutil.copytree(studies_folder, home / "studies")
    shutil.copytree(tiny_llava, home / "model")
    film = next((home / "studies" / "images").iterdir()).name
    about = ["--backbone", "~/model", "--studies", "~/studies/studies.jsonl"]
    quick = ["--preset", "dive-ce", "--steps", "1", "--rank", "2", "--set", "batch_size=2"]
    for command in (
        ["distill", *about, "--out", "~/a", "--image-cache", "~/c", *quick],
        ["distill", *about, "--out", "~/b", "--validation", "~/studies/studies.jsonl", *quick],
        ["generate", *about, "--adapter", "~/a", "--out", "~/r.jsonl", "--max-new-tokens", "2"],
        ["generate", "--backbone", "~/model", "--out", "~/f.jsonl", "--max-new-tokens", "2",
         f"~/studies/images/{film}"],
    ):  # fmt: skip
        told = CliRunner().invoke(app, command)
        if "--validation" in command:  # the same studies: found, and refused for what they are
            assert "a patient belongs to one of the two" in str(told.exception)
        else:
            assert told.exit_code == 0, (told.output, told.exception)
    there = {path.name for path in home.iterdir()}
    assert {"a", "r.jsonl", "f.jsonl"} <= there


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (" ", r"blank \(' '\), want the name of a file or folder"),
        ("\t\n", "blank"),
        (LONG, r"'x{40}'\.\.\. \(500\d letters\), too long for a file's name"),
        ("a\0b", r"'a.x00b.*', which no file can be called"),
        ("\ud800", "which no file can be called"),
        ("~nobody-of-this-name/x", "no such home folder"),
        (b"folder", "want"),
    ],
)
def test_names_that_no_file_has(bad, said, home, llava, studies):
    adapter = randomised(llava)
    calls = [
        lambda: dive.load_backbone(bad),
        lambda: dive.SteeringAdapter.from_pretrained(bad),
        lambda: adapter.save_pretrained(bad),
        lambda: dive.distill(llava, studies, config=STEP, output_dir=bad),
    ]
    if isinstance(bad, str) and bad.strip():
        calls += [
            lambda: dive.distill(llava, bad, config=STEP),
            lambda: dive.distill(llava, bad + ".jsonl", config=STEP),
            lambda: dive.data.read_studies(bad),
            lambda: dive.generate(llava, studies[:1], adapter=bad),
            lambda: dive.data.open_studies("iu-xray:" + bad),
        ]
    for call in calls:
        with pytest.raises(DiveError, match=said) as caught:
            call()
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", [Named, PurePosixPath])
def test_whatever_names_a_file_will_do(kind, home, llava, tiny_llava, studies_folder):
    file = studies_folder / "studies.jsonl"
    told = dive.distill(kind(tiny_llava), kind(file), config=STEP, output_dir=kind(home / "out"))
    wanted = dive.distill(llava, file, config=STEP)
    assert equal(told, wanted)
    told.save_pretrained(kind(home / "adapter"))
    assert equal(dive.SteeringAdapter.from_pretrained(kind(home / "adapter")), wanted)
    film = next((studies_folder / "images").iterdir())
    study = dive.Study("a", (kind(film),), findings="Clear.")
    row = {"id": "a", "image": kind(film), "findings": "Clear."}
    assert study.load_images()[0].tobytes() == dive.Study("b", (film,)).load_images()[0].tobytes()
    assert dive.distill(kind(tiny_llava), [row], config=STEP).num_parameters()


def test_dive_runs_as_a_module():
    told = subprocess.run(
        [sys.executable, "-m", "dive", "--help"], capture_output=True, text=True, check=True
    )
    assert "distill" in told.stdout and "generate" in told.stdout


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (" ", "the name is blank (' '), want the name of a file or folder"),
        ("x" * 300, "too long for a file's name"),
        ("~nobody-of-this-name/x", "no such home folder"),
    ],
)
@pytest.mark.parametrize("option", ["--out", "--image-cache", "--template"])
def test_such_names_are_wrong_usage_on_the_command_line(option, bad, said, home):
    about = ["--backbone", "b", "--studies", "s.jsonl"]
    out = [] if option == "--out" else ["--out", "o"]
    told = CliRunner().invoke(app, ["distill", *about, *out, option, bad])
    words = "".join(told.output.replace("│", "").split())
    assert told.exit_code == 2 and option in words and "".join(said.split()) in words


def test_what_is_in_the_way_is_said_once_and_by_its_kind(llava, tmp_path):
    adapter = randomised(llava)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere" / "x")
    lost = "lost is a link to .*nowhere/x, which is not there"
    for place, said in [
        (tmp_path / "lost", f"^[^:]*{lost}, want a folder$"),
        (tmp_path / "lost" / "under", f"^cannot write into [^:]*under: [^:]*{lost}$"),
        (tmp_path / "file" / "under", "^cannot write into [^:]*under: [^:]*file is a file$"),
    ]:
        with pytest.raises(DiveError, match=said):
            adapter.save_pretrained(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "lost"]


def look(*arguments):
    words = ["inspect", "dataset", *map(str, arguments)]
    return CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", ""], "--out is empty"),
        (["--out", "."], "is a folder, want the name of a file"),
        (["--images", ""], "images is empty"),
        (["--images", " "], "images is blank"),
    ],
)
def test_names_of_a_dataset(more, said, home, studies_folder):
    with pytest.raises(DiveError, match=said):
        look(studies_folder / "studies.jsonl", *more)


def test_a_dataset_is_written_to_the_home_folder(home, studies_folder):
    assert look(studies_folder / "studies.jsonl", "--out", "~/rows.jsonl").exit_code == 0
    assert dive.data.read_studies("~/rows.jsonl")
