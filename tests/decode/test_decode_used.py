"""The engine is used, and users are warned when it is not."""

import copy
import warnings

import pytest
import torch
from tiny_decoders import both, small, text_batch
from tiny_steering import for_backbone, randomised
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, GenerationConfig, StaticCache

import dive
from dive.backbone.kv_cache import caches_in, filled_layers
from dive.decode.continuous import Request
from dive.decode.fallback import input_reason
from dive.decode.session import DecodeSession
from dive.errors import DiveError, FallbackWarning

pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")


def other_cache(model):
    """Another version of transformers, which passes an unknown kind of cache."""
    model._prepare_cache_for_generation = lambda config, kwargs, *more: kwargs.update(kv=object())


@pytest.mark.parametrize("name", ["past_key_values", "cache", "cache_params", "kv"])
def test_the_cache_is_found_under_any_name(name):
    ids = torch.ones(1, 4, dtype=torch.long)
    assert input_reason(ids, {name: DynamicCache(), "logits_to_keep": 1}, False) is None


def test_what_is_no_cache_of_its_own_is_refused_by_what_it_is():
    ids, config = torch.ones(1, 4, dtype=torch.long), small("llama").config
    static = StaticCache(config=config, max_cache_len=8)
    assert input_reason(ids, {"cache": static}, False) == "the cache is a StaticCache"
    two = {"cache": DynamicCache(), "past": DynamicCache()}
    assert "passes 2 caches, want one (it passed cache, past)" in input_reason(ids, two, False)
    assert "passes 0 caches" in input_reason(ids, {"cache": None}, False)
    same = DynamicCache()
    assert caches_in({"cache": same, "past_key_values": same, "x": ids}) == [same]


@torch.no_grad()
def test_a_forward_that_fills_no_cache_is_an_error():
    model, ids = small("llama"), torch.ones(1, 4, dtype=torch.long)
    outputs = model(ids, use_cache=True)
    assert len(filled_layers(outputs, 4)) == model.config.num_hidden_layers
    for bad in (model(ids, use_cache=False), {"cache": DynamicCache()}):
        with pytest.raises(DiveError, match="want one of 4"):
            filled_layers(bad, 4)
    with pytest.raises(DiveError, match="caches of \\[4\\] tokens, want one of 5"):
        filled_layers(outputs, 5)


# as the checkpoints' own generation_config.json has them, but for the ids of tokens
CHECKPOINTS = {
    "MedGemma": {"cache_implementation": "hybrid", "do_sample": True, "top_k": 64, "top_p": 0.95},
    "Lingshu": {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1,
                "top_p": 0.001},
    "Qwen3-VL": {"do_sample": True, "repetition_penalty": 1.0, "temperature": 0.7, "top_k": 20,
                 "top_p": 0.8},
    "LLaVA-Med": {"attn_implementation": "flash_attention_2", "use_cache": True,
                  "_from_model_config": True},
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_generation_configs_of_real_checkpoints_are_the_engines(name):
    model = small("gemma3" if name == "MedGemma" else "llama")
    settings = {"bos_token_id": 2, "eos_token_id": [1, 90], "pad_token_id": 0, **CHECKPOINTS[name]}
    model.generation_config = GenerationConfig.from_dict(settings)
    session = DecodeSession(model, strict=True)
    assert session.engine_choice(max_new_tokens=12).engine == "dive._C"
    got, want = both(session, text_batch(), max_new_tokens=12)
    assert torch.equal(got, want) and session.ran.engine == "dive._C"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 2}, "beam search is requested (by the model's generation_config)"),
        ({"cache_implementation": "static"}, "the static cache is requested (by the model's"),
        ({"use_cache": False}, "use_cache is False (by the model's"),
    ],
)
def test_settings_of_the_models_own_generation_config_are_no_silent_reason(settings, words):
    model, batch = small("llama"), text_batch()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    sessions = [DecodeSession(model) for _ in range(2)]
    choice = sessions[0].engine_choice(**batch, max_new_tokens=4)
    assert choice.engine == "transformers" and words in choice.reason and not choice.requested
    wanted = model.generate(**batch, max_new_tokens=4)
    with pytest.warns(FallbackWarning) as warned:
        got = sessions[0].generate(**batch, max_new_tokens=4)
    assert torch.equal(got, wanted) and words in str(warned[0].message)
    with pytest.warns(FallbackWarning) as warned:
        [_] = sessions[1].stream([Request({"input_ids": batch["input_ids"][:1]},
                                          {"max_new_tokens": 4})])  # fmt: skip
    assert sessions[1].ran.engine == "transformers" and words in str(warned[0].message)
    # the caller's own settings do not warn
    other = DecodeSession(small("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        other.generate(**batch, max_new_tokens=4, **settings)
    assert other.ran.requested


def test_a_cache_that_is_not_known_is_planned_for():
    model = small("llama")
    session = DecodeSession(model)
    assert session.engine_choice().engine == "dive._C" and session.ran is None
    other_cache(model)
    choice = session.engine_choice(**text_batch(), max_new_tokens=4)
    assert choice.engine == "transformers" and not choice.requested
    assert "passes 0 caches" in choice.reason and "kv" in choice.reason


def test_a_fallback_that_was_not_asked_for_is_a_warning_and_only_once():
    model, batch = small("llama"), text_batch()
    want = model.generate(**batch, max_new_tokens=5)
    session = DecodeSession(model)
    batch["attention_mask"] = batch["attention_mask"].clone()
    batch["attention_mask"][0, 4] = 0  # a hole, unknown without the prompt
    assert session.engine_choice(max_new_tokens=5).engine == "dive._C"
    assert session.engine_choice(**batch, max_new_tokens=5).engine == "transformers"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            session.generate(**batch, max_new_tokens=5)
    warned = [str(one.message) for one in seen if one.category is FallbackWarning]
    assert len(warned) == 1 and "not padded on the left only" in warned[0]
    assert session.ran.engine == "transformers" and "padded" in session.ran.reason
    batch = text_batch()
    assert torch.equal(session.generate(**batch, max_new_tokens=5), want)
    assert session.ran.engine == "dive._C"


def test_a_cache_of_the_callers_own_goes_to_transformers_under_either_name():
    """Newer versions accept past_key_values too, and pass it as cache."""
    model, batch = small("llama"), text_batch(rows=1)
    name = "past_key_values"
    want = model.generate(**batch, max_new_tokens=4, **{name: DynamicCache(config=model.config)})
    session = DecodeSession(model)
    given = {name: DynamicCache(config=model.config)}
    assert session.engine_choice(**batch, **given).reason == "a cache is given"
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        got = session.generate(**batch, max_new_tokens=4, **given)
    assert torch.equal(got, want) and session.ran.requested


def test_a_session_looks_at_the_weights_once(monkeypatch):
    """Each check of the weights samples them all, which is too slow for every call of generate."""
    from dive.adapter import adapter as module

    model, looks = small("llama"), []
    adapter = randomised(model)
    right = module.fingerprint
    monkeypatch.setattr(module, "fingerprint", lambda one: looks.append(1) or right(one))
    session = DecodeSession(model, adapter)
    for _ in range(3):
        session.generate(**text_batch(), max_new_tokens=3)
    assert len(looks) == 1
    several = DecodeSession(model, [adapter] * 3)
    for _ in range(3):
        several.generate(**text_batch(), max_new_tokens=3)
    assert len(looks) == 2


def test_what_was_asked_for_is_no_warning():
    session = DecodeSession(small("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        session.generate(**text_batch(), max_new_tokens=4, num_beams=2)
    assert session.ran.requested and session.ran.reason == "beam search is requested"


def test_strict_refuses_in_place_of_falling_back():
    model = small("llama")
    session = DecodeSession(model, strict=True)
    got, want = both(session, text_batch(), None, max_new_tokens=6)
    assert torch.equal(got, want)
    with pytest.raises(DiveError, match=r"dive\._C cannot decode this: beam search is requested"):
        session.generate(**text_batch(), max_new_tokens=4, num_beams=2)


def test_reports_say_what_wrote_them(any_backbone, studies):
    cases = for_backbone(any_backbone, studies)[:2]
    options = {"max_new_tokens": 5, "engine": "dive._C"}
    wanted = dive.generate(any_backbone, cases, **options)
    assert [one.engine for one in wanted] == ["dive._C"] * 2
    with pytest.raises(DiveError, match="cannot decode this: beam search"):
        dive.generate(any_backbone, cases, num_beams=2, **options)
    with pytest.raises(DiveError, match="cannot decode this: custom_generate is given"):
        dive.generate(any_backbone, cases, custom_generate=lambda *a, **k: None, **options)


def test_reports_of_a_cache_that_is_not_known(tiny_llava, studies):
    """Under any other name of the argument reports are right and the user is warned."""
    backbone = dive.load_backbone(tiny_llava)
    wanted = dive.generate(backbone, studies[:2], max_new_tokens=5)
    model = copy.copy(backbone.model)
    original = model._prepare_cache_for_generation

    def wrapped(config, kwargs, *more):
        original(config, kwargs, *more)
        for name, value in list(kwargs.items()):
            if isinstance(value, DynamicCache):
                kwargs[name] = type("Renamed", (DynamicCache,), {})(config=model.config)

    model._prepare_cache_for_generation = wrapped
    other = dive.Backbone(model, backbone.processor)
    with pytest.warns(FallbackWarning, match="the cache is a Renamed"):
        reports = dive.generate(other, studies[:2], max_new_tokens=5)
    assert [one.engine for one in reports] == ["transformers"] * 2
    assert [one.token_ids for one in reports] == [one.token_ids for one in wanted]
    with pytest.raises(DiveError, match="cannot decode this: the cache is a Renamed"):
        dive.generate(other, studies[:2], max_new_tokens=5, engine="dive._C")


class Products(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name() in ("aten::mm", "aten::addmm", "aten::bmm")
        return function(*args, **(kwargs or {}))


def test_a_plan_runs_no_forward():
    session = DecodeSession(small("llama"))
    with Products() as first:
        session.engine_choice()  # binds the engine: the head is checked by a forward
    with Products() as again:
        assert session.engine_choice(**text_batch(), max_new_tokens=9).engine == "dive._C"
    assert first.count > 0 and again.count == 0
