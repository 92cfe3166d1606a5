"""Decoding after images: the engine's logits over 128 tokens against transformers' own."""

import copy

import pytest
import tiny
import tiny_more
import torch
from tiny_decoders import distance, steered
from tiny_steering import prompts, randomised
from transformers import LogitsProcessor, LogitsProcessorList

import dive
from dive.decode.session import DecodeSession

C = pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")

# those whose text decoder the engine knows
BACKBONES = {
    "LLaVA, Llama": tiny.save_tiny_llava,
    "LLaVA, Mistral": lambda folder: tiny.save_tiny_llava(folder, text="mistral"),
    "Qwen2.5-VL": tiny.save_tiny_qwen25_vl,
    "Gemma 3": tiny.save_tiny_gemma3,
    "Qwen2-VL": tiny_more.save_tiny_qwen2_vl,
    "LLaVA-NeXT": tiny_more.save_tiny_llava_next,
    "LLaVA-OneVision": tiny_more.save_tiny_llava_onevision,
    "InternVL": tiny_more.save_tiny_internvl,
    "Mistral 3": tiny_more.save_tiny_mistral3,
}
STEPS = 128


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    BACKBONES[request.param](folder)
    return dive.load_backbone(folder, device="cpu")


class Forced(LogitsProcessor):
    """A logits processor that records the logits and forces the next tokens."""

    def __init__(self, rows, vocabulary):
        generator = torch.Generator().manual_seed(2)
        self.tokens = iter(torch.randint(10, vocabulary - 10, (STEPS, rows), generator=generator))
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(scores.clone())
        forced = torch.full_like(scores, float("-inf"))
        forced[torch.arange(scores.shape[0]), next(self.tokens)] = 0.0
        return forced


def logits_of(generate, batch, vocabulary):
    """Recorded logits [B, STEPS, V]."""
    forced = Forced(batch["input_ids"].shape[0], vocabulary)
    more = {"eos_token_id": None, "logits_processor": LogitsProcessorList([forced])}
    generate(**batch, max_new_tokens=STEPS, do_sample=False, **more)
    return torch.stack(forced.seen, dim=1)


@pytest.mark.parametrize("positions", [None, "all", "response"])
def test_logits_of_128_steps_behind_images(backbone, studies, positions):
    model = backbone.model
    adapter = positions and randomised(backbone, positions=positions, strength=0.5)
    session = DecodeSession(model, adapter)
    assert session.engine_choice().engine == "dive._C", session.engine_choice()
    batch = prompts(backbone, studies[:3])  # of different lengths, the third with two images
    assert not batch["attention_mask"].all()
    vocabulary = len(backbone.tokenizer)
    got = logits_of(session.generate, batch, vocabulary)
    with steered(model, adapter):
        want = logits_of(model.generate, batch, vocabulary)
    assert got.shape[1] == STEPS and not session.fallback.reported
    for row in range(3):
        assert distance(got[row], want[row]) < 1e-5


@pytest.mark.parametrize("with_adapter", [False, True])
def test_bfloat16_behind_images_loses_no_more_than_transformers(backbone, studies, with_adapter):
    exact = copy.deepcopy(backbone.model)
    model = copy.deepcopy(exact).to(torch.bfloat16)
    exact.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    adapter = randomised(model, strength=0.5) if with_adapter else None
    batch = prompts(backbone, studies[:3])
    vocabulary = len(backbone.tokenizer)
    with steered(exact, adapter):
        truth = logits_of(exact.generate, batch, vocabulary)
    batch = {n: t.bfloat16() if t.is_floating_point() else t for n, t in batch.items()}
    session = DecodeSession(model, adapter)
    got = logits_of(session.generate, batch, vocabulary)
    with steered(model, adapter):
        theirs = logits_of(model.generate, batch, vocabulary)
    assert session.ran.engine == "dive._C" and not session.fallback.reported
    assert 0 < distance(got, truth) <= 1.1 * distance(theirs, truth)
