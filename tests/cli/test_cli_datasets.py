"""From a dataset's folders as downloaded to the numbers, with the three commands alone."""

import json

import pytest
from data_trees import Mimic, Plus, iu_kaggle, r2gen_iu
from typer.testing import CliRunner

from dive.cli import app

runner = CliRunner()


def call(*arguments):
    result = runner.invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result


def mimic(root):
    tree = Mimic(root / "jpg")
    tree.zip_reports(root / "txt" / "mimic-cxr-reports.zip")
    return f"mimic-cxr:{tree.root}", ["--reports-root", root / "txt" / "mimic-cxr-reports.zip"]


def plus(root):
    Plus(root)
    return f"chexpert-plus:{root}", []


def iu(root):
    iu_kaggle(root)
    return f"iu-xray:{root}", []


def r2gen(root):
    return f"r2gen:{r2gen_iu(root)}", []


# `more` chooses studies and images, `text` changes or chooses reports: not an option of generate
@pytest.mark.parametrize(
    ("make", "target", "more", "text", "kept"),
    [
        (mimic, "findings", [], [], 2),  # 50000003 has a lateral view only, 50000005 no findings
        (mimic, "findings", ["--read", "views=all"], ["--drop-comparisons"], 3),
        (mimic, "impression", ["--split", "test"], [], 1),
        (plus, "impression", [], [], 3),
        (plus, "findings", ["--split", "validation"], [], 1),
        (iu, "findings", [], ["--read", "min_words=3"], 1),
        (r2gen, "findings", ["--split", "train"], [], 1),
    ],
)
def test_distil_generate_evaluate(make, target, more, text, kept, tiny_llava, tmp_path):
    spec, roots = make(tmp_path / "data")
    adapter, out = tmp_path / "adapter", tmp_path / "reports.jsonl"
    more = [*roots, *more]
    said = call(
        "distill", "--backbone", tiny_llava, "--studies", spec, "--out", adapter, "--target",
        target, "--preset", "dive-ce", "--steps", 1, "--rank", 2, "--set",
        "calibration_studies=1", *more, *text,
    ).stderr  # fmt: skip
    assert "policy: " in said and "studies with" in said
    call(
        "generate", "--backbone", tiny_llava, "--adapter", adapter, "--studies", spec, "--out",
        out, "--max-new-tokens", 3, *more,
    )  # fmt: skip
    found = json.loads(
        call(
            "evaluate", "--predictions", out, "--references", spec, "--target", target,
            "--allow-missing", "--json", *more, *text,
        ).stdout
    )  # fmt: skip
    assert found["scored"] == kept and list(found["without_prediction"].values()) == [0]
    assert 0 <= found["bleu4"] <= 1 and "termination_rate" in found
    trained = json.loads((adapter / "adapter_config.json").read_text())["metadata"]
    assert trained["distillation"]["studies"] == kept and trained["target"] == target
    if make is not r2gen:
        assert trained["distillation"]["sources"] == [spec.partition(":")[0]]


def test_inspecting_a_prompt_of_a_dataset(tiny_llava, tmp_path):
    spec, roots = mimic(tmp_path / "data")
    found = json.loads(
        call(
            "inspect", "prompt", "--backbone", tiny_llava, "--studies", spec, *roots,
            "--demonstrations", 1, "--read", "views=all", "--drop-comparisons", "--json",
        ).stdout
    )  # fmt: skip
    assert "The heart is normal in size.</s>" in found["student"]["text"]  # and the rest compares
    assert found["teacher"]["text"].count("Lungs are clear.") == 1
