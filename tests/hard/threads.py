"""Threads on one model: each request's answer is the one that it gets alone.

Steered by one adapter beside steered by another; steered beside unsteered; and beside the model's
own `generate`; in `dive._C` and in transformers. Threads begin each request together, and change
places in the middle of forwards.
"""

import random
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_decoders import small
from tiny_steering import randomised

import dive
from dive.backbone.structure import decoder_layers
from dive.decode import native
from dive.decode.session import DecodeSession
from tests.hard.trial import Outcome, Trial

PROMPTS = 6  # different ones, whose answers are known beforehand
TOKENS = 6

Call = Callable[[int], list[int]]


def run(count: int, seed: int, folder: Path) -> Outcome:
    """`count` requests a thread, for every pair of threads and each engine."""
    del folder
    outcome = Outcome()
    torch.set_num_threads(1)
    model = small("llama", seed=seed)
    one, other = randomised(model, seed=seed + 1), randomised(model, seed=seed + 2)
    g = torch.Generator().manual_seed(seed)
    ids = [torch.randint(2, 96, (1, 4 + place), generator=g) for place in range(PROMPTS)]
    settings: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}

    def plain(place: int) -> list[int]:
        return model.generate(ids[place], attention_mask=torch.ones_like(ids[place]), **settings)[
            0
        ].tolist()

    def in_with(adapter: Any) -> Call:
        def call(place: int) -> list[int]:
            with dive.steer(model, adapter):
                return plain(place)

        return call

    def by_session(adapter: Any) -> Call:
        session = DecodeSession(model, adapter)

        def call(place: int) -> list[int]:
            mask = torch.ones_like(ids[place])
            return session.generate(ids[place], attention_mask=mask, **settings)[0].tolist()

        return call

    def wanted(adapter: Any) -> list[list[int]]:
        """By transformers, with no other thread there."""
        call = plain if adapter is None else in_with(adapter)
        return [call(place) for place in range(PROMPTS)]

    answers = {name: wanted(a) for name, a in (("one", one), ("other", other), ("none", None))}
    if answers["one"] == answers["none"] or answers["one"] == answers["other"]:
        outcome.faults.append("the adapters change nothing, so that nothing is tried")
    engines: dict[str, Callable[[Any], Call]] = {
        "transformers": lambda a: plain if a is None else in_with(a)
    }
    if native.available():
        engines["dive._C"] = by_session
    pairs = [("one", "other"), ("one", "none"), ("one", "plain")]
    adapters = {"one": one, "other": other, "none": None}
    hook = decoder_layers(model)[1].register_forward_pre_hook(_ChangePlaces(seed))
    began = time.perf_counter()
    try:
        for engine, make in engines.items():
            for pair in pairs:
                calls = [plain if who == "plain" else make(adapters[who]) for who in pair]
                right = [answers["none" if who == "plain" else who] for who in pair]
                faults = _side_by_side(calls, right, count, seed)
                outcome.faults += [f"{engine}, {' beside '.join(pair)}: {one}" for one in faults]
                outcome.tried += len(pair) * count
    finally:
        hook.remove()
    outcome.figures["requests a second"] = round(outcome.tried / (time.perf_counter() - began), 1)
    return outcome


class _ChangePlaces:
    """In the middle of every third forward or so another thread gets its turn."""

    __module__ = "transformers.hard"  # as a hook that dive._C knows to change nothing

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, *_: Any) -> None:
        if self._random.random() < 0.3:
            time.sleep(0.0005)


def _side_by_side(
    calls: list[Call], wanted: list[list[list[int]]], count: int, seed: int
) -> list[str]:
    barrier = threading.Barrier(len(calls), timeout=120)
    faults: list[str] = []

    def work(which: int) -> None:
        choose = random.Random(f"{seed} {which}")
        try:
            for number in range(count):
                barrier.wait()
                place = choose.randrange(PROMPTS)
                got = calls[which](place)
                if got != wanted[which][place]:
                    faults.append(f"request {number} of thread {which} is not what it is alone")
        except Exception as error:
            faults.append(f"thread {which}: {type(error).__name__}: {error}")
            barrier.abort()

    threads = [threading.Thread(target=work, args=(which,)) for which in range(len(calls))]
    with warnings.catch_warnings():
        # the thread without an adapter may have been started inside the other's first `with`
        warnings.filterwarnings("ignore", message="a forward runs unsteered")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
    faults += [f"thread {place} hangs" for place, t in enumerate(threads) if t.is_alive()]
    return faults


TRIAL = Trial("threads", run, full=200, short=6)
