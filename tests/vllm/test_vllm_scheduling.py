"""What vLLM's scheduler does with a prompt does not change what a steered model writes."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from vllm_engines import check_equal, on_cpu, serve

on_cpu()

pytestmark = pytest.mark.vllm

LONG = "There is a small right pleural effusion. The heart is normal in size. " * 6


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return serve("Llama", tmp_path_factory.mktemp("llama"))


def _batch(served):
    """Requests of three lengths for each adapter, and what transformers generates."""
    texts = [LONG, "Lungs", LONG[40:200]]
    batch = [(served.text(text), name) for text in texts for name in (None, "A", "B")]
    return batch, [served.expected(request, name) for request, name in batch]


def test_prefill_in_chunks(served):
    batch, wanted = _batch(served)
    longest = max(len(request.given["prompt_token_ids"]) for request, _ in batch)
    chunks = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "enable_chunked_prefill": True}
    assert longest > 2 * 32
    with served.engine(**chunks) as engine:
        check_equal(served.generate(engine, batch), wanted)


def test_a_cached_prefix_is_that_of_its_adapter(served):
    prompt = served.text(LONG)
    with served.engine(enable_prefix_caching=True, block_size=32) as engine:
        for name in ("A", None, "B", "A", None, "B"):
            wanted = served.expected(prompt, name)
            first = served.generate(engine, [(prompt, name)])
            check_equal(first, [wanted])
            again = served.generate(engine, [(prompt, name)])
            check_equal(again, [wanted])
            assert again[0].cached >= 32  # so the cache was in use


def test_preempted_requests_are_computed_again(served):
    prompts = [served.text(LONG[at:]) for at in range(0, 30, 5)]
    batch = [(prompt, "AB"[at % 2]) for at, prompt in enumerate(prompts)]
    count = 48
    wanted = [served.expected(request, name, count) for request, name in batch]
    tokens = max(len(request.given["prompt_token_ids"]) for request, _ in batch)
    # room for two and a half of the six
    blocks = int(2.5 * (tokens + count) / 32)
    with served.engine(
        block_size=32, num_gpu_blocks_override=blocks, disable_log_stats=False, max_model_len=256
    ) as engine:
        got = served.generate(engine, batch, count)
        counted = {one.name: one for one in engine.get_metrics()}
    check_equal(got, wanted)
    assert counted["vllm:num_preemptions"].value > 0


@pytest.mark.parametrize("backend", ["inductor", pytest.param("eager", marks=pytest.mark.slow)])
def test_compiled(served, backend, tmp_path, monkeypatch):
    """On a CPU vLLM compiles no model that has room for LoRA; this one is to be, nevertheless.

    Whole, by Dynamo: the passes of VLLM_COMPILE are of GPUs.
    """
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    usual = current_platform.check_and_update_config

    def check_and_compile(config):
        usual(config)
        config.compilation_config.mode = CompilationMode.DYNAMO_TRACE_ONCE
        config.compilation_config.backend = backend

    own = staticmethod(check_and_compile)
    monkeypatch.setattr(type(current_platform), "check_and_update_config", own)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    batch, wanted = _batch(served)
    config = {"mode": CompilationMode.DYNAMO_TRACE_ONCE, "backend": backend}
    with served.engine(enforce_eager=False, compilation_config=config) as engine:
        compiled = engine.llm_engine.vllm_config.compilation_config
        assert (compiled.mode, compiled.backend) == (CompilationMode.DYNAMO_TRACE_ONCE, backend)
        check_equal(served.generate(engine, batch), wanted)
        # of dive's own files too, so that its operator is in the graph
        assert any("dive/vllm/decoder.py" in name for name in compiled.traced_files)


def test_adapters_take_turns_where_one_is_active_at_a_time(served):
    batch, wanted = _batch(served)
    with served.engine(max_loras=1, max_cpu_loras=1) as engine:
        for _ in range(2):
            check_equal(served.generate(engine, batch), wanted)


@pytest.mark.slow
def test_tensor_parallel(served):
    batch, wanted = _batch(served)
    two = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    with served.engine(**two) as engine:
        check_equal(served.generate(engine, batch), wanted)
