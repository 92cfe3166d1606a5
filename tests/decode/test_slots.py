"""Continuous batching: each answer is the one that its prompt gets alone."""

import copy
import gc
import logging
import warnings
from dataclasses import replace

import pytest
import torch
from tiny_decoders import FAMILIES, small, steered
from tiny_steering import fingerprint, randomised
from transformers import StoppingCriteria, StoppingCriteriaList

import dive
from dive.adapter.attach import attachment_of
from dive.decode import native
from dive.decode.answers import Live
from dive.decode.continuous import Request
from dive.decode.engine import EngineCache
from dive.decode.session import DecodeSession
from dive.errors import DiveError, FallbackWarning

C = pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")

WAYS = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 20},
    "processed": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "min_p": {"do_sample": True, "min_p": 0.05, "repetition_penalty": 1.1},
}
LENGTHS = (9, 4, 31, 2, 17, 12, 40, 5)


def prompt(length, seed=0):
    g = torch.Generator().manual_seed(100 * length + seed)
    return {"input_ids": torch.randint(2, 96, (1, length), generator=g)}


def alone(model, request, adapter=None):
    """transformers' own answer to one request."""
    if request.seed is not None:
        torch.manual_seed(request.seed)
    inputs = dict(request.inputs)
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    with steered(model, request.adapter or adapter):
        ids = model.generate(**inputs, **request.settings)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def requests_of(model, way="greedy", adapters=(None,), lengths=LENGTHS, **more):
    """Requests whose answers end at very different lengths."""
    inputs = [prompt(length) for length in lengths]
    free = [
        model.generate(**one, max_new_tokens=30)[0, one["input_ids"].shape[1] :] for one in inputs
    ]
    # a token of the first answer and one of the fourth are end tokens
    ends = [int(free[0][3]), int(free[3][11])]
    settings = {"eos_token_id": ends, "pad_token_id": 0, **WAYS[way], **more}
    return [
        Request(
            one,
            {"max_new_tokens": 8 + 5 * (index % 5), **settings},
            adapter=adapters[index % len(adapters)],
            seed=50 + index if settings.get("do_sample") else None,
        )
        for index, one in enumerate(inputs)
    ]


def written(session, requests, slots):
    answers = list(session.stream(iter(requests), slots))
    assert sorted(one.index for one in answers) == list(range(len(requests)))
    assert all(one.seconds > 0 for one in answers)
    return [one.token_ids for one in sorted(answers)]


@pytest.fixture
def steps(monkeypatch):
    """The number of slots that each step of the engine ran."""
    seen = []
    real = EngineCache.step

    def step(self, slots, tokens, logits=None):
        seen.append(len(slots))
        return real(self, slots, tokens, logits)

    monkeypatch.setattr(EngineCache, "step", step)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_refilled_rows_give_what_one_by_one_gives(family, way):
    model = small(family)
    requests = requests_of(model, way)
    wanted = [alone(model, request) for request in requests]
    assert len({len(tokens) for tokens in wanted}) > 3
    session = DecodeSession(model)
    for slots in (1, 3, 20):
        assert written(session, requests, slots) == wanted, slots
    assert session.ran.engine == "dive._C" and not session.fallback.reported


def test_the_rows_stay_full_and_ended_ones_cost_nothing(steps):
    model = small("llama")
    requests = requests_of(model)
    wanted = [alone(model, request) for request in requests]
    assert written(DecodeSession(model), requests, 3) == wanted
    # the first token of an answer comes with its prompt, and the last one is not run
    assert sum(steps) == sum(len(tokens) - 1 for tokens in wanted)
    assert max(steps) == 3 and steps.index(2) > len(steps) / 2
    assert len(steps) < 1.3 * sum(steps) / 3


def test_answers_come_as_they_end():
    model = small("llama")
    requests = [
        Request(prompt(5, index), {"max_new_tokens": new, "eos_token_id": None})
        for index, new in enumerate((20, 1, 3, 4, 2))
    ]
    indices = [one.index for one in DecodeSession(model).stream(requests, slots=2)]
    assert indices == [1, 2, 3, 4, 0]


@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_a_device_that_is_read_one_step_behind(way, monkeypatch, steps):
    """As on CUDA, but on the CPU: the next step is launched before a step's tokens are read."""
    model = small("qwen3")
    requests = requests_of(model, way)
    wanted = [alone(model, request) for request in requests]
    real, read = Live.__init__, Live._read

    def behind(self, *args):
        real(self, *args)
        self.behind = True

    late = []

    def spy(self, new):
        advanced = read(self, new)
        late.append(self._unread[1] is new)
        return advanced

    monkeypatch.setattr(Live, "__init__", behind)
    monkeypatch.setattr(Live, "_read", spy)
    session = DecodeSession(model)
    assert written(session, requests, 3) == wanted
    assert all(late)
    # one more step for every answer, except one that ended with the token of its prefill
    assert sum(steps) == sum(len(tokens) for tokens in wanted if len(tokens) > 1)
    batch = {"input_ids": torch.cat([prompt(9, seed)["input_ids"] for seed in range(3)])}
    ends = requests[0].settings["eos_token_id"]
    kwargs = {"max_new_tokens": 25, "eos_token_id": ends, "pad_token_id": 0}
    got = session.generate(**batch, **kwargs)
    assert torch.equal(got, model.generate(**batch, **kwargs))


def test_a_request_that_ends_reading_behind_tells_of_each_answer_once(monkeypatch):
    """Its own criterion needs every token, so two steps are read at once; one answer ends in each
    of them, and one gets a token from both."""
    real = Live.__init__

    def behind(self, *args):
        real(self, *args)
        self.behind = True

    monkeypatch.setattr(Live, "__init__", behind)
    model = small("qwen3")
    requests = requests_of(model, lengths=(9, 4, 31, 2, 17, 12), eos_token_id=None)
    for index, new in enumerate((3, 4, 5, 9, 12, 6)):
        requests[index].settings["max_new_tokens"] = new

    class Never(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            return torch.zeros(len(ids), dtype=torch.bool)

    requests[3].settings["stopping_criteria"] = StoppingCriteriaList([Never()])
    wanted = [alone(model, request) for request in requests]
    assert written(DecodeSession(model), requests, 3) == wanted


def test_prompts_longer_than_the_room_wait_for_it(monkeypatch):
    model = small("gemma3")
    lengths = (3, 4, 5, 80, 6, 200, 7)
    requests = requests_of(model, lengths=lengths, eos_token_id=None)
    wanted = [alone(model, request) for request in requests]
    rooms = []
    real = EngineCache.reserve

    def reserve(self, slots, capacity):
        real(self, slots, capacity)
        rooms.append((self.slots, self.capacity))

    monkeypatch.setattr(EngineCache, "reserve", reserve)
    assert written(DecodeSession(model), requests, 2) == wanted
    # the first three are known; 80 and 200 each enlarge the cache, which never shrinks
    assert rooms == [(2, 64), (2, 128), (2, 256)]
    rooms.clear()
    assert written(DecodeSession(model), requests, 10) == wanted
    assert rooms == [(7, 256)]


@pytest.mark.parametrize(("family", "way"), [("qwen3", "greedy"), ("gemma3", "sampled")])
def test_each_answer_is_steered_by_its_own_adapter(family, way):
    model = small(family)
    adapters = [
        randomised(model, seed=1),
        None,
        randomised(model, seed=2, positions="response", layers=[0, 2]),
        randomised(model, seed=3, norm_preserving=True, activation="tanh"),
    ]
    trace = fingerprint(model)
    requests = requests_of(model, way, adapters)
    wanted = [alone(model, request) for request in requests]
    bare = [alone(model, replace(request, adapter=None)) for request in requests]
    assert sum(a != b for a, b in zip(wanted, bare, strict=True)) >= 5
    session = DecodeSession(model)
    for slots in (1, 3, 8):
        assert written(session, requests, slots) == wanted
    assert fingerprint(model) == trace and attachment_of(model) is None


class Forwards:
    """Lengths of the prompts that the model itself reads."""

    def __init__(self, model):
        self.lengths = []
        self.handle = model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _model, _args, kwargs):
        self.lengths.append(kwargs["input_ids"].shape[1])

    # with another package's hook on the model transformers decodes
    note.__module__ = "transformers.looks_on"

    def __enter__(self):
        return self.lengths

    def __exit__(self, *_error):
        self.handle.remove()


@pytest.mark.parametrize("family", ["llama3", "mistral", "gemma3", "qwen2-window"])
@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_one_reading_serves_several_adapters_of_the_response(family, way):
    model = small(family)
    response = [randomised(model, seed=s, positions="response") for s in (1, 2)]
    whole = randomised(model, seed=3)
    long, short, single = prompt(37), prompt(6), prompt(1)
    settings = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0, **WAYS[way]}
    order = [(long, response[0]), (long, None), (long, response[1]), (long, whole),
             (short, response[0]), (long, response[0]), (short, response[1]), (short, response[0]),
             (single, response[0]), (single, response[1])]  # fmt: skip
    requests = [
        Request(inputs, settings, adapter, seed=9 + index if "do_sample" in settings else None)
        for index, (inputs, adapter) in enumerate(order)
    ]
    wanted = [alone(model, request) for request in requests]
    assert len(set(map(tuple, wanted[:4]))) >= 3
    for slots in (1, 4):
        session = DecodeSession(model)
        session.engine_choice()
        with Forwards(model) as lengths:
            assert written(session, requests, slots) == wanted
        assert lengths == [36, 37, 6, 37, 5, 1, 1]


def test_one_reading_serves_several_seeds():
    model = small("llama")
    same, settings = prompt(11), {"max_new_tokens": 9, "do_sample": True, "eos_token_id": None}
    requests = [Request(same, settings, seed=seed) for seed in range(5)]
    wanted = [alone(model, request) for request in requests]
    session = DecodeSession(model)
    session.engine_choice()
    with Forwards(model) as lengths:
        assert written(session, requests, 2) == wanted
    assert lengths == [10] and len(set(map(tuple, wanted))) > 1


@pytest.mark.parametrize("positions", ["all", "response"])
def test_the_sessions_own_adapter_and_an_attached_one(positions):
    model = small("llama")
    adapter = randomised(model, strength=0.4, positions=positions)
    requests = requests_of(model)
    requests.append(replace(requests[-1]))  # the same prompt twice: nothing may be shared unsteered
    wanted = [alone(model, request, adapter) for request in requests]
    assert written(DecodeSession(model, adapter), requests, 3) == wanted
    session = DecodeSession(model)
    with dive.steer(model, adapter) as attachment:
        assert written(session, requests, 3) == wanted
        attachment.enabled = False
        assert written(session, requests, 3) == [alone(model, request) for request in requests]
        with pytest.raises(DiveError, match="already attached"):
            list(session.stream([replace(requests[0], adapter=randomised(model))]))


@pytest.mark.parametrize("positions", ["all", "response"])
def test_a_request_without_an_adapter_has_the_sessions(positions):
    model = small("qwen3")
    own, other = (randomised(model, seed=s, positions=positions) for s in (1, 2))
    requests = requests_of(model, adapters=[None, other])
    # three times the same prompt, once more by the session's own adapter
    requests += [replace(requests[0], adapter=one) for one in (None, other, None)]
    wanted = [alone(model, request, own) for request in requests]
    assert wanted[0] != alone(model, requests[0])
    session = DecodeSession(model, own)
    assert written(session, requests, 3) == wanted
    assert written(session, requests[::-1], 3) == wanted[::-1]
    assert attachment_of(model) is None


def test_seeds_come_from_torchs_generator_where_none_are_given():
    model = small("llama")
    settings = {"max_new_tokens": 12, "do_sample": True, "eos_token_id": None}
    requests = [Request(prompt(6, index), settings) for index in range(5)]
    session = DecodeSession(model)
    got = []
    for seed, slots in ((3, 2), (3, 5), (4, 2)):
        torch.manual_seed(seed)
        got.append(written(session, requests, slots))
    assert got[0] == got[1] != got[2]


def test_other_calls_in_between_are_no_harm():
    model = small("mistral")
    adapter = randomised(model, strength=0.4)
    requests = requests_of(model, adapters=[adapter])
    wanted = [alone(model, request) for request in requests]
    session = DecodeSession(model)
    batch = prompt(30)
    plain = model.generate(**batch, max_new_tokens=20)
    got = {}
    for one in session.stream(requests, 3):
        got[one.index] = one.token_ids
        assert torch.equal(session.generate(**batch, max_new_tokens=20), plain)
        assert torch.equal(model.generate(**batch, max_new_tokens=20), plain)
        inner = list(session.stream([replace(requests[0], adapter=None)]))
        assert inner[0].token_ids == alone(model, replace(requests[0], adapter=None))
    assert [got[index] for index in range(len(requests))] == wanted


def test_what_is_left_is_given_up_with_the_iterator():
    model = small("llama")
    trace = fingerprint(model)
    requests = requests_of(model, adapters=[randomised(model)])
    session = DecodeSession(model)
    session.engine_choice()
    cache = session.binding.cache
    stream = session.stream(requests, 2)
    next(stream)
    assert fingerprint(model) != trace and session.binding.cache is None
    assert attachment_of(model) is None  # it is in effect only during a prefill
    del stream
    gc.collect()
    assert attachment_of(model) is None and fingerprint(model) == trace
    assert session.binding.cache is cache  # with its memory, for the next call


def test_a_model_that_moves_in_between_is_an_error():
    model = small("llama")
    stream = DecodeSession(model).stream(requests_of(model), 2)
    next(stream)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(DiveError, match="moved or replaced between two answers"):
        list(stream)


class Listener:
    def __init__(self):
        self.heard, self.ended = [], 0

    def put(self, value):
        self.heard += value.reshape(-1).tolist()

    def end(self):
        self.ended += 1


def test_each_answer_has_a_streamer_of_its_own():
    model = small("llama")
    requests = [replace(one, streamer=Listener()) for one in requests_of(model)]
    answers = written(DecodeSession(model), requests, 3)
    for request, tokens in zip(requests, answers, strict=True):
        assert request.streamer.heard == [*request.inputs["input_ids"][0].tolist(), *tokens]
        assert request.streamer.ended == 1


class Long(StoppingCriteria):
    """A criterion that ends at a multiple of seven tokens, which needs all ids so far."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] % 7 == 0)


def test_a_callers_own_criterion():
    model = small("llama")
    own = StoppingCriteriaList([Long()])
    requests = requests_of(model, stopping_criteria=own)
    wanted = [alone(model, request) for request in requests]
    assert len({len(tokens) for tokens in wanted}) > 2
    assert written(DecodeSession(model), requests, 3) == wanted


FALLBACKS = {
    "beams": ({"num_beams": 2}, "beam search"),
    "static": ({"cache_implementation": "static"}, "static"),
    "not built": ({}, "not built"),
    "training": ({}, "training mode"),
}


@pytest.mark.parametrize("name", FALLBACKS)
@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_transformers_writes_what_the_engine_cannot(name, way, monkeypatch, caplog):
    more, words = FALLBACKS[name]
    model = small("llama")
    adapters = [randomised(model, strength=0.4), None, randomised(model, strength=0.4, seed=5)]
    if name == "beams" and way == "sampled":
        pytest.skip("beams are not drawn token by token")
    if name == "not built":
        found = native.Found(None, native.NOT_BUILT, "dive._C is not built here")
        monkeypatch.setattr("dive.decode.native.find", lambda: found)
    requests = requests_of(model, way, adapters, lengths=LENGTHS[:4], **more)
    if name == "training":
        model.train()
    wanted = [alone(model, request) for request in requests]
    session = DecodeSession(model)
    with caplog.at_level(logging.INFO, logger="dive"), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            assert written(session, requests, 3) == wanted
    logged = [r.message for r in caplog.records if "decoding in transformers" in r.message]
    warned = [str(one.message) for one in seen if one.category is FallbackWarning]
    # beams and a static cache are requested
    said, silent = (logged, warned) if more else (warned, logged)
    assert len(said) == 1 and words in said[0] and not silent
    assert {one.engine for one in session.stream(requests, 3)} == {"transformers"}
    assert attachment_of(model) is None


@pytest.mark.parametrize("own", [None, 3], ids=["no session's adapter", "a session's adapter"])
@pytest.mark.parametrize(
    ("mask", "settings"),
    [([1, 1, 1, 1, 1, 1], {"num_beams": 2}), ([1, 1, 0, 1, 1, 1], {})],
    ids=["beams", "a mask with a hole"],
)
def test_one_prompt_for_several_adapters_in_transformers(mask, settings, own):
    """A prefill that the engine would share is not left unsteered where transformers decodes."""
    model = small("qwen3")
    adapters = [
        None if seed is None else randomised(model, seed=seed, positions="response", strength=0.5)
        for seed in (1, None, 2, own)
    ]
    inputs = {**prompt(6), "attention_mask": torch.tensor([mask])}
    requests = [
        Request(inputs, {"max_new_tokens": 12, **settings}, adapter=one) for one in adapters[:3]
    ]
    requested = [replace(one, adapter=one.adapter or adapters[3]) for one in requests]
    wanted = [alone(model, one) for one in requested]
    assert len({tuple(tokens) for tokens in wanted}) == 3
    session = DecodeSession(model, adapters[3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        assert written(session, requests, 2) == wanted
    assert session.ran.engine == "transformers"


def test_one_request_that_the_engine_cannot_take_among_others():
    model = small("llama")
    requests = requests_of(model, "sampled")
    odd = dict(requests[2].inputs)
    odd["attention_mask"] = torch.ones_like(odd["input_ids"])
    odd["attention_mask"][0, 3] = 0  # a hole
    requests[2] = replace(requests[2], inputs=odd)
    wanted = [alone(model, request) for request in requests]
    torch.manual_seed(requests[2].seed)
    ids = model.generate(**odd, **requests[2].settings)
    wanted[2] = ids[0, odd["input_ids"].shape[1] :].tolist()
    session = DecodeSession(model)
    with pytest.warns(FallbackWarning, match="padded on the left"):
        answers = sorted(session.stream(requests, 3))
    assert [one.token_ids for one in answers] == wanted
    assert [one.index for one in answers if one.engine == "transformers"] == [2]


def test_bad_requests():
    model = small("llama")
    session = DecodeSession(model)
    with pytest.raises(DiveError, match="slots is 0"):
        session.stream([], slots=0)
    assert list(session.stream([])) == []
    two = {"input_ids": torch.cat([prompt(3)["input_ids"]] * 2)}
    with pytest.raises(DiveError, match="request 1 has 2 sequences"):
        list(session.stream([Request(prompt(3), {"max_new_tokens": 2}), Request(two)]))
    with pytest.raises(DiveError, match="one request has one answer"):
        settings = {"max_new_tokens": 2, "do_sample": True, "num_return_sequences": 2}
        list(session.stream([Request(prompt(3), settings)]))
    with pytest.raises(DiveError, match="hidden_size"):
        other = copy.deepcopy(model)
        other.config.hidden_size = 64
        list(session.stream([Request(prompt(3), {"max_new_tokens": 2}, randomised(other))]))


def test_old_names_of_the_stream_work_and_warn():
    session = DecodeSession(small("llama"))
    with pytest.warns(FutureWarning, match=r"stream\(rows=\.\.\.\) is called slots=\.\.\. now"):
        answers = list(session.stream([Request(prompt(3), {"max_new_tokens": 2})], rows=1))
    with pytest.warns(FutureWarning, match=r"Written\.place is called index now"):
        assert answers[0].place == answers[0].index == 0
    with pytest.raises(TypeError, match="both 'slots' and its old name 'rows'"):
        session.stream([], slots=1, rows=1)


def test_old_names_of_the_choice_of_an_engine_work_and_warn():
    session = DecodeSession(small("llama"))
    with pytest.warns(FutureWarning, match=r"DecodeSession\.plan is called engine_choice now"):
        old = session.plan(num_beams=2)
    assert old == session.engine_choice(num_beams=2) and old.engine == "transformers"
    with pytest.warns(FutureWarning, match=r"EngineChoice\.asked is called requested now"):
        assert old.asked is old.requested is True
