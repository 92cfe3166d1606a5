"""What `dive doctor` runs: every fast path is used, or its absence is told."""

import json
import os
import subprocess
import sys

import pytest
import torch
from triton_interpreter import need_an_interpreter
from typer.testing import CliRunner

from dive import ops
from dive.cli import app, self_test
from dive.decode import native
from dive.decode.session import DecodeSession

pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")


def by_name():
    return {one.name: one for one in self_test.run() if one.device == "cpu"}


def test_the_engine_is_used_and_a_cpu_has_no_use_for_triton():
    found = by_name()
    engine = found["dive._C"]
    assert engine.state == "used" and "24 tokens equal to those of transformers" in engine.why
    for name in ("Triton, steer", "Triton, decisive_cross_entropy"):
        assert found[name].state == "not used" and "no GPU" in found[name].why
    assert all(one.fine for one in found.values())


def test_an_engine_that_is_left_out_is_found(monkeypatch):
    reason = "dive._C is there but cannot be loaded: [x] too short"
    found = native.Found(None, native.NOT_LOADABLE, reason)
    monkeypatch.setattr(native, "find", lambda: found)
    engine = by_name()["dive._C"]
    assert (engine.state, engine.fine, engine.why) == ("not used", False, reason)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1 and "Not as it should be: dive._C on cpu" in result.stdout
    assert result.stdout.count(reason) == 2 and f"not loadable: {reason}" in result.stdout
    assert "not built" not in result.stdout
    result = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == 1 and told["extension"] is None
    assert told["extension_state"] == {"state": "not loadable", "reason": reason}


def test_an_engine_that_writes_something_else_is_found(monkeypatch):
    right = DecodeSession.generate

    def wrong(self, **kwargs):
        tokens = right(self, **kwargs)
        tokens[0, -1] += 1
        return tokens

    monkeypatch.setattr(DecodeSession, "generate", wrong)
    engine = by_name()["dive._C"]
    assert (engine.state, engine.fine) == ("wrong", False) and "tokens differ" in engine.why


@pytest.mark.parametrize("name", ["steer", "decisive_cross_entropy"])
@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_an_operator_that_computes_something_else_is_found(name, factor, monkeypatch):
    right = getattr(ops, name)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return result * factor
        return result._replace(loss=result.loss * factor)

    monkeypatch.setattr(ops, name, wrong)
    one = by_name()[f"Triton, {name}"]
    assert (one.state, one.fine) == ("wrong", False) and "relative error" in one.why


def test_what_breaks_is_a_finding(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("CUDA error: no kernel image\nmore lines")

    monkeypatch.setattr(ops, "steer", broken)
    one = by_name()["Triton, steer"]
    assert (one.state, one.why) == ("wrong", "RuntimeError: CUDA error: no kernel image")


def test_a_device_that_cannot_be_used_costs_only_its_own_findings(monkeypatch):
    """With GPUs that are full or that this torch has no kernels for the CPU is still looked at."""

    class Broken(Exception):
        pass

    right = self_test.load_backbone

    def load(path, dtype, device):
        if device.type == "cuda":
            raise Broken("no kernel image for this device\nmore")
        return right(path, dtype=dtype, device=device)

    monkeypatch.setattr(self_test, "load_backbone", load)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = self_test.run()
    assert [one.state for one in found] == ["used", "not used", "not used"] + ["wrong"] * 3
    assert {one.why for one in found[3:]} == {"Broken: no kernel image for this device"}
    assert {one.device for one in found[3:]} == {"cuda:0"}


INTERPRETED = """
import json
from dive.cli import self_test
from dive.ops import triton_path
triton_path.install("CPU")
print(json.dumps([one._asdict() for one in self_test.run()]))
"""


def test_kernels_that_are_used_are_told_so():
    need_an_interpreter()
    result = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        capture_output=True, text=True, check=True, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    found = {one["name"]: one for one in json.loads(result.stdout)}
    for name in ("Triton, steer", "Triton, decisive_cross_entropy"):
        assert found[name]["state"] == "used" and "relative error" in found[name]["why"]
