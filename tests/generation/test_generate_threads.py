"""`dive.generate`, sessions and training on one model in several threads."""

import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from side_threads import in_thread
from tiny_decoders import small, text_batch
from tiny_steering import fingerprint, randomised

import dive
from dive.backbone.model_lock import FairLock, model_lock
from dive.backbone.modes import evaluating
from dive.backbone.structure import decoder_layers
from dive.decode.continuous import Request
from dive.decode.session import DecodeSession
from dive.generation.generate_reports import iter_reports

ENGINES = ("auto", "transformers")
SHORT = {"max_new_tokens": 6, "progress": False}


@pytest.fixture(scope="module")
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava)


@pytest.fixture(scope="module")
def qwen(tiny_qwen):
    return dive.load_backbone(tiny_qwen)


def texts(reports):
    return [(report.id, tuple(report.token_ids)) for report in reports]


class Slow:
    """Keeps each thread in the middle of its first forwards while the others run theirs."""

    def __init__(self, model):
        self.seen = Counter()
        self.handle = decoder_layers(model)[1].register_forward_pre_hook(self)

    def __call__(self, *_):
        self.seen[threading.get_ident()] += 1
        if self.seen[threading.get_ident()] < 4:
            time.sleep(0.02)

    __module__ = "transformers.tests"  # as a hook that dive._C knows


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_each_thread_gets_what_it_gets_alone(family, engine, studies, request):
    """Steered by one adapter, by another, by none, and the model's own generate, at once."""
    backbone = request.getfixturevalue(family)
    model = backbone.model
    one, other = randomised(backbone, seed=1), randomised(backbone, seed=2, positions="response")
    ids = backbone.tokenizer("the heart is", return_tensors="pt")

    def report(adapter, some):
        return texts(dive.generate(backbone, some, adapter=adapter, engine=engine, **SHORT))

    def plain():
        return model.generate(**ids, max_new_tokens=6, do_sample=False).tolist()

    calls = [
        lambda: report(one, studies[:3]),
        lambda: report(other, studies[1:4]),
        lambda: report(None, studies[:2]),
        lambda: report([one, None, other], studies[:3]),
        plain,
    ]
    alone = [call() for call in calls]
    trace = fingerprint(model)  # transformers installs hooks of its own at the first forward
    assert len({str(answer) for answer in alone}) == len(alone)
    slow, barrier = Slow(model), threading.Barrier(len(calls), timeout=300)

    def together(call):
        barrier.wait()
        return call()

    threads = [in_thread(lambda call=call: together(call)) for call in calls]
    got = [thread.result() for thread in threads]
    slow.handle.remove()
    assert got == alone
    assert fingerprint(model) == trace


@pytest.mark.parametrize("engine", ENGINES)
def test_two_iterators_in_turn_and_one_that_another_thread_closes(llava, studies, engine):
    model = llava.model
    adapters = [randomised(llava, seed=1), randomised(llava, seed=2)]
    options = {**SHORT, "engine": engine, "batch_size": 1}
    alone = [texts(dive.generate(llava, studies[:3], adapter=a, **options)) for a in adapters]
    trace = fingerprint(model)
    each = [iter_reports(llava, studies[:3], adapter=adapter, **options) for adapter in adapters]
    got = [[], []]
    for _ in range(3):
        for index, reports in enumerate(each):
            # every report is requested by a thread of its own
            got[index].append(in_thread(lambda reports=reports: next(reports)).result())
    assert [texts(one) for one in got] == alone
    assert [next(reports, None) for reports in each] == [None, None]
    left = iter_reports(llava, studies[:3], adapter=adapters[0], **options)
    next(left)
    in_thread(left.close).result()
    assert fingerprint(model) == trace


class Nested:
    """A streamer that makes a call of its own in the middle of an answer."""

    def __init__(self, call):
        self.call, self.got = call, []

    def put(self, _value):
        if len(self.got) < 2:
            self.got.append(self.call())

    def end(self):
        pass


@pytest.mark.parametrize("engine", ENGINES)
def test_a_streamer_may_call_generate(qwen, studies, engine):
    options = {**SHORT, "engine": engine}
    inner = texts(dive.generate(qwen, studies[1], **options))
    outer = texts(dive.generate(qwen, studies[0], **options))
    nested = Nested(lambda: texts(dive.generate(qwen, studies[1], **options)))
    assert texts(dive.generate(qwen, studies[0], streamer=nested, **options)) == outer
    assert nested.got == [inner, inner]


def test_one_session_in_two_threads_and_in_its_own_streamer():
    model = small("llama")
    session = DecodeSession(model, randomised(model))
    batches = [text_batch(rows=2, prompt=7, seed=seed) for seed in (1, 2)]
    options = {"max_new_tokens": 12, "do_sample": False}
    alone = [session.generate(**batch, **options) for batch in batches]
    assert session.ran.engine == "dive._C"
    middle = threading.Barrier(2, timeout=300)

    class Meets:
        steps = 0

        def put(self, _value):
            self.steps += 1
            if self.steps == 3:  # both are decoding
                middle.wait()

        def end(self):
            pass

    def call(batch):
        return session.generate(**batch, streamer=Meets(), **options)

    threads = [in_thread(lambda batch=batch: call(batch)) for batch in batches]
    for thread, want in zip(threads, alone, strict=True):
        assert torch.equal(thread.result(), want)
    nested = Nested(lambda: session.generate(**batches[1], **options))
    assert torch.equal(session.generate(**batches[0], streamer=nested, **options), alone[0])
    assert all(torch.equal(one, alone[1]) for one in nested.got)


def test_a_seed_holds_beside_other_draws(llava):
    """transformers' sampling of one request draws from its own generator."""
    model, session = llava.model, DecodeSession(llava)
    ids = llava.tokenizer("the heart is", return_tensors="pt")
    settings = {"max_new_tokens": 8, "do_sample": True, "cache_implementation": "static"}
    request = Request(dict(ids), settings, seed=3)
    want = next(iter(session.stream([request])))
    assert want.engine == "transformers"
    torch.manual_seed(3)
    alone = model.generate(**ids, **settings)[0, ids["input_ids"].shape[1] :].tolist()
    assert want.token_ids == alone
    drawing = Nested(lambda: torch.rand(5))
    assert next(iter(session.stream([replace(request, streamer=drawing)]))).token_ids == alone
    assert len(drawing.got) == 2


def test_training_beside_generate(llava, studies):
    """dive.distill in one thread, dive.generate and the model's own in another."""
    config = dive.DistillConfig(
        preset="dive-ce", rank=2, steps=3, batch_size=2, warmup=0.0,
        gradient_checkpointing=True,
    )  # fmt: skip
    adapter = randomised(llava, seed=1)
    model = llava.model
    ids = llava.tokenizer("the heart is", return_tensors="pt")

    def training():
        return dive.distill(llava, studies[:4], config=config, progress=False)

    def answers():
        reports = dive.generate(llava, studies[:2], adapter=adapter, **SHORT)
        plain = model.generate(**ids, max_new_tokens=6, do_sample=False)
        return texts(reports), plain.tolist()

    learnt, wanted = training(), answers()
    trace = fingerprint(model)
    done = threading.Event()

    def all_the_while():
        got = [answers()]
        while not done.is_set():
            got.append(answers())
        return got

    beside = in_thread(all_the_while)
    again = training()
    done.set()
    assert all(one == wanted for one in beside.result())
    for name, tensor in learnt.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert fingerprint(model) == trace


def test_eval_mode_holds_until_the_last_thread_is_done():
    model = small("llama")
    layer = decoder_layers(model)[1]
    layer.train()
    inside, go = threading.Event(), threading.Event()

    def slow():
        with evaluating(model):
            inside.set()
            go.wait(300)
            return layer.training

    thread = in_thread(slow)
    assert inside.wait(300)
    with evaluating(model):
        assert not layer.training
    assert not layer.training
    go.set()
    assert thread.result() is False
    assert layer.training and not decoder_layers(model)[0].training


def test_turns_are_given_in_the_order_of_asking():
    lock, order, threads = FairLock(), [], []
    lock.acquire()
    lock.acquire()  # again by the same thread
    for name in range(4):

        def work(name=name):
            lock.acquire()
            order.append(name)
            lock.release()

        threads.append(in_thread(work))
        while len(lock._waiting) < name + 1:
            time.sleep(0.001)
    lock.release()
    assert order == []
    lock.release()
    for thread in threads:
        thread.result()
    assert order == [0, 1, 2, 3]


def test_a_model_and_its_base_share_their_turns():
    model = small("llama")
    with model_lock(model):
        other = in_thread(lambda: model_lock(model.model).__enter__())
        other.join(0.05)
        assert other.is_alive()
    other.result()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_call_inside_a_call_gets_what_it_asks_for(llava, studies, engine):
    """The outer call's adapter is in effect in its streamer, but not in the inner call."""
    one, other = randomised(llava, seed=1), randomised(llava, seed=2)

    def report(adapter):
        return texts(dive.generate(llava, studies[1], adapter=adapter, engine=engine, **SHORT))

    wanted = {adapter: report(adapter) for adapter in (None, one, other)}
    assert len({str(each) for each in wanted.values()}) == 3

    class Streamer:
        def __init__(self):
            self.got = []

        def put(self, _tokens):
            self.got += [(adapter, report(adapter)) for adapter in wanted]

        def end(self):
            pass

    streamer = Streamer()
    alone = texts(dive.generate(llava, studies[0], adapter=one, engine=engine, **SHORT))
    options = {"adapter": one, "engine": engine, "streamer": streamer, **SHORT}
    assert texts(dive.generate(llava, studies[0], **options)) == alone
    assert len(streamer.got) >= 6
    assert all(got == wanted[adapter] for adapter, got in streamer.got)


def test_requests_of_their_own_beside_what_is_for_all(llava, studies):
    one, other = randomised(llava, seed=1), randomised(llava, seed=2)

    def report(adapter=None):
        return texts(dive.generate(llava, studies[:2], adapter=adapter, **SHORT))

    bare, first, second = report(), report(one), report(other)
    attachment = dive.steer(llava, one)
    try:
        assert in_thread(lambda: report(other)).result() == second
        assert in_thread(report).result() == first
    finally:
        attachment.detach()
    assert report() == bare
