"""A wrapped text decoder in a bare model, a user's own classes, and LoRAs with rounding."""

import copy

import pytest
import torch
from tiny_steering import randomised
from transformers import LlavaForConditionalGeneration

import dive
from dive.backbone.fingerprint import difference, fingerprint
from dive.backbone.gradient_checkpointing import enable_gradient_checkpointing
from dive.backbone.structure import backbone_facts, last_hidden_state, unwrap
from dive.errors import DiveError
from dive.training.calibration import calibrate

STEPS = {"preset": "dive-ce", "steps": 2, "batch_size": 2, "rank": 2, "learning_rate": 0.05}


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


@pytest.mark.parametrize("form", ["wrapper", "forward"])
def test_what_was_compiled_before_is_calibrated_and_steered_the_same(form, tiny_llama):
    """Graphs compiled before the hooks were registered would run without them."""
    compiled, plain = (dive.load_backbone(tiny_llama) for _ in range(2))
    model, batch = compiled.model, {"input_ids": torch.arange(5, 17)[None]}
    if form == "wrapper":
        model.model = torch.compile(model.model, backend="eager")
    else:
        model.model.forward = torch.compile(model.model.forward, backend="eager")
    with torch.no_grad():
        last_hidden_state(model, batch)
    adapters = []
    for one in (compiled, plain):
        adapter = randomised(one, seed=2)
        calibrate(one, adapter, [(batch, torch.ones(1, 12, dtype=torch.bool))])
        adapters.append(adapter)
    sigmas = [[float(layer.sigma) for layer in one.layers.values()] for one in adapters]
    assert sigmas[0] == pytest.approx(sigmas[1], rel=1e-5) and len({*sigmas[0]}) > 1
    with torch.no_grad():
        with dive.steer(model, adapters[0]):
            got = model(**batch).logits
        with dive.steer(plain.model, adapters[0]):
            torch.testing.assert_close(got, plain.model(**batch).logits)
    with pytest.raises(DiveError, match="gradient checkpointing does not go with torch.compile"):
        enable_gradient_checkpointing(model)


def test_a_prompt_method_on_the_decoder_alone_is_refused_too(peft, tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava)
    inner = backbone.model.model
    adapter = randomised(backbone)
    inner.language_model = peft.get_peft_model(
        inner.language_model,
        peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION"),
    )
    for call in (
        lambda: dive.distill(backbone, studies, config=STEPS),
        lambda: adapter.check_backbone(backbone),
        lambda: dive.steer(backbone, adapter),
    ):
        with pytest.raises(DiveError, match="PREFIX_TUNING: PEFT computes this around the model"):
            call()


def test_a_lora_on_the_decoder_alone_is_looked_through(peft, tiny_llava, studies):
    backbone, plain = (dive.load_backbone(tiny_llava) for _ in range(2))
    torch.manual_seed(3)
    config = peft.LoraConfig(init_lora_weights=False, target_modules=["q_proj"])
    inner = backbone.model.model
    inner.language_model = peft.get_peft_model(inner.language_model, config)
    adapter = randomised(backbone)
    assert backbone_facts(backbone) == backbone_facts(plain)
    with pytest.warns(UserWarning, match="PEFT's lora was at work where the adapter was made"):
        adapter.check_backbone(plain)
    own = dive.distill(backbone, studies, config=STEPS)
    assert own.num_parameters() > 0


def test_a_class_derived_from_the_familys_is_of_its_architecture(tiny_llava, studies):
    class Mine(LlavaForConditionalGeneration):
        pass

    backbone = dive.load_backbone(tiny_llava)
    adapter = randomised(backbone)
    wanted = dive.generate(backbone, studies[:1], adapter=adapter, max_new_tokens=4)
    mine = Mine(backbone.model.config).eval()
    mine.load_state_dict(backbone.model.state_dict())
    assert backbone_facts(mine)["architecture"] == "LlavaForConditionalGeneration"
    got = dive.generate(
        mine, studies[:1], processor=backbone.processor, adapter=adapter, max_new_tokens=4
    )
    assert [one.token_ids for one in got] == [one.token_ids for one in wanted]


def test_a_wrapper_that_passes_too_little_on_is_named(tiny_llama):
    class Own(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.config = model, model.config

        def get_decoder(self):
            return self.model.get_decoder()

        def forward(self, **batch):
            return self.model(**batch)

    model = dive.load_backbone(tiny_llama).model
    assert backbone_facts(Own(model))["architecture"] == type(model).__name__
    with pytest.raises(DiveError, match="Own has no base model beneath its head"):
        last_hidden_state(Own(model), {"input_ids": torch.ones(1, 3, dtype=torch.long)})
    assert unwrap(model) is model


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_a_strong_lora_is_the_same_in_another_dtype(strength, peft, tiny_llava):
    """A sum is rounded by its larger part: a small sum of two large numbers changes by more than
    its own step."""
    for seed in range(4):
        torch.manual_seed(seed)
        config = peft.LoraConfig(init_lora_weights=False, target_modules="all-linear")
        model = peft.get_peft_model(dive.load_backbone(tiny_llava).model, config)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.mul_(strength)
        made = fingerprint(model)
        half = copy.deepcopy(model).to(torch.bfloat16)
        assert difference(made, fingerprint(half)) is None
        assert difference(made, fingerprint(half.merge_and_unload())) is None
        with torch.no_grad():  # a tenth more of it must still be noticed
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.mul_(1.1)
        assert difference(made, fingerprint(model)) is not None


def test_what_samples_hardly_meet_cannot_be_told(peft, tiny_llava):
    model = dive.load_backbone(tiny_llava).model
    torch.manual_seed(0)
    targets = r".*language_model.*\.(q_proj|v_proj)"
    config = peft.ShiraConfig(target_modules=targets, r=2, init_weights=False)
    sparse = peft.get_peft_model(model, config)
    made = fingerprint(sparse)
    told = difference(made, fingerprint(sparse.merge_and_unload()))
    assert "whether it is merged into the weights is unknown" in told
