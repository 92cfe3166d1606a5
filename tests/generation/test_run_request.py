"""What a run asks for as one record: it travels, and its fingerprint says what is alike."""

import pickle
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny import save_studies

from dive.cli import engines
from dive.data import Skipped, read_studies
from dive.errors import DiveError
from dive.generation import run_request
from dive.generation.run_request import RunInputs, RunRequest, fingerprint, inputs_fingerprint
from dive.prompting.template_clock import AssumedDay

NOTHING = RunInputs(None, None)


@pytest.fixture
def request_of(tiny_llava):
    def made(**options):
        return RunRequest(str(tiny_llava), template_date=AssumedDay("2026-11-01"), **options)

    return made


def test_a_request_travels(request_of):
    made = request_of(engine="vllm", engine_options={"tensor_parallel_size": 2}, images=3)
    there = pickle.loads(pickle.dumps(made))
    assert there == made
    assert isinstance(there.template_date, AssumedDay)  # an adapter's own date takes precedence


def test_what_does_not_decide_a_report_does_not_count(request_of):
    one = fingerprint(request_of(), NOTHING, [])
    for more in (
        {"engine": "transformers"}, {"engine": "dive._C"}, {"batch_size": 3}, {"images": 4},
        {"on_error": "skip"},
    ):  # fmt: skip
        assert fingerprint(request_of(**more), NOTHING, []) == one
    assert fingerprint(request_of(max_new_tokens=5), NOTHING, []) != one
    inside = inputs_fingerprint(request_of(), NOTHING)
    assert {**one, **inside} == one
    assert one.keys() - inside.keys() == {"studies", "device"}
    assert run_request.of_inputs(one) == inside


def test_vllm_counts_with_its_version_and_options(request_of, monkeypatch):
    monkeypatch.setattr(run_request, "_vllm_version", lambda: "0.32.0")
    made = request_of(engine="vllm", engine_options={"quantization": "fp8"})
    one, own = fingerprint(made, NOTHING, []), fingerprint(request_of(), NOTHING, [])
    assert {name for name in one if one[name] != own.get(name)} == {
        "engine", "engine_options", "vllm",
    }  # fmt: skip
    more = {"quantization": "fp8", "gpu_memory_utilization": 0.5}
    assert fingerprint(replace(made, engine_options=more), NOTHING, []) == one
    other = {"quantization": "awq"}
    assert fingerprint(replace(made, engine_options=other), NOTHING, []) != one


def test_without_vllm_the_ways_out_are_named(request_of, monkeypatch):
    monkeypatch.setattr(run_request, "packages_distributions", dict)
    with pytest.raises(DiveError, match=r"dive-mrg\[vllm\].*, or engine dive._C or transformers$"):
        fingerprint(request_of(engine="vllm"), NOTHING, [])


@pytest.fixture
def pretended(monkeypatch):
    """Modules in the place of dive.vllm's, which note what they are called with."""
    called = []

    def iter_reports(backbone, studies, **named):
        called.append((backbone, [study.id for study in studies], named))
        return iter(())

    class Engine:
        def __init__(self, backbone, adapters, **named):
            self.backbone, self.adapters, self.named = backbone, adapters, named

        def close(self):
            called.append("closed")

    package = SimpleNamespace(__path__=[])
    monkeypatch.setitem(sys.modules, "dive.vllm", package)
    monkeypatch.setitem(sys.modules, "dive.vllm.engine", SimpleNamespace(iter_reports=iter_reports))
    monkeypatch.setitem(sys.modules, "dive.vllm.running", SimpleNamespace(Engine=Engine))
    return called


def test_vllm_is_opened_once_per_actor(request_of, pretended, tmp_path):
    """With memory for the images of the largest study and of the demonstrations before it."""
    shown = read_studies(save_studies(tmp_path, 3) / "studies.jsonl")
    made = request_of(engine="vllm", engine_options={"quantization": "fp8"}, images=2)
    write = engines.open_engine(made, RunInputs(None, shown))
    for part in (shown[:1], shown[1:]):
        assert list(write(part, Skipped())) == []
    (engine, ids, named), (again, more, _) = pretended
    assert engine is again and [*ids, *more] == [one.id for one in shown]
    assert engine.adapters == []
    assert engine.named == {
        "batch_size": 8, "max_images": 2 + 4, "dtype": "auto", "device": "auto",
        "engine_options": {"quantization": "fp8"},
    }  # fmt: skip
    # what an open engine has already is not given again
    assert not named.keys() & {"batch_size", "dtype", "device", "engine_options", "engine"}
    assert named["demonstrations"] == shown
    write.close()
    assert pretended[-1] == "closed"


def test_vllm_ends_with_a_run_of_this_process(request_of, pretended):
    made = request_of(engine="vllm", batch_size=5)
    list(engines.open_engine_once(made, NOTHING)([], Skipped()))
    ((backbone, _, named),) = pretended
    assert backbone == made.backbone and isinstance(backbone, str)
    assert named["batch_size"] == 5 and named["engine_options"] == {}


@pytest.mark.parametrize("option", [{}, {"engine": "transformers"}])
def test_the_other_engines_write_as_often_as_asked(request_of, option, tmp_path):
    studies = read_studies(save_studies(tmp_path, 2) / "studies.jsonl")
    made = request_of(max_new_tokens=2, device="cpu", **option)
    write = engines.open_engine(made, NOTHING)
    found = [report for study in studies for report in write([study], Skipped())]
    assert [report.id for report in found] == [study.id for study in studies]
    assert {report.engine for report in found} == {option.get("engine", "dive._C")}


def test_batch_sizes():
    assert engines.batch_size_of(None, "auto") == 8
    assert engines.batch_size_of(None, "vllm") == 64
    assert engines.batch_size_of(3, "vllm") == 3
    with pytest.raises(DiveError, match="--batch-size is 0, want a whole number from 1 on"):
        engines.batch_size_of(0, "auto")


def test_engine_options_are_read_as_json():
    given = ["tensor_parallel_size=2", "quantization=fp8", "enforce_eager=true"]
    assert engines.engine_options_of(given, "vllm") == {
        "tensor_parallel_size": 2, "quantization": "fp8", "enforce_eager": True,
    }  # fmt: skip
    with pytest.raises(DiveError, match="--engine-option a is given twice"):
        engines.engine_options_of(["a=1", "a=2"], "vllm")
