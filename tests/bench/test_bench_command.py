"""`dive bench` at toy size: records and units, wrong operators, no time, bad input."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dive import bench, ops
from dive.bench import cross_entropy, decode, observe, peers, request, runner, steer, timing
from dive.bench.rates import Rates, read_buffer, reads
from dive.cli import app
from dive.decode import engine, fallback, native
from dive.errors import DiveError, FallbackWarning

ROW = {
    "operator", "case", "mode", "way", "ran", "milliseconds", "samples", "beside", "times", "rate",
    "rate_unit", "floor_share",
}  # fmt: skip
HEAD = {
    "schema", "dive", "machine", "device", "dtype", "threads", "toy", "seconds", "seconds_taken",
    "rates", "rows", "not_run", "wrong",
}  # fmt: skip
UNITS = {"cross-entropy": "GFLOP/s", "steer": "GB/s", "decode": "tokens/s"}
CPU = torch.device("cpu")
FAST = Rates(1e12, 1e10, 1e10, "sum")
built = pytest.mark.skipif(not native.available(), reason="dive._C is not built")


def call(*arguments):
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def toy(*operators, **options):
    return bench.run(operators, device="cpu", toy=True, **options)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One run of everything: its output and its JSON."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    result = call("--toy", "--device", "cpu", "--json", path)
    assert result.exit_code == 0
    return result.stdout, json.loads(path.read_text(encoding="utf-8"))


def test_the_json(found):
    _, told = found
    assert set(told) == HEAD
    assert told["schema"] == 1 and told["toy"] is True and told["wrong"] == []
    assert (told["device"], told["dtype"]) == ("cpu", "float32") and told["threads"] >= 1
    assert 0 < told["seconds_taken"] < told["seconds"] == 60
    assert all(told["machine"][key] for key in ("device", "cores", "torch", "python", "versions"))
    rates = dict(told["rates"])
    assert rates.pop("read_by") in reads(read_buffer(CPU, True))
    assert set(rates) == {"products_gflop_s", "copies_gb_s", "reads_gb_s"}
    assert all(value > 0 for value in rates.values())
    for row in told["rows"]:
        assert set(row) == ROW
        assert row["rate_unit"] == UNITS[row["operator"]] and row["rate"] > 0
        taken = row["milliseconds"]
        assert 0 < taken["low"] <= taken["median"] <= taken["high"] and row["samples"] >= 2
        assert row["floor_share"] > 0
        if row["beside"] is not None:
            assert 0 < row["times"]["low"] <= row["times"]["median"] <= row["times"]["high"]
        else:
            assert row["times"] is None and row["way"] in ("floor", "dive", "session")
    for one in told["not_run"]:
        assert set(one) == {"operator", "case", "way", "reason"} and all(one.values())


def test_every_operator_has_its_ways_and_every_peer_a_row_or_a_reason(found):
    _, told = found
    ways = {name: {r["way"] for r in told["rows"] if r["operator"] == name} for name in UNITS}
    assert ways["decode"] == {"floor", *decode.WAYS}
    assert {"floor", "dive", "reference", "reference on live rows"} <= ways["cross-entropy"]
    assert ways["steer"] == {"floor", "dive", "reference", "reference, compiled"}
    assert {r["mode"] for r in told["rows"] if r["operator"] == "steer"} == set(steer.PASSES)
    for case in cross_entropy.cases(CPU, True, 0):
        rows = {r["way"].removesuffix(peers.GATHERED) for r in told["rows"]
                if r["case"] == case.name}  # fmt: skip
        reasons = {one["way"] for one in told["not_run"] if one["case"] == case.name}
        assert set(peers.LIBRARIES) <= rows | reasons
        assert len(rows & set(peers.LIBRARIES)) <= 1  # the fastest of them


@built
def test_what_ran(found):
    _, told = found
    ran = {(r["operator"], r["way"]): r["ran"] for r in told["rows"]}
    assert ran["decode", "session"] == ran["decode", "session, steered"] == "dive._C"
    assert ran["decode", "transformers"] == ran["decode", "transformers, steered"] == "transformers"
    assert ran["steer", "dive"] == ran["cross-entropy", "dive"] == "cpu operator"
    assert ran["steer", "reference"] == "dive.reference"


def test_the_table_has_units_the_machine_and_what_was_not_run(found):
    shown, told = found
    assert f"torch {torch.__version__}" in shown and "thread" in shown and "cpu, float32" in shown
    assert "measured here: matrix products" in shown
    for word in ("ms", "GB/s", "GFLOP/s", "tokens/s", "%", "decode, a token of 3", "mean nothing"):
        assert word in shown, word
    for row in told["rows"]:
        assert row["way"] in shown and row["ran"] in shown
    flat = " ".join(shown.split())
    assert "not run: cross-entropy, 48 tokens" in flat and "liger-kernel is not installed" in flat


def test_json_on_stdout_is_alone_there():
    told = json.loads(call("steer", "--toy", "--device", "cpu", "--json", "-").stdout)
    assert {row["operator"] for row in told["rows"]} == {"steer"}


@built
@pytest.mark.filterwarnings("ignore::dive.errors.FallbackWarning")
def test_a_fallback_is_seen_in_the_rows(monkeypatch):
    monkeypatch.setattr(fallback, "_CACHE_LAYERS", ())
    results = toy("decode")
    ran = {row.way: row.ran for row in results.records}
    assert ran["session"] == ran["session, steered"] == "transformers"
    (session, _) = [one for one in results.unmeasured if "dive._C" in one.way]
    assert "the cache has a DynamicLayer" in session.reason
    assert results.wrong == []  # slow, but correct


@built
def test_a_fallback_is_a_warning_too(monkeypatch):
    monkeypatch.setattr(fallback, "_CACHE_LAYERS", ())
    with pytest.warns(FallbackWarning, match="DynamicLayer"):
        toy("decode")


def test_an_engine_that_is_not_there_is_seen_in_the_rows(monkeypatch):
    missing = native.Found(None, native.NOT_BUILT, "dive._C is not built here")
    monkeypatch.setattr(native, "find", lambda: missing)
    with pytest.warns(FallbackWarning, match="not built"):
        results = toy("decode")
    assert {row.ran for row in results.records if row.way != "floor"} == {"transformers"}
    assert any("not built" in one.reason for one in results.unmeasured)


# wrong operators

_STEER, _LOSS, _PACK = ops.steer, ops.decisive_cross_entropy, native.pack_steering


def off_by_a_little(h, *parameters, **options):
    return _STEER(h, *parameters, **options) * 1.01


def other_gradient(h, *parameters, **options):
    out = _STEER(h, *parameters, **options)
    return out.detach() + (h - h.detach()) * 1.0 + 0 * (out - out.detach())


def no_number(h, *parameters, **options):
    return _STEER(h, *parameters, **options) * math.nan


def fails(*_, **__):
    raise RuntimeError("an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(off_by_a_little, "its result is 1.00% off"), (other_gradient, "its gradient for"),
     (no_number, "nan% off"), (fails, "it fails: RuntimeError: an illegal memory access")],
)  # fmt: skip
def test_a_wrong_steer_is_not_timed(wrong, said, monkeypatch):
    monkeypatch.setattr(ops, "steer", wrong)
    results = toy("steer")
    assert results.records == [] and len(results.wrong) == 2 and said in results.wrong[0].reason
    assert results.as_json()["wrong"][0]["operator"] == "steer"


def scaled_loss(*given, **options):
    found = _LOSS(*given, **options)
    return found._replace(loss=found.loss * 1.01)


def scaled_gradient(*given, **options):
    found = _LOSS(*given, **options)
    return found._replace(loss=found.loss.detach() + 0.5 * (found.loss - found.loss.detach()))


def leaks_into_dead_rows(hidden, *given, **options):
    found = _LOSS(hidden, *given, **options)
    return found._replace(loss=found.loss + 1e-2 * (hidden - hidden.detach()).sum())


@pytest.mark.parametrize("wrong", [scaled_loss, scaled_gradient, leaks_into_dead_rows, fails])
def test_a_wrong_loss_is_not_timed_and_the_command_fails(wrong, monkeypatch, tmp_path):
    monkeypatch.setattr(ops, "decisive_cross_entropy", wrong)
    path = tmp_path / "bench.json"
    with pytest.raises(DiveError, match="cross-entropy is wrong here .*: it"):
        call("cross-entropy", "--toy", "--device", "cpu", "--json", path)
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["rows"] == [] and len(told["wrong"]) == 2


@built
def test_a_wrong_decode_is_not_timed(monkeypatch):
    copy_cache = engine.EngineCache.copy_cache

    def elsewhere(self, row, layers, source, pad, length, position, steering):
        copy_cache(self, row, layers, source, pad, length, position + 1, steering)

    monkeypatch.setattr(engine.EngineCache, "copy_cache", elsewhere)
    results = toy("decode")
    assert results.records == [] and results.wrong[0].reason.startswith("session: ")


@built
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # all that it decodes on a CPU
def test_wrong_steering_in_the_engine_is_not_timed(dtype, monkeypatch):
    def twice(down, bias, up, static, scale, **options):
        return _PACK(down, bias, up, static, 2 * scale, **options)

    assert toy("decode", dtype=dtype).wrong == []
    monkeypatch.setattr(native, "pack_steering", twice)
    results = toy("decode", dtype=dtype)
    assert results.records == [] and results.wrong[0].reason.startswith("session, steered: ")


def test_a_wrong_peer_is_named_and_not_timed(monkeypatch):
    double = lambda p: lambda: 2 * peers.reference_eager(p)()  # noqa: E731
    monkeypatch.setattr(peers, "LIBRARIES", {"double": double})
    results = toy("cross-entropy")
    assert results.wrong == [] and "double" not in {row.way for row in results.records}
    assert "100% off the reference's" in results.unmeasured[0].reason


# no time


def test_no_time_at_all_measures_nothing_and_names_everything(tmp_path):
    path = tmp_path / "bench.json"
    with pytest.raises(DiveError, match="nothing was measured in 0.01 seconds"):
        call("--toy", "--device", "cpu", "--seconds", 0.01, "--json", path)
    told = json.loads(path.read_text(encoding="utf-8"))
    names = {(one["operator"], one["case"]) for one in told["not_run"]}
    wanted = {(case.operator, case.name) for module in (cross_entropy, steer, decode)
              for case in module.cases(CPU, True, 0)}  # fmt: skip
    assert names == wanted and told["rows"] == []


# timing


def test_ways_take_turns_after_a_warm_up():
    called = []
    taken = timing.turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3)
    assert "".join(called) == "abbaabba" and {name: len(v) for name, v in taken.items()} == {
        "a": 3, "b": 3
    }  # fmt: skip


def test_an_interval_holds_its_median():
    assert timing.interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    median, low, high = timing.interval([float(n) for n in range(100)])
    assert median == 49.5 and (low, high) == (40.0, 59.0)


def test_the_gpu_clock_flushes_before_each_call(monkeypatch):
    """As far as possible on a CPU: events that read a clock."""

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = time.perf_counter()

        def elapsed_time(self, end):
            return 1e3 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    flush, held = torch.empty(8, dtype=torch.int8), []

    def slow():
        held.append(int(flush.sum()))
        flush.fill_(1)
        time.sleep(0.01)

    assert 0.01 < timing.cold_gpu_seconds(slow, 3, flush) < 0.5
    assert held == [0, 0, 0]
    assert 0.01 < timing.gpu_seconds(slow, 2) < 0.5 and timing.repeats_for(slow, 9) == 1


def test_the_threads_are_what_the_load_leaves_and_are_put_back(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (2.6, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert runner.idle_threads() == 5
    monkeypatch.setattr(os, "getloadavg", lambda: (60.0, 0.0, 0.0))
    assert runner.idle_threads() == 1
    monkeypatch.undo()
    before, during = torch.get_num_threads(), []
    monkeypatch.setattr(runner, "_run_all", lambda *_: during.append(torch.get_num_threads()))
    results = toy("steer", threads=before + 1)
    assert results.head["threads"] == before + 1 and during == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("seconds", [60, 1e-3])
def test_the_callers_torch_is_as_before(seconds):
    torch.manual_seed(7)
    torch.rand(3)
    before = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(before + 1)  # more than the run has: its own would wait for a core
    try:
        with torch.no_grad():
            state = torch.get_rng_state()
            results = toy(threads=before, seconds=seconds)
            assert torch.equal(torch.get_rng_state(), state)
            assert torch.get_default_dtype() == torch.float64
            assert torch.get_num_threads() == before + 1 and not torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(before)
    # and the run does not depend on it
    assert results.wrong == []
    if seconds == 60:
        assert {"forward", "forward+backward"} <= {row.mode for row in results.records}
        assert {row.operator for row in results.records} == {*UNITS}
    else:
        assert results.records == []


# what ran


def test_code_that_is_not_known_is_not_given_a_name():
    assert observe.operator(lambda: sum([1]), CPU) == "unknown"
    assert observe.decoder(2, 2, 18) == "dive._C" and observe.decoder(18, 2, 18) == "transformers"
    assert observe.decoder(6, 2, 18).startswith("transformers for 4 of 16 tokens")


def test_watching_leaves_no_trace():
    before, model = sys.getprofile(), torch.nn.Linear(2, 2)
    forwards = observe.Forwards(model)
    model(torch.zeros(1, 2))
    forwards.close()
    model(torch.zeros(1, 2))
    assert forwards.count == 1 and not model._forward_pre_hooks
    with pytest.raises(ZeroDivisionError):
        observe.functions_run(lambda: 1 // 0)
    assert sys.getprofile() is before


# bad input


def test_bad_input_costs_no_import_of_torch():
    code = "import sys; sys.argv = ['dive', 'bench', *sys.argv[1:]]\n" \
           "from dive.cli import main\n" \
           "try: main()\nexcept SystemExit as end: assert end.code == 1\n" \
           "assert 'torch' not in sys.modules, 'torch was imported'"  # fmt: skip
    for arguments in (["nonsense"], ["--seconds", "nan"], ["--device", "tpu"], ["--dtype", "int8"],
                      ["--threads", "0"]):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and done.stderr.startswith("error: bench: "), done.stderr


def test_the_operators_may_have_the_names_of_the_api():
    assert request.operators_of(["cross_entropy", "steer", "cross-entropy"]) == [
        "cross-entropy", "steer"
    ]  # fmt: skip
    assert request.operators_of([]) == list(bench.OPERATORS)
    results = bench.run(["cross_entropy"], device="cpu", toy=True)
    assert {row.operator for row in results.records} == {"cross-entropy"}


def test_no_folder_is_made_for_a_result_that_is_none(tmp_path):
    path = tmp_path / "not" / "there" / "bench.json"
    with pytest.raises(DiveError, match="nothing was measured .* is not written, there is no such"):
        call("--toy", "--device", "cpu", "--seconds", 0.01, "--json", path)
    assert list(tmp_path.iterdir()) == []
    call("steer", "--toy", "--device", "cpu", "--json", path)
    assert json.loads(path.read_text())["rows"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("softmax",), "operator is 'softmax', want one of cross-entropy, steer, decode"),
        (("steer", "decode", ""), "operator is ''"),
        (("--device", "tpu"), "device is 'tpu', want auto, cpu, cuda"),
        (("steering",), "operator is 'steering'"),
        (("--device", "cuda:x"), "device is 'cuda:x'"),
        (("--device", "meta"), "device is 'meta'"),
        (("--device", "cuda:7"), "device is 'cuda:7', and there "),
        (("--dtype", "float64"), "dtype is 'float64', want auto, float32, bfloat16, float16"),
        (("--dtype", "fp8"), "dtype is 'fp8'"),
        (("--seconds", "0"), "seconds is 0"),
        (("--seconds", "-3"), "seconds is -3"),
        (("--seconds", "nan"), "seconds is nan"),
        (("--seconds", "inf"), "seconds is inf"),
        (("--threads", "0"), "threads is 0, want 1 or more"),
    ],
)
def test_bad_input_is_named(arguments, said):
    with pytest.raises(DiveError, match=said):
        call("--toy", *arguments)


def places_to_refuse(folder: Path):
    (folder / "folder").mkdir()
    (folder / "link").symlink_to(folder / "nowhere")
    (folder / "device").symlink_to("/dev/null")
    os.mkfifo(folder / "pipe")
    (folder / "file").write_text("kept")
    return {
        folder / "folder": "is a folder, want the name of a file",
        "/dev/null": "no regular file",
        folder / "device": "no regular file",
        folder / "pipe": "no regular file",
        folder / "link": "no regular file",
        folder / "file" / "x.json": "is a file",
    }


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "run", lambda *_, **__: pytest.fail("it ran"))
    for place, said in places_to_refuse(tmp_path).items():
        with pytest.raises(DiveError, match=said):
            call("--toy", "--json", place)
    assert (tmp_path / "file").read_text() == "kept"
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


def test_old_names_work_and_warn() -> None:
    with pytest.warns(FutureWarning, match="dive.bench.Row is called dive.bench.Record now"):
        assert bench.Row is bench.Record
    with pytest.warns(FutureWarning, match="dive.bench.NotRun is called dive.bench.Unmeasured now"):
        assert bench.NotRun is bench.Unmeasured
    results = bench.Results({})
    for old, new in (("rows", "records"), ("not_run", "unmeasured")):
        with pytest.warns(FutureWarning, match=f"Results.{old} is called {new} now"):
            assert getattr(results, old) is getattr(results, new)
    with pytest.raises(AttributeError, match="no attribute 'Rows'"):
        bench.Rows  # noqa: B018
