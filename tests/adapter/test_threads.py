"""One model in several threads and tasks: each forward has its own adapter, or none."""

import asyncio
import contextvars
import copy
import gc
import io
import pickle
import threading
import warnings
from functools import partial

import pytest
import torch
from side_threads import in_thread
from tiny_decoders import small
from tiny_steering import fingerprint, logits, randomised
from torch.utils.checkpoint import checkpoint

import dive
from dive.adapter import decoder_site
from dive.adapter.attach import attachment_of
from dive.backbone.gradient_checkpointing import enable_gradient_checkpointing
from dive.backbone.structure import decoder_layers, last_hidden_state
from dive.errors import DiveError
from dive.training.calibration import calibrate

BATCH = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]])}


@pytest.fixture
def model():
    return small("llama")


@pytest.fixture
def two(model):
    """Two adapters, the logits of each alone, and the logits without one."""
    adapters = [randomised(model, seed=1), randomised(model, seed=2)]
    wanted = []
    for adapter in adapters:
        with dive.steer(model, adapter):
            wanted.append(logits(model, BATCH))
    return adapters, wanted, logits(model, BATCH)


class Pause:
    """Stops chosen threads in the middle of a forward, after the first layer."""

    def __init__(self, model, meet):
        self.meet = meet
        self.handle = decoder_layers(model)[1].register_forward_pre_hook(self)

    def __call__(self, *_):
        meet = self.meet.get(threading.current_thread().name)
        if meet is not None:
            meet()


def test_three_threads_in_the_middle_of_a_forward(model, two):
    """Steered by one adapter, by another, and by none; all meet after the first layer."""
    adapters, wanted, bare = two
    trace = fingerprint(model)
    barrier = threading.Barrier(3, timeout=300)
    pause = Pause(model, dict.fromkeys(("one", "other", "none"), barrier.wait))
    entered = threading.Barrier(3, timeout=300)

    def steered(adapter):
        with dive.steer(model, adapter) as attachment:
            assert attachment_of(model) is attachment
            with pytest.raises(DiveError, match="already attached to this model"):
                dive.steer(model, adapter)
            entered.wait()
            return logits(model, BATCH)

    def plain():
        entered.wait()  # the other two are inside
        assert attachment_of(model) is None
        return logits(model, BATCH)

    with pytest.warns(UserWarning, match="a forward runs unsteered") as said:
        threads = [in_thread(plain, "none")]  # which was there before
        threads += [
            in_thread(lambda adapter=adapter: steered(adapter), name)
            for name, adapter in zip(("one", "other"), adapters, strict=True)
        ]
        results = [thread.result() for thread in threads]
    assert len(said) == 1
    pause.handle.remove()
    assert torch.equal(results[0], bare)
    assert torch.equal(results[1], wanted[0]) and torch.equal(results[2], wanted[1])
    assert fingerprint(model) == trace


def test_a_thread_started_inside_a_with_is_told(model, two):
    adapters, wanted, bare = two
    with dive.steer(model, adapters[0]):
        with pytest.warns(
            UserWarning, match="call dive.steer without `with`.*copy_context"
        ) as said:
            assert torch.equal(in_thread(lambda: logits(model, BATCH)).result(), bare)
            assert torch.equal(in_thread(lambda: logits(model, BATCH)).result(), bare)
        assert len(said) == 1
        run = contextvars.copy_context().run
        assert torch.equal(in_thread(lambda: run(logits, model, BATCH)).result(), wanted[0])


def test_without_with_it_is_for_every_thread(model, two):
    adapters, wanted, bare = two
    trace, go = fingerprint(model), threading.Event()
    older = in_thread(lambda: go.wait(300) and logits(model, BATCH))
    attachment = dive.steer(model, adapters[0])
    assert torch.equal(logits(model, BATCH), wanted[0])
    go.set()
    assert torch.equal(older.result(), wanted[0])
    assert torch.equal(in_thread(lambda: logits(model, BATCH)).result(), wanted[0])

    def second():
        with dive.steer(model, adapters[1]):
            return logits(model, BATCH)

    assert torch.equal(in_thread(second).result(), wanted[1])  # its own takes precedence
    with pytest.raises(DiveError, match="already attached to this model"):
        dive.steer(model, adapters[1])
    with pytest.raises(DiveError, match="has steered another thread's forward"), attachment:
        pass
    attachment.detach()
    assert torch.equal(logits(model, BATCH), bare) and fingerprint(model) == trace
    with pytest.raises(DiveError, match="this attachment is detached"), attachment:
        pass


def test_a_with_that_ended_is_no_silent_end_of_steering(model, two):
    adapters, _, bare = two
    trace = fingerprint(model)
    with dive.steer(model, adapters[0]) as attachment:
        taken = contextvars.copy_context()
        with pytest.raises(DiveError, match="in a `with` already"), attachment:
            pass
    assert torch.equal(logits(model, BATCH), bare)
    with pytest.raises(DiveError, match="has copied is over"):
        in_thread(partial(taken.run, logits, model, BATCH)).result()
    taken.run(attachment.detach)
    assert torch.equal(taken.run(logits, model, BATCH), bare)
    del taken
    gc.collect()  # the error's frames
    assert fingerprint(model) == trace


def test_before_the_with_is_entered_other_threads_wait(model, two):
    adapters, wanted, bare = two
    attachment = dive.steer(model, adapters[0])
    other = in_thread(lambda: logits(model, BATCH))
    other.join(0.1)
    assert other.is_alive()
    with attachment:
        assert torch.equal(other.result(), bare)
        assert torch.equal(logits(model, BATCH), wanted[0])


def test_after_a_while_it_is_for_all(model, two, monkeypatch):
    monkeypatch.setattr(decoder_site, "GRACE", 0.05)
    adapters, wanted, _ = two
    attachment = dive.steer(model, adapters[0])
    assert torch.equal(in_thread(lambda: logits(model, BATCH)).result(), wanted[0])
    attachment.detach()


@pytest.mark.parametrize("change", ["attach", "detach"])
def test_a_forward_keeps_to_its_end_what_it_began_with(model, two, change):
    adapters, wanted, bare = two
    trace = fingerprint(model)
    inside, go = threading.Event(), threading.Event()
    pause = Pause(model, {"slow": lambda: (inside.set(), go.wait(300))})
    if change == "detach":
        attachment = dive.steer(model, adapters[0])
        logits(model, BATCH)
    slow = in_thread(lambda: logits(model, BATCH), "slow")
    assert inside.wait(300)
    if change == "attach":
        attachment = dive.steer(model, adapters[0])
        assert torch.equal(logits(model, BATCH), wanted[0])
    else:
        attachment.detach()
        assert torch.equal(logits(model, BATCH), bare)
        with dive.steer(model, adapters[1]):
            assert torch.equal(logits(model, BATCH), wanted[1])
    go.set()
    assert torch.equal(slow.result(), bare if change == "attach" else wanted[0])
    attachment.detach()
    pause.handle.remove()
    assert fingerprint(model) == trace


def test_an_interrupted_forward_leaves_nothing_behind(model, two):
    adapters, wanted, bare = two
    trace = fingerprint(model)

    def interrupt():
        raise KeyboardInterrupt

    pause = Pause(model, {threading.current_thread().name: interrupt})
    with pytest.raises(KeyboardInterrupt), dive.steer(model, adapters[0]):
        logits(model, BATCH)
    pause.handle.remove()
    assert fingerprint(model) == trace
    attachment = dive.steer(model, adapters[1])
    assert torch.equal(logits(model, BATCH), wanted[1])
    attachment.detach()
    assert torch.equal(logits(model, BATCH), bare)


def test_tasks_have_their_own_and_take_it_to_threads(model, two):
    adapters, wanted, bare = two

    async def steered(adapter, ready):
        with dive.steer(model, adapter):
            await ready.wait()
            first = logits(model, BATCH)
            await asyncio.sleep(0)
            return first, await asyncio.to_thread(logits, model, BATCH)

    async def main():
        ready = asyncio.Event()
        tasks = [asyncio.create_task(steered(adapter, ready)) for adapter in adapters]
        await asyncio.sleep(0)
        # a server's handler in the thread of a `with` that is another task's
        with pytest.warns(UserWarning, match="thread or task"):
            plain = logits(model, BATCH)
        ready.set()
        return plain, *await asyncio.gather(*tasks)

    plain, *each = asyncio.run(main())
    assert torch.equal(plain, bare)
    for got, want in zip(each, wanted, strict=True):
        assert torch.equal(got[0], want) and torch.equal(got[1], want)


# gradients


def loss_of(model, how):
    ids = BATCH["input_ids"]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    run = lambda one: model.model(inputs_embeds=one, use_cache=False).last_hidden_state  # noqa: E731
    hidden = run(embedded) if how is None else checkpoint(run, embedded, use_reentrant=how)
    return (hidden * torch.linspace(-1, 1, hidden.shape[-1])).sum()


def gradient_of(adapter):
    grads = torch.cat([p.grad.flatten() for p in adapter.parameters()])
    adapter.zero_grad()
    return grads


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_on_another_thread_recomputes_what_was_steered(model, two, reentrant):
    """Runs it as in autograd's own threads, which do not have the caller's context."""
    adapters = two[0]
    model.requires_grad_(False)
    with dive.steer(model, adapters[0]):
        loss_of(model, None).backward()
    want = gradient_of(adapters[0])
    stop, inside = threading.Event(), threading.Event()

    def generating():
        with dive.steer(model, adapters[1]):
            logits(model, BATCH)
            inside.set()
            stop.wait(300)

    with dive.steer(model, adapters[0]):
        loss = loss_of(model, reentrant)
        beside = in_thread(generating)
        assert inside.wait(300)
        in_thread(loss.backward).result()
        assert torch.equal(gradient_of(adapters[0]), want)
        loss_of(model, reentrant).backward()  # and on its own
        assert torch.equal(gradient_of(adapters[0]), want)
    stop.set()
    beside.result()
    assert want.abs().max() > 0.1


def test_where_it_cannot_be_told_a_backward_is_refused(model, two):
    adapters = two[0]
    model.requires_grad_(False)
    before = loss_of(model, False)
    ready, done = threading.Barrier(2, timeout=300), threading.Event()

    def other():
        with dive.steer(model, adapters[1]):
            loss = loss_of(model, False)
            ready.wait()
            loss.backward()  # its own context has the attachment
            ready.wait()
            done.wait(300)

    with dive.steer(model, adapters[0]):
        with pytest.raises(DiveError, match="it ran before what is attached now was attached"):
            before.backward()
        loss = loss_of(model, False)
        thread = in_thread(other)
        ready.wait()
        ready.wait()
        with pytest.raises(DiveError, match="2 forwards on this model, in several threads, wait"):
            in_thread(loss.backward).result()
        loss_of(model, False).backward()
        done.set()
        thread.result()
    got = gradient_of(adapters[1])
    with dive.steer(model, adapters[1]):
        loss_of(model, None).backward()
    assert torch.equal(got, gradient_of(adapters[1]))


def test_checkpointing_is_for_forwards_with_gradients_of_whatever_thread(model, two):
    """During a training step another thread's generate keeps its cache."""
    adapters = two[0]
    want = model.generate(**BATCH, max_new_tokens=6, do_sample=False)
    handle = enable_gradient_checkpointing(model)
    got = []

    def generate():
        return model.generate(**BATCH, max_new_tokens=6, do_sample=False)

    def beside(*_):
        if threading.current_thread() is main and not got:
            got.append(in_thread(generate).result())

    main = threading.current_thread()
    hook = decoder_layers(model)[1].register_forward_pre_hook(beside)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with dive.steer(model, adapters[0]):
            last_hidden_state(model, BATCH).sum().backward()
    hook.remove()
    handle.remove()
    assert torch.equal(got[0], want)


# copies


def test_a_copy_of_a_steered_model_is_free(model, two):
    adapters, wanted, bare = two
    with dive.steer(model, adapters[0]) as attachment:
        copied = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        for one in (copied, loaded, pickle.loads(pickle.dumps(model))):
            assert attachment_of(one) is None
            assert torch.equal(logits(one, BATCH), bare)
            with dive.steer(one, adapters[1]):
                assert torch.equal(logits(one, BATCH), wanted[1])
                assert torch.equal(logits(model, BATCH), wanted[0])
        assert torch.equal(logits(copy.copy(model), BATCH), wanted[0])  # the same layers
        with pytest.raises(DiveError, match="neither copied nor pickled"):
            copy.deepcopy(attachment)
    assert torch.equal(logits(copied, BATCH), bare)


def test_a_copy_under_checkpointing_computes_with_its_own_layers(model):
    handle = enable_gradient_checkpointing(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        decoder_layers(copied)[0].mlp.down_proj.weight.add_(1.0)
    changed = logits(copied, BATCH)
    assert not torch.equal(changed, logits(model, BATCH))
    handle.remove()
    enable_gradient_checkpointing(copied).remove()
    assert "forward" not in vars(decoder_layers(copied)[0])
    assert torch.equal(logits(copied, BATCH), changed)


def test_replicas_are_refused(model, two):
    with dive.steer(model, two[0][0]):
        layer = decoder_layers(model)[0]._replicate_for_data_parallel()
        layer._is_replica = True
        hook = next(iter(layer._forward_hooks.values()))
        with pytest.raises(DiveError, match="DataParallel"):
            hook(layer, (), torch.zeros(1, 1, 72))


# others that hang hooks


def test_calibration_measures_its_own_forwards(model, two):
    adapters = two[0]
    plain = dive.SteeringAdapter(dive.SteeringConfig(), model)
    mask = torch.ones_like(BATCH["input_ids"], dtype=torch.bool)
    calibrate(model, plain, [(BATCH, mask)])
    other = {"input_ids": torch.tensor([[50, 60, 70]])}
    measured = dive.SteeringAdapter(dive.SteeringConfig(), model)

    def batches():
        # another thread's forwards, steered and with positions of their own
        def beside():
            with dive.steer(model, adapters[0]):
                return logits(model, other)

        in_thread(beside).result()
        yield BATCH, mask

    calibrate(model, measured, batches())
    for index, layer in plain.layers.items():
        assert torch.equal(layer.sigma, measured.layers[index].sigma)


# torch.compile


def test_compiled_code_asks_whose_call_it_is(model, two):
    adapters, wanted, bare = two
    compiled = torch.compile(model.__call__, backend="eager")

    @torch.no_grad()
    def run():
        return compiled(**BATCH, use_cache=False).logits

    go = threading.Event()
    older = in_thread(lambda: go.wait(300) and run())
    with dive.steer(model, adapters[0]):
        torch.testing.assert_close(run(), wanted[0])
        go.set()
        torch.testing.assert_close(older.result(), bare)

        def other():
            with dive.steer(model, adapters[1]):
                return run()

        torch.testing.assert_close(in_thread(other).result(), wanted[1])
        torch.testing.assert_close(run(), wanted[0])
    torch.testing.assert_close(run(), bare)


def test_one_adapter_for_all_is_built_into_compiled_code(model, two):
    adapters, wanted, bare = two
    attachment = dive.steer(model, adapters[0])
    assert attachment_of(model) is attachment
    compiled = torch.compile(model.__call__, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**BATCH, use_cache=False).logits, wanted[0])
        attachment.detach()
        torch.testing.assert_close(compiled(**BATCH, use_cache=False).logits, bare)
        with dive.steer(model, adapters[0]), pytest.raises(Exception, match="(?i)graph|disable"):
            compiled(**BATCH, use_cache=False)
