"""Tiny backbones, exported adapters and engines of vLLM on a CPU, for tests/vllm.

Import it after `pytest.importorskip("vllm")`.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
import tiny_more
import tiny_tokenizers
import torch
from tiny_steering import randomised

import dive
from dive.vllm.export import Exported, export, server_arguments

# one process, one core per engine, and room for tiny models only
CPU = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
# the narrowest heads of vLLM's CPU attention have 32
WIDTH = 128
TEXTS = (
    "Describe the findings.",
    "Write the impression of this chest X-ray, with details of the heart.",
    "Lungs",
)


def on_cpu() -> None:
    """Settings of vLLM, before it is imported, and dive's plugin, for a checkout has none."""
    for name, value in CPU.items():
        os.environ.setdefault(name, value)
    from dive.vllm.plugin import register

    register()


def _gemma_tokenizer() -> Any:
    """Gemma's with the newlines that vLLM's processor looks up."""
    tokenizer = tiny_tokenizers.gemma_tokenizer()
    tokenizer.add_tokens(["\n\n", "\n\n\n", "\n\n\n\n"])
    return tokenizer


def write_backbone(family: str, folder: Path) -> Path:
    """The folder of a tiny backbone of `tiny_more.FAMILIES`, or "Llama", that vLLM can run."""
    writer = tiny.save_tiny_llama if family == "Llama" else tiny_more.FAMILIES[family]
    usual = tiny.gemma_tokenizer
    tiny.gemma_tokenizer = _gemma_tokenizer
    try:
        with tiny.of_width(WIDTH):
            return writer(folder)
    finally:
        tiny.gemma_tokenizer = usual


@dataclass
class Request:
    """A prompt for vLLM, and the same for transformers."""

    given: dict[str, Any]
    inputs: dict[str, Any]


@dataclass
class Served:
    """A backbone with adapters, which transformers and vLLM run side by side."""

    folder: Path
    backbone: Any
    adapters: dict[str, Any] = field(default_factory=dict)
    exported: dict[str, Exported] = field(default_factory=dict)

    def add(self, name: str, adapter: Any) -> Exported:
        self.adapters[name] = adapter
        self.exported[name] = export(adapter, self.folder / name, backbone=self.folder / "model")
        return self.exported[name]

    def text(self, text: str) -> Request:
        return self.tokens(self.backbone.tokenizer(text)["input_ids"])

    def tokens(self, ids: list[int]) -> Request:
        row = torch.tensor([ids])
        return Request(
            {"prompt_token_ids": ids}, {"input_ids": row, "attention_mask": torch.ones_like(row)}
        )

    def image(self, text: str, seed: int) -> Request:
        film = tiny.draw_film(seed, size=(tiny.IMAGE, tiny.IMAGE), mode="RGB")
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        prompt = self.backbone.processor.apply_chat_template(said, add_generation_prompt=True)
        inputs = self.backbone.processor(
            text=prompt, images=[film], return_tensors="pt", add_special_tokens=False
        )
        ids = self.backbone.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return Request({"prompt_token_ids": ids, "multi_modal_data": {"image": film}}, dict(inputs))

    def expected(self, request: Request, name: str | None, count: int = 12) -> "Answer":
        """What transformers generates, greedily, with `dive.steer`."""
        steering: Any = contextlib.nullcontext()
        if name is not None:
            steering = dive.steer(self.backbone, self.adapters[name])
        with steering:
            made = self.backbone.model.generate(
                **request.inputs,
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        prompt = request.inputs["input_ids"].shape[1]
        scores = [torch.log_softmax(one[0].float(), -1).max().item() for one in made.logits]
        return Answer(made.sequences[0, prompt:].tolist(), scores)

    @contextlib.contextmanager
    def engine(self, **more: Any) -> Iterator[Any]:
        """An engine of vLLM in this process with all adapters that were added."""
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory

        options = {
            "model": str(self.folder / "model"),
            "dtype": "float32",
            "max_model_len": 512,
            "max_num_seqs": 16,
            "enforce_eager": True,
            **server_arguments(list(self.exported.values())),
            **more,
        }
        engine = LLM(**options)
        try:
            yield engine
        finally:
            engine.llm_engine.engine_core.shutdown()
            del engine
            cleanup_dist_env_and_memory()

    def lora(self, name: str | None) -> Any:
        from vllm.lora.request import LoRARequest

        if name is None:
            return None
        number = 1 + list(self.exported).index(name)
        return LoRARequest(name, number, str(self.exported[name].folder))

    def generate(
        self, engine: Any, requests: Sequence[tuple[Request, str | None]], count: int = 12
    ) -> "list[Answer]":
        """What vLLM generates, greedily, for all requests at once."""
        from vllm import SamplingParams

        done = engine.generate(
            [request.given for request, _ in requests],
            SamplingParams(
                temperature=0, max_tokens=count, detokenize=False, ignore_eos=True, logprobs=1
            ),
            lora_request=[self.lora(name) for _, name in requests],
            use_tqdm=False,
        )
        answers = []
        for one in done:
            made = one.outputs[0]
            ids = list(made.token_ids)
            scores = [at[token].logprob for token, at in zip(ids, made.logprobs, strict=True)]
            answers.append(Answer(ids, scores, one.num_cached_tokens or 0))
        return answers


@dataclass
class Answer:
    """Generated ids with their log-probabilities; cached: prompt tokens that were not computed."""

    ids: list[int]
    scores: list[float]
    cached: int = 0


def serve(family: str, folder: Path, strength: float = 0.3, **settings: Any) -> Served:
    """A backbone of a family, with adapters A (rank 7, all layers) and B (rank 4, layers 0, 2)."""
    backbone = dive.load_backbone(write_backbone(family, folder / "model"), dtype="float32")
    served = Served(folder, backbone)
    served.add("A", randomised(backbone, seed=1, rank=7, strength=strength, **settings))
    served.add(
        "B", randomised(backbone, seed=2, rank=4, strength=strength, layers=[0, 2], **settings)
    )
    return served


def check_equal(got: Sequence[Answer], wanted: Sequence[Answer], most: float = 2e-5) -> None:
    """Asserts equal tokens, and log-probabilities within `most`, of float32 models."""
    for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert one.ids == other.ids, (index, one.ids, other.ids)
        apart = max(abs(a - b) for a, b in zip(one.scores, other.scores, strict=True))
        assert apart <= most, (index, apart)
