"""`explain`: the inside of an adapter over the reports of a page."""

import json

import pytest
import torch
from decoded_grids import decoded
from explained import TEXTS, look
from tiny_steering import fingerprint, for_backbone, randomised

import dive
from dive.adapter.attach import attachment_of
from dive.backbone.structure import decoder_layers
from dive.errors import DiveError
from dive.generation.generate_reports import prompter_for
from dive.page import explain as module
from dive.page.inside import Inside
from dive.prompting.prompter import Prompter, Response

EXACT = 5e-6  # relative: float32 sums of another order


@pytest.fixture
def cases(any_backbone, studies):
    return for_backbone(any_backbone, studies)


@pytest.fixture
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava)


@torch.no_grad()
def plain(backbone, adapter, study, text, shown=()):
    """The report's ids, and the model's own probabilities [T, V] for its tokens, steered or not."""
    prompter = Prompter(backbone)
    ids = prompter.response_of(text.strip(), "").ids
    inputs = prompter.with_response(prompter.encode(study, shown), ids[:-1])
    inputs = prompter.to_device(inputs)
    if adapter is None:
        logits = backbone.model(**inputs).logits
    else:
        with dive.steer(backbone, adapter) as attachment:
            if adapter.config.positions == "response":
                attachment.mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
                attachment.mask[:, -len(ids) :] = True
            logits = backbone.model(**inputs).logits
    return ids, logits[0, -len(ids) :].double().softmax(-1)


@pytest.mark.parametrize("form", [{}, {"positions": "response", "norm_preserving": True}], ids=str)
def test_probabilities_are_those_of_the_model(any_backbone, cases, form):
    adapter = randomised(any_backbone, **form)
    found = look(any_backbone, adapter, cases[:3], indices=[7, 3, 11], method=2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["method"], found["layers"]) == (2, [0, 1, 2])
    assert [one["study"] for one in found["studies"]] == [7, 3, 11]
    ends = Prompter(any_backbone).eos_token_ids
    for study, text, one in zip(cases, TEXTS, found["studies"], strict=False):
        for own, suffix in ((adapter, ""), (None, "_without")):
            ids, odds = plain(any_backbone, own, study, text)
            wanted = odds[range(len(ids)), ids]
            end = odds[:, ends].sum(-1)
            wanted[-1] = end[-1]
            assert one["probability" + suffix] == pytest.approx(wanted.tolist(), rel=EXACT)
            assert one["end" + suffix] == pytest.approx(end.tolist(), rel=EXACT)
        assert one["probability"] != pytest.approx(one["probability_without"], rel=0.01)
        assert one["strength"]["rows"] == 3 and one["strength"]["columns"] == len(ids)
        assert [each["layer"] for each in one["mixing"]] == [0, 1, 2]


def test_several_tokens_may_end_a_turn(tiny_qwen, tiny_gemma, studies):
    for folder in (tiny_qwen, tiny_gemma):
        backbone = dive.load_backbone(folder)
        ends = Prompter(backbone).eos_token_ids
        assert len(ends) == 2
        (one,) = look(backbone, randomised(backbone), studies[:1])["studies"]
        _, odds = plain(backbone, None, studies[0], TEXTS[0])
        assert one["end_without"] == pytest.approx(odds[:, ends].sum(-1).tolist(), rel=EXACT)
        assert one["end_without"] != pytest.approx(odds[:, ends[0]].tolist(), rel=EXACT)
        assert one["probability_without"][-1] == one["end_without"][-1]


def test_tokens_make_up_the_text(any_backbone, cases):
    texts = ["Größe µ 5 — 日本語 \U0001f600 end", TEXTS[2], "a"]
    found = look(any_backbone, randomised(any_backbone), cases[:3], texts)
    end = any_backbone.tokenizer.convert_ids_to_tokens(Prompter(any_backbone).end_token_id)
    for text, one in zip(texts, found["studies"], strict=True):
        assert "".join(one["tokens"][:-1]) == text.strip() and one["tokens"][-1] == end
        assert len(one["tokens"]) == len(one["probability"]) == len(one["end_without"])


def test_what_a_tokenizer_drops_is_in_the_token_before(tiny_llama):
    prompter = Prompter(dive.load_backbone(tiny_llama))
    response = Response("No  mass\x00", [40, 41, 2], [(0, 2), (4, 8)])
    end = prompter.tokenizer.convert_ids_to_tokens(2)
    assert module.pieces_of(prompter, response) == ["No", "  mass\x00", end]


def test_an_empty_report_has_its_end_alone(any_backbone, cases):
    adapter = randomised(any_backbone)
    (one,) = look(any_backbone, adapter, cases[:1], [" \n"])["studies"]
    prompter = Prompter(any_backbone)
    inputs = prompter.to_device(prompter.encode(cases[0]))
    with dive.steer(any_backbone, adapter), torch.no_grad():
        odds = any_backbone.model(**inputs).logits[0, -1].double().softmax(-1)
    assert len(one["tokens"]) == 1 and one["strength"]["columns"] == 1
    assert one["probability"] == one["end"]
    wanted = odds[prompter.eos_token_ids].sum().item()
    assert one["end"] == pytest.approx([wanted], rel=EXACT)


def test_a_report_that_was_generated_is_read_as_it_was_written(studies):
    """By the backbone of the demo, whose own reports have the tokens of training."""
    from dive.demo.methods import BACKBONE, PROMPT, open_hospital

    backbone = dive.load_backbone(BACKBONE, dtype="float32", device="cpu")
    hospital = open_hospital(100, 1, 4)
    adapter = randomised(backbone, strength=1e-3)
    options = {"prompt": PROMPT, "demonstrations": hospital.demonstrations}
    reports = dive.generate(
        backbone, hospital.test, adapter=adapter, max_new_tokens=160, progress=False, **options
    )
    texts = [report.text for report in reports]
    found = look(backbone, adapter, hospital.test, texts, **options)["studies"]
    prompter = prompter_for(backbone, adapter, prompt=PROMPT)
    for study, report, one in zip(hospital.test, reports, found, strict=True):
        ended = report.finish_reason == "eos"
        assert len(one["tokens"]) == report.num_tokens + (not ended)
        _, odds = plain_of(backbone, adapter, prompter, study, report.text, hospital)
        # greedy: the token that was written is the most likely one
        assert one["probability"][: report.num_tokens] == pytest.approx(
            odds.max(-1).values.tolist()[: report.num_tokens], rel=EXACT
        )
    assert any(report.finish_reason == "eos" for report in reports)


@torch.no_grad()
def plain_of(backbone, adapter, prompter, study, text, hospital):
    ids = prompter.response_of(text, "").ids
    inputs = prompter.with_response(prompter.encode(study, hospital.demonstrations), ids)
    with dive.steer(backbone, adapter):
        logits = backbone.model(**prompter.to_device(inputs)).logits
    return ids, logits[0, -len(ids) - 1 : -1].double().softmax(-1)


def test_demonstrations_are_in_the_prompt(any_backbone, cases):
    adapter = randomised(any_backbone)
    found = look(any_backbone, adapter, [cases[4]], TEXTS[:1], demonstrations=cases[:2])
    ids, odds = plain(any_backbone, adapter, cases[4], TEXTS[0], cases[:2])
    wanted = odds[range(len(ids) - 1), ids[:-1]].tolist()
    assert found["studies"][0]["probability"][:-1] == pytest.approx(wanted, rel=EXACT)


def test_settings_of_the_prompt_are_the_adapters(tiny_llama, studies):
    backbone = dive.load_backbone(tiny_llama)
    cases = for_backbone(backbone, studies)
    adapter = randomised(backbone)
    given = look(backbone, adapter, cases[:1], prompt="Write.")
    assert given != look(backbone, adapter, cases[:1])
    adapter.metadata["prompt"] = "Write."
    assert given == look(backbone, adapter, cases[:1])


def test_the_inside_of_a_model_in_half_precision(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava, dtype=torch.bfloat16)
    adapter = randomised(backbone)
    (one,) = look(backbone, adapter, studies[:1])["studies"]
    for own, name in ((adapter, "probability"), (None, "probability_without")):
        ids, odds = plain(backbone, own, studies[0], TEXTS[0])
        wanted = odds[range(len(ids) - 1), ids[:-1]]
        # the same states; a logit from 2 to 4 that rounds to the other side is 2^-6 off
        assert one[name][:-1] == pytest.approx(wanted.tolist(), rel=2**-6)


def test_grids_are_the_numbers(llava, studies, monkeypatch):
    adapter = randomised(llava)
    kept = []
    inside_of = module.inside_of
    monkeypatch.setattr(module, "inside_of", lambda *a: kept.append(inside_of(*a)) or kept[-1])
    (one,) = look(llava, adapter, studies[:1])["studies"]
    (inside,) = kept
    error = (decoded(one["strength"]) - inside.strength).abs().max().item()
    assert error <= one["strength"]["maximum"] / 510 * (1 + 1e-12)
    assert one["strength"]["maximum"] == inside.strength.max().item()
    for number, mixing in enumerate(one["mixing"]):
        assert sorted(mixing["vectors"]) == [0, 1, 2, 3]
        wanted = inside.weights[number].T[mixing["vectors"]]
        error = (decoded(mixing["weights"]) - wanted).abs().max().item()
        assert mixing["weights"]["signed"] and error <= wanted.abs().max() / 254 * (1 + 1e-6)


def test_the_strongest_layers_and_vectors_are_shown(llava, studies, monkeypatch):
    monkeypatch.setattr(module, "LAYERS", 2)
    monkeypatch.setattr(module, "VECTORS", 2)
    adapter = randomised(llava)
    with torch.no_grad():
        adapter.layers["1"].scale.fill_(1e-4)
        last = adapter.layers["2"]
        last.up[:, 3] *= 1000
        last.up[:, 0] *= 10
        last.down[1], last.down_bias[1] = 0.0, 0.0  # a long vector, which is never mixed in
        last.up[:, 1] *= 1000
    found = look(llava, adapter, studies[:3])
    for one in found["studies"]:
        assert one["strength"]["rows"] == 3
        assert [each["layer"] for each in one["mixing"]] == [0, 2]
        assert one["mixing"][1]["vectors"] == [3, 0]
        assert one["mixing"][0]["weights"]["rows"] == 2
    # the same for all studies, by all of them
    chosen = {json.dumps([each["vectors"] for each in one["mixing"]]) for one in found["studies"]}
    assert len(chosen) == 1


def test_fixed_vectors_have_no_mixing(llava, studies):
    adapter = randomised(llava, rank=0, layers=[2])
    found = look(llava, adapter, studies[:1])
    assert found["layers"] == [2] and found["studies"][0]["mixing"] == []
    assert decoded(found["studies"][0]["strength"]).shape[0] == 1


def test_a_large_model_takes_little_of_the_page():
    count = 200
    one = torch.rand(count, dtype=torch.float64)
    inside = Inside(one, one, one, one, torch.rand(34, count), torch.randn(34, count, 128))
    chosen = {at: [*range(module.VECTORS)] for at in range(module.LAYERS)}
    made = module._explanation(0, [" effusion"] * count, inside, [*range(34)], chosen)
    assert len(json.dumps(made)) < 60_000


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_as_it_was(any_backbone, cases, training):
    adapter = randomised(any_backbone)
    any_backbone.model.train(training)
    adapter.train(training)
    try:
        traces = fingerprint(any_backbone.model), fingerprint(adapter)
        state = torch.random.get_rng_state()
        look(any_backbone, adapter, cases[:2])
        assert (fingerprint(any_backbone.model), fingerprint(adapter)) == traces
        assert attachment_of(any_backbone.model) is None
        assert torch.equal(torch.random.get_rng_state(), state)
    finally:
        any_backbone.model.eval()


def test_nothing_is_dropped_out_in_training_mode(tiny_llava, studies):
    backbone = dive.load_backbone(tiny_llava)
    adapter = randomised(backbone)
    wanted = look(backbone, adapter, studies[:1])
    for layer in decoder_layers(backbone.model):
        layer.self_attn.attention_dropout = 0.9
    backbone.model.train()
    assert look(backbone, adapter, studies[:1]) == wanted


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_whatever_ends_it_the_model_is_as_it_was(tiny_llava, studies, error, nth):
    backbone = dive.load_backbone(tiny_llava)
    adapter = randomised(backbone)
    wanted = look(backbone, adapter, studies[:2])  # the head is checked here, and not again
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == nth:
            raise error("stop")

    handle = decoder_layers(backbone.model)[2].register_forward_pre_hook(fail)
    backbone.model.train()
    traces = fingerprint(backbone.model), fingerprint(adapter)
    with pytest.raises(error, match="stop"):
        look(backbone, adapter, studies[:2])
    assert len(calls) == nth
    assert (fingerprint(backbone.model), fingerprint(adapter)) == traces
    assert attachment_of(backbone.model) is None
    handle.remove()
    assert look(backbone, adapter, studies[:2]) == wanted


def test_two_adapters_after_each_other(llava, studies):
    one, other = randomised(llava, seed=1), randomised(llava, seed=2, rank=0)
    first = look(llava, one, studies[:1], method=0)
    second = look(llava, other, studies[:1], method=1)
    assert first["studies"][0]["probability"] != second["studies"][0]["probability"]
    without = [each["studies"][0]["probability_without"] for each in (first, second)]
    assert without[0] == without[1]
    assert look(llava, one, studies[:1], method=0) == first
    with dive.steer(llava, other), pytest.raises(DiveError, match="already attached"):
        look(llava, one, studies[:1])


def test_names(llava, studies, tmp_path):
    adapter = randomised(llava)
    adapter.save_pretrained(tmp_path / "best")
    assert look(llava, adapter, studies[:1])["adapter"] == "adapter"
    found = look(llava, str(tmp_path / "best"), studies[:1])
    assert found["adapter"] == "best"
    assert found == look(llava, adapter, studies[:1], name="best")
