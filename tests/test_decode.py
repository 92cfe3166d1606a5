"""The decode session against transformers' own generate, and what it falls back for."""

import contextlib
import copy
import gc
import logging

import pytest
import torch
from tiny_steering import logits as all_logits
from tiny_steering import prompts, randomised
from torch import nn
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

import dive
from dive.decode import DecodeSession
from dive.errors import DiveError
from dive.structure import decoder

C = pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")

ISAS = C.build_info()["isa_compiled"]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 72,  # no multiple of any vector
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": False}),
    "llama3": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 24, "head_dim": 20}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-window": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "head_dim": 24,
            "layer_types": GEMMA_LAYERS,
            "sliding_window": 20,
            "query_pre_attn_scalar": 30,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": None,
        },
    ),
}


@pytest.fixture(params=ISAS)
def isa(request):
    info = C.build_info()
    if request.param not in info["isa_usable"]:
        pytest.skip(f"this machine has no {request.param}")
    C.use_isa(request.param)
    yield request.param
    C.use_isa(info["isa"])


def small(family: str, dtype=torch.float32, seed: int = 0):
    """A random decoder in which norms and biases matter too."""
    kind, config, more = FAMILIES[family]
    torch.manual_seed(seed)
    model = kind(config(**{**SIZES, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype)


def steered(model, adapter):
    return contextlib.nullcontext() if adapter is None else dive.steer(model, adapter)


@torch.no_grad()
def forced(session: DecodeSession, ids, prompt: int, adapter=None):
    """Logits [T - prompt, V] of the engine, fed `ids` [1, T] after a prefill by the model."""
    model = session.model
    assert session.plan().engine == "dive._C", session.plan()
    engine, spec = session._engine, session._spec
    cache = DynamicCache(config=model.config)
    with steered(model, adapter):
        model(input_ids=ids[:, :prompt], past_key_values=cache, use_cache=True)
    engine.reserve(1, ids.shape[1])
    for index, layer in enumerate(cache.layers):
        kept = layer.keys.shape[2]
        engine.adopt(index, 0, prompt - kept, layer.keys[0], layer.values[0])
    engine.start_row(0, prompt, prompt)
    engine.steer_row(0, session._steering(adapter))
    out = torch.zeros(ids.shape[1] - prompt, spec.vocabulary)
    following = torch.zeros(1, dtype=torch.long)
    for step in range(prompt, ids.shape[1]):
        row = out[step - prompt][None]
        engine.step(ids[0, step : step + 1], torch.tensor([0]), following, row)
        assert following.item() == row.argmax().item()
    return out


def distance(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_logits_of_128_steps_are_those_of_transformers(isa, family, with_adapter):
    model = small(family)
    adapter = randomised(model, strength=0.3) if with_adapter else None
    ids = torch.randint(2, 96, (1, 40 + 128), generator=torch.Generator().manual_seed(3))
    got = forced(DecodeSession(model), ids, 40, adapter)
    with steered(model, adapter):
        want = all_logits(model, {"input_ids": ids})[0, 40:]
    assert distance(got, want) < 1e-5
    best = want.topk(2).values
    clear = best[:, 0] - best[:, 1] > 1e-4 * best[:, 0].abs()
    assert clear.sum() > 100
    assert torch.equal(got.argmax(-1)[clear], want.argmax(-1)[clear])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_bfloat16_loses_no_more_than_transformers(isa, family, with_adapter):
    exact = small(family)
    model = copy.deepcopy(exact).to(torch.bfloat16)
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    adapter = randomised(model, strength=0.3) if with_adapter else None
    ids = torch.randint(2, 96, (1, 24 + 128), generator=torch.Generator().manual_seed(3))
    with steered(exact, adapter):
        truth = all_logits(exact, {"input_ids": ids})[0, 24:]
    session = DecodeSession(model)
    got = forced(session, ids, 24, adapter)
    with torch.no_grad(), steered(model, adapter):
        cache = DynamicCache(config=model.config)
        model(input_ids=ids[:, :24], past_key_values=cache)
        theirs = torch.cat(
            [
                model(input_ids=ids[:, t : t + 1], past_key_values=cache).logits[0]
                for t in range(24, ids.shape[1])
            ]
        )
    assert distance(got, truth) <= 1.1 * distance(theirs, truth)
    assert torch.equal(got.to(torch.bfloat16).float(), got)  # rounded to the model's dtype


WAYS = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 20},
    "processed": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "min_p": {"do_sample": True, "min_p": 0.05},
}


def both(session, batch, adapter=None, **kwargs):
    """transformers' answer and the session's, from the same seed."""
    torch.manual_seed(7)
    with steered(session.model, adapter):
        want = session.model.generate(**batch, **kwargs)
    torch.manual_seed(7)
    got = session.model.generate(**batch, custom_generate=session, **kwargs)
    return got, want


@pytest.mark.parametrize("positions", [None, "all", "response"])
def test_every_family_with_images_and_padding(any_backbone, studies, positions):
    adapter = positions and randomised(any_backbone, positions=positions)
    session = DecodeSession(any_backbone, adapter)
    assert session.plan().engine == "dive._C"
    batch = prompts(any_backbone, studies[:4])
    for way, kwargs in WAYS.items():
        got, want = both(session, batch, adapter, max_new_tokens=20, **kwargs)
        assert torch.equal(got, want), way
    assert not session._said


def test_calls_in_between_leave_no_trace(tiny_qwen, studies):
    """rope_deltas is state on the module: images before and after must not mix."""
    backbone = dive.load_backbone(tiny_qwen)
    session = DecodeSession(backbone)
    first, second = (prompts(backbone, studies[i : i + 2]) for i in (0, 2))
    want = [backbone.model.generate(**b, max_new_tokens=12) for b in (first, second)]
    got = [session.generate(**b, max_new_tokens=12) for b in (first, second, first)]
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    assert torch.equal(got[2], want[0])
    assert torch.equal(backbone.model.generate(**second, max_new_tokens=12), want[1])


def test_the_embedded_backbone_writes_the_same_reports():
    from dive.demo import run  # noqa: F401  (the demo's processor registers itself)

    backbone = dive.load_backbone(embedded())
    batch = {"input_ids": torch.tensor([[1, 20, 21, 22], [1, 30, 31, 33]])}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    adapter = randomised(backbone, strength=0.02)
    for one in (None, adapter):
        got, want = both(
            DecodeSession(backbone, one), batch, one, max_new_tokens=100, do_sample=False
        )
        assert torch.equal(got, want)


def embedded():
    from pathlib import Path

    return Path(dive.__file__).parent / "demo" / "backbone"


def text_batch(rows=3, prompt=9, seed=5):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 96, (rows, prompt), generator=g)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        ids[row, : 2 * row], mask[row, : 2 * row] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def test_padded_batches_equal_single_runs():
    model = small("mistral")
    session = DecodeSession(model)
    batch = text_batch()
    together = session.generate(**batch, max_new_tokens=40)
    for row in range(3):
        alone = batch["input_ids"][row, batch["attention_mask"][row] == 1][None]
        got = session.generate(
            input_ids=alone, attention_mask=torch.ones_like(alone), max_new_tokens=40
        )
        assert torch.equal(got[0, alone.shape[1] :], together[row, 9:])


@pytest.mark.parametrize("way", WAYS)
def test_each_row_stops_at_any_of_several_ends(way):
    model = small("llama")
    plain = model.generate(**text_batch(), max_new_tokens=30, **WAYS[way])
    # tokens that end the rows at different places
    ends = [int(plain[0, 9 + 4]), int(plain[1, 9 + 11])]
    got, want = both(
        DecodeSession(model), text_batch(), None, max_new_tokens=30, eos_token_id=ends, **WAYS[way]
    )
    assert torch.equal(got, want)
    assert (got[0, -3:] == 0).all() or got.shape[1] < 39


class Ends(StoppingCriteria):
    """Ends a row at a token, as a caller's own criterion would."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores, **kwargs):
        return torch.isin(input_ids[:, -1], torch.tensor(self.tokens))


@pytest.mark.parametrize("eos", [None, 3])
def test_a_callers_own_criterion(eos):
    model = small("llama")
    plain = model.generate(**text_batch(), max_new_tokens=30)
    criteria = StoppingCriteriaList([Ends([int(plain[0, 12]), int(plain[1, 14])])])
    got, want = both(
        DecodeSession(model),
        text_batch(),
        None,
        max_new_tokens=25,
        eos_token_id=eos,
        stopping_criteria=criteria,
    )
    assert torch.equal(got, want)


class Listener:
    def __init__(self):
        self.heard, self.ended = [], False

    def put(self, value):
        self.heard.append(value.reshape(-1).tolist())

    def end(self):
        self.ended = True


def test_a_streamer_hears_every_token():
    model, listener = small("llama"), Listener()
    batch = text_batch(rows=1)
    ids = DecodeSession(model).generate(**batch, max_new_tokens=6, streamer=listener)
    assert listener.heard[0] == batch["input_ids"][0].tolist()
    assert [token for heard in listener.heard[1:] for token in heard] == ids[0, 9:].tolist()
    assert listener.ended


def test_num_return_sequences():
    got, want = both(
        DecodeSession(small("llama")),
        text_batch(rows=2),
        None,
        max_new_tokens=9,
        do_sample=True,
        num_return_sequences=3,
    )
    assert got.shape[0] == 6 and torch.equal(got, want)


def test_what_was_attached_steers_a_session_without_an_adapter():
    model = small("llama")
    adapter = randomised(model, strength=0.5)
    session, batch = DecodeSession(model), text_batch()
    bare = session.generate(**batch, max_new_tokens=20)
    with dive.steer(model, adapter) as attachment:
        inside = session.generate(**batch, max_new_tokens=20)
        attachment.enabled = False
        assert torch.equal(session.generate(**batch, max_new_tokens=20), bare)
    assert not torch.equal(inside, bare)
    own = DecodeSession(model, adapter).generate(**batch, max_new_tokens=20)
    assert torch.equal(own, inside)
    assert torch.equal(session.generate(**batch, max_new_tokens=20), bare)


def test_a_trained_adapter_is_packed_again():
    model = small("llama")
    adapter = randomised(model, strength=0.3)
    session = DecodeSession(model, adapter)
    session.generate(**text_batch(), max_new_tokens=5)
    with torch.no_grad():
        adapter.layers["1"].up.mul_(-3)
    got, want = both(session, text_batch(), adapter, max_new_tokens=20)
    assert torch.equal(got, want)


def test_weights_are_used_in_place_and_moved_ones_noticed():
    model = small("llama")
    session, batch = DecodeSession(model), text_batch()
    session.generate(**batch, max_new_tokens=5)
    engine = session._engine
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)  # in place: the engine reads the new numbers
    got, want = both(session, batch, None, max_new_tokens=20)
    assert torch.equal(got, want) and session._engine is engine
    model.load_state_dict(small("llama", seed=1).state_dict(), assign=True)
    gc.collect()
    got, want = both(session, batch, None, max_new_tokens=20)
    assert torch.equal(got, want) and session._engine is not engine
    model.lm_head = nn.Linear(72, 96, bias=True)
    got, want = both(session, batch, None, max_new_tokens=20)
    assert torch.equal(got, want)


def test_each_row_is_steered_by_its_own_adapter_between_steps_too():
    model = small("gemma3")
    adapters = [randomised(model, seed=s, strength=0.4) for s in (1, 2)] + [None]
    ids = torch.randint(2, 96, (3, 20), generator=torch.Generator().manual_seed(1))
    singles = [forced(DecodeSession(model), ids[i][None], 1, one) for i, one in enumerate(adapters)]
    session = DecodeSession(model)
    session.plan()
    engine = session._engine
    engine.reserve(3, 20)
    for row, one in enumerate(adapters):
        engine.start_row(row, 0, 0)
        engine.steer_row(row, session._steering(one))
    out, following = torch.zeros(3, 96), torch.zeros(3, dtype=torch.long)
    rows = torch.tensor([2, 0, 1])  # in any order
    for step in range(20):
        engine.step(ids[rows, step], rows, following, out)
        for row in range(3):
            if step:
                assert distance(out[row], singles[row][step - 1]) < 1e-5
    assert torch.equal(following, out[rows].argmax(-1))
    engine.steer_row(0, None)
    engine.start_row(0, 0, 0)
    for step in range(20):  # an empty row runs alone; the finished ones cost nothing
        engine.step(ids[0, step : step + 1], torch.tensor([0]), following[:1], out)
    assert distance(out[0], forced(session, ids[:1], 1)[-1]) < 1e-5


REASONS = {
    "num_beams": ({"num_beams": 2}, "beam search"),
    "dict": ({"return_dict_in_generate": True}, "return_dict_in_generate"),
    "no cache": ({"use_cache": False}, "use_cache"),
    "static": ({"cache_implementation": "static"}, "static"),
    "lookup": ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_it_cannot_do_runs_in_transformers_with_the_adapter(name, caplog):
    kwargs, words = REASONS[name]
    model = small("llama")
    adapter = randomised(model, strength=0.5)
    session = DecodeSession(model, adapter)
    plan = session.plan(**kwargs)
    assert plan.engine == "transformers" and words in plan.reason
    batch = text_batch(rows=1 if name == "lookup" else 3)
    with dive.steer(model, adapter):
        want = model.generate(**batch, max_new_tokens=10, **kwargs)
    with caplog.at_level(logging.INFO, logger="dive"):
        for _ in range(2):
            got = session.generate(**batch, max_new_tokens=10, **kwargs)
    if name == "dict":
        got, want = got.sequences, want.sequences
    assert torch.equal(got, want)
    lines = [r for r in caplog.records if "decoding in transformers" in r.message]
    assert len(lines) == 1 and words in lines[0].message


def test_prompts_padded_on_the_right_run_in_transformers():
    model = small("llama")
    session, batch = DecodeSession(model), text_batch()
    batch = {name: tensor.flip(1) for name, tensor in batch.items()}
    got, want = both(session, batch, None, max_new_tokens=5)
    assert torch.equal(got, want) and "padded on the left" in next(iter(session._said))


class Odd(nn.Linear):
    pass


def halve(model):
    model.model.layers[1].mlp.up_proj.to(torch.bfloat16)


def hook(model):
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: output)


def replace(model):
    model.model.layers[1].self_attn.k_proj = Odd(72, 24)


CHANGES = {
    "float16": (lambda m: m.to(torch.float16), "float16"),
    "mixed": (halve, "one dtype"),
    "training": (lambda m: m.train(), "training mode"),
    "hook": (hook, "forward hook"),
    "linear": (replace, "layers.1.self_attn.k_proj is a Odd"),
    "forward": (lambda m: setattr(m.model, "forward", m.model.forward), "was replaced"),
    "logits": (lambda m: None, "known are"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_says_why_it_runs_in_transformers(name):
    model = small("llama")
    session = DecodeSession(model)
    assert session.plan().engine == "dive._C"
    change, words = CHANGES[name]
    if name == "logits":
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        session = DecodeSession(GPTNeoXForCausalLM(GPTNeoXConfig(**tiny)).eval())
    change(model)
    plan = session.plan()
    assert plan.engine == "transformers" and words in plan.reason


def test_a_mask_of_positions_runs_in_transformers():
    model = small("llama")
    session = DecodeSession(model)
    with dive.steer(model, randomised(model)) as attachment:
        attachment.mask = torch.ones(1, 9, dtype=torch.bool)
        session.generate(**text_batch(rows=1), max_new_tokens=1)
    assert "mask" in next(iter(session._said))


def test_without_the_extension(monkeypatch):
    from dive import extension

    monkeypatch.setattr(extension, "load", lambda: None)
    model = small("llama")
    session = DecodeSession(model)
    assert "not built" in session.plan().reason
    got, want = both(session, text_batch(), None, max_new_tokens=5)
    assert torch.equal(got, want)


def test_bad_calls_say_what_is_wrong():
    model = small("llama")
    session = DecodeSession(model)
    with pytest.raises(DiveError, match="context of 512"):
        session.generate(**text_batch(), max_new_tokens=505)
    with pytest.raises(DiveError, match="another LlamaForCausalLM"):
        small("llama").generate(**text_batch(), max_new_tokens=2, custom_generate=session)
    with pytest.raises(DiveError, match="hidden_size"):
        odd = copy.deepcopy(model)
        odd.config.hidden_size = 64
        adapter = randomised(model)
        DecodeSession(odd, adapter)
    other = randomised(model)
    with dive.steer(model, other), pytest.raises(DiveError, match="another adapter"):
        DecodeSession(model, randomised(model)).generate(**text_batch(), max_new_tokens=2)


def test_longer_than_the_first_tables():
    """Tables of cos and sin grow past their first size."""
    kind, config, more = FAMILIES["llama3"]
    torch.manual_seed(0)
    sizes = {**SIZES, **more, "max_position_embeddings": 2048}
    model = kind(config(**sizes)).eval()
    ids = torch.randint(2, 96, (1, 505))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    got, want = both(DecodeSession(model), batch, None, max_new_tokens=20)
    assert torch.equal(got, want)


def test_the_spec_tells_the_families_apart():
    specs = {}
    for family in FAMILIES:
        session = DecodeSession(small(family))
        assert session.plan().engine == "dive._C"
        specs[family] = session._spec
    assert [layer.window for layer in specs["gemma3"].layers] == [20, 0, 20]
    assert [layer.window for layer in specs["qwen2-window"].layers] == [0, 16, 16]
    assert [layer.window for layer in specs["mistral"].layers] == [24, 24, 24]
    assert specs["gemma3"].norm_plus_one and not specs["qwen3"].norm_plus_one
    assert specs["gemma3"].embedding_scale == pytest.approx(72**0.5)
    assert specs["gemma3"].logits_softcap == 5.0
    assert specs["qwen2"].tied_head and not specs["llama"].tied_head
    assert specs["qwen3"].head_width == 32
    assert decoder(specs["qwen3"].text) is specs["qwen3"].text
