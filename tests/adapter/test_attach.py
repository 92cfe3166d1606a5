"""Attaching and detaching adapters, the steered positions, and calibration, for every family."""

import copy

import pytest
import torch
from tiny_steering import fingerprint, logits, prompts, randomised, steered_layers
from transformers import DynamicCache, GenerationConfig

import dive
from dive.adapter.attach import attachment_of
from dive.backbone.structure import decoder_layers, last_hidden_state
from dive.errors import DiveError
from dive.training.calibration import calibrate

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=6, pad_token_id=0)


def generate(model, batch, **more):
    """Six greedy tokens and the logits by which they were chosen, [B, 6, V]."""
    output = model.generate(
        **batch,
        generation_config=GREEDY,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **more,
    )
    return output.sequences[:, -6:], torch.stack(output.logits, dim=1)


def test_attach_and_detach_leave_no_trace(any_backbone, studies):
    model, batch = any_backbone.model, prompts(any_backbone, studies[:2])
    before, trace = logits(model, batch), fingerprint(model)
    adapter = randomised(model)
    with dive.steer(any_backbone, adapter) as attachment, steered_layers(adapter) as layers:
        assert attachment_of(model) is attachment
        steered = logits(model, batch)
        assert len(layers) == 3
        attachment.enabled = False
        assert torch.equal(logits(model, batch), before)
    assert attachment_of(model) is None
    assert torch.equal(logits(model, batch), before)
    assert fingerprint(model) == trace
    visible = batch["attention_mask"].bool()
    moved = (steered - before)[visible].abs().amax(-1)
    assert moved.min() > 1e-3 * before.abs().max()  # at every position that is not padding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("norm_preserving", [False, True])
def test_a_fresh_adapter_is_the_identity(any_backbone, studies, dtype, norm_preserving):
    model = (
        any_backbone.model
        if dtype is torch.float32
        else copy.deepcopy(any_backbone.model).to(dtype)
    )
    batch = prompts(any_backbone, studies[:2])
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    adapter = dive.SteeringAdapter(dive.SteeringConfig(norm_preserving=norm_preserving), model)
    before = logits(model, batch)
    with dive.steer(model, adapter), steered_layers(adapter) as steered:
        assert torch.equal(logits(model, batch), before)
        assert len(steered) == 3
    trained = randomised(model, norm_preserving=norm_preserving)
    with dive.steer(model, trained):
        after = logits(model, batch)
    assert after.dtype == dtype and not torch.allclose(after.float(), before.float(), atol=0.05)


def test_a_saved_adapter_steers_alike(any_backbone, studies, tmp_path):
    model, batch = any_backbone.model, prompts(any_backbone, studies[:1])
    adapter = randomised(model, layers=[0, 2], norm_preserving=True)
    adapter.save_pretrained(tmp_path)
    with dive.steer(model, adapter):
        wanted = logits(model, batch)
    loaded = dive.SteeringAdapter.from_pretrained(tmp_path)
    with dive.steer(model, loaded), steered_layers(loaded) as steered:
        assert torch.equal(logits(model, batch), wanted)
        assert len(steered) == 2


def test_one_adapter_at_a_time(tiny_llama):
    model = dive.load_backbone(tiny_llama).model
    adapter, trace = randomised(model), fingerprint(model)
    with dive.steer(model, adapter) as first:
        with pytest.raises(DiveError, match="already attached to this model; detach it first"):
            dive.steer(model, randomised(model, seed=2))
        # the base model has the same layers
        with pytest.raises(DiveError, match="already attached"):
            dive.steer(model.base_model, randomised(model.base_model))
        assert attachment_of(model) is first
    first.detach()  # a second call does nothing
    assert fingerprint(model) == trace
    second = dive.steer(model, adapter)
    first.detach()  # and leaves a later attachment alone
    assert attachment_of(model) is second
    second.detach()
    assert fingerprint(model) == trace


def test_an_exception_inside_detaches(tiny_llama):
    model = dive.load_backbone(tiny_llama).model
    trace = fingerprint(model)
    with pytest.raises(KeyError), dive.steer(model, randomised(model)):
        raise KeyError("inside")
    assert fingerprint(model) == trace and attachment_of(model) is None


def test_another_backbone_is_refused_and_left_alone(tiny_llama, tiny_gemma):
    gemma, llama = dive.load_backbone(tiny_gemma).model, dive.load_backbone(tiny_llama).model
    adapter, trace = randomised(gemma), fingerprint(llama)
    with pytest.raises(DiveError, match="architecture is 'LlamaForCausalLM' here and was 'Gemma3"):
        dive.steer(llama, adapter)
    assert fingerprint(llama) == trace and attachment_of(llama) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "steer: adapter is a NoneType, want a SteeringAdapter"),
        (dive.SteeringAdapter, "steer: adapter is the class SteeringAdapter, want"),
        (dive.SteeringConfig(), "steer: adapter is a SteeringConfig, which has no weights"),
        ("no-such-folder", "no-such-folder: is no folder, want that of an adapter"),
    ],
)
def test_what_is_no_adapter_is_refused(given, message, tiny_llama):
    with pytest.raises(DiveError, match=message):
        dive.steer(dive.load_backbone(tiny_llama), given)


def test_a_mask_limits_the_edit_to_its_positions(any_backbone, studies):
    model, batch = any_backbone.model, prompts(any_backbone, studies[:1])
    mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    mask[:, -3] = True
    before = logits(model, batch)
    with dive.steer(model, randomised(model)) as attachment:
        attachment.mask = mask
        after = logits(model, batch)
        attachment.mask = torch.zeros_like(mask)
        assert torch.equal(logits(model, batch), before)
        attachment.mask = mask[:, 1:]
        with pytest.raises(DiveError, match=r"attachment.mask is \[1, \d+\], but this forward has"):
            logits(model, batch)
    assert torch.equal(after[:, :-3], before[:, :-3])
    assert ((after - before)[:, -3:].abs().amax(-1) > 1e-3).all()


def test_hidden_states_that_the_model_returns_are_the_steered_ones(any_backbone, studies):
    model, batch = any_backbone.model, prompts(any_backbone, studies[:1])
    outputs = []
    hook = decoder_layers(model)[0].register_forward_hook(lambda _m, _i, o: outputs.append(o))
    try:
        # transformers' own recording is in place before the adapter comes
        plain = model(**batch, output_hidden_states=True).hidden_states[1]
        with dive.steer(model, randomised(model)):
            outputs.clear()
            steered = model(**batch, output_hidden_states=True).hidden_states[1]
        again = model(**batch, output_hidden_states=True).hidden_states[1]
    finally:
        hook.remove()
    assert not torch.allclose(steered, plain, atol=1e-2)
    assert torch.equal(steered, outputs[0])
    assert torch.equal(again, plain)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("positions", ["all", "response"])
def test_generation_steers_what_training_steers(any_backbone, studies, positions, cache):
    """Step by step in a left-padded batch, against one forward over prompt and answer."""
    model, batch = any_backbone.model, prompts(any_backbone, [studies[0], studies[1]])
    prompt = batch["input_ids"].shape[1]
    plain, _ = generate(model, batch, cache_implementation=cache)
    adapter = randomised(model, positions=positions)
    with dive.steer(model, adapter) as attachment, steered_layers(adapter) as steered:
        answer, stepwise = generate(model, batch, cache_implementation=cache)
        assert len(steered) == 3 * 6
        joined = extended(batch, answer[:, :-1])
        if positions == "response":
            attachment.mask = torch.zeros_like(joined["input_ids"], dtype=torch.bool)
            attachment.mask[:, prompt - 1 :] = True
        at_once = logits(model, joined)[:, prompt - 1 :]
    assert not torch.equal(plain, answer)
    torch.testing.assert_close(stepwise, at_once, atol=2e-4, rtol=1e-4)


def extended(batch, answer):
    joined = dict(batch)
    for name, value in batch.items():
        if name == "input_ids":
            joined[name] = torch.cat([value, answer], dim=1)
        elif value.shape[:2] == batch["input_ids"].shape:
            more = torch.full_like(answer, name == "attention_mask", dtype=value.dtype)
            joined[name] = torch.cat([value, more], dim=1)
    return joined


def test_response_positions_leave_the_prompts_cache_alone(any_backbone, studies):
    model, batch = any_backbone.model, prompts(any_backbone, studies[:2])

    @torch.no_grad()
    def prefill():
        cache = DynamicCache(config=model.config)
        model(**batch, past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    before = prefill()
    with dive.steer(model, randomised(model, positions="response")):
        after = prefill()
    for layer, (old, new) in enumerate(zip(before, after, strict=True)):
        for one, other in zip(old, new, strict=True):
            assert torch.equal(one[:, :, :-1], other[:, :, :-1])
            # layer 0 writes its cache before the first edit
            assert torch.equal(one[:, :, -1], other[:, :, -1]) == (layer == 0)


def test_a_left_padded_batch_equals_its_rows(any_backbone, studies):
    model = any_backbone.model
    rows = [prompts(any_backbone, [study]) for study in (studies[0], studies[1], studies[2])]
    batch = prompts(any_backbone, studies[:3])
    assert not batch["attention_mask"].all()
    with dive.steer(model, randomised(model)):
        _, together = generate(model, batch)
        for index, row in enumerate(rows):
            _, alone = generate(model, row)
            torch.testing.assert_close(together[index], alone[0], atol=2e-4, rtol=1e-4)


def test_a_compiled_generate_sees_an_adapter_that_comes_later(tiny_llama):
    model = dive.load_backbone(tiny_llama).model
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        # as generate does with a static cache on a GPU, with a backend that needs no compiler
        model._compiled_call = torch.compile(model.__call__, backend="eager")
        before = model._compiled_call(ids, use_cache=False).logits
        with dive.steer(model, randomised(model)):
            assert "_compiled_call" not in vars(model)
            wanted = model(ids, use_cache=False).logits
            compiled = torch.compile(model.__call__, backend="eager")
            steered = compiled(ids, use_cache=False).logits
        torch.testing.assert_close(steered, wanted)
        assert not torch.allclose(steered, before, atol=1e-2)
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, before)
        # a call that was compiled without hooks must notice the adapter too
        with dive.steer(model, randomised(model)):
            torch.testing.assert_close(compiled(ids, use_cache=False).logits, wanted)


def test_rope_deltas_do_not_leak_between_calls(tiny_qwen, studies):
    """Teacher, student and generate in turn give the same as with a model each."""
    calls = {"student": studies[:2], "teacher": [studies[2]], "other": [studies[1]]}
    text = {"input_ids": torch.arange(5, 17)[None]}

    def run(backbone, name, adapter):
        if name == "text":
            return logits(backbone.model, text)
        batch = prompts(backbone, calls[name])
        model = backbone.model
        if name == "teacher":
            with torch.no_grad():
                return last_hidden_state(model, batch)
        with dive.steer(model, adapter):
            return generate(model, batch)[1] if name == "other" else logits(model, batch)

    shared = dive.load_backbone(tiny_qwen)
    adapter = randomised(shared)
    fresh = {name: run(dive.load_backbone(tiny_qwen), name, adapter) for name in (*calls, "text")}
    order = "other text teacher text other student text other student teacher student"
    for name in order.split():
        assert torch.equal(run(shared, name, adapter), fresh[name]), name


@pytest.mark.parametrize("factor", [1.0, 30.0, 300.0])
def test_calibration_measures_the_stream(any_backbone, studies, factor):
    model = any_backbone.model
    batch = prompts(any_backbone, studies[:2])
    mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    mask[0, -5:] = mask[1, -2:] = True
    layers, streams = decoder_layers(model), []
    scaled = [layer.register_forward_hook(lambda _m, _i, o: o * factor) for layer in layers[:1]]
    seen = [layer.register_forward_hook(lambda _m, _i, o: streams.append(o)) for layer in layers]
    try:
        adapter = dive.SteeringAdapter(dive.SteeringConfig(layers=[0, 2]), model)
        calibrate(model, adapter, [(batch, mask)])
    finally:
        for hook in (*scaled, *seen):
            hook.remove()
    rms = [stream[mask].pow(2).mean(-1).sqrt().sort().values for stream in streams]
    assert all(len(values) == 7 for values in rms)
    assert adapter.layers["0"].sigma.item() == pytest.approx(rms[0][3].item(), rel=1e-5)
    assert adapter.layers["2"].sigma.item() == pytest.approx(rms[2][3].item(), rel=1e-5)
    plain = dive.SteeringAdapter(dive.SteeringConfig(layers=[0]), model)
    calibrate(model, plain, [(batch, mask)])
    ratio = adapter.layers["0"].sigma / plain.layers["0"].sigma
    assert ratio.item() == pytest.approx(factor, rel=1e-5)


def test_calibration_refuses_what_it_cannot_measure(tiny_llama):
    model = dive.load_backbone(tiny_llama).model
    adapter, trace = randomised(model), fingerprint(model)
    batch = {"input_ids": torch.tensor([[5, 6, 7]])}
    with pytest.raises(DiveError, match="layer 0 has the RMS nan over 0 positions"):
        calibrate(model, adapter, [(batch, torch.zeros(1, 3, dtype=torch.bool))])
    with pytest.raises(DiveError, match=r"mask is torch.int64 \[1, 3\], want torch.bool \[1, 3\]"):
        calibrate(model, adapter, [(batch, torch.ones(1, 3, dtype=torch.long))])
    with (
        dive.steer(model, adapter),
        pytest.raises(DiveError, match="attached to the model; detach it first"),
    ):
        calibrate(model, adapter, [])
    assert fingerprint(model) == trace
