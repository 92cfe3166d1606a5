"""A backbone with int8 weights (compressed-tensors, W8A8) is steered like any other."""

import contextlib
import json
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

import torch
from safetensors.torch import load_file, save_file
from vllm_engines import TEXTS, on_cpu, serve

import dive

on_cpu()

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
_SCHEME = {
    "targets": ["Linear"],
    "weights": {**_INT8, "strategy": "channel", "dynamic": False},
    "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
}


def _quantise(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].abs().amax(1, keepdim=True) / 127
        tensors[name] = (tensors[name] / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": _SCHEME},
    }
    (folder / "config.json").write_text(json.dumps(config))


def _next_in_vllm(served, engine, prompts, name):
    """The log-probabilities of the 20 likeliest next tokens, by their ids, per prompt."""
    from vllm import SamplingParams

    asked = SamplingParams(temperature=0, max_tokens=1, detokenize=False, logprobs=20)
    done = engine.generate(
        [prompt.given for prompt in prompts], asked, lora_request=served.lora(name), use_tqdm=False
    )
    return [{t: one.logprob for t, one in each.outputs[0].logprobs[0].items()} for each in done]


def _next_in_transformers(served, prompts, name):
    """[V] log-probabilities of the next token per prompt."""
    steering = contextlib.nullcontext()
    if name is not None:
        steering = dive.steer(served.backbone, served.adapters[name])
    with steering, torch.no_grad():
        logits = [served.backbone.model(**prompt.inputs).logits[0, -1] for prompt in prompts]
    return [torch.log_softmax(one.float(), -1) for one in logits]


def test_next_tokens_differ_no_more_than_without_an_adapter(tmp_path):
    """Both quantise activations as they come, and sum in other orders: how far the two are apart
    without an adapter is the measure."""
    served = serve("Llama", tmp_path)
    _quantise(tmp_path / "model")
    served.backbone = dive.load_backbone(tmp_path / "model", dtype="float32")
    prompts = [served.text(text) for text in TEXTS]
    plain = _next_in_transformers(served, prompts, None)
    apart, moved = {}, []
    with served.engine() as engine:
        for name in (None, "A", "B"):
            got = _next_in_vllm(served, engine, prompts, name)
            wanted = _next_in_transformers(served, prompts, name)
            apart[name] = max(
                abs(score - float(other[token]))
                for one, other in zip(got, wanted, strict=True)
                for token, score in one.items()
            )
            moved += [float((a - b).abs().max()) for a, b in zip(wanted, plain, strict=True)]
    assert apart["A"] <= 2 * apart[None] and apart["B"] <= 2 * apart[None], apart
    assert max(moved) > 10 * apart[None], (moved, apart)  # the adapters did something
