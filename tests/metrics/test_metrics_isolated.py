"""RaTEScore and GREEN in processes of their own, on stand-ins for the packages and their weights.

The stand-ins have the interface of RaTEScore 0.6.0 and green_score 0.0.12 as the workers use it.
"""

import importlib
from pathlib import Path

import numpy as np
import pytest

import dive
from dive.errors import DiveError
from dive.metrics import Green, RaTEScore

RATESCORE = """
import os
from .utils import sentence_split

class RaTEScore:
    def __init__(self, bert_model="hub-ner", eval_model="hub-encoder", batch_size=1, use_gpu=True,
                 visualization_path=None, affinity_matrix="long"):
        print("loading", bert_model, eval_model)  # to stdout, which must not reach the answers
        assert os.environ["HF_HUB_OFFLINE"] == "1" and batch_size == 1 and affinity_matrix == "long"
        assert use_gpu == bool(os.environ["CUDA_VISIBLE_DEVICES"])
        self.bonus = 0.25 if bert_model.endswith("my-ner") else 0.0

    def compute_score(self, candidate_list, reference_list):
        found = []
        for mine, theirs in zip(candidate_list, reference_list, strict=True):
            if "kaboom" in mine:
                raise RuntimeError("cannot read " + mine)
            mine, theirs = ({w.lower() for w in text.split()} for text in (mine, theirs))
            assert mine and theirs  # the package ends with an IndexError
            found.append(len(mine & theirs) / len(mine | theirs) + self.bonus)
        return found
"""
SENTENCES = """
def sentence_split(text_list):
    sentences = [part for text in text_list for part in text.split(".") if len(part.strip()) > 2]
    return sentences, [1] * len(sentences)
"""
GREEN = """
import os, sys

class GREEN:
    def __init__(self, model_name=None, output_dir=".", cpu=False, compute_summary_stats=True):
        assert not compute_summary_stats and os.path.isdir(output_dir)
        assert cpu == (os.environ["CUDA_VISIBLE_DEVICES"] == "")
        if "absent" in model_name:
            raise OSError(f"We couldn't connect to the hub to load {model_name}.\\nCheck your net")
        self.batch_size = 2

    def __call__(self, refs, hyps):
        print("==== Beginning Inference ====")
        assert len(refs) <= self.batch_size
        scores = []
        for mine, theirs in zip(hyps, refs, strict=True):
            if "kaboom" in mine:
                os._exit(7)
            scores.append(None if "unreadable" in mine else len(mine) / (len(mine) + len(theirs)))
        return None, None, scores, None, {"reference": refs}
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of both stand-ins, which the workers' Python finds."""
    folder = tmp_path / "packages"
    for name, version, files in (
        ("RaTEScore", "0.6.0", {"__init__": RATESCORE, "utils": SENTENCES}),
        ("green_score", "0.0.12", {"__init__": GREEN}),
    ):
        (folder / name).mkdir(parents=True)
        for module, code in files.items():
            (folder / name / f"{module}.py").write_text(code)
        about = folder / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


PREDICTIONS = ["No effusion here", "", "the heart is large", "lungs are clear", "No"]
REFERENCES = ["no effusion", "edema is seen", "the heart is large", "no pneumothorax", "No edema"]


def test_ratescore(packages: Path) -> None:
    got = dive.evaluate(PREDICTIONS, REFERENCES, ["ratescore"], per_report=True)
    # 0.5 where the package finds no sentence: the empty one, and "No" of two letters
    wanted = [2 / 3, 0.5, 1.0, 0.0, 0.5]
    assert got["per_report"]["ratescore"] == pytest.approx(wanted)
    assert got["ratescore"] == pytest.approx(np.mean(wanted))
    variant = got["variants"]["ratescore"]
    assert "RaTEScore 0.6.0 with Angelakeke/RaTE-NER-Deberta and FremyCompany/BioLORD" in variant


def test_green(packages: Path) -> None:
    got = dive.evaluate(
        PREDICTIONS, REFERENCES, ["green"], per_report=True, baseline=REFERENCES, bootstrap=20
    )
    lengths = zip(map(len, PREDICTIONS), map(len, REFERENCES), strict=True)
    wanted = [mine / (mine + theirs) for mine, theirs in lengths]
    assert got["per_report"]["green"] == pytest.approx(wanted)
    assert got["baseline"]["green"] == 0.5
    assert got["differences"]["green"]["difference"] == pytest.approx(np.mean(wanted) - 0.5)
    assert "green_score 0.0.12 with StanfordAIMI/GREEN-radllama2-7b" in got["variants"]["green"]


def test_models_and_devices_are_passed_on(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "my-ner").mkdir()
    scorer = RaTEScore(ner=tmp_path / "my-ner", device="cuda:1")
    assert scorer.score(["no edema"], ["no edema"]).tolist() == [1.25]
    assert "with my-ner and" in scorer.source and str(tmp_path) not in scorer.source
    assert Green(device="cuda").score(["ab"], ["cd"]).tolist() == [0.5]
    assert "with folder" in Green(model=tmp_path / "folder").source


def test_a_gpu_of_those_that_are_seen(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    from dive.metrics.isolated import _environment

    seen = {device: _environment("GREEN", device)["CUDA_VISIBLE_DEVICES"]
            for device in ("cpu", "cuda", "cuda:1")}  # fmt: skip
    assert seen == {"cpu": "", "cuda": "4", "cuda:1": "6"}
    with pytest.raises(DiveError, match="GREEN: device is 'cuda:2', want one of the 2 GPUs"):
        Green(device="cuda:2").score(["a"], ["b"])
    with pytest.raises(DiveError, match="RaTEScore: device is 'gpu', want cpu, cuda or cuda:N"):
        RaTEScore(device="gpu")


def test_a_package_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DiveError, match=r"RaTEScore: the package is not installed for .*pip insta"):
        RaTEScore().score(["a"], ["b"])
    with pytest.raises(
        DiveError, match=r"GREEN: the package is not installed for .*green_score of"
    ):
        Green().score(["a"], ["b"])
    with pytest.raises(DiveError, match=r"GREEN: cannot run .*no-python: No such file"):
        Green(python=tmp_path / "no-python").score(["a"], ["b"])


def test_failures_are_one_line_without_texts(packages: Path) -> None:
    secret = "kaboom in Mrs Example's lung"
    with pytest.raises(DiveError) as caught:
        RaTEScore().score(["no edema", secret], ["no edema", "no edema"])
    said = str(caught.value)
    assert said.startswith(
        "RaTEScore: its process ended with exit code 1 after 1 of 2 pairs: Runti"
    )
    assert "cannot read" in said and "Example" not in said and "\n" not in said
    with pytest.raises(DiveError, match="exit code 7 after 0 of 2 pairs: ==== Beginning"):
        Green().score([secret, "b"], ["c", "d"])
    with pytest.raises(DiveError, match="exit code 1 after 0 of 1 pairs: OSError: .*net"):
        Green(model="some/absent").score(["a"], ["b"])
    with pytest.raises(DiveError, match="GREEN: the package has no score for pair 3 of 3"):
        Green().score(["a", "b", "unreadable"], ["c", "d", "e"])


def test_no_text_in_another_case_or_with_other_spaces(packages: Path) -> None:
    """Packages lower and join what they read before they quote it."""
    code = RATESCORE.replace(
        '"cannot read " + mine', '"cannot read " + " ".join(mine.lower().split())'
    )
    (packages / "RaTEScore" / "__init__.py").write_text(code)
    with pytest.raises(DiveError) as caught:
        RaTEScore().score(["kaboom in the LUNG of\n  John Example"], ["no edema"])
    said = str(caught.value)
    assert said.endswith("RuntimeError: cannot read ...")


def test_a_score_that_is_no_number(packages: Path) -> None:
    code = RATESCORE.replace("return found", "return [float('nan')] * len(found)")
    (packages / "RaTEScore" / "__init__.py").write_text(code)
    with pytest.raises(DiveError, match="RaTEScore: the score is nan for pair 1 of 1, want a fini"):
        RaTEScore().score(["no edema"], ["no edema"])


def test_a_python_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr("dive.metrics.isolated._STARTS", 0.2)
    with pytest.raises(DiveError, match="GREEN: .*python has not answered within 0.2 seconds"):
        Green(python=python).score(["a"], ["b"])


@pytest.mark.parametrize("ending", ["killed", "interrupted"])
def test_nothing_is_left_behind(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """What a package writes may be of patients: it goes, whatever ends the process."""
    code = GREEN.replace(
        "        scores = []",
        "        open(self.folder + '/texts', 'w').write(hyps[0])\n        scores = []",
    )
    code = code.replace(
        "        self.batch_size", "        self.folder = output_dir\n        self.batch_size"
    )
    (packages / "green_score" / "__init__.py").write_text(code)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    started = []
    if ending == "interrupted":

        def answers(process):
            started.append(process)
            process.stdout.readline()
            assert list(temporary.glob("*/texts"))
            raise KeyboardInterrupt

        monkeypatch.setattr("dive.metrics.isolated._answers", answers)
    with pytest.raises(KeyboardInterrupt if ending == "interrupted" else DiveError):
        Green().score(["a", "b", "kaboom"], ["c", "d", "e"])
    assert not list(temporary.iterdir())
    assert all(process.returncode is not None for process in started)


def test_many_long_pairs_do_not_block(packages: Path) -> None:
    """More than a pipe holds goes in before the first answer comes out."""
    texts = [f"word{i} " * 500 for i in range(300)]
    assert RaTEScore().score(texts, texts).tolist() == [1.0] * 300


def test_workers_find_no_module_of_dive(packages: Path) -> None:
    """A worker's folder, first on a script's path, has modules with common names (`export`)."""
    code = "from importlib.util import find_spec\nassert find_spec('bertscore') is None\n"
    (packages / "RaTEScore" / "utils.py").write_text(SENTENCES + code)
    assert RaTEScore().score(["no edema"], ["no edema"]).tolist() == [1.0]


def test_doctor_tells_what_is_missing(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dive.metrics import requirements

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # the package has a function of that name
    module = importlib.import_module("dive.metrics.requirements")
    monkeypatch.setattr(module, "in_hub_cache", lambda name: "BioLORD" in name)
    monkeypatch.setattr("dive.metrics.bertscore.in_hub_cache", lambda name: False)
    before = {need["name"]: need for need in requirements()}
    assert not before["green_score (GREEN)"]["present"]
    assert not before["RaTEScore, medspacy and pandas"]["present"]
    assert not before["BERTScore model"]["present"]
    assert before["RaTEScore encoder"]["present"]
    assert (
        "hf download StanfordAIMI/GREEN-radllama2-7b"
        in (before["GREEN language model (7B)"]["how"])
    )

    monkeypatch.syspath_prepend(packages)
    model = Path(before["BERTScore model"]["where"])
    model.mkdir(parents=True)
    (model / "config.json").touch()
    after = {need["name"]: need for need in requirements()}
    assert after["green_score (GREEN)"]["present"] and after["BERTScore model"]["present"]


def test_a_model_is_loaded_once_for_all_methods(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    score = RaTEScore.score

    def counted(self: RaTEScore, predictions: list[str], references: list[str]) -> np.ndarray:
        calls.append(len(predictions))
        return score(self, predictions, references)

    monkeypatch.setattr(RaTEScore, "score", counted)
    references = ["Small effusion here.", "Clear lungs now."]
    methods = {"a": references, "b": ["Small effusion.", "Wet lungs now."], "c": ["No.", "Yes."]}
    found = dive.evaluate_methods(methods, references, ["ratescore"], baseline="a", bootstrap=5)
    assert calls == [6]
    for name, texts in methods.items():
        alone = dive.evaluate(texts, references, ["ratescore"])["ratescore"]
        assert found[name]["ratescore"] == alone
    assert calls == [6, 2, 2, 2]
    assert len({own["ratescore"] for own in found.values()}) == 3
