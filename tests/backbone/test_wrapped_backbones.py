"""Backbones in wrappers: PEFT in all its states, torch.compile, data parallelism."""

import base64
import shutil
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_steering import fingerprint as traces
from tiny_steering import for_backbone, logits, prompts, randomised

import dive
from dive.backbone.fingerprint import difference, fingerprint
from dive.backbone.structure import backbone_facts, last_hidden_state, output_head, unwrap
from dive.decode.session import DecodeSession
from dive.errors import DiveError

STEPS = dict(steps=2, batch_size=2, rank=2)
OTHER = "the adapter may do nothing or harm"


@pytest.fixture
def backbone(tiny_llava):
    return dive.load_backbone(tiny_llava)


def compiled(model):
    return torch.compile(model, backend="eager")


def written(model, backbone, studies, **more):
    reports = dive.generate(
        model, studies[:3], processor=backbone.processor, max_new_tokens=8, **more
    )
    return [report.token_ids for report in reports]


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def with_lora(peft, model, seed=3, **settings):
    """A PeftModel whose LoRA visibly changes the model's outputs."""
    torch.manual_seed(seed)
    settings.setdefault("target_modules", ["q_proj", "v_proj"])
    return peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **settings))


def no_warning(adapter, model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.check_backbone(model)


# looking through


@pytest.mark.parametrize("wrap", [compiled, torch.nn.DataParallel])
def test_a_wrapper_changes_neither_reports_nor_description(wrap, backbone, studies):
    model, adapter = backbone.model, randomised(backbone)
    wanted = written(model, backbone, studies, adapter=adapter)
    wrapped = wrap(model)
    assert unwrap(wrapped) is model and backbone_facts(wrapped) == backbone_facts(model)
    assert written(wrapped, backbone, studies, adapter=adapter) == wanted
    choice = DecodeSession(model, adapter).engine_choice()
    assert DecodeSession(wrapped, adapter).engine_choice() == choice
    own = dive.distill(
        wrapped, studies, config=dict(preset="dive-ce", **STEPS), processor=backbone.processor
    )
    no_warning(own, model)
    no_warning(adapter, wrapped)


@pytest.mark.parametrize("kind", ["wrapper", "in place", "forward"])
def test_a_compiled_model_is_steered_inside_and_bare_outside(kind, tiny_llama):
    model, plain = (dive.load_backbone(tiny_llama).model for _ in range(2))
    batch = {"input_ids": torch.arange(5, 17)[None]}
    bare, adapter = logits(plain, batch), randomised(plain)
    with dive.steer(plain, adapter):
        wanted = logits(plain, batch)
    if kind == "wrapper":
        model = compiled(model)
    elif kind == "in place":
        model.compile(backend="eager")
    else:
        model.forward = compiled(model.forward)
    torch.testing.assert_close(logits(model, batch), bare)
    for _ in range(2):
        with dive.steer(model, adapter):
            torch.testing.assert_close(logits(model, batch), wanted)
        torch.testing.assert_close(logits(model, batch), bare)


def test_peft_and_compile_in_either_order(peft, backbone, studies):
    model = with_lora(peft, backbone.model)
    wanted = written(model, backbone, studies)
    assert unwrap(compiled(model)) is unwrap(model) is backbone.model
    assert written(compiled(model), backbone, studies) == wanted
    assert unwrap(peft.get_peft_model(compiled(backbone.model), peft.LoraConfig(
        target_modules=["o_proj"]), adapter_name="second")) is backbone.model  # fmt: skip


def test_an_adapter_made_before_wrappers_were_looked_through_still_fits(backbone):
    adapter = randomised(backbone)
    adapter.metadata["backbone"]["architecture"] = "OptimizedModule"
    del adapter.metadata["weights"]
    no_warning(adapter, backbone)


def test_what_peft_computes_around_the_model_is_refused(peft, tiny_llama):
    model = peft.get_peft_model(
        dive.load_backbone(tiny_llama).model,
        peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    )
    for call in (backbone_facts, DecodeSession, lambda one: dive.steer(one, None)):
        with pytest.raises(DiveError, match="PREFIX_TUNING: PEFT computes this around the model"):
            call(model)
    assert unwrap(model.get_base_model()) is model.get_base_model()
    with model.disable_adapter():
        assert backbone_facts(model)["architecture"] == "LlamaForCausalLM"


# computing


@pytest.mark.parametrize("state", ["active", "disabled", "merged", "unloaded", "mixed", "injected"])
def test_reports_are_those_of_the_model_with_its_lora(state, peft, backbone, studies):
    bare = written(backbone, backbone, studies)
    model, plain = backbone.model, backbone.model
    if state == "mixed":
        config = peft.LoraConfig(init_lora_weights=False, target_modules=["q_proj", "v_proj"])
        torch.manual_seed(3)
        model = peft.get_peft_model(model, config, mixed=True)
    elif state == "injected":  # what transformers' model.add_adapter() does
        config = peft.LoraConfig(init_lora_weights=False, target_modules=["q_proj", "v_proj"])
        torch.manual_seed(3)
        peft.inject_adapter_in_model(config, model)
    else:
        model = with_lora(peft, model)
    if state == "disabled":
        model.base_model.disable_adapter_layers()
    elif state == "merged":
        model.merge_adapter()
    elif state == "unloaded":
        model = model.merge_and_unload()
    plan = DecodeSession(model).engine_choice()
    model.eval()
    batch = prompts(backbone, studies[:1])
    wanted = plain.generate(**batch, max_new_tokens=8, do_sample=False)[0]
    wanted = wanted[batch["input_ids"].shape[1] :].tolist()
    got = written(model, backbone, studies)
    assert got[0] == wanted
    assert got == written(model, backbone, studies, engine="transformers")
    assert (got == bare) == (state == "disabled")
    if state == "unloaded":
        assert plan.engine == "dive._C"
    else:
        assert plan.engine == "transformers"
        assert "q_proj is a Linear of peft" in plan.reason and "merge_and_unload" in plan.reason


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head", "input_layernorm", "up_proj"])
def test_no_part_with_a_tuner_is_decoded_by_the_engine(target, peft, backbone, studies):
    """An earlier session uses it, too: PEFT's layers keep the weight's name."""
    session = DecodeSession(backbone)
    assert session.engine_choice().engine == "dive._C"
    settings = {"target_modules": [target]}
    if target == "input_layernorm":
        settings = {"target_modules": ["q_proj"], "modules_to_save": [target]}
    model = with_lora(peft, backbone.model, **settings)
    assert session.engine_choice().engine == "transformers"
    model.eval()
    batch = prompts(backbone, studies[:1])
    wanted = model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(session.generate(**batch, max_new_tokens=8, do_sample=False), wanted)
    assert torch.equal(model.generate(**batch, max_new_tokens=8, do_sample=False,
                                      custom_generate=session), wanted)  # fmt: skip
    model.merge_and_unload()
    assert session.engine_choice().engine == "dive._C"
    after = session.generate(**batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(after, backbone.model.generate(**batch, max_new_tokens=8, do_sample=False))


def test_a_head_with_an_active_lora_is_refused_and_a_merged_one_is_not(peft, backbone, studies):
    model = with_lora(peft, backbone.model, target_modules=["lm_head"])
    with pytest.raises(DiveError, match="its output head has PEFT's lora at work"):
        dive.distill(model, studies, processor=backbone.processor)
    model.merge_adapter()
    head, batch = output_head(model), prompts(backbone, studies[:1])
    with torch.no_grad():
        got = head(last_hidden_state(model, batch))
    torch.testing.assert_close(got, logits(backbone.model, batch))
    model.unmerge_adapter()
    with pytest.raises(DiveError, match="output head has PEFT's lora"):
        output_head(model)


def test_distil_learns_through_a_lora_and_leaves_it_as_it_was(peft, backbone, studies):
    model = with_lora(peft, backbone.model, lora_dropout=0.5).train()
    written(model, backbone, studies)  # transformers registers hooks of its own at a first forward
    before, trained = traces(model), [p.requires_grad for p in model.parameters()]
    options = dict(config=dict(**STEPS), demonstrations=1, processor=backbone.processor)
    adapter = dive.distill(model, studies, **options)
    assert traces(model) == before
    assert [p.requires_grad for p in model.parameters()] == trained and any(trained)
    assert all(p.grad is None for p in model.parameters())
    assert adapter.metadata["backbone"]["architecture"] == "LlavaForConditionalGeneration"
    assert adapter.metadata["weights"]["tuners"] == ["lora"]
    again = dive.distill(model, studies, **options)  # no dropout: the same once more
    merged = dive.distill(model.eval().merge_and_unload(), studies, **options)
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        torch.testing.assert_close(tensor, merged.state_dict()[name], rtol=2e-2, atol=2e-4)
    no_warning(adapter, backbone.model)


def test_a_training_does_not_go_on_with_another_lora(peft, backbone, studies, tmp_path):
    model = with_lora(peft, backbone.model)
    options = dict(processor=backbone.processor, output_dir=tmp_path, resume=True)
    config = dict(preset="dive-ce", **STEPS, save_steps=1)
    dive.distill(model, studies, config=config, **options)
    dive.distill(model, studies, config=config, **options)  # with the same one it does
    model.base_model.disable_adapter_layers()
    with pytest.raises(DiveError, match="other layers of PEFT's .LoRA. at work"):
        dive.distill(model, studies, config=config, **options)


def test_generate_is_without_dropout_and_training_mode_comes_back(peft, backbone, studies):
    model = with_lora(peft, backbone.model, lora_dropout=0.9)
    wanted = written(model.eval(), backbone, studies)
    model.train()
    assert written(model, backbone, studies) == wanted
    assert model.training and any(
        m.training for m in model.modules() if type(m).__name__ == "Dropout"
    )


# which weights


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["layers.1.mlp.up_proj"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["patch_embedding"]},
        {"use_rslora": True, "lora_alpha": 2},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=["attention", "one layer", "embedding", "vision tower", "rslora", "saved head"],
)
def test_a_lora_is_the_same_active_or_merged_and_not_the_bare_base(settings, peft, backbone):
    bare = randomised(backbone)
    model = with_lora(peft, backbone.model, **settings)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(0.1)
    own = randomised(model)
    no_warning(own, model)
    with pytest.warns(UserWarning, match=f"nothing of PEFT's was at work where.*{OTHER}"):
        bare.check_backbone(model)
    with model.disable_adapter():
        no_warning(bare, model)
        with pytest.warns(UserWarning, match="PEFT's lora.*was at work where.*nothing of PEFT's"):
            own.check_backbone(model)
    model.merge_adapter()
    no_warning(own, model)
    model.unmerge_adapter()
    no_warning(own, model)
    merged = model.merge_and_unload()
    no_warning(own, merged)
    no_warning(own, merged.to(torch.bfloat16))
    with pytest.warns(UserWarning, match="its weights are not those on which the adapter was made"):
        bare.check_backbone(merged)


def test_another_scale_and_another_adapter_are_other_weights(peft, backbone):
    model = with_lora(peft, backbone.model)
    one = randomised(model)
    model.add_adapter("b", peft.LoraConfig(init_lora_weights=False, target_modules=["q_proj"]))
    no_warning(one, model)
    model.base_model.set_adapter(["default", "b"])
    with pytest.warns(UserWarning, match="with other weights or another scale"):
        one.check_backbone(model)
    both = randomised(model)
    no_warning(both, model.merge_and_unload(adapter_names=["default", "b"]))


@pytest.mark.parametrize("kind", ["ia3", "loha", "dora"])
def test_what_cannot_be_folded_in_says_that_it_may_be_merged(kind, peft, backbone):
    plain = randomised(backbone)
    config = {
        "ia3": lambda: peft.IA3Config(
            target_modules=["q_proj"], feedforward_modules=[], init_ia3_weights=False
        ),
        "loha": lambda: peft.LoHaConfig(target_modules=["q_proj"], init_weights=False),
        "dora": lambda: peft.LoraConfig(
            target_modules=["q_proj"], init_lora_weights=False, use_dora=True
        ),
    }[kind]()
    model = peft.get_peft_model(backbone.model, config)
    own = randomised(model)
    no_warning(own, model)
    with pytest.warns(UserWarning, match=OTHER):
        plain.check_backbone(model)
    with model.disable_adapter(), pytest.warns(UserWarning, match="nothing of PEFT's.*here; the"):
        own.check_backbone(model)
    with pytest.warns(UserWarning, match="is unknown .if it is, all is well"):
        own.check_backbone(model.merge_and_unload())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_the_same_checkpoint_in_another_dtype_is_known_again(dtype, tiny_llava, backbone):
    other = dive.load_backbone(tiny_llava, dtype=dtype)
    no_warning(randomised(backbone), other)
    no_warning(randomised(other), backbone)
    half = dive.load_backbone(tiny_llava, dtype="float16")
    no_warning(randomised(half), dive.load_backbone(tiny_llava, dtype="bfloat16"))


def test_weights_that_were_trained_further_warn_and_unknown_ones_do_not(backbone, tmp_path):
    adapter = randomised(backbone)
    adapter.save_pretrained(tmp_path)
    adapter = dive.SteeringAdapter.from_pretrained(tmp_path)
    no_warning(adapter, backbone)
    made, here = adapter.metadata["weights"], fingerprint(backbone)
    assert difference(None, here) is None and difference({}, here) is None
    assert difference({**made, "samples": None}, here) is None
    with torch.no_grad():
        backbone.model.get_decoder().layers[1].mlp.up_proj.weight.mul_(1.05)
    with pytest.warns(UserWarning, match="its weights are not those on which.*trained"):
        dive.steer(backbone, adapter).detach()
    moved = backbone.model.to("meta")  # as offloaded weights are
    assert fingerprint(moved)["samples"] is None
    no_warning(adapter, moved)


def test_unsteered_text_models_too(peft, tiny_llama, studies):
    backbone = dive.load_backbone(tiny_llama)
    cases = for_backbone(backbone, studies)
    model = with_lora(peft, backbone.model, task_type="CAUSAL_LM")
    assert type(model).__name__ == "PeftModelForCausalLM"
    adapter = dive.distill(
        model, cases, config=dict(preset="dive-ce", **STEPS), processor=backbone.processor
    )
    got = written(model, backbone, cases, adapter=adapter)
    with dive.steer(model, adapter):
        assert written(model, backbone, cases) == got
    session = DecodeSession(model, adapter)
    batch = prompts(backbone, studies[:1])
    with dive.steer(model, adapter):
        wanted = model.eval().generate(**batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(session.generate(**batch, max_new_tokens=8, do_sample=False), wanted)


def without(folder, key, target):
    """A copy of a checkpoint that lacks one weight."""
    shutil.copytree(folder, target)
    (file,) = target.glob("*.safetensors")
    weights = load_file(file)
    (name,) = [one for one in weights if one.endswith(key)]
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    return target


def test_what_the_loading_made_up_is_held_against_nothing(tiny_llava, tmp_path):
    # the last layer of the vision tower, which LLaVA never runs
    last = dive.load_backbone(tiny_llava).model.config.vision_config.num_hidden_layers - 1
    key = f"encoder.layers.{last}.mlp.fc1.weight"
    folder = without(tiny_llava, key, tmp_path / "lacking")
    loaded = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loaded.append(transformers.AutoModelForImageTextToText.from_pretrained(folder))
    made, again = loaded
    (one,), (other,) = ([p for n, p in m.named_parameters() if n.endswith(key)] for m in loaded)
    assert not torch.equal(one, other)
    adapter = randomised(made)
    no_warning(adapter, again)
    no_warning(adapter, dive.load_backbone(folder))
    # one matrix that was loaded, and one of the decoder that somebody put there as a new parameter
    layer = again.get_decoder().layers[0].self_attn.q_proj
    kept = layer.weight
    layer.weight = torch.nn.Parameter(kept.detach() * 1.05)
    with pytest.warns(UserWarning, match="its weights are not those"):
        adapter.check_backbone(again)
    layer.weight = kept
    no_warning(adapter, again)
    with torch.no_grad():
        next(p for n, p in again.named_parameters() if "patch_embedding" in n).mul_(1.05)
    with pytest.warns(UserWarning, match="its weights are not those"):
        adapter.check_backbone(again)


def test_a_projector_that_was_trained_whole_is_not_taken_for_made_up(peft, backbone):
    bare = randomised(backbone)
    model = with_lora(peft, backbone.model, modules_to_save=["multi_modal_projector"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0 if "lora_B" in name else 1.05 if "modules_to_save" in name else 1)
    own = randomised(model)
    merged = model.merge_and_unload()
    no_warning(own, merged)
    with pytest.warns(UserWarning, match="its weights are not those"):
        bare.check_backbone(merged)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_samples_are_numbers_of_the_weights(dtype, tiny_llava):
    model = dive.load_backbone(tiny_llava, dtype=dtype).model
    seen = {id(p): p for m in model.modules() for p in m.parameters(recurse=False)}
    weights = [p.detach() for p in seen.values()]
    got = fingerprint(model)
    numbers = torch.frombuffer(bytearray(base64.b64decode(got["samples"])), dtype=torch.bfloat16)
    wanted = [
        float(one.flatten()[(at * 2654435761 + 12345) % one.numel()])
        for one in weights
        for at in range(got["each"])
    ]
    assert 3 <= got["each"] <= 8 and len(wanted) == len(numbers)
    assert torch.equal(numbers, torch.tensor(wanted).bfloat16())


def test_trained_norms_and_biases_are_other_weights(tiny_llava):
    model = dive.load_backbone(tiny_llava).model
    adapter = randomised(model)
    no_warning(adapter, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("language_model.norm.weight"):
                parameter.add_(0.5)
    with pytest.warns(UserWarning, match="its weights are not those"):
        adapter.check_backbone(model)


def test_norms_that_peft_trains_are_told_from_the_bare_base(peft, backbone, tiny_llava):
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["input_layernorm"])
    wrapped = peft.get_peft_model(dive.load_backbone(tiny_llava).model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.5)
    with pytest.warns(UserWarning, match=OTHER):
        randomised(wrapped).check_backbone(backbone.model)


def test_merged_norms_cannot_be_told(peft, tiny_llava):
    config = peft.LNTuningConfig(target_modules=["input_layernorm"])
    wrapped = peft.get_peft_model(dive.load_backbone(tiny_llava).model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "ln_tuning" in name:
                parameter.add_(0.5)
    adapter = randomised(wrapped)
    with pytest.warns(UserWarning, match="whether it is merged .* is unknown"):
        adapter.check_backbone(wrapped.merge_and_unload())
