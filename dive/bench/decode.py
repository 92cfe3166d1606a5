"""Greedy decoding by the session and by transformers' generate, steered and not.

The time per token is that of an answer, less that of an answer of one token, divided by the tokens
between.
The floor is the time to read as many bytes as a step must, weights and cache, by the fastest of
several ways to read and in the same turns: on a CPU the same number of bytes and as often as an
answer has steps, on a GPU at the rate of 4 GiB. Weights are random.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dive
from dive.bench import observe
from dive.bench.case import Setup, off
from dive.bench.rates import fastest, read_again, read_buffer, reads
from dive.bench.request import DECODE as OPERATOR
from dive.bench.results import Found, Setting, Unmeasured, Wrong, reason_of, records_of
from dive.bench.timing import interval, turns, wall_seconds

SESSION = "session"
WAYS = (SESSION, "session, steered", "transformers", "transformers, steered")
_BESIDE = {
    "session, steered": SESSION,
    "transformers": SESSION,
    "transformers, steered": "session, steered",
}
_CHECKED = 6  # tokens
_MOST = 65  # tokens of an answer
_ROUNDS = 12
# shape -> the next smaller one and its parameters
_SMALLER = {
    "Llama-3-8B": ("1536x16", 500e6),
    "1536x16": ("512x12", 46e6),
    "512x12": ("512x4", 21e6),
    "512x4": ("256x4", 5.3e6),
}
_SCALE = 1e-2  # of the adapter: visible in the logits without an overflow


@dataclass(frozen=True)
class Decode:
    """One decoder and prompts of random tokens, `batch` of them."""

    shape: str  # of dive.bench.decoders.SHAPES
    prompt: int
    parameters: float
    batch: int = 1
    share: float = 3.0

    operator = OPERATOR

    @property
    def name(self) -> str:
        return f"{self.shape} decoder, batch {self.batch}, prompt {self.prompt}"

    def seconds(self, setup: Setup) -> float:
        # import and construction, then prompts and tokens of checks and three rounds, four ways
        size = self.parameters * setup.dtype.itemsize
        building = size / (50e9 if setup.device.type == "cuda" else 0.2e9)
        prompts = 30 * 2 * self.parameters * self.prompt * self.batch / setup.rates.products
        imports = 0 if setup.toy or "dive.bench.decoders" in sys.modules else 3
        # small decoders are bound by Python, not by their weights
        on_cpu = setup.device.type == "cpu" and not setup.toy
        calls = min(2.0, 0.5 + self.parameters / 30e6) if on_cpu else 0
        return imports + building + prompts + calls + 300 * size / setup.rates.reads

    def smaller(self) -> "Decode | None":
        if self.prompt > 16:
            return replace(self, prompt=self.prompt // 4)
        if self.shape in _SMALLER:
            shape, parameters = _SMALLER[self.shape]
            return replace(self, shape=shape, parameters=parameters)
        return None

    def run(self, setup: Setup, until: float) -> Iterator[Found]:
        missing = partial(Unmeasured, OPERATOR, self.name)
        try:
            bench = Bench(self, setup)
        except Exception as error:
            yield missing("all", reason_of(error))
            return
        try:
            wrong = bench.difference()
        except torch.OutOfMemoryError as error:
            yield missing("all", reason_of(error))
            return
        except Exception as error:
            wrong = f"it fails: {reason_of(error)}"
        if wrong:
            yield Wrong(OPERATOR, self.name, wrong)
            return
        seconds, new = bench.measure(until)
        ran = bench.ran | {"floor": f"weights and cache, by {bench.read_by}"}
        setting = Setting(OPERATOR, self.name, f"a token of {new}")
        yield from records_of(setting, seconds, ran, _BESIDE, float(self.batch), "tokens/s")
        for way in (SESSION, "session, steered"):
            if bench.ran[way] != "dive._C":
                why = "" if bench.session.ran is None else f": {bench.session.ran.reason}"
                yield missing(f"dive._C ({way})", f"{bench.ran[way]} ran in its place{why}")


class Bench:
    """One model and the ways to decode with it, steered or not in the same session."""

    def __init__(self, case: Decode, setup: Setup) -> None:
        from dive.bench.decoders import adapter_for, build, step_bytes
        from dive.decode.session import DecodeSession

        self.case, self.setup = case, setup
        self.model = build(
            case.shape, setup.dtype, setup.device, context=case.prompt + 512, toy=setup.toy
        )
        self.adapter = adapter_for(self.model, scale=_SCALE)
        self.step_bytes = partial(step_bytes, self.model, self.adapter, case.batch)
        self.session = DecodeSession(self.model)
        vocabulary = self.model.config.vocab_size
        shape = (case.batch, case.prompt)
        self.ids = torch.randint(5, vocabulary, shape, device=setup.device)
        on_gpu = setup.device.type == "cuda"
        # as many bytes as a step reads, so that the caches hold the same share of them
        size = setup.rates.read_bytes if on_gpu else sum(self._needed(case.prompt).values())
        self.memory = read_buffer(setup.device, setup.toy, size)
        ways = reads(self.memory)
        self.read_by = setup.rates.read_by if on_gpu else fastest(ways, setup.device)
        self.read = ways[self.read_by]
        self.ran: dict[str, str] = {}

    def _needed(self, cached: int) -> dict[str, int]:
        """Returns the bytes that a step with `cached` tokens per sequence must read."""
        found = self.step_bytes(cached)
        return {name: found[name] for name in ("weights", "cache")}

    def answer(self, way: str, new: int, **more: Any) -> Tensor:
        """Returns prompt and answer [B, T + new]."""
        generate = self.session.generate if way.startswith(SESSION) else self.model.generate
        with self._steered(way):
            ids = generate(
                self.ids,
                attention_mask=torch.ones_like(self.ids),
                do_sample=False,
                max_new_tokens=new,
                **more,
            )
        came = ids.shape[1] - self.case.prompt
        if came != new:
            raise RuntimeError(f"{way}: {came} tokens came, want {new}")
        return ids

    def _steered(self, way: str) -> Any:
        return dive.steer(self.model, self.adapter) if way.endswith("steered") else nullcontext()

    def difference(self) -> str:
        """Returns in words where the session is too far off the model's own forward, else "".

        Each token that it chooses must be the forward's most likely one up to rounding, and the
        logits that it chooses from must be those of the forward.
        """
        most = self.setup.tolerance
        for way in WAYS[:2]:
            ids = self.answer(way, _CHECKED)
            truth = self._forward(ids, way)
            chosen = truth.gather(-1, ids[:, self.case.prompt :, None])[..., 0]
            short = float(((truth.amax(-1) - chosen) / truth.std(-1)).max())
            if not short <= 4 * most:
                return (
                    f"{way}: a token's logit is {short:.2f} deviations below the most likely "
                    f"one's of the model's own forward, want {4 * most:g} at most"
                )
            seen: list[Tensor] = []
            ids = self.answer(way, _CHECKED, logits_processor=[partial(_keep, seen)])
            distance = off(torch.stack(seen, 1), self._forward(ids, way))
            if not distance <= most:
                return (
                    f"{way}: its logits are {distance:.2%} off those of the model's own forward, "
                    f"want {most:.1%} at most"
                )
        return ""

    @torch.inference_mode()
    def _forward(self, ids: Tensor, way: str) -> Tensor:
        """Returns float32 logits [B, new, V] after the prompt by one forward over all tokens."""
        with self._steered(way):
            new = ids.shape[1] - self.case.prompt
            return self.model(ids[:, :-1], logits_to_keep=new).logits.float()

    def measure(self, until: float) -> tuple[dict[str, list[float]], int]:
        """Returns seconds per token of each way and of the floor, and the tokens of an answer."""
        forwards = observe.Forwards(self.model)
        try:
            return self._measure(until, forwards)
        finally:
            forwards.close()

    def _measure(
        self, until: float, forwards: observe.Forwards
    ) -> tuple[dict[str, list[float]], int]:
        device = self.setup.device
        counted = {way: [0, 0, 0] for way in WAYS}  # forwards, calls, tokens

        def seconds(way: str, new: int) -> float:
            before = forwards.count
            taken = wall_seconds(lambda: self.answer(way, new), device)
            if new > 1:
                for at, more in enumerate((forwards.count - before, 1, new)):
                    counted[way][at] += more
            return taken

        for way in WAYS:
            seconds(way, 2)  # reserves memory and captures graphs
        prompts: dict[str, list[float]] = {way: [seconds(way, 1)] for way in WAYS}
        left = until - time.monotonic()
        short = 3 if self.setup.toy else 9
        # the tokens of an answer, so that there is time for several rounds
        step = sum(seconds(way, short) - prompts[way][0] for way in WAYS) / (short - 1)
        once = sum(prompts[way][0] for way in WAYS)
        new = max(short, min(_MOST, int((left / 7 - 2 * once) / max(step, 1e-6))))
        if self.setup.toy:
            new = short
        counted = {way: [0, 0, 0] for way in WAYS}

        def token(way: str) -> float:
            prompts[way].append(seconds(way, 1))
            prompt = interval(prompts[way][-5:]).median
            return max(seconds(way, new) - prompt, 1e-9) / (new - 1)

        read = sum(self._needed(self.case.prompt + new // 2).values()) / self.memory.nbytes

        def floor() -> float:
            times = 1 if device.type == "cuda" else new - 1
            return read * wall_seconds(read_again(self.read, times), device) / times

        measures: dict[str, Callable[[], float]] = {"floor": floor}
        measures |= {way: partial(token, way) for way in WAYS}
        taken = turns(measures, 2 if self.setup.toy else _ROUNDS, until=until)
        self.ran = {way: observe.decoder(*counted[way]) for way in WAYS}
        return taken, new


def _keep(seen: list[Tensor], _ids: Tensor, scores: Tensor) -> Tensor:
    """Records the logits; a logits processor."""
    seen.append(scores.float().clone())
    return scores


def cases(device: torch.device, toy: bool, free: int) -> list[Decode]:
    """Returns the cases by priority. free: bytes of device memory."""
    if toy:
        return [Decode("512x12", 8, 1e5)]
    if device.type == "cpu":
        return [Decode("512x12", 64, 46e6)]
    if free < 24 << 30:
        return [Decode("1536x16", 256, 500e6)]
    return [Decode("Llama-3-8B", 1024, 8e9), Decode("Llama-3-8B", 1024, 8e9, batch=8)]
