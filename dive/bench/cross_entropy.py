"""Cross entropy and distillation over a frozen head, forward and backward, against its peers.

The floor is the matrix products over the live rows alone, in one piece and into allocated memory:
one for the loss, one for its gradient, one more for a teacher. Of the libraries that compute the
same, the one that is fastest in a single call is timed, on rows that were gathered beforehand.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from dive.bench import observe, peers
from dive.bench.case import Setup, off
from dive.bench.deadline import OutOfTime, bound
from dive.bench.peers import GATHERED, Loss, Problem
from dive.bench.request import CROSS_ENTROPY as OPERATOR
from dive.bench.results import Found, Setting, Unmeasured, Wrong, reason_of, records_of
from dive.bench.timing import LEAST_ROUNDS, Call, stopwatches, turns, wall_seconds

MODES = ("forward", "forward+backward")
_ROUNDS = 11


def floors(p: Problem) -> dict[str, Call]:
    """Returns the products that every implementation needs."""
    dense = p.hidden.detach()[p.rows]
    logits, back = dense.new_empty(len(dense), len(p.head)), torch.empty_like(dense)
    before = 1 if p.teacher is None else 2

    def forward() -> None:
        for _ in range(before):
            torch.mm(dense, p.head.T, out=logits)

    def both() -> None:
        forward()
        torch.mm(logits, p.head, out=back)

    return {"forward": forward, "forward+backward": both}


def call(p: Problem, loss: Loss, mode: str) -> Callable[[], object]:
    """Returns a call of the loss without gradients, or with its backward."""

    def forward() -> None:
        with torch.no_grad():
            loss()

    def both() -> None:
        loss().backward()
        p.hidden.grad = None

    return forward if mode == "forward" else both


@dataclass(frozen=True)
class CrossEntropy:
    """A loss over N rows of width D, some of them live, and a vocabulary of V."""

    tokens: int
    width: int
    vocabulary: int
    live: int
    distils: bool = False
    share: float = 1.0

    operator = OPERATOR

    @property
    def name(self) -> str:
        live = "all live" if self.live == self.tokens else f"{self.live} live"
        kind = ", distilled" if self.distils else ""
        return f"{self.tokens} tokens, {live}, D {self.width}, V {self.vocabulary}{kind}"

    @property
    def flop(self) -> float:
        """The floating-point operations of the products over the live rows."""
        return 2.0 * self.live * self.width * self.vocabulary * (3 if self.distils else 2)

    def seconds(self, setup: Setup) -> float:
        # checks, warm-up and three rounds: of the reference over all rows, and of four over some
        calls = 6 * (self.tokens / self.live + 4)
        return calls * self.flop / setup.rates.products

    def smaller(self) -> "CrossEntropy | None":
        if self.vocabulary > 2000:
            return replace(self, vocabulary=self.vocabulary // 4)
        return replace(self, width=self.width // 4) if self.width > 256 else None

    def run(self, setup: Setup, until: float) -> Iterator[Found]:
        missing = partial(Unmeasured, OPERATOR, self.name)
        sizes = (self.tokens, self.width, self.vocabulary, self.live)
        try:
            p = Problem.random(*sizes, setup.dtype, setup.device, self.distils)
            reference = peers.reference_eager(p)
            begun = time.perf_counter()
            loss, gradient = p.result(reference)
            taken = time.perf_counter() - begun
        except Exception as error:
            yield missing("all", f"the reference fails, to compare with: {reason_of(error)}")
            return
        try:
            own = peers.dive(p)
            wrong = _difference(p.result(own), (loss, gradient), setup.tolerance)
            both = call(p, own, MODES[1])
            ran = {"dive": observe.operator(both, setup.device), "reference": "dive.reference"}
        except torch.OutOfMemoryError as error:
            yield missing("all", reason_of(error))
            return
        except Exception as error:
            wrong = f"it fails: {reason_of(error)}"
        if wrong:
            yield Wrong(OPERATOR, self.name, wrong)
            return
        calls: dict[str, Call] = {
            "floor": floors(p)[MODES[1]],
            "dive": both,
            "reference": call(p, reference, MODES[1]),
        }
        ran["floor"] = f"{3 if self.distils else 2} matrix products over the live rows"
        gathered, suffix = p, ""
        if self.live < self.tokens:
            gathered, suffix = p.gathered(), GATHERED
            calls["reference" + suffix] = call(gathered, peers.reference_eager(gathered), MODES[1])
            ran["reference" + suffix] = "dive.reference"
        # the time left after the rounds that run in any case: of the reference over all rows and
        # over the live ones, and of dive and the floor, which take no longer than that
        rounds = (LEAST_ROUNDS + 1) * taken * (1 + 3 * self.live / self.tokens)
        left = max(0.0, until - time.monotonic() - rounds)
        found, once, why = _libraries(gathered, gradient[p.rows].float(), left)
        for name, reason in why.items():
            yield missing(name, reason)
        best = min(once, key=once.__getitem__, default=None)
        for name, taken in once.items():
            if name != best:
                yield missing(
                    name,
                    f"not the fastest library: {1e3 * taken:,.0f} ms in one call, "
                    f"{best} {1e3 * min(once.values()):,.0f} ms",
                )
        if best is not None:
            calls[best + suffix] = found[best]
            ran[best + suffix] = _code_of(best)
        seconds = turns(stopwatches(calls, setup.device), _ROUNDS, until=until)
        beside = {name: "dive" for name in calls if name not in ("dive", "floor")}
        setting = Setting(OPERATOR, self.name, MODES[1])
        yield from records_of(setting, seconds, ran, beside, self.flop / 1e9, "GFLOP/s")


def _libraries(
    p: Problem, truth: torch.Tensor, left: float
) -> tuple[dict[str, Call], dict[str, float], dict[str, str]]:
    """Returns calls of the libraries that agree, their seconds, and why the others are not timed.

    p: a problem whose rows are all live. left: seconds, half of them for trials, half for the
    rounds of the fastest.
    """
    found: dict[str, Call] = {}
    once: dict[str, float] = {}
    why: dict[str, str] = {}
    until = time.monotonic() + left / 2
    for name, make in peers.LIBRARIES.items():
        start = time.perf_counter()
        try:
            if not p.hidden.is_cuda:
                make(p)  # raises what cannot run here, however little time is left
            with bound(until):
                _try_some(make, p, left / 2, min(once.values(), default=math.inf))
                start = time.perf_counter()
                loss = peers.checked(make, p, truth)  # compares the result: waits for the device
                found[name] = call(p, loss, MODES[1])
                once[name] = time.perf_counter() - start
                if p.hidden.is_cuda or once[name] < 3 * min(once.values()):
                    # the first call may have compiled
                    once[name] = wall_seconds(found[name], p.hidden.device)
        except peers.Unavailable as reason:
            why[name] = str(reason)
        except OutOfTime:
            p.hidden.grad = None
            if name not in once:
                found.pop(name, None)
                tried = time.perf_counter() - start
                why[name] = "there was no time to try it" + (
                    f": one call did not end in {tried:.1f} s" if tried > 0.05 else ""
                )
    best = min(once, key=once.__getitem__, default=None)
    if best is not None and (LEAST_ROUNDS + 1) * once[best] > left:
        why[best] = (
            f"one call took {once[best]:.1f} s, and {left:.1f} s are left for "
            f"{LEAST_ROUNDS + 1} rounds of it"
        )
        del found[best], once[best]
    return found, once, why


def _try_some(make: peers.Peer, p: Problem, left: float, best: float) -> None:
    """Raises `Unavailable` if a call on a CPU would take longer than `left` s or than the best.

    A call of compiled code cannot be interrupted, so it is estimated from an eighth of the rows.
    """
    rows = len(p.targets) // 8
    if p.hidden.is_cuda or not rows:
        return
    part = p.first(rows)
    try:
        loss = make(part)
        part.gradient(loss)  # warms up
        start = time.perf_counter()
        part.gradient(loss)
    except peers.Unavailable:
        raise
    except Exception as error:
        raise peers.Unavailable(reason_of(error)) from error
    taken = time.perf_counter() - start
    all_rows = taken * len(p.targets) / rows
    if taken > best:
        raise peers.Unavailable(
            f"not the fastest library: {1e3 * taken:,.0f} ms for {rows} of {len(p.targets)} rows, "
            f"the fastest {1e3 * best:,.0f} ms for all"
        )
    if all_rows > left:
        raise peers.Unavailable(
            f"one call would take about {all_rows:.1f} s, by {rows} of {len(p.targets)} rows, and "
            f"{left:.1f} s are left to try libraries"
        )


def _difference(
    got: tuple[torch.Tensor, torch.Tensor], want: tuple[torch.Tensor, torch.Tensor], most: float
) -> str:
    """Returns in words where loss and gradient are too far off, or an empty string."""
    for name, one, other in zip(("loss", "gradient"), got, want, strict=True):
        distance = off(one, other)
        if not distance <= most:
            return f"its {name} is {distance:.2%} off dive.reference's, want {most:.1%} at most"
    return ""


def _code_of(peer: str) -> str:
    from dive.bench.machine import version

    packages = {"Liger": "liger-kernel", "cut-cross-entropy": "cut-cross-entropy"}
    package = packages.get(peer.split(",")[0], "quack-kernels")
    if peer.startswith("torch"):
        return f"torch {torch.__version__}"
    return f"{package} {version(package)}"


def cases(device: torch.device, toy: bool, free: int) -> list[CrossEntropy]:
    """Returns the cases by priority. free: bytes of device memory, most of it for the reference."""
    if toy:
        return [
            CrossEntropy(48, 16, 128, 16),
            CrossEntropy(48, 16, 128, 16, distils=True),
        ]
    if device.type == "cpu":
        return [
            CrossEntropy(288, 1024, 32000, 96, share=1.5),
            CrossEntropy(288, 1024, 32000, 96, distils=True),
        ]
    if free < 36 << 30:
        return [CrossEntropy(1024, 4096, 32000, 1024), CrossEntropy(1600, 4096, 32000, 320)]
    vlm = (6400, 4096, 128256, 1280)  # 8 x (576 image + 64 prompt + 160 report)
    return [
        CrossEntropy(4096, 4096, 128256, 4096),
        CrossEntropy(*vlm),
        CrossEntropy(*vlm, distils=True),
    ]
