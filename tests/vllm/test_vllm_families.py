"""Steered in vLLM as in transformers: each family, several adapters in one batch."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from vllm_engines import TEXTS, check_equal, on_cpu, serve

on_cpu()

pytestmark = pytest.mark.vllm

# how strongly the adapters steer: Gemma's embeddings are scaled by the root of the width
FAMILIES = {
    "Llama": 0.3,
    "LLaVA": 0.3,
    "LLaVA-NeXT": 0.3,  # with a Mistral decoder
    "Qwen2.5-VL": 0.3,
    "Qwen3-VL": 0.3,
    "Gemma 3": 3.0,
    "LLaVA-OneVision": 0.3,
    "InternVL": 0.3,
}


ALWAYS = ("Llama", "LLaVA")


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=() if one in ALWAYS else pytest.mark.slow) for one in FAMILIES],
)
def test_a_batch_of_adapters_has_the_tokens_of_transformers(family, tmp_path):
    served = serve(family, tmp_path, FAMILIES[family])
    requests = [served.text(text) for text in TEXTS]
    if family not in ("Llama", "Gemma 3"):  # on a CPU, Gemma's image block is causal in vLLM
        requests += [served.image(text, seed) for seed, text in enumerate(TEXTS)]
    batch = [(request, name) for name in (None, "A", "B") for request in requests]
    wanted = [served.expected(request, name) for request, name in batch]
    # the adapters do something, and different things
    assert len({tuple(one.scores) for one in wanted}) == len(batch)
    with served.engine() as engine:
        check_equal(served.generate(engine, batch), wanted)


@pytest.mark.parametrize(
    "settings",
    [
        {"norm_preserving": True, "activation": "tanh"},
        pytest.param({"activation": "gelu", "eps": 1e-3}, marks=pytest.mark.slow),
        pytest.param({"activation": "identity"}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: "-".join(f"{name}_{value}" for name, value in settings.items()),
)
def test_settings_of_the_server(settings, tmp_path):
    served = serve("Llama", tmp_path, **settings)
    batch = [(served.text(text), name) for name in (None, "A", "B") for text in TEXTS]
    wanted = [served.expected(request, name) for request, name in batch]
    with served.engine() as engine:
        check_equal(served.generate(engine, batch), wanted)
