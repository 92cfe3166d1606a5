"""The peer llama.cpp: the weights written for it, and the pages of its results."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import bench_llama_cpp, llama_cpp, page_llama_cpp, render_page, timing
from dive.bench.peers import Unavailable

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def test_every_weight_is_written_once(model: Any) -> None:
    found = llama_cpp.tensors(model)
    assert sum(one.numel() for one in found.values()) == sum(p.numel() for p in model.parameters())
    assert len(found) == len(list(model.parameters()))
    value = model.model.layers[1].self_attn.v_proj.weight
    assert torch.equal(found["blk.1.attn_v.weight"], value)


def test_rotary_pairs_lie_side_by_side() -> None:
    """Rotation in pairs of reordered rows equals the reordered rotation in halves."""
    heads, width, columns = 3, 8, 5
    weight, x = torch.randn(heads * width, columns), torch.randn(columns)
    cosines, sines = (f(torch.arange(width // 2) + 1.0) for f in (torch.cos, torch.sin))
    first, second = (weight @ x).view(heads, 2, width // 2).unbind(1)
    want = torch.stack(
        [first * cosines - second * sines, second * cosines + first * sines], 2
    ).view(heads, width)  # in pairs
    even, odd = (llama_cpp.interleaved(weight, heads) @ x).view(heads, -1, 2).unbind(-1)
    got = torch.stack([even * cosines - odd * sines, odd * cosines + even * sines], -1)
    torch.testing.assert_close(got.view(heads, width), want)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="llama-cpp-python and gguf are not installed"):
        llama_cpp.check_installed()
    monkeypatch.setattr(timing, "TOY", True)
    case = bench_llama_cpp.Case("512x4", "float32", 1, 3, 2, 0.1)
    monkeypatch.setattr(bench_llama_cpp, "TOY", True)
    found = bench_llama_cpp.measure(case, tmp_path, 1)
    assert "not installed" in found["not_run"] and "ms_a_token" not in found


def test_other_decoders_are_refused(model: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    other = type("Model", (), {"config": type("Config", (), {
        "model_type": "qwen2", "rope_parameters": {"rope_type": "yarn"}, "attention_bias": True,
    })})  # fmt: skip
    with pytest.raises(ValueError, match="a qwen2 with yarn RoPE"):
        llama_cpp.write_gguf(other, tmp_path / "x.gguf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_the_model_does(model: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    own = LlamaForCausalLM(model.config).eval()
    own.load_state_dict(model.state_dict())
    own.to(dtype)
    peer = llama_cpp.LlamaCpp(own, tmp_path, 1, 2, 24)
    try:
        ids = torch.randint(5, 64, (2, 8))
        came: list[int] = []
        answer = peer.generate(ids, 6, lambda: came.append(1))
        assert answer.shape == (2, 14) and len(came) == 6 and torch.equal(answer[:, :8], ids)
        with torch.inference_mode():
            for row in answer:
                want = own(row[None]).logits[0].float()
                got = peer.logits(row)
                most = 1e-5 if dtype == torch.float32 else 2e-2
                assert float((got - want).norm() / want.norm()) < most
                short = want.amax(-1) - want.gather(-1, row.roll(-1)[:, None])[:, 0]
                assert float((short[7:-1] / want[7:-1].std(-1)).max()) < 4 * most
    finally:
        peer.close()


def case(name: str, batch: int, dtype: str, ratio: list[float]) -> dict[str, Any]:
    both = {"wall": 5.0, "cpu": 4.0}
    return {
        "case": name, "batch": batch, "dtype": dtype, "threads": 1, "floor_by": "sum",
        "ms_a_token": {"floor": {"wall": 3.0, "cpu": 3.0}, "session": both, "llama.cpp": both},
        "share_of_floor": {"session": 0.75, "llama.cpp": 0.75}, "same_tokens": 0.5,
        "times_llama_cpp": {"cpu": ratio, "wall": ratio},
    }  # fmt: skip


def test_the_sentence_says_where_the_session_is_slower() -> None:
    slower = case("a", 1, "bfloat16", [1.2, 1.15, 1.25])
    faster = case("b", 1, "bfloat16", [0.8, 0.7, 0.9])
    unsure = case("c", 4, "float32", [0.99, 0.9, 1.1])
    said = page_llama_cpp.sentence({"device": "a CPU", "cases": [slower, faster, unsure]})
    assert "0.80 to 1.20 in bfloat16 at batch 1; 0.99 in float32 at batch 4" in said
    assert "less in 1 of 3 cases, more in 1 (a)" in said
    said = page_llama_cpp.sentence({"device": "a CPU", "cases": [faster]})
    assert "less in every case" in said and "slower" not in said
    missing = {"case": "a", "not_run": "gguf is not installed"}
    assert "not measured against llama.cpp: gguf is not installed." in page_llama_cpp.sentence(
        {"cases": [missing]}
    )


def test_the_page_shows_every_case(tmp_path: Path) -> None:
    content = {
        "device": "a CPU",
        "llama_cpp": {"llama-cpp-python": "0.3", "compiled_for": "CPU : AVX2 = 1"},
        "cases": [
            case("one", 1, "bfloat16", [1.2, 1.15, 1.25]),
            {"case": "two", "not_run": "llama.cpp cannot load x"},
        ],
    }
    (tmp_path / "cpu-llama-cpp.json").write_text(json.dumps(content))
    page = render_page.render_page(tmp_path)
    assert "| one | 3 | 4 (75 %) | 4 (75 %) | 1.20 (1.15 to 1.25) | 1.20" in page
    assert "llama.cpp cannot load x" in page and "llama-cpp-python 0.3, CPU : AVX2 = 1" in page


def test_the_committed_sentence_is_what_the_results_say() -> None:
    page = render_page.FRONT.read_text(encoding="utf-8")
    assert page == page_llama_cpp.fill(page, render_page.load().get("llama-cpp", {})), (
        "python -m benchmarks.render_page renders it again"
    )
    with pytest.raises(ValueError, match="<!-- benchmarks: llama.cpp -->"):
        page_llama_cpp.fill("a page", {})
