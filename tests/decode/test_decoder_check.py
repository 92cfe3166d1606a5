"""The engine never decodes a model that computes something else than its family."""

import functools
import warnings

import pytest
import torch
from tiny_decoders import small, text_batch
from torch import nn
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

import dive
from dive.decode.continuous import Request
from dive.decode.session import DecodeSession
from dive.errors import FallbackWarning

pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")

SETTINGS = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def stronger(module, query, key, value, mask, scaling=None, **more):
    return sdpa_attention_forward(module, query, key, value, mask, scaling=3 * scaling, **more)


def mask_of_three(*args, **more):
    mask = sdpa_mask(*args, **{**more, "allow_is_causal_skip": False})
    return mask & torch.ones_like(mask).triu(mask.shape[-1] - mask.shape[-2] - 2)


def own_attention(model):
    AttentionInterface.register("own", stronger)
    ALL_MASK_ATTENTION_FUNCTIONS.register("own", sdpa_mask)
    model.set_attn_implementation("own")


def louder(module, args, output):
    output["logits"] = -output.logits
    return output


def wrapped(model, module, change):
    inner = module.forward

    @functools.wraps(inner)
    def forward(*args, **more):
        return change(inner(*args, **more))

    module.forward = forward


def changed_steps(model):
    inner = model.prepare_inputs_for_generation

    @functools.wraps(inner)
    def prepare(*args, **more):
        inputs = inner(*args, **more)
        inputs["input_ids"] = (inputs["input_ids"] + 1) % 96
        return inputs

    model.prepare_inputs_for_generation = prepare


def every(model, change):
    for layer in model.model.layers:
        change(layer)


CHANGES = {
    "attention of one's own": ("llama", own_attention, "its attention 'own' is a function of your"),
    "hook on the model": ("llama", lambda m: m.register_forward_hook(louder), "LlamaForCausalLM"),
    "hook on a layer": (
        "llama",
        lambda m: m.model.layers[1].mlp.register_forward_hook(lambda _, args, out: 2 * out),
        "layers.1.mlp has a forward hook",
    ),
    "forward of the model": (
        "llama",
        lambda m: wrapped(m, m, lambda out: louder(m, (), out)),
        "the forward of LlamaForCausalLM was replaced",
    ),
    "forward of a layer's": (
        "llama",
        lambda m: wrapped(m, m.model.layers[1].mlp, lambda out: 2 * out),
        "the forward of layers.1.mlp was replaced",
    ),
    "steps": ("llama", changed_steps, "its prepare_inputs_for_generation is not its library's"),
    "activation of one": (
        "llama",
        lambda m: setattr(m.model.layers[1].mlp, "act_fn", nn.ReLU()),
        "layers.1.mlp.act_fn is a ReLU, and the config's activation is silu",
    ),
    "activation of all": (
        "qwen2",
        lambda m: every(m, lambda layer: setattr(layer.mlp, "act_fn", nn.ReLU())),
        "layers.0.mlp.act_fn is a ReLU",
    ),
    "scaling": (
        "llama",
        lambda m: setattr(m.model.layers[2].self_attn, "scaling", 3.0),
        "layers.2.self_attn.scaling is 3.0, and that of layers.0",
    ),
    "eps": (
        "llama",
        lambda m: setattr(m.model.layers[0].input_layernorm, "variance_epsilon", 3.0),
        "layers.0.input_layernorm's eps is 3.0",
    ),
    "eps of gemma's": (
        "gemma3",
        lambda m: setattr(m.model.layers[0].self_attn.q_norm, "eps", 3.0),
        "layers.0.self_attn.q_norm's eps is 3.0",
    ),
    "last norm": ("llama", lambda m: setattr(m.model.norm, "variance_epsilon", 3.0), "norm's eps"),
    "norm of another kind": (
        "qwen3",
        lambda m: setattr(m.model.layers[1].self_attn, "q_norm", nn.Identity()),
        "layers.1.self_attn.q_norm is a Identity",
    ),
    "layer of another family": (
        "qwen3",
        lambda m: setattr(m.model.layers[1], "mlp", small("llama").model.layers[1].mlp),
        "layers.1.mlp is a LlamaMLP",
    ),
    "max_norm": (
        "llama",
        lambda m: setattr(m.model.embed_tokens, "max_norm", 0.5),
        "its embeddings have a max_norm",
    ),
}
# what is read anew, and decoded by the engine as it is now
READ = {
    "rotary frequencies": ("llama", lambda m: m.model.rotary_emb.inv_freq.mul_(0.3)),
    "rotary scale": ("llama", lambda m: setattr(m.model.rotary_emb, "attention_scaling", 1.4)),
    "embedding scale": ("gemma3", lambda m: m.model.embed_tokens.embed_scale.fill_(2.0)),
    "window": ("mistral", lambda m: setattr(m.config, "sliding_window", 4)),
    "soft-cap": ("gemma3", lambda m: setattr(m.config, "final_logit_softcapping", 0.5)),
    "scaling of all": (
        "llama",
        lambda m: every(m, lambda layer: setattr(layer.self_attn, "scaling", 0.6)),
    ),
    "layers cut off": ("llama", lambda m: setattr(m.model, "layers", m.model.layers[:2])),
    "fewer layers by the config": ("llama", lambda m: setattr(m.config, "num_hidden_layers", 2)),
    "weights": ("llama", lambda m: m.model.layers[1].mlp.up_proj.weight.data.neg_()),
    "compiled forward": (
        "llama",
        lambda m: setattr(m, "forward", torch.compile(m.forward, backend="eager")),
    ),
}


@pytest.fixture(autouse=True)
def registries():
    kept = [dict(one._global_mapping) for one in (ALL_ATTENTION_FUNCTIONS, _MASKS)]
    yield
    for one, before in zip((ALL_ATTENTION_FUNCTIONS, _MASKS), kept, strict=True):
        one._global_mapping.clear()
        one._global_mapping.update(before)
        one._local_mapping.clear()


_MASKS = ALL_MASK_ATTENTION_FUNCTIONS


def answers(model, session):
    """transformers' tokens, the session's, and those of its stream, for one prompt."""
    batch = text_batch(rows=1, prompt=9)
    with torch.no_grad():
        want = model.generate(**batch, **SETTINGS)
        got = session.generate(**batch, **SETTINGS)
        [streamed] = session.stream([Request(batch, SETTINGS)])
    return want[0, 9:].tolist(), got[0, 9:].tolist(), streamed.token_ids


@pytest.mark.parametrize("bound", [False, True], ids=["fresh", "bound"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_the_familys_runs_in_transformers_and_says_why(name, bound):
    family, change, words = CHANGES[name]
    model = small(family)
    session = DecodeSession(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        if bound:
            before = answers(model, session)
            assert before[0] == before[1] == before[2] and session.ran.engine == "dive._C"
    with torch.no_grad():
        change(model)
    for one in (session, DecodeSession(model)):
        choice = one.engine_choice(**SETTINGS)
        assert choice.engine == "transformers" and words in choice.reason
    with pytest.warns(FallbackWarning) as warned:
        want, got, streamed = answers(model, session)
    assert want == got == streamed and session.ran.engine == "transformers"
    assert words in str(warned[0].message)


@pytest.mark.parametrize("bound", [False, True], ids=["fresh", "bound"])
@pytest.mark.parametrize("name", READ)
def test_what_the_engine_can_read_is_read_anew(name, bound):
    family, change = READ[name]
    model = small(family)
    session = DecodeSession(model, strict=True)
    before = answers(model, session) if bound else None
    with torch.no_grad():
        change(model)
    want, got, streamed = answers(model, session)
    assert want == got == streamed and session.ran.engine == "dive._C"
    if before is not None and name not in ("compiled forward", "soft-cap"):
        assert want != before[0]  # the change is visible; a soft-cap keeps the order


@pytest.mark.parametrize("where", ["sdpa", "mask", "eager", "class", "every module"])
def test_what_is_changed_for_all_models_is_found_too(where, monkeypatch):
    model = small("llama", attn_implementation="eager" if where == "eager" else "sdpa")
    session = DecodeSession(model)
    assert session.engine_choice().engine == "dive._C"
    if where == "sdpa":
        ALL_ATTENTION_FUNCTIONS["sdpa"] = stronger
    elif where == "mask":
        ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = mask_of_three
    elif where == "eager":
        monkeypatch.setattr(modeling_llama, "eager_attention_forward", stronger)
    elif where == "class":
        inner = modeling_llama.LlamaMLP.forward
        monkeypatch.setattr(
            modeling_llama.LlamaMLP,
            "forward",
            functools.wraps(inner)(lambda self, x: 2 * inner(self, x)),
        )
    else:
        hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.warns(FallbackWarning):
            want, got, streamed = answers(model, session)
        assert want == got == streamed and session.ran.engine == "transformers"
    finally:
        if where == "every module":
            hook.remove()


def test_a_class_of_ones_own_that_computes_the_same_is_the_engines():
    class Mine(LlamaForCausalLM):
        def describe(self):
            return "mine"

    class Other(Mine):
        def forward(self, *args, **more):
            return louder(self, args, super().forward(*args, **more))

    config = small("llama").config
    torch.manual_seed(0)
    for kind, engine in ((Mine, "dive._C"), (Other, "transformers")):
        assert DecodeSession(kind(config).eval()).engine_choice().engine == engine


def test_generate_notices_a_hook_set_between_two_calls(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava)
    options = {"max_new_tokens": 6}
    first = dive.generate(backbone, studies[:1], **options)
    assert first[0].engine == "dive._C"
    backbone.model.register_forward_hook(louder)
    with pytest.warns(FallbackWarning, match="has a forward hook"):
        got = dive.generate(backbone, studies[:1], **options)
    want = dive.generate(backbone, studies[:1], engine="transformers", **options)
    assert got[0].token_ids == want[0].token_ids != first[0].token_ids
    config = dive.DistillConfig(preset="dive-ce", steps=1, batch_size=2)
    with pytest.raises(dive.DiveError, match="its logits are not last_hidden_state"):
        dive.distill(backbone, studies, config=config)
