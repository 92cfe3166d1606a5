"""`dive generate --ray --engine vllm`: one vLLM in an actor, with an adapter and films."""

import tempfile
from pathlib import Path

import pytest
from command_line import call, rows
from tiny import save_studies
from tiny_steering import randomised
from vllm_here import needs_vllm, save_served

import dive

ray = pytest.importorskip("ray", reason="ray is not installed: make test-vllm has it")
pytestmark = [*needs_vllm, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def session(monkeypatch):
    """A session of Ray on this machine; its folder's path must be short."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False,
                 object_store_memory=100_000_000, _temp_dir=folder)  # fmt: skip
        yield
        ray.shutdown()


def test_reports_are_those_of_one_process_without_vllm(session, tmp_path):
    model = save_served("LLaVA", tmp_path / "model")
    backbone = dive.load_backbone(model, device="cpu")
    randomised(backbone, seed=1, rank=4, strength=0.3).save_pretrained(tmp_path / "ward")
    studies = save_studies(tmp_path / "studies", 8) / "studies.jsonl"
    given = ("generate", "--backbone", model, "--adapter", tmp_path / "ward", "--studies", studies,
             "--device", "cpu", "--max-new-tokens", 8)  # fmt: skip
    call(*given, "--out", tmp_path / "wanted.jsonl")
    over_ray = ("--ray", "--actors", 1, "--engine", "vllm", "--engine-option", "enforce_eager=true")
    call(*given, "--out", tmp_path / "out.jsonl", *over_ray)
    own = {"seconds": None, "engine": None}
    found = [{**row, **own} for row in rows(tmp_path / "out.jsonl")]
    assert found == [{**row, **own} for row in rows(tmp_path / "wanted.jsonl")]
    assert {row["engine"] for row in rows(tmp_path / "out.jsonl")} == {"vllm"}
    assert {row["adapter"] for row in found} == {"ward"}
    assert len({row["report"] for row in found}) > 4
