"""Two forwards over a report: probabilities are decoding's, edits those of the operator."""

import threading
from contextlib import nullcontext

import pytest
import torch
from tiny_decoders import small
from tiny_steering import fingerprint, for_backbone, prompts, randomised

import dive
from dive import reference
from dive.backbone.structure import decoder_layers, output_head
from dive.decode.steered import attached_for
from dive.page.inside import edits_of, inside_of, layers_of
from dive.prompting.batch import response_positions
from dive.prompting.prompter import Prompter

EXACT = 5e-6  # relative: float32 sums of another order


@pytest.fixture
def case(any_backbone, studies):
    """A study with two images, where the backbone sees."""
    return for_backbone(any_backbone, studies)[2]


@torch.no_grad()
def look(backbone, adapter, prompt, answer, ends):
    """`inside_of` as `explain` calls it."""
    head = output_head(backbone.model)
    prompter = Prompter(backbone)
    inputs = prompter.to_device(prompter.with_response(prompt, answer[:-1]))
    with attached_for(backbone.model, [adapter]) as attachment:
        return inside_of(attachment, head, inputs, answer, ends)


@pytest.mark.parametrize("positions", ["all", "response"])
def test_probabilities_are_those_of_decoding(any_backbone, case, positions):
    """Of a cached decoding by transformers, token by token, in which nothing is forced."""
    adapter = randomised(any_backbone, positions=positions)
    prompt = prompts(any_backbone, [case])
    length, ends = prompt["input_ids"].shape[1], [5, 7]
    settings = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None}
    for steered in (True, False):
        with dive.steer(any_backbone, adapter) if steered else nullcontext():
            output = any_backbone.model.generate(
                **prompt, **settings, output_logits=True, return_dict_in_generate=True
            )
        answer = output.sequences[0, length:].tolist()
        odds = torch.stack(output.logits)[:, 0].double().softmax(-1)
        found = look(any_backbone, adapter, prompt, answer, ends)
        got = found.probability if steered else found.probability_without
        end = found.end if steered else found.end_without
        wanted = odds[range(7), answer]
        assert got.dtype == torch.float64 and got.shape == end.shape == (7,)
        torch.testing.assert_close(got[:-1], wanted[:-1], rtol=EXACT, atol=0)
        torch.testing.assert_close(end, odds[:, ends].sum(-1), rtol=EXACT, atol=0)
        assert got[-1] == end[-1] != pytest.approx(wanted[-1].item(), rel=1e-3)
    assert not torch.allclose(found.probability, found.probability_without, rtol=0.01)


FORMS = [
    {},
    {"positions": "response"},
    {"norm_preserving": True},
    {"rank": 0},
    {"layers": [1]},
    {"activation": "tanh", "eps": 0.5},
    {"rank": 2, "norm_preserving": True, "positions": "response", "layers": [0, 2]},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_edits_are_those_of_the_operator(tiny_llava, studies, form, dtype):
    """By the reference, from states that hooks of the test's own have seen before each edit."""
    backbone = dive.load_backbone(tiny_llava, dtype=dtype)
    adapter = randomised(backbone, **form)
    prompt, answer = prompts(backbone, [studies[2]]), [9, 40, 41, 300, 12, 2]
    found = look(backbone, adapter, prompt, answer, [2])
    before = {}
    inputs = Prompter(backbone).with_response(prompt, answer)
    length = inputs["input_ids"].shape[1]
    positions = response_positions([length - 6], [6], length)
    with dive.steer(backbone, adapter) as attachment, torch.no_grad():
        if adapter.config.positions == "response":
            attachment.mask = positions
        for index in layers_of(adapter):
            layer = decoder_layers(backbone.model)[index]
            layer.register_forward_hook(
                lambda _m, _i, out, at=index: before.__setitem__(at, out), prepend=True
            )
        backbone.model(**inputs)
    assert found.strength.shape == (len(before), 6)
    assert found.weights.shape == (len(before), 6, adapter.config.rank)
    for number, (index, states) in enumerate(sorted(before.items())):
        own = adapter.layers[str(index)]
        states = (states[0] if isinstance(states, tuple) else states)[positions]
        parts = (own.down, own.down_bias, own.up, own.static)
        kind = {"activation": adapter.config.activation, "eps": adapter.config.eps}
        keeps = adapter.config.norm_preserving
        # as the model computes it, rounding included
        after = reference.steer(
            states, *parts, own.scale * own.sigma, norm_preserving=keeps, **kind
        )
        strength = (after.double() - states.double()).norm(dim=-1) / states.double().norm(dim=-1)
        last = torch.finfo(dtype).eps
        torch.testing.assert_close(found.strength[number], strength, rtol=8 * last, atol=0)
        assert (strength > 0.05).all()
        unit = states.float() * torch.rsqrt(states.float().square().mean(-1, True) + kind["eps"])
        pre = unit @ own.down.to(dtype).float().T + own.down_bias
        phi = torch.tanh if kind["activation"] == "tanh" else torch.nn.functional.silu
        # rounded to the dtype of the states, after float32 sums of another order
        torch.testing.assert_close(found.weights[number], phi(pre), rtol=last, atol=1e-6)


def test_norm_preserving_counts_the_turn_alone(tiny_llama, studies):
    backbone = dive.load_backbone(tiny_llama)
    prompt = prompts(backbone, studies[:1])
    free, kept = (
        look(backbone, randomised(backbone, norm_preserving=each), prompt, [30, 31, 2], [2])
        for each in (False, True)
    )
    # no turn of a state is longer than its diameter; an edit of this size is
    assert (free.strength[0] > 2).any() and (kept.strength <= 2).all()


def test_an_adapter_that_is_new_changes_nothing(any_backbone, case):
    adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=3), any_backbone)
    found = look(any_backbone, adapter, prompts(any_backbone, [case]), [30, 31, 2], [2])
    assert (found.probability == found.probability_without).all()
    assert (found.end == found.end_without).all() and (found.strength == 0).all()
    assert (found.weights != 0).all()


def test_many_tokens_are_a_few_at_a_time(tiny_llama, studies, monkeypatch):
    """No logits of the prompt, nor of all positions of the report, are in memory."""
    backbone = dive.load_backbone(tiny_llama)
    adapter, prompt = randomised(backbone), prompts(backbone, studies[:1])
    answer = [20 + number % 50 for number in range(77)]
    inputs = Prompter(backbone).with_response(prompt, answer)
    with dive.steer(backbone, adapter), torch.no_grad():
        odds = backbone.model(**inputs).logits[0, -78:-1].double().softmax(-1)
    output_head(backbone.model)
    sizes = []
    linear = torch.nn.functional.linear

    def spy(x, weight, bias=None):
        if weight is backbone.model.lm_head.weight:
            sizes.append(x.shape[0])
        return linear(x, weight, bias)

    monkeypatch.setattr("dive.backbone.structure.F.linear", spy)
    found = look(backbone, adapter, prompt, answer, [3])
    assert sizes == [32, 32, 13] * 2
    torch.testing.assert_close(
        found.probability[:-1], odds[range(76), answer[:-1]], rtol=EXACT, atol=0
    )
    torch.testing.assert_close(found.end, odds[:, 3], rtol=EXACT, atol=0)


def test_end_tokens_beyond_the_vocabulary_cannot_come(tiny_llama, studies):
    backbone = dive.load_backbone(tiny_llama)
    adapter, prompt = randomised(backbone), prompts(backbone, studies[:1])
    one = look(backbone, adapter, prompt, [30, 2], [2])
    two = look(backbone, adapter, prompt, [30, 2], [2, 10**6])
    assert (one.end == two.end).all()


@torch.no_grad()
def test_soft_cap():
    model = small("gemma3")
    model.config.final_logit_softcapping = 0.5
    adapter = randomised(model)
    inputs = {"input_ids": torch.tensor([[7, 8, 9, 30]])}
    odds = model(**inputs).logits[0, 2:].double().softmax(-1)
    assert odds.max() < 3 / 96  # the largest is at most e times the smallest
    with attached_for(model, [adapter]) as attachment:
        found = inside_of(attachment, output_head(model), inputs, [30, 31], [2])
    wanted = [odds[0, 30].item(), odds[1, 2].item()]
    assert found.probability_without.tolist() == pytest.approx(wanted, rel=EXACT)
    assert found.end_without.tolist() == pytest.approx(odds[:, 2].tolist(), rel=EXACT)


def test_edits_of_other_threads_do_not_count(tiny_llama):
    adapter = randomised(dive.load_backbone(tiny_llama))
    states = torch.randn(1, 4, 32)
    with edits_of(adapter, 1) as edits:
        other = threading.Thread(target=lambda: adapter.layers["0"](states))
        other.start()
        other.join()
        assert edits == {}
        adapter.layers["0"](states)
        assert edits.keys() == {0} and edits[0][0].shape == (3,)
    adapter.layers["1"](states)
    assert edits.keys() == {0}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("nth", [1, 2])
def test_an_interrupted_forward_leaves_nothing_behind(tiny_llava, studies, error, nth):
    backbone = dive.load_backbone(tiny_llava)
    adapter, prompt = randomised(backbone, positions="response"), prompts(backbone, studies[:1])
    wanted = look(backbone, adapter, prompt, [30, 31, 2], [2])
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == nth:
            raise error("stop")

    handle = decoder_layers(backbone.model)[1].register_forward_pre_hook(fail)
    traces = fingerprint(backbone.model), fingerprint(adapter)
    with pytest.raises(error, match="stop"):
        look(backbone, adapter, prompt, [30, 31, 2], [2])
    assert (fingerprint(backbone.model), fingerprint(adapter)) == traces
    handle.remove()
    again = look(backbone, adapter, prompt, [30, 31, 2], [2])
    assert (again.probability == wanted.probability).all()
    assert (again.strength == wanted.strength).all()
