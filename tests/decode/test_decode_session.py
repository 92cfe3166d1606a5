"""The decode session against transformers' own generate, and its reasons to fall back."""

import copy
import dataclasses
import gc
import logging
import os
from pathlib import Path

import pytest
import torch
from tiny_decoders import FAMILIES, SIZES, both, small, text_batch
from tiny_steering import for_backbone, prompts, randomised
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

import dive
from dive.decode.continuous import Request
from dive.decode.session import DecodeSession
from dive.errors import DiveError, FallbackWarning

C = pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")


WAYS = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 20},
    "processed": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "min_p": {"do_sample": True, "min_p": 0.05},
}


@pytest.mark.parametrize("positions", [None, "all", "response"])
def test_every_family_with_images_and_padding(any_backbone, studies, positions):
    adapter = positions and randomised(any_backbone, positions=positions)
    session = DecodeSession(any_backbone, adapter)
    assert session.engine_choice().engine == "dive._C"
    batch = prompts(any_backbone, studies[:4])
    for way, kwargs in WAYS.items():
        got, want = both(session, batch, adapter, max_new_tokens=20, **kwargs)
        assert torch.equal(got, want), way
    assert session.ran.engine == "dive._C" and not session.fallback.reported


def test_calls_in_between_leave_no_trace(tiny_qwen, studies):
    """rope_deltas is state on the module: images before and after must not mix."""
    backbone = dive.load_backbone(tiny_qwen)
    session = DecodeSession(backbone)
    first, second = (prompts(backbone, studies[i : i + 2]) for i in (0, 2))
    want = [backbone.model.generate(**b, max_new_tokens=12) for b in (first, second)]
    assert session.engine_choice(**first).engine == "dive._C"
    got = [session.generate(**b, max_new_tokens=12) for b in (first, second, first)]
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    assert torch.equal(got[2], want[0])
    assert torch.equal(backbone.model.generate(**second, max_new_tokens=12), want[1])


def test_the_embedded_backbone_writes_the_same_reports():
    backbone = dive.load_backbone(Path(dive.__file__).parent / "demo" / "backbone")
    batch = {"input_ids": torch.tensor([[1, 20, 21, 22], [1, 30, 31, 33]])}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    adapter = randomised(backbone, strength=0.02)
    for one in (None, adapter):
        got, want = both(
            DecodeSession(backbone, one), batch, one, max_new_tokens=100, do_sample=False
        )
        assert torch.equal(got, want)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches_equal_single_runs(family):
    model = small(family)
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
    """A stopping criterion of a caller's own, which ends a row at a token."""

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
    engine = session.binding.cache.engine
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)  # in place: the engine reads the new numbers
    got, want = both(session, batch, None, max_new_tokens=20)
    assert torch.equal(got, want) and session.binding.cache.engine is engine
    model.load_state_dict(small("llama", seed=1).state_dict(), assign=True)
    gc.collect()
    got, want = both(session, batch, None, max_new_tokens=20)
    assert torch.equal(got, want) and session.binding.cache.engine is not engine
    model.lm_head = nn.Linear(72, 96, bias=True)
    got, want = both(session, batch, None, max_new_tokens=20)
    assert torch.equal(got, want)


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
    choice = session.engine_choice(**kwargs)
    assert choice.engine == "transformers" and words in choice.reason
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


def test_unknown_options_are_named():
    session, batch = DecodeSession(small("llama")), text_batch()
    for call in (session.engine_choice, session.generate):
        with pytest.raises(DiveError, match="^max_new_token, tempreature: no argument of generate"):
            call(**batch, max_new_token=3, tempreature=0.5, top_k=3)
    # arguments that generate knows, which are no settings
    known = {"streamer": None, "tokenizer": None, "output_attentions": False, "position_ids": None}
    assert session.engine_choice(**batch, **known, min_new_tokens=1).engine == "dive._C"


def test_prompts_padded_on_the_right_run_in_transformers():
    model = small("llama")
    session, batch = DecodeSession(model), text_batch()
    batch = {name: tensor.flip(1) for name, tensor in batch.items()}
    with pytest.warns(FallbackWarning, match="not padded on the left only"):
        got, want = both(session, batch, None, max_new_tokens=5)
    assert torch.equal(got, want) and session.ran.engine == "transformers"


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
    "spread out": (lambda m: m.model.layers[1].to("meta"), "on cpu, meta, want one device"),
    "elsewhere": (lambda m: m.to("meta"), "on meta; known are cpu, cuda"),
    "hook": (hook, "forward hook"),
    "linear": (replace, "layers.1.self_attn.k_proj is a Odd"),
    "forward": (lambda m: setattr(m.model, "forward", m.model.forward), "was replaced"),
    "logits": (lambda m: None, "known are"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_says_why_it_runs_in_transformers(name):
    model = small("llama")
    session = DecodeSession(model)
    assert session.engine_choice().engine == "dive._C"
    change, words = CHANGES[name]
    if name == "logits":
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        session = DecodeSession(GPTNeoXForCausalLM(GPTNeoXConfig(**tiny)).eval())
    change(model)
    choice = session.engine_choice()
    assert choice.engine == "transformers" and words in choice.reason


@pytest.mark.parametrize(
    ("dtype", "built", "reason"),
    [
        ("bfloat16", False, "built without CUDA"),
        ("bfloat16", True, None),
        ("float16", True, None),
        ("float32", True, None),
        (
            "float64",
            True,
            "weights are torch.float64; known on cuda are float32, bfloat16, float16",
        ),
    ],
)
def test_what_is_asked_of_weights_on_a_gpu(dtype, built, reason, monkeypatch):
    """The message alone: the weights are on the CPU, and the spec claims otherwise."""
    from dive.decode import spec as decoder_spec

    model = small("llama")
    spec = decoder_spec.read_decoder(model)
    model.to(getattr(torch, dtype))
    spec = dataclasses.replace(spec, dtype=getattr(torch, dtype), device=torch.device("cuda", 0))
    monkeypatch.setattr("dive.decode.native.build_info", lambda: {"cuda": built})
    if reason is None:
        decoder_spec._check_weights(spec)
    else:
        with pytest.raises(decoder_spec.Unsupported, match=reason):
            decoder_spec._check_weights(spec)


def test_a_mask_of_positions_runs_in_transformers():
    model = small("llama")
    session = DecodeSession(model)
    with dive.steer(model, randomised(model)) as attachment:
        attachment.mask = torch.ones(1, 9, dtype=torch.bool)
        with pytest.warns(FallbackWarning, match="mask of positions"):
            session.generate(**text_batch(rows=1), max_new_tokens=1)


def test_without_the_extension(monkeypatch):
    from dive.decode import native

    missing = native.Found(None, native.NOT_BUILT, "dive._C is not built here")
    monkeypatch.setattr(native, "find", lambda: missing)
    model = small("llama")
    session = DecodeSession(model)
    assert "not built" in session.engine_choice().reason
    with pytest.warns(FallbackWarning, match="not built"):
        got, want = both(session, text_batch(), None, max_new_tokens=5)
    assert torch.equal(got, want)


def test_bad_calls_say_what_is_wrong():
    model = small("llama")
    session = DecodeSession(model)
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


def test_past_the_context_it_writes_on_as_transformers_does(caplog):
    model, batch = small("llama"), text_batch()
    session = DecodeSession(model, strict=True)
    settings = {"max_new_tokens": 520, "eos_token_id": None}
    assert session.engine_choice(**batch, **settings).engine == "dive._C"
    got, want = both(session, batch, None, **settings)
    assert torch.equal(got, want) and want.shape[1] > 512
    one = {name: value[:1] for name, value in batch.items()}
    with caplog.at_level(logging.WARNING, logger="dive"):
        [written] = session.stream([Request(one, settings)])
    alone = model.generate(**one, **settings)[0, one["input_ids"].shape[1] :]
    assert written.token_ids == alone.tolist() and "context of 512" in caplog.text


def test_longer_than_the_first_tables():
    """Tables of cos and sin grow beyond their first size."""
    kind, config, more = FAMILIES["llama3"]
    torch.manual_seed(0)
    sizes = {**SIZES, **more, "max_position_embeddings": 2048}
    model = kind(config(**sizes)).eval()
    ids = torch.randint(2, 96, (1, 505))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    got, want = both(DecodeSession(model), batch, None, max_new_tokens=20)
    assert torch.equal(got, want)


@pytest.mark.parametrize("steered_by", [None, "all", "response"])
def test_reports_do_not_depend_on_the_engine(any_backbone, studies, steered_by):
    cases = for_backbone(any_backbone, studies)
    adapter = steered_by and randomised(any_backbone, positions=steered_by)
    options = {"adapter": adapter, "max_new_tokens": 15, "batch_size": 4}
    for more in ({}, {"do_sample": True}, {"num_beams": 2}):
        both = []
        for engine in ("auto", "transformers"):
            torch.manual_seed(2)
            reports = dive.generate(any_backbone, cases, engine=engine, **options, **more)
            ran = "dive._C" if engine == "auto" and "num_beams" not in more else "transformers"
            assert {report.engine for report in reports} == {ran}
            both.append([dataclasses.replace(one, seconds=0.0, engine="") for one in reports])
        assert both[0] == both[1]
    with pytest.raises(DiveError, match="engine is 'gpu'"):
        dive.generate(any_backbone, cases, engine="gpu")


def resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_holds_the_weights_once():
    kind, config, _ = FAMILIES["qwen3"]
    sizes = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 2048}
    model = kind(config(**{**SIZES, **sizes, "num_attention_heads": 8})).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert weights > 50 << 20
    model.generate(**text_batch(), max_new_tokens=3)  # PyTorch's set-up at its first products
    before = resident()
    session = DecodeSession(model)
    session.generate(**text_batch(), max_new_tokens=3)
    assert session.engine_choice().engine == "dive._C"
    assert resident() - before < weights / 8
