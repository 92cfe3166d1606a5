"""The engine's logits against transformers' own: families, formats, instruction sets, rows."""

import copy

import pytest
import torch
from tiny_decoders import FAMILIES, distance, forced, small, steered
from tiny_steering import logits as all_logits
from tiny_steering import randomised
from transformers import DynamicCache

from dive.decode import DecodeSession
from dive.structure import decoder

C = pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")

ISAS = C.build_info()["isa_compiled"]


@pytest.fixture(params=ISAS)
def isa(request):
    info = C.build_info()
    if request.param not in info["isa_usable"]:
        pytest.skip(f"this machine has no {request.param}")
    C.use_isa(request.param)
    yield request.param
    C.use_isa(info["isa"])


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
