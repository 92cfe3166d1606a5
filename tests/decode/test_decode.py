"""The engine's logits against transformers' own: families, formats, instruction sets, slots."""

import copy
import functools
import random

import pytest
import torch
from tiny_decoders import FAMILIES, distance, forced, small, steered, stepwise_logits
from tiny_steering import logits as all_logits
from tiny_steering import randomised

from dive.backbone.structure import decoder
from dive.decode.session import DecodeSession

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


@functools.cache
def bfloat16_case(family, with_adapter):
    """A model, adapter, tokens, their float32 logits, and the error of transformers' bfloat16."""
    exact = small(family)
    model = copy.deepcopy(exact).to(torch.bfloat16)
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    adapter = randomised(model, strength=0.3) if with_adapter else None
    ids = torch.randint(2, 96, (1, 24 + 128), generator=torch.Generator().manual_seed(3))
    with steered(exact, adapter):
        truth = all_logits(exact, {"input_ids": ids})[0, 24:]
    with steered(model, adapter):
        theirs = stepwise_logits(model, ids, 24)
    return model, adapter, ids, truth, distance(theirs, truth)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_bfloat16_loses_no_more_than_transformers(isa, family, with_adapter):
    model, adapter, ids, truth, their_loss = bfloat16_case(family, with_adapter)
    got = forced(DecodeSession(model), ids, 24, adapter)
    assert distance(got, truth) <= 1.1 * their_loss
    assert torch.equal(got.to(torch.bfloat16).float(), got)  # rounded to the model's dtype


def test_each_row_is_steered_by_its_own_adapter_between_steps_too():
    model = small("gemma3")
    adapters = [randomised(model, seed=s, strength=0.4) for s in (1, 2)] + [None]
    ids = torch.randint(2, 96, (3, 20), generator=torch.Generator().manual_seed(1))
    singles = [forced(DecodeSession(model), ids[i][None], 1, one) for i, one in enumerate(adapters)]
    session = DecodeSession(model)
    session.engine_choice()
    engine = session.binding.cache.engine
    engine.reserve(3, 20)
    for row, one in enumerate(adapters):
        engine.start_slot(row, 0, 0)
        engine.steer_slot(row, session.binding.steering(one))
    out, following = torch.zeros(3, 96), torch.zeros(3, dtype=torch.long)
    rows = torch.tensor([2, 0, 1])  # in any order
    for step in range(20):
        engine.step(ids[rows, step], rows, following, out)
        for row in range(3):
            if step:
                assert distance(out[row], singles[row][step - 1]) < 1e-5
    assert torch.equal(following, out[rows].argmax(-1))
    engine.steer_slot(0, None)
    engine.start_slot(0, 0, 0)
    for step in range(20):  # an empty slot runs alone; finished ones cost nothing
        engine.step(ids[0, step : step + 1], torch.tensor([0]), following[:1], out)
    assert distance(out[0], forced(session, ids[:1], 1)[-1]) < 1e-5


def test_the_spec_tells_the_families_apart():
    specs = {}
    for family in FAMILIES:
        session = DecodeSession(small(family))
        assert session.engine_choice().engine == "dive._C"
        specs[family] = session.binding.spec
    assert [layer.window for layer in specs["gemma3"].layers] == [20, 0, 20]
    assert [layer.window for layer in specs["qwen2-window"].layers] == [0, 16, 16]
    assert [layer.window for layer in specs["mistral"].layers] == [24, 24, 24]
    assert specs["gemma3"].norm_plus_one and not specs["qwen3"].norm_plus_one
    assert specs["gemma3"].embedding_scale == pytest.approx(72**0.5)
    assert specs["gemma3"].logits_softcap == 5.0
    assert specs["qwen3"].head_width == 32
    assert decoder(specs["qwen3"].text) is specs["qwen3"].text


def test_ten_thousand_wrong_calls_raise_and_never_crash():
    model = small("llama")
    session = DecodeSession(model)
    session.engine_choice()
    spec, steering = (
        session.binding.spec.engine_arguments(32),
        session.binding.steering(randomised(model)),
    )
    rng = random.Random(0)
    numbers = [-1, 0, 1, 2, 3, 7, 31, 32, 33, 1 << 30, 1 << 62, -(1 << 63)]
    tensors = [
        torch.zeros(shape, dtype=dtype)
        for shape in ([], [0], [1], [2], [2, 96], [2, 5, 12], [2, 5, 11], [5, 12], [2, 40, 12])
        for dtype in (torch.float32, torch.bfloat16, torch.long, torch.bool)
    ]
    tensors += [torch.zeros(12, 5, 2).mT, torch.zeros(2, 5, 24)[..., ::2], torch.arange(2)]
    tensors += [torch.tensor([0]), torch.tensor([5]), torch.zeros(1, device="meta")]
    odd = [None, "x", 1.5, [], {}, steering, steering[:1], [1, 2, 3], object(), float("nan")]
    good = [torch.tensor([0, 1]), torch.tensor([1, 0]), torch.zeros(2, 5, 12), torch.zeros(2, 96)]
    tensors = [*good * 20, *tensors]
    numbers = [0, 1, 2, *[0, 1] * 8, *numbers]
    engine = C.Engine(spec)
    methods = {
        "reserve": [numbers, numbers],
        "set_ropes": [[spec["ropes"], [], [{}], [{"cos": tensors[0], "sin": tensors[1]}], 3]],
        "copy_cache": [numbers, numbers, numbers, tensors, tensors],
        "start_slot": [numbers, numbers, numbers],
        "steer_slot": [numbers, odd],
        "step": [tensors, tensors, tensors, [None, *tensors]],  # "next" may be a "rows"
    }
    done = {name: 0 for name in methods}
    for turn in range(10_000):
        if turn % 50 == 0:  # a state from which many calls are valid
            engine.reserve(2, 32)
        name = rng.choice(list(methods))
        arguments = [rng.choice(odd if rng.random() < 0.05 else pool) for pool in methods[name]]
        try:
            getattr(engine, name)(*arguments)
            done[name] += 1
        except (ValueError, TypeError, RuntimeError, MemoryError) as error:
            assert str(error)
    assert all(done.values()), done


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"width": 71}, r"embedding.weight has shape \[96, 72\], want \[any, 71\]"),
        ({"heads": 5}, "want a multiple of kv_heads"),
        ({"gate": "relu"}, "gate is 'relu'"),
        ({"layers": []}, "layers is empty"),
        ({"ropes": []}, "ropes is empty"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"final_norm": None}, "final_norm"),
        ({"head": (torch.zeros(96, 72, dtype=torch.bfloat16), None)}, "head.weight has dtype"),
        ({"head": (torch.zeros(72, 96).T, None)}, "head.weight has shape .* strides"),
    ],
)
def test_a_wrong_description_names_the_entry(change, message):
    session = DecodeSession(small("llama"))
    session.engine_choice()
    spec = {**session.binding.spec.engine_arguments(32), **change}
    with pytest.raises(ValueError, match=message):
        C.Engine(spec)
    del spec["layers"]
    with pytest.raises(ValueError, match="missing|dtype|width|embed|heads|gate|empty|norm|head"):
        C.Engine(spec)


def test_out_of_memory_says_how_much_and_for_what():
    session = DecodeSession(small("llama"))
    session.engine_choice()
    with pytest.raises(RuntimeError, match=r"cache of 65535 sequences of 16777216 tokens needs \d"):
        session.binding.cache.engine.reserve(65535, 1 << 24)
    with pytest.raises(ValueError, match="0 slots that are reserved"):
        session.binding.cache.engine.start_slot(0, 0, 0)
