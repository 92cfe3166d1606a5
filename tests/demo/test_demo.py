"""The embedded world: drawn films, their reports, exact extractors, the demo itself."""

import json
import re

import numpy as np
import pytest

import dive
from dive.data import read_studies
from dive.demo import methods, run
from dive.demo.processor import build_tokenizer
from dive.demo.reports import concept_findings, micro_f1, style_findings, write_report
from dive.demo.style import draw_style, hospital_style
from dive.demo.table import caution
from dive.demo.world import FINDINGS, HOME, SHIFTED, SIZE, draw_images, draw_labels
from dive.page import training_of


def drawn_reports(styles, each, seed):
    rng = np.random.default_rng(seed)
    for _ in range(styles):
        style = draw_style(rng)
        for severities in draw_labels(each, rng):
            yield style, severities, write_report(style, severities)


def test_both_extractors_are_exact_on_what_is_written():
    for style, severities, report in drawn_reports(300, 10, seed=5):
        stated = frozenset((i, int(s)) for i, s in enumerate(severities) if s)
        assert style_findings(report, style) == stated, report
        assert concept_findings(report) == frozenset(i for i, _ in stated), report


def test_another_hospitals_wording_is_no_style_match():
    wrong = total = 0
    rng = np.random.default_rng(8)
    for _, severities, report in drawn_reports(40, 10, seed=9):
        other = draw_style(rng)
        stated = {(i, int(s)) for i, s in enumerate(severities) if s}
        wrong += len(style_findings(report, other) & stated)
        total += len(stated)
        assert concept_findings(report) == frozenset(i for i, _ in stated)
    assert wrong < 0.1 * total


def test_every_report_is_made_of_known_words():
    tokenizer = build_tokenizer()
    for _, _, report in drawn_reports(100, 3, seed=6):
        ids = tokenizer(report, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == report


def test_pictures_show_what_the_labels_say():
    labels = np.zeros((2, len(FINDINGS)), dtype=np.int64)
    for finding in range(len(FINDINGS)):
        labels[1] = 0
        labels[1, finding] = 3
        # the same noise for both, so that only the finding differs
        pictures = [
            draw_images(labels[[i, i]], np.random.default_rng(1)).astype(int) for i in (0, 1)
        ]
        apart = np.abs(pictures[0] - pictures[1])
        assert pictures[0].shape == (2, SIZE, SIZE)
        assert apart.mean() > 0.5, FINDINGS[finding]


def test_a_site_is_rarer_and_paler():
    rng = np.random.default_rng(2)
    home, away = (draw_labels(2000, rng, site) for site in (HOME, SHIFTED))
    assert 0.4 < (away > 0).mean() / (home > 0).mean() < 0.6
    blank = np.zeros((8, len(FINDINGS)), dtype=np.int64)
    one, other = (draw_images(blank, np.random.default_rng(3), site) for site in (HOME, SHIFTED))
    assert other.std() < one.std()


def test_hospitals_are_repeatable_and_differ():
    assert hospital_style(5) == hospital_style(5)
    assert hospital_style(5) != hospital_style(6)
    first, again = (methods.open_hospital(5, train=3, test=2) for _ in range(2))
    assert first.references == again.references
    image, twin = first.test[0].images[0], again.test[0].images[0]
    assert np.array_equal(np.asarray(image), np.asarray(twin))
    groups = (first.train, first.demonstrations, first.test)
    assert len({s.id for group in groups for s in group}) == 3 + methods.DEMONSTRATIONS + 2


def test_f1_is_of_all_findings_together():
    assert micro_f1([frozenset({1, 2})], [frozenset({2, 3})]) == 50.0
    assert micro_f1([frozenset()], [frozenset()]) == 100.0
    assert micro_f1([frozenset()], [frozenset({1})]) == 0.0


@pytest.fixture(scope="module")
def backbone():
    return dive.load_backbone(methods.BACKBONE, dtype="float32", device="cpu")


def test_the_backbone_is_small_and_ordinary(backbone):
    assert type(backbone.model).__name__ == "LlavaForConditionalGeneration"
    weights = methods.BACKBONE / "model.safetensors"
    assert weights.stat().st_size <= 10e6


def test_the_backbone_learns_in_context_and_runs_on(backbone):
    where = methods.open_hospital(901, train=1, test=12, site=HOME)
    few = methods.run_method(methods.FEW_SHOT, backbone, where).record
    none = methods.run_method(methods.ZERO_SHOT, backbone, where).record
    assert few["bleu4"] > none["bleu4"] + 30
    assert none["terminated"] < 50
    assert few["prompt_tokens"] > 3 * none["prompt_tokens"]


def test_the_demo_writes_what_it_says(backbone, tmp_path, capsys):
    chosen = [methods.ZERO_SHOT, methods.DIVE]
    rows = run.main(tmp_path, train=16, test=6, steps=8, methods=chosen)
    keys = {
        "method", "bleu4", "rouge_l", "style_f1", "concept_f1", "terminated", "length_ratio",
        "ms_per_report", "prompt_tokens",
    }  # fmt: skip
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    assert [row["method"] for row in rows] == ["zero-shot", "DIVE"]
    assert all(row.keys() == keys for row in rows)
    assert all(0 <= row[k] <= 100 for row in rows for k in keys - {"method", "length_ratio",
               "ms_per_report", "prompt_tokens"})  # fmt: skip
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'src="http' not in page and 'href="http' not in page  # nothing is loaded
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert [one["name"] for one in data["methods"]] == ["zero-shot", "DIVE"]
    assert [one["scores"] for one in data["differences"]] and data["bootstrap"]["samples"] == 1000
    shown = {key: 100 * one["value"] for key, one in data["scores"][1].items()}
    for key in ("style_f1", "concept_f1", "bleu4"):
        assert shown[key] == pytest.approx(rows[1][key], abs=0.05), key  # one digit in the table
    assert all(one["images"][0]["src"].startswith("data:image/jpeg") for one in data["studies"])
    assert [one["name"] for one in data["training"]] == ["DIVE"]
    inside = data["explained"]
    assert inside["method"] == 1 and len(inside["studies"]) == 6
    assert inside["studies"][0]["tokens"][-1] == "</s>"
    studies = read_studies(tmp_path / "test.jsonl", target="findings")
    reports = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_text().splitlines()]
    assert [r["id"] for r in reports] == [s.id for s in studies]
    assert (tmp_path / "predictions" / "DIVE.jsonl").read_bytes() == (
        tmp_path / "reports.jsonl"
    ).read_bytes()
    assert len((tmp_path / "predictions" / "zero-shot.jsonl").read_text().splitlines()) == 6
    assert training_of("DIVE", tmp_path / "adapter")[0] == data["training"][0]
    adapter = dive.SteeringAdapter.from_pretrained(tmp_path / "adapter")
    again = dive.generate(
        backbone, studies[0], adapter=adapter, max_new_tokens=methods.MAX_NEW_TOKENS
    )
    assert again[0].text == reports[0]["report"]
    printed = capsys.readouterr().out
    assert "Try next" in printed
    # at the head of the page, and below the table in the terminal
    said = caution(rows)
    assert data["notes"][1] == said and "no medical model" in data["notes"][0]
    assert said in " ".join(printed.split())


def test_the_table_says_where_the_full_method_is_below_another():
    names = ["zero-shot", "DIVE, uniform weights", "DIVE"]
    keys = ("bleu4", "rouge_l", "style_f1", "concept_f1", "terminated", "length_ratio",
            "ms_per_report", "prompt_tokens")  # fmt: skip
    rows = [{"method": name} | dict.fromkeys(keys, 50.0) for name in names]
    assert "example, not evidence" in caution(rows)
    # equal is not below; a column that is no score does not count
    rows[0] |= {"prompt_tokens": 400.0, "length_ratio": 60.0}
    assert "Here it is below none." in caution(rows)
    rows[1] |= {"bleu4": 50.1, "concept_f1": 51.0, "style_f1": 49.0}
    assert "Here DIVE is below DIVE, uniform weights (BLEU-4, concept F1)." in caution(rows)
    rows[0]["terminated"] = 100.0
    assert (
        "Here DIVE is below zero-shot (ended %); DIVE, uniform weights (BLEU-4, concept F1)."
    ) in caution(rows)
    assert "Here" not in caution(rows[:2])
