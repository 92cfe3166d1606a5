"""What was renamed: the old names of `dive.data` and of `JsonlWriter` work, and warn."""

from pathlib import Path

import pytest

import dive.data
from dive.data import ReadingSummary, open_studies
from dive.files.json_lines import JsonlWriter, fingerprint_before


def test_a_reading_report_is_a_reading_summary() -> None:
    with pytest.warns(FutureWarning, match=r"dive\.data\.ReadingReport is called dive\.data\.Read"):
        assert dive.data.ReadingReport is ReadingSummary
    with pytest.raises(AttributeError, match="no attribute 'Reports'"):
        getattr(dive.data, "Reports")  # noqa: B009 (a name that is none)


def test_the_report_of_studies_is_their_summary(tmp_path: Path) -> None:
    studies = open_studies([{"id": "a", "image": tmp_path / "a.png", "findings": "Clear."}] * 2,
                           on_error="skip", check_files=False).read()  # fmt: skip
    with pytest.warns(FutureWarning, match=r"Studies\.report is called summary now"):
        summary = studies.report
    assert summary is studies.summary and summary.kept == 1
    with pytest.warns(FutureWarning, match=r"ReadingSummary\.rows is called records now"):
        assert summary.rows is summary.records and sum(summary.records.values()) == 1
    with pytest.warns(FutureWarning, match=r"ReadingSummary\.summary is called outcome now"):
        assert summary.summary() == summary.outcome() == "1 of 1 studies kept"


def test_what_describes_a_run_is_its_fingerprint(tmp_path: Path) -> None:
    with (
        pytest.warns(FutureWarning, match=r"JsonlWriter\.__init__\(run=\.\.\.\) is called finger"),
        JsonlWriter(tmp_path / "a.jsonl", run={"a": 1}) as writer,
    ):
        writer.append({"id": "x"})
    assert fingerprint_before(tmp_path / "a.jsonl") == {"a": 1}
