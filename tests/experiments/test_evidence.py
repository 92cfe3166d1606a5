"""`make evidence`: what README says is what the records give, and it says where not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from decisive_records import BIG, whole_study

from dive.errors import DiveError
from experiments import demo_records, demo_sentences, evidence
from experiments.demo_sentences import Study
from experiments.quoted_figures import said, unfounded

RESULTS = Path("benchmarks") / "results"


@pytest.fixture
def tree(tmp_path):
    """The pages and records of this tree, to be changed."""
    for name in evidence.PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(evidence.ROOT / name, tmp_path / name)
    (tmp_path / RESULTS).mkdir(parents=True)
    for path in (evidence.ROOT / RESULTS).glob("*.jsonl"):
        shutil.copy(path, tmp_path / RESULTS)
    return tmp_path


def test_the_pages_hold_what_the_records_give():
    made = evidence.texts(evidence.ROOT / RESULTS)
    assert evidence.stale(evidence.ROOT, made) == []


def test_it_imports_no_torch_and_succeeds():
    code = (
        "import sys; from experiments import evidence; status = evidence.main([]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=evidence.ROOT, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert "main: 246 records, hospitals 11, 12, 13, 14, 15, 16, commit 1e0b14f." in done.stdout
    assert "decisive weights, concept_f1: -0.7 ± 0.7; 0 of 6; p .031, .500" in done.stdout
    assert "a threshold that states as many change it by +0.129 ± 0.045" in " ".join(
        done.stdout.split()
    )


def test_a_page_that_differs_is_named(tree, capsys):
    page = tree / "README.md"
    page.write_text(page.read_text().replace("17.3 ± 5.5", "19.3 ± 5.5"))
    assert evidence.main([], tree) == 1
    assert "README.md does not hold what the records give" in capsys.readouterr().out
    assert evidence.main(["--render"], tree) == 0
    assert page.read_text() == (evidence.ROOT / "README.md").read_text()


def test_a_figure_in_a_sentence_is_one_of_the_tables(tree, capsys):
    page = tree / "docs" / "choices.md"
    assert "2.4 ± 15.4 style F1" in page.read_text()
    page.write_text(page.read_text().replace("2.4 ± 15.4 style F1", "3.4 ± 15.4 style F1"))
    assert evidence.main([], tree) == 1
    assert "docs/choices.md quotes '3.4 ± 15.4', which no table" in capsys.readouterr().out


def test_figures_are_found_in_sentences():
    shown = "| a | 94.2 ± 0.6 | +1.1 ± 1.3; 4 of 6; p .125, 1 |"
    assert unfounded("1.1 ± 1.3 (p .125), at 94.2 BLEU-4", shown) == []
    text = "1.2 ± 1.3 (p .126, corrected .001), at 94.3 BLEU-4"
    assert unfounded(text, shown) == ["1.2 ± 1.3", ".126", ".001", "94.3"]
    for name in evidence.QUOTING:
        assert "<!-- experiment" not in said((evidence.ROOT / name).read_text(encoding="utf-8"))


def decisive(tree, made):
    path = tree / RESULTS / "decisive-weights.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in made))
    return path


def test_an_empty_file_of_records(tree, capsys):
    decisive(tree, [])
    assert evidence.main(["--render"], tree) == 0
    assert capsys.readouterr().out.count("no confirmatory run yet") == 4
    assert "no confirmatory run yet" in (tree / "docs" / "decisive-study.md").read_text()
    (tree / RESULTS / "decisive-weights.jsonl").unlink()
    assert evidence.main([], tree) == 0


def test_the_study_fills_every_page(tree, capsys):
    decisive(tree, whole_study(P=BIG))
    assert evidence.main([], tree) == 1  # the pages are those of before
    assert evidence.main(["--render"], tree) == 0
    for name in ("README.md", "docs/choices.md", "docs/decisive-study.md"):
        assert "Weighting pathology tokens ranks rare findings better here" in (
            " ".join((tree / name).read_text().split())
        )
    assert "264 of 264; 264 with measures" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["demo-study.jsonl", "decisive-weights.jsonl"])
def test_a_torn_line_ends_it(tree, name):
    decisive(tree, whole_study()[:1])
    path = tree / RESULTS / name
    count = len(path.read_bytes().splitlines())
    path.write_bytes(path.read_bytes() + b'{"part": "ma')
    with pytest.raises(DiveError, match=f"{name}:{count + 1}: the last line is torn"):
        evidence.main([], tree)


def test_sentences_that_other_records_do_not_give():
    """Each claim in README's words is asked of the records, not only its figures."""
    records = demo_records.load()
    assert len(demo_sentences.sentences(Study(records))) == 6

    def but(change, **where):
        return Study([
            one | change if where.items() <= one.items() else one for one in records
        ])  # fmt: skip

    cases = [
        (but({"bleu4": 10.0}, part="main", method="DIVE", hospital=11), "six of six hospitals"),
        (but({"terminated": 99.0}, part="main", method="DIVE", hospital=11), "ends every report"),
        (
            but({"prompt_tokens": 20.0}, part="main", method="DIVE", seed=1),
            "a prompt of one length",
        ),
        (but({"concept_f1": 99.0}, part="16 studies", method="DIVE"), "lower in six of six"),
        (
            but({"terminated": 95.0}, part="main", method="DIVE, no teacher"),
            r"no difference.*teacher",
        ),
        (but({"bleu4": 99.0}, part="400 steps", method="DIVE, fixed vectors"), "more BLEU-4"),
    ]
    for study, words in cases:
        with pytest.raises(
            DiveError, match=f"{words}.*is not what the records give: write it anew"
        ):
            demo_sentences.sentences(study)
    with pytest.raises(DiveError, match="no comparison 'decisive weights' of part '16 studies'"):
        demo_sentences.sentences(Study([one for one in records if one["part"] != "16 studies"]))


def test_figures_follow_the_records():
    other = [
        one | {"concept_f1": one["concept_f1"] + 1}
        if (one["part"], one["method"]) == ("main", "DIVE, shown another patient's image")
        else one
        for one in demo_records.load()
    ]
    said_now = demo_sentences.sentences(Study(other))[-1]
    assert said_now.endswith("but 10.5 concept F1 in place of 89.3.")
    assert "main: the patient's own image, for another's, concept_f1: +78.8 ± 2.3" in (
        demo_sentences.basis(Study(other))
    )
