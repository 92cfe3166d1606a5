"""The page of benchmarks, conclusions of stages, resumption, and peers that compute the same."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from benchmarks import compiled_loop, decode_pairs, peers, render_page, stages, timing
from dive.bench.decoders import build
from dive.decode.session import DecodeSession


def test_the_committed_page_is_what_the_results_say() -> None:
    assert render_page.PAGE.read_text(encoding="utf-8") == render_page.render_page(), (
        "python -m benchmarks.render_page renders it again"
    )


def test_what_the_page_of_decoding_says_of_a_second_thread() -> None:
    rows = json.loads((render_page.RESULTS / "cpu-engine-threads.json").read_text("utf-8"))["rows"]
    ratios = [row["ratio"] for row in rows if row["neighbours"] and row["threads"] == 2]
    page = (render_page.RESULTS.parents[1] / "docs" / "decoding.md").read_text("utf-8")
    assert f"took {min(ratios):.2f} to {max(ratios):.2f} times that of one" in page


def test_the_committed_plots_are_drawn_from_the_results() -> None:
    found = render_page.load()
    for kind in render_page.OPERATORS:
        shown = render_page.bars(kind, found)
        path = render_page.RESULTS / f"{kind}.svg"
        assert shown and render_page.digest(shown) in path.read_text(encoding="utf-8"), kind
        assert path.stat().st_size < 100_000


def test_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = {"cpu: a case": {"dive": 1.0, "reference": 2.5}}
    render_page.plot("steer", shown, tmp_path / "one.svg")
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert "reference" in text and " 2.50" in text and render_page.digest(shown) in text


def test_results_of_a_new_kind_are_shown_as_they_are(tmp_path: Path) -> None:
    row = {"shape": "small", "seconds": {"a": 0.12345, "b": 2.0}, "lengths": [1, 2]}
    (tmp_path / "cpu-surprise.json").write_text(json.dumps({"rows": [row], "device": "a CPU"}))
    page = render_page.render_page(tmp_path)
    assert "[cpu-surprise](results/cpu-surprise.json): a CPU." in page
    assert "| small | a 0.123, b 2 | 1, 2 |" in page


def test_reasons_stand_in_the_page(tmp_path: Path) -> None:
    seconds = {"floor": {"gpu": 0.001}, "dive": {"gpu": 0.0012}}
    case = {
        "case": "all live", "tokens": 8, "width": 4, "vocabulary": 16, "live": 8,
        "dtype": "bfloat16", "seconds": {"forward": seconds, "forward+backward": seconds},
        "tflops": {"forward+backward": {"floor": 600.0, "dive": 500.0}},
        "peak_extra_bytes": {"dive": {"forward+backward": 3 << 20}},
        "not_run": {"Liger": "liger-kernel is not installed"},
    }  # fmt: skip
    content = {"device": "a GPU", "complete": False, "failed": "out of time", "cases": [case]}
    (tmp_path / "h100-cross-entropy.json").write_text(json.dumps(content))
    page = render_page.render_page(tmp_path)
    assert "| dive | 1.2 | 1.2 | 1 | 83 % | 500 | 3 |" in page
    assert "Not run: Liger: liger-kernel is not installed." in page
    assert "Not complete: out of time." in page


CLEAN = "tests/gpu/a.py::test_b PASSED\n========= ERROR SUMMARY: 0 errors\n"


@pytest.mark.parametrize(
    ("status", "output", "state"),
    [
        (0, CLEAN, "clean"),
        (0, "tests/gpu/a.py::test_b PASSED\n", "not run"),  # no summary
        (0, "tests/gpu/a.py::test_b SKIPPED\n========= ERROR SUMMARY: 0 errors\n", "not run"),
        (0, "========= Error: Device not supported\n" + CLEAN, "not run"),
        (1, "========= Target application terminated before first instrumented API call\n",
         "not run"),
        (86, CLEAN.replace("0 errors", "3 errors"), "errors"),
        (0, CLEAN.replace("ERROR SUMMARY: 0 errors",
                          "RACECHECK SUMMARY: 2 hazards displayed (2 errors)"), "errors"),
        (0, CLEAN.replace("ERROR SUMMARY: 0 errors",
                          "RACECHECK SUMMARY: 0 hazards displayed"), "clean"),
        (124, "tests/gpu/a.py::test_b PASSED\n", "out of time"),
        (1, CLEAN, "not run"),
        (127, "", "not run"),
    ],
)  # fmt: skip
def test_a_sanitizer_that_did_not_look_is_never_clean(status: int, output: str, state: str) -> None:
    assert stages.verdict(status, output)["state"] == state


def test_no_graph_is_captured_under_the_sanitizer() -> None:
    """Nothing is cached under a sanitizer, and a cudaMalloc during a capture is an error."""
    assert "capture" not in stages.SANITIZED


def test_what_a_run_of_tests_comes_to() -> None:
    passed = (
        "tests/gpu/a.py::test_b[x y] PASSED [ 50%]\ntests/gpu/a.py::test_c SKIPPED (no) [100%]\n"
    )
    assert stages.outcome(0, passed) == {"passed": 1, "skipped": 1, "state": "passed"}
    failed = stages.outcome(1, passed + "tests/gpu/a.py::test_d FAILED [100%]\n")
    assert failed["state"] == "failed" and failed["failing"] == ["tests/gpu/a.py::test_d"]
    assert stages.outcome(124, passed)["state"] == "out of time"
    skipped = stages.outcome(5, "SKIPPED [1] tests/gpu/a.py:11: needs a CUDA device\n")
    assert skipped["state"] == "not run" and "needs a CUDA device" in skipped["reason"]


def test_what_a_run_of_tests_by_workers_comes_to() -> None:
    said = (
        "tests/gpu/a.py::test_b[x y] \n[gw0] [ 25%] PASSED tests/gpu/a.py::test_b[x y] \n"
        "[gw1] [ 50%] FAILED tests/gpu/a.py::test_c \n"
        "[gw1] [100%] SKIPPED tests/gpu/a.py::test_d \n"
    )
    found = stages.outcome(1, said)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["state"] == "failed" and found["failing"] == ["tests/gpu/a.py::test_c"]


def test_a_stage_that_is_out_of_time_keeps_what_it_said() -> None:
    shell = stages.Shell(1.0)
    # a worker that keeps the pipe open, as those of pytest-xdist do
    status, said = shell.run(["bash", "-c", "echo so far; sleep 60 & sleep 60"])
    assert (status, said) == (124, "so far\n")


def test_a_copy_without_git_is_named_by_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIVE_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    timing.commit.cache_clear()
    name = timing.commit()
    timing.commit.cache_clear()
    assert re.fullmatch("sources-[0-9a-f]{9}", name) and name == timing.sources()


def test_decoding_begins_with_the_session_at_every_batch() -> None:
    cases = list(decode_pairs.cases("cuda"))
    first = [(case.shape, case.batch, case.way) for case in cases[:3]]
    assert first == [("Llama-3-8B", batch, "session, steered") for batch in (1, 32, 8)]
    of_8b = [case.way for case in cases if case.shape == "Llama-3-8B"]
    compiled = [way in ("compiled loop", "transformers, static + compile") for way in of_8b]
    assert compiled == sorted(compiled) and sum(compiled) == 6 and len(of_8b) == 18
    assert len(set(cases)) == len(cases)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "none")
    timing.folder.cache_clear()
    timing.commit.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    timing.folder.cache_clear()
    timing.commit.cache_clear()


def test_a_results_file_goes_on_where_it_stopped(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIVE_COMMIT", "abc")
    results = timing.ResultsFile("cpu-x", {"rounds": 2}, minutes=1)
    assert results.wanted("one")
    results.add({"case": "one"})
    results.end = 0.0
    assert not results.wanted("two")
    written = json.loads(results.close().read_text())
    assert written["commit"] == "abc" and written["left"] == ["two"] and not written["complete"]

    results = timing.ResultsFile("cpu-x", {"rounds": 2})
    assert not results.wanted("one") and results.wanted("two")
    results.add({"case": "two"})
    written = json.loads(results.close().read_text())
    assert written["complete"] and [case["case"] for case in written["cases"]] == ["one", "two"]

    chosen = timing.ResultsFile("cpu-x", {"rounds": 2}, cases=["thr", "fo"])
    assert [name for name in ("two", "three", "four", "five") if chosen.wanted(name)] == [
        "three", "four",
    ]  # fmt: skip
    assert chosen.result["left"] == ["five"]  # two is measured

    assert timing.ResultsFile("cpu-x", {"rounds": 2}, again=True).wanted("one")
    assert timing.ResultsFile("cpu-x", {"rounds": 3}).wanted("one")  # another measurement
    for other in ("def", "abc-dirty"):
        monkeypatch.setenv("DIVE_COMMIT", other)
        timing.commit.cache_clear()
        assert timing.ResultsFile("cpu-x", {"rounds": 2}).wanted("one"), other


def test_a_toy_run_has_no_place_among_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TOY", True)
    monkeypatch.setenv("OUT", str(timing.RESULTS))
    timing.folder.cache_clear()
    with pytest.raises(SystemExit, match="toy"):
        timing.folder()
    monkeypatch.delenv("OUT")
    assert timing.folder() != timing.RESULTS
    timing.folder.cache_clear()


def test_a_build_is_never_taken_from_a_file(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are copied to a bare machine, the extension is not."""
    monkeypatch.setenv("DIVE_COMMIT", "abc")
    ran = []

    def stage(shell: stages.Shell) -> dict[str, str]:
        """Passes."""
        ran.append(shell)
        return {"state": "passed"}

    for name, times in (("test", 1), ("build", 2)):
        ran.clear()
        monkeypatch.setitem(stages.OWN, name, stage)
        assert stages.run(name, timing.CPU, False) and stages.run(name, timing.CPU, False)
        assert len(ran) == times, name


@pytest.mark.parametrize("distils", [False, True])
def test_every_peer_runs_or_says_why(distils: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "TOY", True)
    p = peers.Problem.random(24, 16, 64, 8, torch.float32, timing.CPU, distils)
    found, why = peers.losses(p)
    for name in peers.PEERS:
        assert name in found or why[name], name
        assert name not in found or name + peers.GATHERED in found
    assert {"dive", "reference", "reference" + peers.GATHERED} <= set(found)


def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    p = peers.Problem.random(24, 16, 64, 8, torch.float32, timing.CPU)
    twice = lambda p: lambda: 2 * peers.reference_eager(p)()  # noqa: E731
    monkeypatch.setattr(peers, "PEERS", {"reference": peers.reference_eager, "twice": twice})
    found, why = peers.losses(p)
    assert "twice" not in found and re.search("100% off", why["twice"])


def test_memory_of_a_call() -> None:
    def call() -> None:
        first = torch.empty(1000, 250)
        del first
        both = torch.empty(1000, 250), torch.empty(1000, 500)
        assert len(both) == 2

    assert timing.peak_extra_bytes(call) == pytest.approx(3_000_000, rel=0.01)


def test_the_compiled_loop_writes_what_generate_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With sliding windows, too: otherwise the peer would be timed on other work."""
    monkeypatch.setattr(compiled_loop, "TOY", True)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"], max_position_embeddings=64,
        eos_token_id=None,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    ids = torch.randint(5, 96, (2, 12))
    model.generation_config.eos_token_id = None
    want = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    got = compiled_loop.CompiledLoop(model, 2, 20).generate(ids, 8)
    assert torch.equal(got, want)


def test_the_threads_step_over_a_cache_that_is_filled() -> None:
    """Reserved memory may hold NaN, and a step after one of those has no token."""
    threads = pytest.importorskip("benchmarks.bench_decode_threads", exc_type=ImportError)
    session = DecodeSession(build("512x12", torch.bfloat16, timing.CPU, toy=True))
    assert session.engine_choice().engine == "dive._C" and session.binding.spec is not None
    engine = threads._C.Engine(session.binding.spec.engine_arguments(threads.CACHED + 3))
    threads.fill_cache(engine, session.model.config, 3)
    assert threads.steps(engine, 3) == threads.steps(engine, 3) in range(128)
