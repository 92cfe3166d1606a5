"""An adapter per sample of a batch: in the session, and in transformers."""

import logging

import pytest
import torch
from tiny_decoders import both, small, text_batch
from tiny_steering import fingerprint, for_backbone, logits, prompts, randomised

import dive
from dive.adapter.attach import PerSampleAttachment, attachment_of
from dive.decode.session import DecodeSession
from dive.errors import DiveError
from dive.prompting.prompter import Prompter

C = pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")


def mixed(model, **more):
    """Three adapters of different forms, and none."""
    return [
        randomised(model, seed=1, **more),
        None,
        randomised(model, seed=2, positions="response", layers=[0, 2], **more),
        randomised(model, seed=3, rank=2, activation="identity", **more),
    ]


def alone(model, adapters, **kwargs):
    """The tokens of transformers with each row's adapter attached for all rows, row by row."""
    batch = text_batch(rows=4)
    answers = []
    for row, adapter in enumerate(adapters):
        ids = batch["input_ids"][row, batch["attention_mask"][row] == 1][None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if adapter is None:
            got = model.generate(**inputs, **kwargs)
        else:
            with dive.steer(model, adapter):
                got = model.generate(**inputs, **kwargs)
        answers.append(got[0, ids.shape[1] :].tolist())
    return answers


def rows_of(output):
    return output[:, 9:].tolist()


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_a_mixed_batch_is_its_single_runs(family):
    model = small(family)
    adapters, trace = mixed(model), fingerprint(model)
    kwargs = {"max_new_tokens": 25, "eos_token_id": None, "pad_token_id": 0}
    wanted = alone(model, adapters, **kwargs)
    bare = alone(model, [None] * 4, **kwargs)
    assert [a != b for a, b in zip(wanted, bare, strict=True)] == [True, False, True, True]
    session = DecodeSession(model, adapters)
    assert session.engine_choice().engine == "dive._C"
    assert rows_of(session.generate(**text_batch(rows=4), **kwargs)) == wanted
    own = model.generate(**text_batch(rows=4), **kwargs, custom_generate=session)
    assert rows_of(own) == wanted
    assert fingerprint(model) == trace and attachment_of(model) is None


def test_rows_that_the_caller_attached_are_followed():
    model = small("llama")
    adapters = mixed(model)
    kwargs = {"max_new_tokens": 15, "eos_token_id": None, "pad_token_id": 0}
    wanted = alone(model, adapters, **kwargs)
    with PerSampleAttachment(model, adapters) as attachment:
        session = DecodeSession(model)
        assert session.engine_choice().engine == "dive._C"
        assert rows_of(session.generate(**text_batch(rows=4), **kwargs)) == wanted
        attachment.enabled = False
        bare = rows_of(session.generate(**text_batch(rows=4), **kwargs))
    assert session.ran.engine == "dive._C" and not session.fallback.reported
    assert bare == alone(model, [None] * 4, **kwargs)


def test_mixed_rows_sampled_repeated_and_stopped():
    """Tokens are those that transformers draws, with the same adapters attached row by row."""
    model = small("llama")
    adapters = mixed(model)
    plain = alone(model, adapters, max_new_tokens=25, eos_token_id=None, pad_token_id=0)
    ends = [plain[0][5], plain[3][11]]
    for kwargs in (
        {"do_sample": True, "top_k": 30},
        {"do_sample": True, "num_return_sequences": 3},
        {"repetition_penalty": 1.3},
        {"eos_token_id": ends, "pad_token_id": 0},
    ):
        kwargs = {"max_new_tokens": 25, **kwargs}
        torch.manual_seed(7)
        with PerSampleAttachment(model, adapters):
            want = model.generate(**text_batch(rows=4), **kwargs)
        torch.manual_seed(7)
        got = DecodeSession(model, adapters).generate(**text_batch(rows=4), **kwargs)
        assert torch.equal(got, want)


@pytest.mark.parametrize("kwargs", [
    {"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False},
])  # fmt: skip
def test_transformers_steers_every_row_by_its_own_too(kwargs, caplog):
    model = small("llama")
    adapters = mixed(model)
    kwargs = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0, **kwargs}
    wanted = alone(model, adapters, **kwargs)
    session = DecodeSession(model, adapters)
    with caplog.at_level(logging.INFO, logger="dive"):
        for _ in range(2):
            assert rows_of(session.generate(**text_batch(rows=4), **kwargs)) == wanted
    assert sum("decoding in transformers" in r.message for r in caplog.records) == 1
    assert attachment_of(model) is None


@pytest.mark.parametrize("positions", ["all", "response"])
def test_images_and_padding(any_backbone, studies, positions):
    adapters = [randomised(any_backbone, seed=1, positions=positions), None,
                randomised(any_backbone, seed=2), randomised(any_backbone, seed=1)]  # fmt: skip
    batch = prompts(any_backbone, studies[:4])
    kwargs = {"max_new_tokens": 12, "do_sample": False}
    got = DecodeSession(any_backbone, adapters).generate(**batch, **kwargs)
    with PerSampleAttachment(any_backbone, adapters):
        assert torch.equal(any_backbone.model.generate(**batch, **kwargs), got)
    prompter = Prompter(any_backbone)
    length = batch["input_ids"].shape[1]
    for row, study in enumerate(for_backbone(any_backbone, studies[:4])):
        one = prompter.to_device(prompter.encode(study))
        single = DecodeSession(any_backbone, adapters[row]).generate(**one, **kwargs)
        answer = single[0, one["input_ids"].shape[1] :]
        assert torch.equal(got[row, length : length + len(answer)], answer)


def test_states_of_each_row_are_those_of_its_adapter_alone():
    model = small("qwen2")
    adapters = mixed(model)
    batch = {"input_ids": torch.randint(2, 96, (4, 13))}
    with PerSampleAttachment(model, adapters) as attachment:
        got = logits(model, batch)
        attachment.adapters = adapters[:2]  # each for two rows now
        halves = logits(model, batch)
        attachment.enabled = False
        bare = logits(model, batch)
        attachment.enabled = True
        with pytest.raises(DiveError, match="2 adapters were given, one per sample, for a"):
            logits(model, {"input_ids": batch["input_ids"][:3]})
        with pytest.raises(DiveError, match="adapters is empty"):
            attachment.adapters = []
        attachment.mask = torch.ones(4, 13, dtype=torch.bool)
        with pytest.raises(DiveError, match="a mask of positions does not go"):
            logits(model, batch)
    assert torch.equal(bare, logits(model, batch))
    for row, adapter in enumerate(adapters):
        for all_rows, own in ((got, adapter), (halves, adapters[row // 2])):
            want = bare
            if own is not None:
                with dive.steer(model, own):
                    want = logits(model, batch)
            assert torch.allclose(all_rows[row], want[row], rtol=1e-5, atol=1e-5)


def test_a_trained_adapter_of_a_mixed_batch_is_packed_again():
    model = small("llama")
    adapters = mixed(model)
    session = DecodeSession(model, adapters)
    session.generate(**text_batch(rows=4), max_new_tokens=3)
    kept = session.binding.steering(adapters[0])
    with torch.no_grad():
        adapters[2].layers["0"].up.mul_(-3)
    kwargs = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0}
    got = rows_of(session.generate(**text_batch(rows=4), **kwargs))
    assert got == alone(model, adapters, **kwargs)
    assert session.binding.steering(adapters[0]) is kept  # the others are not


def test_bad_lists():
    model = small("llama")
    adapter = randomised(model)
    with pytest.raises(DiveError, match="empty list"):
        DecodeSession(model, [])
    with pytest.raises(DiveError, match="b: is no folder, want that of an adapter"):
        DecodeSession(model, [adapter, "b"])
    session = DecodeSession(model, [adapter, None])
    with pytest.raises(DiveError, match="2 adapters.*a batch of 3"):
        session.generate(**text_batch(), max_new_tokens=2)
    assert attachment_of(model) is None
    with pytest.raises(DiveError, match="give each request its own"):
        session.stream([])
    with dive.steer(model, adapter), pytest.raises(DiveError, match="already attached"):
        session.generate(**text_batch(rows=2), max_new_tokens=2)
    got, _ = both(session, text_batch(rows=2), None, max_new_tokens=2)
    assert got.shape == (2, 11)
