"""The command line on the user's own files: a chain that joins, and errors a person can act on."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from command_line import call, rows

import dive
from dive import cli
from dive.errors import DiveError

ROOT = Path(__file__).parents[2]


def quick_distill(backbone, studies, out, *more):
    return call(
        "distill", "--backbone", backbone, "--studies", studies, "--out", out, "--steps", 2,
        "--rank", 2, "--batch-size", 3, *more,
    )  # fmt: skip


@pytest.mark.parametrize("folder", ["tiny_llava", "tiny_qwen", "tiny_gemma"])
def test_three_commands_join(folder, request, studies_folder, tmp_path):
    backbone, studies = request.getfixturevalue(folder), studies_folder / "studies.jsonl"
    adapter, out = tmp_path / "adapter", tmp_path / "reports.jsonl"
    result = quick_distill(
        backbone, studies, adapter, "--validation", "0.3", "--demonstrations", "1"
    )
    assert result.exit_code == 0
    for said in ("tokens each", "student prompt", "teacher prompt", "memory", "2 steps of 3"):
        assert said in result.stderr
    assert "next: dive generate" in result.stderr
    assert not list((adapter / "checkpoints").glob("checkpoint-*"))
    result = call(
        "generate", "--backbone", backbone, "--adapter", adapter, "--studies", studies,
        "--out", out, "--max-new-tokens", 6, "--batch-size", 4,
    )  # fmt: skip
    written = rows(out)
    keys = ["id", "images", "report", "finish_reason", "num_tokens", "prompt_tokens",
            "seconds", "engine", "adapter", "adapter_sha256"]  # fmt: skip
    assert [list(row) for row in written] == [keys] * 6
    file = adapter / "adapter.safetensors"
    which = {(row["adapter"], row["adapter_sha256"]) for row in written}
    assert which == {("adapter", hashlib.sha256(file.read_bytes()).hexdigest())}
    assert [row["id"] for row in written] == [row["id"] for row in rows(studies)]
    assert not list(tmp_path.glob("*.partial*"))
    result = call("evaluate", "--predictions", out, "--references", studies, "--json")
    found = json.loads(result.stdout)
    assert found["scored"] == 6 and 0 <= found["bleu4"] <= 1 and "termination_rate" in found
    assert "lower" in found["variants"]["bleu4"]
    table = call("evaluate", "--predictions", out, "--references", studies)
    assert "bleu4" in table.stdout and "6 of 6 reports scored" in table.stdout


def test_the_adapter_folder_is_what_python_loads(tiny_llava, studies_folder, tmp_path):
    out = tmp_path / "adapter"
    result = quick_distill(
        tiny_llava, studies_folder / "studies.jsonl", out, "--preset", "dive-ce",
        "--target", "both", "--set", "activation=gelu", "--set", "layers=[0, 2]", "--json",
    )  # fmt: skip
    answer = json.loads(result.stdout)
    assert answer["studies"] == 6 and answer["steps"] == 2
    adapter = dive.SteeringAdapter.from_pretrained(out)
    assert adapter.config.activation == "gelu" and adapter.config.layers == [0, 2]
    assert adapter.metadata["target"] == "both"
    with pytest.raises(DiveError, match="holds an adapter already"):
        quick_distill(tiny_llava, studies_folder / "studies.jsonl", out)


def test_bare_images_and_demonstrations(tiny_llava, studies_folder, tmp_path):
    images = sorted((studies_folder / "images").glob("*frontal*"))[:2]
    out = tmp_path / "r.jsonl"
    call("generate", "--backbone", tiny_llava, *images, "--out", out, "--max-new-tokens", 3)
    assert [row["id"] for row in rows(out)] == [str(path) for path in images]
    shown = tmp_path / "k.jsonl"
    one = call(
        "generate", "--backbone", tiny_llava, images[0], "--out", tmp_path / "one.jsonl",
        "--max-new-tokens", 1,
    )  # fmt: skip
    assert "1 report in" in one.stderr
    assert "of 1 new one the model ended 0 by itself" in " ".join(one.stderr.split())
    call(
        "generate", "--backbone", tiny_llava, *images, "--out", shown, "--max-new-tokens", 3,
        "--demonstrations", studies_folder / "studies.jsonl",
    )  # fmt: skip
    assert len(rows(shown)) == 2
    with pytest.raises(DiveError, match="given twice"):
        call("generate", "--backbone", tiny_llava, images[0], images[0], "--out", tmp_path / "o")
    with pytest.raises(DiveError, match="either --studies FILE or image files"):
        call("generate", "--backbone", tiny_llava, "--out", tmp_path / "o")


def test_an_interrupted_run_goes_on(tiny_llava, studies_folder, tmp_path):
    """Killed outright between two reports: nothing is repeated, nothing is lost."""
    studies, out = studies_folder / "studies.jsonl", tmp_path / "reports.jsonl"
    command = [
        "generate", "--backbone", str(tiny_llava), "--studies", str(studies), "--out", str(out),
        "--max-new-tokens", "8", "--batch-size", "1",
    ]  # fmt: skip
    slow = (
        "import time, dive.generation.report_writer as g; real = g.ReportWriter.report\n"
        "g.ReportWriter.report = lambda self, *a: (time.sleep(0.4), real(self, *a))[1]\n"
        "from dive.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    partial = tmp_path / "reports.jsonl.partial"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        partial.exists() and partial.read_bytes().count(b"\n") >= 2
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    kept = partial.read_text().splitlines()
    assert 2 <= len(kept) < 6
    call(*command)
    assert out.read_text().splitlines()[: len(kept)] == kept
    assert [row["id"] for row in rows(out)] == [row["id"] for row in rows(studies)]
    # another run's rows are never mixed in
    partial.write_text(kept[0] + "\n")
    with pytest.raises(DiveError, match="does not say how it was made"):
        call(*command, "--overwrite")


def test_skipping_is_counted_and_written(tiny_llava, studies_folder, tmp_path):
    studies = studies_folder / "studies.jsonl"
    good = studies.read_text().splitlines()
    image = studies_folder / "images" / "00_frontal.jpg"
    image.write_bytes(image.read_bytes()[:200])
    studies.write_text("\n".join([*good[:3], "{", *good[3:]]) + "\n")
    out = tmp_path / "reports.jsonl"
    command = ["generate", "--backbone", tiny_llava, "--studies", studies, "--out", out,
               "--max-new-tokens", 2]  # fmt: skip
    with pytest.raises(DiveError, match=r"studies.jsonl:4: is not JSON"):
        call(*command)
    result = call(*command, "--on-error", "skip")
    assert len(rows(out)) == 5
    skipped = rows(tmp_path / "reports.skipped.jsonl")
    assert {row["source"].rsplit(":", 1)[1] for row in skipped} == {"1", "4"}
    assert "2 skipped" in result.stderr
    adapter = tmp_path / "adapter"
    quick_distill(tiny_llava, studies, adapter, "--on-error", "skip", "--preset", "dive-ce")
    assert len(rows(adapter / "skipped.jsonl")) == 2


def test_predictions_and_references_must_match(tmp_path):
    predictions, references = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    predictions.write_text(
        '{"id": "a", "report": "no effusion", "finish_reason": "eos"}\n'
        '{"id": "c", "report": "x", "finish_reason": "length"}\n'
    )
    references.write_text(
        '{"id": "a", "findings": "No effusion."}\n{"id": "b", "findings": "Y."}\n'
    )
    files = ["--predictions", predictions, "--references", references]
    with pytest.raises(DiveError, match="p.jsonl has no prediction under 1 id: b"):
        call("evaluate", *files)
    found = json.loads(call("evaluate", *files, "--allow-missing", "--json").stdout)
    assert found["scored"] == 1 and found["termination_rate"] == 1.0
    assert list(found["without_prediction"].values()) == [1]
    assert list(found["without_reference"].values()) == [1]
    predictions.write_text('{"id": "a", "text": "no effusion"}\n')
    with pytest.raises(DiveError, match='p.jsonl:1: has the keys id, text, want "id" and "report"'):
        call("evaluate", *files)


def test_inspect_tokens(tiny_llava, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text("Small right pleural effusion. No pneumothorax.")
    result = call("inspect", "tokens", report, "--json")
    found = json.loads(result.stdout)
    states = {m["class"]: m["polarity"] for m in found["mentions"]}
    assert states == {"Pleural Effusion": "positive", "Pneumothorax": "negative"}
    assert sum(share["tokens"] for share in found["shares"].values()) == pytest.approx(1)
    plain = call("inspect", "tokens", report).stdout  # not to a terminal: no underlines
    assert "[Small right pleural effusion]. No pneumothorax." in plain and "[weighted]" in plain
    every = call("inspect", "tokens", report, "--polarity", "all", "--no-modifiers").stdout
    assert "Small right [pleural effusion]. No [pneumothorax]." in every
    result = call("inspect", "tokens", report, "--backbone", tiny_llava)
    assert "Pleural Effusion" in result.stdout and "% of loss" in result.stdout
    with pytest.raises(DiveError, match="cannot read the report"):
        call("inspect", "tokens", tmp_path / "none.txt")


def test_inspect_tokens_by_unit(tmp_path, studies_folder):
    report, training = tmp_path / "report.txt", tmp_path / "training.txt"
    report.write_text("There is no effusion. Small nodule.")
    training.write_text("There is a small effusion.\n\nThere is no effusion.\n")

    def shown(*options):
        return call("inspect", "tokens", report, *options).stdout.partition("\n")[0]

    assert shown("--unit", "clause") == "[There is no effusion]. [Small nodule]."
    by_text = shown("--unit", "decision", "--reports", training)
    assert by_text == "There is [no] effusion. Small nodule."
    report.write_text("No effusion. Small nodule.")
    by_studies = shown("--unit", "decision", "--reports", studies_folder / "studies.jsonl")
    assert by_studies == "[No] effusion. Small nodule."
    found = json.loads(call("inspect", "tokens", report, "--unit", "clause", "--json").stdout)
    assert found["shares"]["pathology"]["tokens"] > 0.5
    for options, message in (
        (["--unit", "decision"], "is learnt from training reports; give them with --reports"),
        (["--reports", training], "--reports is given with --unit mention, which needs none"),
        (["--unit", "decision", "--reports", report], "of the findings of 1 training report is"),
        (["--unit", "decision", "--reports", tmp_path / "no.txt"], "cannot read the reports"),
        (["--unit", "word"], "unit is 'word', want one of mention, clause, decision"),
    ):
        with pytest.raises(DiveError, match=message):
            call("inspect", "tokens", report, *options)


@pytest.mark.parametrize("folder", ["tiny_llava", "tiny_qwen", "tiny_gemma"])
def test_inspect_prompt_collapses_images(folder, request, studies_folder):
    result = call(
        "inspect", "prompt", "--backbone", request.getfixturevalue(folder), "--studies",
        studies_folder / "studies.jsonl", "--demonstrations", 2, "--json",
    )  # fmt: skip
    found = json.loads(result.stdout)
    student, teacher = found["student"], found["teacher"]
    assert student["text"].count("[image: ") == 1
    assert teacher["text"].count("[image: ") >= 3
    assert student["report_tokens"] == teacher["report_tokens"]
    assert "The lungs are clear." in student["text"]
    assert teacher["tokens"] > student["tokens"]


def test_doctor_says_what_is_missing():
    found = json.loads(call("doctor", "--json").stdout)
    assert found["packages"]["torch"]
    assert {"name", "present", "where", "how"} <= set(found["metrics"][0])
    assert call("doctor").exit_code == 0


def run_main(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from dive.cli import main; main()", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip


def test_exit_codes_and_one_line_errors(tmp_path):
    missing = run_main("evaluate", "--predictions", tmp_path / "p", "--references", tmp_path / "r")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: cannot read") and missing.stderr.count("\n") == 1
    assert run_main("evaluate", "--no-such-option").returncode == 2
    helped = run_main("--help")
    assert helped.returncode == 0
    for name in ("demo", "distill", "generate", "evaluate", "report", "inspect", "bench", "doctor"):
        assert name in helped.stdout


def test_a_warning_is_a_line_without_a_place_in_the_source(capsys, monkeypatch):
    def warns(**_):
        warnings.warn("the adapter was trained with [prompt] 'A'", stacklevel=1)

    monkeypatch.setattr(cli, "app", warns)
    cli.main()
    assert capsys.readouterr().err == "warning: the adapter was trained with [prompt] 'A'\n"


def test_help_does_not_load_torch():
    code = "import sys; sys.argv = ['dive', 'distill', '--help']\n" \
           "from dive.cli import main\n" \
           "try: main()\nexcept SystemExit: pass\n" \
           "assert 'torch' not in sys.modules, 'torch was imported'"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_bad_option_values_name_the_option(tiny_llava, studies_folder, tmp_path):
    studies = studies_folder / "studies.jsonl"
    for more, message in [
        (("--demonstrations", "many"), "--demonstrations is 'many'"),
        (("--validation", "nothing.jsonl"), "--validation is 'nothing.jsonl'"),
        (("--set", "rang=3"), "--set is 'rang=3'"),
        (("--max-image-tokens", "-4"), "--max-image-tokens is '-4'"),
        (("--target", "summary"), "target is 'summary'"),
        (("--preset", "best"), "preset is 'best'"),
    ]:
        with pytest.raises(DiveError, match=message):
            quick_distill(tiny_llava, studies, tmp_path / "x", *more)
