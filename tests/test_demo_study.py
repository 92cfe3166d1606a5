"""The study: its protocol, and its tables as they stand in the pages."""

import json

import pytest

from dive.demo import methods, run, study, study_tables
from dive.errors import DiveError


def record(method="DIVE", hospital=1, seed=0, **scores):
    return {
        "part": "main", "hospital": hospital, "seed": seed, "method": method, "bleu4": 90.0,
        "rouge_l": 92.0, "style_f1": 60.0, "concept_f1": 70.0, "terminated": 99.0,
        "length_ratio": 1.0,
    } | scores  # fmt: skip


def test_no_hospital_serves_two_ends():
    ends = (study.TEST_HOSPITALS, study.DEVELOPMENT_HOSPITALS, (run.HOSPITAL,))
    assert len({*ends[0], *ends[1], *ends[2]}) == sum(len(end) for end in ends)
    for name, part in study.PARTS.items():
        own = study.DEVELOPMENT_HOSPITALS if name == "development" else study.TEST_HOSPITALS
        assert part.hospitals == own
        names = [method.name for method in part.methods]
        assert len(set(names)) == len(names)


def test_every_difference_names_methods_of_the_study():
    names = {method.name for method in study.PARTS["main"].methods}
    for _, with_it, without in study_tables.DIFFERENCES:
        assert {with_it, without} <= names


def test_scores_are_means_over_runs():
    records = [record(), record(hospital=2, bleu4=80.0), record("DIVE, rank 1")]
    for name, rows in (("scores", 4), ("demo scores", 3)):
        page = study_tables.fill(f"<!-- study: {name}, main -->\n<!-- end -->", records)
        assert "| **DIVE** | 2 | 85.0 ± 7.1 |" in page
        assert page.count("\n|") == rows


def test_differences_are_paired_and_spread_over_hospitals():
    plain = "DIVE, uniform weights"
    records = [
        record(style_f1=64.0), record(seed=1, style_f1=61.0), record(hospital=2, style_f1=70.0),
        record(plain), record(plain, seed=1, style_f1=62.0), record(plain, hospital=2),
        record("zero-shot", seed=None, bleu4=10.0),
    ]  # fmt: skip
    text = study_tables.differences(records)
    # hospital 1: +4 and -1, hospital 2: +10; t(1) * sd(1.5, 10) / sqrt(2) = 54.0
    assert "| decisive weights | +0.0 ± 0.0 (0 of 3) | +5.8 ± 54.0 (2 of 3) |" in text
    # without a second hospital no interval; what is not trained is compared with every seed
    assert "| DIVE in place of no adapter | +80.0 (2 of 2) |" in text
    assert "LIVE" not in text


def test_a_run_appends_what_is_missing(tmp_path, monkeypatch):
    rows = []

    def run_method(method, backbone, where, *, seed, steps):
        rows.append((method.name, where.seed, seed, steps))
        return methods.Outcome({key: 1.0 for key in study_tables.SCORES}, [])

    monkeypatch.setattr(study.m, "run_method", run_method)
    monkeypatch.setattr(study.m, "open_hospital", lambda n, *_: methods.Hospital(n, *[None] * 4))
    monkeypatch.setitem(
        study.PARTS,
        "main",
        study.Part((methods.ZERO_SHOT, methods.DIVE), hospitals=(11, 12), seeds=(0, 1), steps=7),
    )
    out = tmp_path / "records.jsonl"
    study.main(["--part", "main", "--hospitals", "12", "--out", str(out)])
    assert rows == [("zero-shot", 12, 0, 7), ("DIVE", 12, 0, 7), ("DIVE", 12, 1, 7)]
    study.main(["--part", "main", "--out", str(out)])
    assert [row[1] for row in rows] == [12] * 3 + [11] * 3
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["hospital"], one["seed"]) for one in found] == [
        (12, None), (12, 0), (12, 1), (11, None), (11, 0), (11, 1),
    ]  # fmt: skip
    with pytest.raises(DiveError, match="part is 'mane', want one of development, main"):
        study.main(["--part", "mane"])
    with pytest.raises(DiveError, match="none of the hospitals"):
        study.main(["--part", "main", "--hospitals", "3", "--out", str(out)])


def test_the_control_writes_from_the_next_patients_image(monkeypatch):
    where = methods.open_hospital(901, train=1, test=3)
    seen = []

    def generate(backbone, test, **kwargs):
        seen.extend(test)
        return []

    monkeypatch.setattr("dive.generate", generate)
    monkeypatch.setattr(methods, "score", lambda *_: {})
    control = methods.Method("control", others_images=True)
    methods.run_method(control, None, where)
    assert [s.id for s in seen] == [s.id for s in where.test]
    assert [s.images for s in seen] == [where.test[n].images for n in (1, 2, 0)]


@pytest.mark.parametrize("page", study.PAGES, ids=lambda path: path.name)
def test_the_pages_show_the_study_as_it_was_recorded(page):
    text = page.read_text(encoding="utf-8")
    assert study_tables.fill(text, study.load(study.RESULTS)) == text


def test_a_page_asks_for_tables_that_there_are():
    with pytest.raises(DiveError, match="the page has no"):
        study_tables.fill("nothing", [])
    with pytest.raises(DiveError, match=r"no table 'scores' of part 'other'.*of main"):
        study_tables.fill("<!-- study: scores, other -->\n<!-- end -->", [record()])
