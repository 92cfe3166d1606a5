"""What a new user of the command line gets wrong: one line says what, and no work is lost."""

import json
import os
import sys
from pathlib import Path

import pytest
from tiny_features import takes_features
from typer.testing import CliRunner

import dive
from dive import cli
from dive.cli import app
from dive.errors import DiveError
from dive.training import preparation
from dive.training.trainer import DistillTrainer

runner = CliRunner()


def call(*arguments):
    result = runner.invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def distill(backbone, studies, out, *more):
    return call("distill", "--backbone", backbone, "--studies", studies, "--out", out, *more)


QUICK = ("--steps", 2, "--rank", 2, "--batch-size", 3, "--preset", "dive-ce")


# generate


def test_the_engine_is_an_option_and_every_line_says_which_ran(
    tiny_llava, studies_folder, tmp_path
):
    command = ["generate", "--backbone", tiny_llava, "--max-new-tokens", 3,
               "--studies", studies_folder / "studies.jsonl"]  # fmt: skip
    texts = {}
    for engine in ("auto", "dive._C", "transformers"):
        out = tmp_path / f"{engine}.jsonl"
        call(*command, "--engine", engine, "--out", out)
        texts[engine] = [one["report"] for one in rows(out)]
        ran = "transformers" if engine == "transformers" else "dive._C"
        assert {one["engine"] for one in rows(out)} == {ran}
    assert texts["auto"] == texts["dive._C"] == texts["transformers"]
    with pytest.raises(DiveError, match="engine is 'gpu', want one of auto, dive._C, transformers"):
        call("generate", "--backbone", "none", "--engine", "gpu", "--out", tmp_path / "x", "a.png")


def test_finished_reports_are_replaced_only_when_asked_for(tiny_llava, studies_folder, tmp_path):
    out = tmp_path / "reports.jsonl"
    command = ["generate", "--backbone", tiny_llava, "--out", out, "--max-new-tokens", 2,
               "--studies", studies_folder / "studies.jsonl"]  # fmt: skip
    call(*command)
    first = out.read_bytes()
    with pytest.raises(DiveError, match="is there already; give --overwrite"):
        call(*command)
    assert out.read_bytes() == first
    longer = [*command, "--overwrite", "--max-new-tokens", 4]
    call(*longer)
    assert max(row["num_tokens"] for row in rows(out)) > 2
    # an unfinished run goes on, --overwrite or not
    kept = out.read_text().splitlines(keepends=True)
    out.unlink()
    partial = tmp_path / "reports.jsonl.partial"
    call(*command)
    out.rename(partial)
    partial.write_text("".join(partial.read_text().splitlines(keepends=True)[:2]))
    out.write_text("".join(kept))
    with pytest.raises(DiveError, match="does not say how it was made"):
        call(*command, "--overwrite")
    assert out.read_text() == "".join(kept)


# distill


def unread(*_, **__):
    raise AssertionError("studies were read before the bad option was refused")


def test_demonstrations_without_a_teacher_are_refused_first(tiny_llava, tmp_path, monkeypatch):
    monkeypatch.setattr("dive.data.open.open_studies", unread)
    with pytest.raises(DiveError, match="runs no teacher, so demonstrations have no use"):
        distill(tiny_llava, "none.jsonl", tmp_path / "a", "--preset", "dive-ce",
                "--demonstrations", 2)  # fmt: skip


def test_in_python_too(tiny_llava, studies, monkeypatch):
    backbone = dive.load_backbone(tiny_llava, device="cpu")
    monkeypatch.setattr(preparation, "survey", unread)
    with pytest.raises(DiveError, match="runs no teacher"):
        dive.distill(backbone, studies, 2, dive.DistillConfig(preset="dive-ce"), progress=False)


def test_a_rank_beyond_the_operator_is_refused_first(tiny_llava, tmp_path):
    with pytest.raises(DiveError, match="rank is 99999, want a whole number from 0 to 128"):
        distill(tiny_llava, "none.jsonl", tmp_path / "a", "--rank", 99999)


def test_one_setting_in_two_places(tiny_llava, tmp_path):
    for more, message in [
        (("--rank", 4, "--set", "rank=8"), "rank is given twice, by --rank and by --set"),
        (("--seed", 0, "--set", "seed=1"), "seed is given twice, by --seed and by --set"),
        (("--kd-weight", 0, "--set", "kd_weight=1"), "kd_weight is given twice"),
        (("--gradient-checkpointing", "--set", "gradient_checkpointing=false"), "is given twice"),
        (("--preset", "dive", "--set", "preset=live"), "preset is given twice"),
        (("--image-cache", "c", "--set", "cache_images=true"), "by --image-cache and by --set"),
        (("--set", "rank=8", "--set", "rank=4"), "--set rank is given twice"),
    ]:
        with pytest.raises(DiveError, match=message):
            distill(tiny_llava, "none.jsonl", tmp_path / "a", *more)


@pytest.mark.parametrize("name", ["modifiers", "redraw_demonstrations", "gradient_checkpointing"])
def test_switches_are_true_or_false(name):
    with pytest.raises(DiveError, match=f"DistillConfig: {name} is 'maybe', want True or False"):
        dive.DistillConfig(**{name: "maybe"})


def test_the_image_cache_is_an_option(tiny_llava, studies_folder, tmp_path, caplog):
    studies, cache = studies_folder / "studies.jsonl", tmp_path / "cache"
    said = [
        distill(tiny_llava, studies, tmp_path / name, *QUICK, "--image-cache", cache).stderr
        for name in ("a", "b")
    ]
    if not takes_features(dive.load_backbone(tiny_llava)):
        assert "takes no features in place of pixels" in caplog.text
        return
    assert "0 studies read, 6 added; 6 entries" in said[0]
    assert "6 studies read, 0 added; 6 entries" in said[1]
    same = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in ("a", "b")]
    assert same[0] == same[1]


def test_the_root_of_images_is_used_for_json_lines(tiny_llava, studies_folder, tmp_path):
    moved = tmp_path / "elsewhere" / "studies.jsonl"
    moved.parent.mkdir()
    (studies_folder / "studies.jsonl").rename(moved)
    with pytest.raises(DiveError, match="there is no image file"):
        distill(tiny_llava, moved, tmp_path / "a", *QUICK)
    with pytest.raises(DiveError, match=r"there is no folder .*nowhere for the images"):
        distill(tiny_llava, moved, tmp_path / "a", *QUICK, "--images-root", "nowhere")
    distill(tiny_llava, moved, tmp_path / "a", *QUICK, "--images-root", studies_folder)
    assert (tmp_path / "a" / "adapter.safetensors").is_file()
    with pytest.raises(DiveError, match="one record per study, for which reports is of no use"):
        distill(tiny_llava, moved, tmp_path / "b", *QUICK, "--reports-root", tmp_path)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("min_words=abc", "min_words is 'abc', want a whole number"),
        ("min_words=-1", "min_words is -1, want a whole number, 0 or more"),
        ("max_images=1.5", "max_images is 1.5, want a whole number, 1 or more"),
        ("strip_placeholders=yes", "strip_placeholders is 'yes', want True or False"),
        ("views=3", "views is 3, want a name"),
        ("views=[]", r"views is \[\], want a name"),
        ("seed=-1", "seed is -1, want"),
        ("labels=[1]", r"labels is \[1\], want a name or None"),
    ],
)
def test_values_of_readers_options(pair, message, tiny_llava, studies_folder, tmp_path):
    with pytest.raises(DiveError, match=message):
        distill(tiny_llava, studies_folder / "studies.jsonl", tmp_path / "a", "--read", pair)


def test_skips_of_an_earlier_run_are_taken_away(tiny_llava, studies_folder, tmp_path):
    studies, out = studies_folder / "studies.jsonl", tmp_path / "a"
    whole = studies.read_text()
    studies.write_text(whole + "{\n")
    distill(tiny_llava, studies, out, *QUICK, "--on-error", "skip")
    assert len(rows(out / "skipped.jsonl")) == 1
    studies.write_text(whole)
    distill(tiny_llava, studies, out, *QUICK, "--on-error", "skip", "--overwrite")
    assert not (out / "skipped.jsonl").exists()


def stop():
    raise KeyboardInterrupt


def test_resuming_names_what_differs_and_nothing_else(
    tiny_llava, studies_folder, tmp_path, monkeypatch
):
    studies, out = studies_folder / "studies.jsonl", tmp_path / "a"
    command = [*QUICK, "--set", "save_steps=1"]
    with monkeypatch.context() as patch:
        own = DistillTrainer.training_step
        patch.setattr(DistillTrainer, "training_step", lambda self, *a, **k: (
            stop() if self.state.global_step else own(self, *a, **k)
        ))  # fmt: skip
        assert distill(tiny_llava, studies, out, *command).exit_code != 0
    assert list((out / "checkpoints").glob("checkpoint-1"))
    with pytest.raises(DiveError) as caught:
        distill(tiny_llava, studies, out, *command, "--resume", "--learning-rate", 0.5,
                "--prompt", "Now?")  # fmt: skip
    said = str(caught.value)
    with monkeypatch.context() as patch:  # what options say is compared before anything is read
        patch.setattr("dive.data.open.open_studies", unread)
        with pytest.raises(DiveError, match="had learning_rate"):
            distill(tiny_llava, studies, out, *command, "--resume", "--learning-rate", 0.5)
        with pytest.raises(DiveError, match="unfinished training; resume it"):
            distill(tiny_llava, studies, out, *command)
    assert "had learning_rate 0.002 (now 0.5), prompt 'Describe" in said
    assert "it cannot go on from there" in said and "kd_weight" not in said
    table = rows(studies)
    for change in (
        {"indication": "Fever."},
        {"images": table[0]["images"] + table[1]["images"]},
        {"patient": "somebody"},
        {"findings": "The heart is large."},
    ):
        studies.write_text(
            "".join(json.dumps(row) + "\n" for row in [table[0] | change, *table[1:]])
        )
        with pytest.raises(DiveError, match="had other studies to learn from .*cannot go on"):
            distill(tiny_llava, studies, out, *command, "--resume")
    studies.write_text("".join(json.dumps(row) + "\n" for row in table))
    distill(tiny_llava, studies, out, *command, "--resume", "--set", "logging_steps=1")
    assert (out / "adapter.safetensors").is_file()
    monkeypatch.setattr("dive.data.open.open_studies", unread)
    with pytest.raises(
        DiveError, match=r"is finished.*nothing to resume; write reports.*--adapter"
    ):
        distill(tiny_llava, studies, out, *command, "--resume")
    (out / "checkpoints" / "checkpoint-1").mkdir()
    with pytest.raises(DiveError, match="unfinished training that is to replace it; .*--overwrite"):
        distill(tiny_llava, studies, out, *command, "--resume")


# evaluate


@pytest.fixture
def pair(tmp_path):
    """Predictions (a function that writes them) and references of two reports."""
    references = tmp_path / "r.jsonl"
    references.write_text(
        '{"id": "a", "findings": "No effusion."}\n{"id": "b", "findings": "Small effusion."}\n'
    )

    def write(*lines):
        path = tmp_path / "p.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return ["evaluate", "--predictions", path, "--references", references]

    return write


A = {"id": "a", "report": "No effusion.", "finish_reason": "eos"}
B = {"id": "b", "report": "Small effusion.", "finish_reason": "length"}


def test_values_of_evaluate(pair):
    command = pair(A, B)
    for more, message in [
        (("--bootstrap", 3, "--seed", -1), "seed is -1, want a whole number, 0 or more"),
        (("--metrics", ""), "--metrics is '', want some of bleu,"),
        (("--metrics", "bleu,blue"), "--metrics is 'bleu,blue', want some of"),
    ]:
        with pytest.raises(DiveError, match=message):
            call(*command, *more)
    for row, message in [
        ({"id": "a", "report": None}, 'p.jsonl:1: "report" is null, want a text; of an empty'),
        ({"id": "a", "report": ["x"]}, 'p.jsonl:1: "report" is '),
        ({"id": None, "report": "x"}, 'p.jsonl:1: "id" is null, want a text$'),
        (A | {"finish_reason": "stop"}, 'p.jsonl:1: "finish_reason" is another word, want one'),
        (A | {"finish_reason": 3}, '"finish_reason" is another word, want one'),
    ]:
        with pytest.raises(DiveError, match=message):
            call(*pair(row, B))
    with pytest.raises(DiveError, match="finish_reasons holds something else"):
        dive.evaluate(["x"], ["y"], finish_reasons=["stop"])


def test_a_missing_finish_reason_is_said(pair):
    without = {name: value for name, value in B.items() if name != "finish_reason"}
    found = json.loads(call(*pair(A, B), "--json").stdout)
    assert found["termination_rate"] == 0.5 and found["without_finish_reason"] == 0
    found = json.loads(call(*pair(A, without), "--json").stdout)
    assert "termination_rate" not in found and found["without_finish_reason"] == 1
    said = " ".join(call(*pair(A, without)).stdout.split())
    assert "no termination_rate: 1 of 2 predictions have no finish_reason" in said
    bare = {"id": "a", "report": "x"}
    assert "termination_rate" not in call(*pair(bare, without)).stdout  # of texts alone: no news


def test_scores_a_report(pair, tmp_path):
    out = tmp_path / "scores" / "each.jsonl"
    metrics = ("--metrics", "bleu,rougeL,meteor,findings", "--no-meteor-synonyms")
    pytest.importorskip("nltk")
    result = call(*pair(B, A), *metrics, "--per-report", out)
    assert "every report's scores are in" in " ".join(result.stdout.split())
    written = rows(out)
    assert [row["id"] for row in written] == ["a", "b"]  # as the references have it
    assert {"bleu1", "bleu4", "rougeL", "meteor", "finding_state_f1"} <= set(written[0])
    assert [row["rougeL"] for row in written] == [1.0, 1.0]
    found = json.loads(call(*pair(A, B), *metrics, "--per-report", out, "--json").stdout)
    assert "per_report" not in found
    assert "words and stems, no synonyms" in found["variants"]["meteor"]
    assert found["meteor"] == pytest.approx(sum(row["meteor"] for row in written) / 2)
    with pytest.raises(DiveError, match=r"cannot write .*each.jsonl/x"):
        call(*pair(A, B), "--per-report", out / "x")


def test_help_says_what_metrics_take():
    said = runner.invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200"}).stdout
    for option in ("--per-report", "meteor-synonyms", "--radgraph-annotations"):
        assert option in said


def test_a_split_of_references_in_json_lines(pair):
    command = pair(A)
    references = command[4]
    lines = references.read_text().splitlines()
    references.write_text(
        "\n".join(
            json.dumps(json.loads(line) | {"split": name})
            for line, name in zip(lines, ("val", "train"), strict=True)
        )
    )
    with pytest.raises(DiveError, match="has no prediction under 1 id"):
        call(*command)
    assert json.loads(call(*command, "--split", "validation", "--json").stdout)["scored"] == 1
    for split, message in [
        ("test", "no reference is of the split 'test'"),
        ("x", "--split is 'x'"),
    ]:
        with pytest.raises(DiveError, match=message):
            call(*command, "--split", split)
    references.write_text("\n".join(lines))
    with pytest.raises(DiveError, match="r.jsonl:1: has no 'split', and --split is 'train'"):
        call(*command, "--split", "train")


# demo, inspect


@pytest.mark.parametrize(
    ("option", "value", "least"), [("--steps", 0, 1), ("--test", -1, 1), ("--hospital", -1, 0)]
)
def test_values_of_the_demo(option, value, least, tmp_path):
    with pytest.raises(DiveError, match=f"{option} is {value}, want a whole number >= {least}"):
        call("demo", option, value, "--out", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_outputs_that_cannot_be(tiny_llava, studies_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DiveError, match="file is a file, want a folder"):
        call("demo", "--out", "file")
    with pytest.raises(DiveError, match=r"\. is a folder, want the name of a file"):
        call("generate", "--backbone", tiny_llava, "--studies", studies_folder / "studies.jsonl",
             "--out", ".")  # fmt: skip


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("taken", "taken is a file, want a folder"),
        ("taken/adapter", "cannot write into .*taken/adapter: .*taken is a file"),
        ("odd", "checkpoints is a file, want a folder"),
        ("heavy", "adapter.safetensors is a folder, want the name of a file"),
    ],
)
def test_an_adapters_place_is_looked_at_before_anything_is_read(out, message, tmp_path):
    """Neither the backbone nor the studies are there: they would be named first."""
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "checkpoints").write_text("")
    (tmp_path / "heavy" / "adapter.safetensors").mkdir(parents=True)
    with pytest.raises(DiveError, match=message):
        distill("/no/backbone", tmp_path / "none.jsonl", tmp_path / out, *QUICK)
    with pytest.raises(DiveError, match="the image cache .*taken cannot be written"):
        distill("/no/backbone", tmp_path / "none.jsonl", tmp_path / "new", *QUICK, "--image-cache",
                tmp_path / "taken")  # fmt: skip
    assert (tmp_path / "taken").read_text() == "mine" and not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(DiveError, match="cannot write into .*adapter: Permission denied"):
        distill("/no/backbone", "none.jsonl", tmp_path / "adapter", *QUICK)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("folder", "folder is a folder, want the name of a file"),
        ("taken/reports.jsonl", "cannot write .*reports.jsonl: .*taken is a file"),
        ("half.jsonl", "half.jsonl.partial is a folder"),
    ],
)
def test_a_reports_file_is_looked_at_before_anything_is_read(out, message, tmp_path):
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "half.jsonl.partial").mkdir()
    with pytest.raises(DiveError, match=message):
        call("generate", "--backbone", "/no/backbone", "--studies", tmp_path / "none.jsonl",
             "--out", tmp_path / out)  # fmt: skip
    scores = tmp_path / out.replace("half.jsonl", "half.jsonl.partial")
    with pytest.raises(DiveError, match=message):
        call("evaluate", "--predictions", tmp_path / "none.jsonl", "--references", "none.jsonl",
             "--per-report", scores)  # fmt: skip
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "folder", "half.jsonl.partial", "taken",
    ]  # fmt: skip


def test_a_tokenizer_that_is_not_there(tmp_path):
    report = tmp_path / "report.txt"
    report.write_text("Small effusion.")
    with pytest.raises(DiveError, match="/nope: is no folder, want that of a backbone"):
        call("inspect", "tokens", report, "--backbone", "/nope")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DiveError, match="cannot load the tokenizer"):
        call("inspect", "tokens", report, "--backbone", tmp_path)


def test_scores_a_report_do_not_replace_what_they_are_of(tmp_path):
    reports, truth = tmp_path / "reports.jsonl", tmp_path / "truth.jsonl"
    reports.write_text('{"id": "a", "report": "Clear lungs."}\n')
    truth.write_text('{"id": "a", "findings": "Clear lungs."}\n')
    before = reports.read_bytes(), truth.read_bytes()
    for taken in (reports, truth, tmp_path / "." / "reports.jsonl"):
        with pytest.raises(DiveError, match="is one of the files to read; name another"):
            call("evaluate", "--predictions", reports, "--references", truth, "--metrics", "bleu",
                 "--per-report", taken)  # fmt: skip
    assert (reports.read_bytes(), truth.read_bytes()) == before


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["dive.cli.generate"], "open_all", interrupted)
    monkeypatch.setattr("sys.argv", ["dive", "generate", "--backbone", "b", "--studies", "s.jsonl",
                                     "--out", "never-written.jsonl"])  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert "interrupted; the same command goes on where it stopped" in capsys.readouterr().err


def test_nothing_to_resume_is_said(tiny_llava, studies_folder, tmp_path, caplog):
    distill(tiny_llava, studies_folder / "studies.jsonl", tmp_path / "new", *QUICK, "--resume")
    assert "has no checkpoint to resume; the training starts anew" in caplog.text
