"""Backbones that accelerate has spread out, and heads that dive cannot read."""

import accelerate
import pytest
import torch
import torch.distributed as dist
from tiny_steering import logits, prompts, randomised
from torch import nn

import dive
from dive.adapter.attach import steer
from dive.backbone.structure import computes_on, decoder_layers, output_head
from dive.errors import DiveError

CPU = torch.device("cpu")


@pytest.fixture
def plain(tiny_llava):
    return dive.load_backbone(tiny_llava, device="cpu")


def offloaded(backbone, *names):
    """Weights of these modules lie on "meta" between their calls, as under a tight device_map."""
    for name in names:
        accelerate.cpu_offload(backbone.model.get_submodule(name), execution_device=CPU)
    return backbone


def settings(**more):
    return dive.DistillConfig(rank=2, steps=2, batch_size=2, calibration_studies=2, **more)


def same(one, other):
    return all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


def test_a_device_map_of_one_device_is_no_other_model(tiny_llava, plain, studies):
    mapped = dive.load_backbone(tiny_llava, device_map={"": "cpu"})
    assert mapped.device == CPU
    one = dive.distill(plain, studies[:4], 1, settings(), progress=False)
    assert same(one, dive.distill(mapped, studies[:4], 1, settings(), progress=False))


def test_layers_that_are_offloaded_are_steered_where_they_compute(tiny_llava, plain, studies):
    """The adapter stays on the device on which its layer computes, and all results are the same."""
    away = dive.load_backbone(tiny_llava, device="cpu")
    offloaded(away, "model.language_model.layers", "model.vision_tower")
    layer = decoder_layers(away)[0]
    assert next(layer.parameters()).device.type == "meta"
    assert computes_on(layer) == CPU
    adapter = randomised(plain)
    batch = prompts(plain, studies[:2])
    with steer(plain, adapter):
        wanted = logits(plain.model, batch)
    with steer(away, adapter):
        assert all(p.device == CPU for p in adapter.parameters())
        assert torch.equal(logits(away.model, batch), wanted)
    options = {"max_new_tokens": 4, "adapter": adapter, "progress": False}
    reports = [dive.generate(b, studies[:2], **options) for b in (plain, away)]
    assert [r.token_ids for r in reports[0]] == [r.token_ids for r in reports[1]]
    one, other = (
        dive.distill(b, studies[:4], 1, settings(), progress=False) for b in (plain, away)
    )
    assert same(one, other)


def test_embeddings_that_are_offloaded_take_inputs_where_they_compute(tiny_llava, plain, studies):
    away = offloaded(dive.load_backbone(tiny_llava, device="cpu"), "model.language_model")
    assert away.model.get_input_embeddings().weight.device.type == "meta"
    assert away.device == CPU
    reports = [
        dive.generate(b, studies[:2], max_new_tokens=4, progress=False) for b in (plain, away)
    ]
    assert [r.token_ids for r in reports[0]] == [r.token_ids for r in reports[1]]


def test_several_hooks_on_one_module(plain):
    layer = decoder_layers(plain)[0]
    for hook in (accelerate.hooks.ModelHook(), accelerate.hooks.AlignDevicesHook("cpu")):
        accelerate.hooks.add_hook_to_module(layer, hook, append=True)
    assert computes_on(layer) == CPU


def test_an_offloaded_head_is_refused_before_anything_runs(plain, studies):
    offloaded(plain, "lm_head")
    with pytest.raises(DiveError, match="head is offloaded.*device_map"):
        dive.distill(plain, studies[:4], 1, settings(), progress=False)


def quantised(weight):
    layer = nn.Module()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(64, 32, dtype=torch.int8),  # bitsandbytes, 8 bits
        torch.zeros(1024, 1, dtype=torch.uint8),  # bitsandbytes, 4 bits
        torch.zeros(64, 32, dtype=torch.float8_e4m3fn),
    ],
    ids=["int8", "packed", "float8"],
)
def test_a_quantised_head_is_refused_with_what_to_do(plain, studies, weight):
    plain.model.lm_head = quantised(weight)
    with pytest.raises(DiveError, match=r"head is quantised .*llm_int8_skip_modules"):
        output_head(plain)
    with pytest.raises(DiveError, match="head is quantised"):
        dive.distill(plain, studies[:4], 1, settings(), progress=False)


def test_a_sharded_head_is_refused_with_what_to_do(plain):
    from torch.distributed.tensor import DTensor, Replicate, init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weight = DTensor.from_local(torch.zeros(64, 32), mesh, [Replicate()])
        plain.model.lm_head = quantised(weight)
        with pytest.raises(DiveError, match="sharded over devices.*tp_plan"):
            output_head(plain)
    finally:
        dist.destroy_process_group()


def test_bitsandbytes_layers_distil_and_generate(tiny_llava, studies):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    backbone = dive.load_backbone(
        tiny_llava, device="cpu", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    assert decoder_layers(backbone)[0].self_attn.q_proj.weight.dtype == torch.int8
    adapter = dive.distill(backbone, studies[:4], 1, settings(), progress=False)
    assert all(layer.up.abs().max() > 0 for layer in adapter.layers.values())
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    options = {"max_new_tokens": 4, "progress": False}
    made = dive.generate(backbone, studies[:2], adapter=adapter, **options)
    assert all(1 <= one.num_tokens <= 4 for one in made)


def test_the_command_line_spreads_a_backbone(tiny_llava, monkeypatch):
    from dive.cli.options import open_backbone

    seen = []
    own = dive.load_backbone

    def load(path, **options):
        seen.append(options)
        return own(path, **options)

    monkeypatch.setattr(dive, "load_backbone", load)
    open_backbone(str(tiny_llava), "auto", "map")
    open_backbone(str(tiny_llava), "auto", "cpu")
    assert [sorted(options) for options in seen] == [["device_map", "dtype"], ["device", "dtype"]]
