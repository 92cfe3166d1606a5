"""The deadline of `dive bench`: shares of the time, what is left out, and bounds by a signal."""

import dataclasses
import threading
import time
from typing import ClassVar

import pytest
import torch
from virtual_time import VirtualTime

from dive import bench
from dive.bench import cross_entropy, deadline, decode, peers, runner, steer, timing
from dive.bench.case import Setup
from dive.bench.deadline import Deadline, OutOfTime, bound
from dive.bench.rates import Rates
from dive.bench.results import Setting, records_of

CPU = torch.device("cpu")
FAST = Rates(1e12, 1e10, 1e10, "sum")
MODULES = (cross_entropy, steer, decode)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only in `Fake`, in a run whose device needs no measuring."""
    clock = VirtualTime()
    clock.replace_in(monkeypatch, runner, deadline)
    monkeypatch.setattr(runner, "measure", lambda *_: FAST)
    return clock


@dataclasses.dataclass(frozen=True)
class Fake:
    """A case of a number of seconds, which may take longer than it estimates."""

    clock: ClassVar[VirtualTime]
    ran: ClassVar[list[str]] = []

    operator: str
    says: float
    takes: float
    share: float = 1.0
    least: float = 0.2

    @property
    def name(self):
        return f"{self.says:g} s"

    def seconds(self, setup):
        return self.says

    def smaller(self):
        if self.says <= self.least:
            return None
        return dataclasses.replace(self, says=self.says / 4, takes=self.takes / 4)

    def run(self, setup, until):
        self.ran.append(f"{self.operator} {self.name}")
        self.clock.sleep(self.takes)
        yield from records_of(
            Setting(self.operator, self.name, ""), {"a": [1.0, 1.0]}, {"a": "it"}, {}, 1.0, "GB/s"
        )


def run_fakes(monkeypatch, clock, seconds, *lists):
    Fake.clock = clock
    Fake.ran.clear()
    for module, cases in zip(MODULES, lists, strict=True):
        monkeypatch.setattr(module, "cases", lambda *_, cases=cases: cases)
    start = clock.now
    results = bench.run(device="cpu", toy=True, seconds=seconds)
    assert clock.now - start < seconds
    return results


def test_each_operator_has_its_share_and_the_cheap_one_comes_first(monkeypatch, clock):
    """The first estimates 0.15 s and never ends: it costs the others nothing."""
    results = run_fakes(
        monkeypatch,
        clock,
        6,
        [Fake("cross-entropy", 0.15, 60), Fake("cross-entropy", 0.1, 0.01)],
        [Fake("steer", 0.1, 0.05)],
        [Fake("decode", 0.6, 0.5)],
    )
    assert Fake.ran[:3] == ["steer 0.1 s", "cross-entropy 0.15 s", "decode 0.6 s"]
    assert [row.operator for row in results.records] == ["cross-entropy", "steer", "decode"]
    assert [row.case for row in results.records] == ["0.1 s", "0.1 s", "0.6 s"]
    (broken,) = results.unmeasured
    assert broken.reason == "its share of the time was up"
    assert broken.case == "0.15 s" and broken.way == "the rest"


def test_a_smaller_case_runs_where_the_whole_one_does_not_fit(monkeypatch, clock):
    results = run_fakes(
        monkeypatch, clock, 4, [], [Fake("steer", 80.0, 79.0)], [Fake("decode", 0.1, 0.05)]
    )
    assert Fake.ran == ["decode 0.1 s", "steer 1.25 s"]
    (missing,) = results.unmeasured
    assert (missing.case, missing.way) == ("80 s", "all")
    assert missing.reason.startswith("it takes about 80 s, and ")
    assert missing.reason.endswith("; in its place: 1.25 s")


def test_what_is_too_dear_for_its_share_waits_for_what_others_leave_over(monkeypatch, clock):
    dear, shrinks = Fake("cross-entropy", 3.1, 0.05, least=3.1), Fake("decode", 3.1, 0.05)
    results = run_fakes(monkeypatch, clock, 5, [dear], [], [shrinks])
    assert Fake.ran == ["decode 0.775 s", "cross-entropy 3.1 s"]
    assert [row.case for row in results.records] == ["3.1 s", "0.775 s"]


def test_a_case_that_takes_longer_than_it_said_is_tried_smaller(monkeypatch, clock):
    lists = [], [Fake("steer", 0.8, 4.0)], [Fake("decode", 0.9, 0.05)]
    results = run_fakes(monkeypatch, clock, 8, *lists)
    assert Fake.ran == ["steer 0.8 s", "decode 0.9 s", "steer 0.2 s"]
    assert {row.case for row in results.records} == {"0.9 s", "0.2 s"}


def test_a_case_without_an_end_ends_with_the_run(monkeypatch, clock):
    """It ends at the deadline, which leaves a fifth for the start and the end of the process."""
    results = run_fakes(monkeypatch, clock, 5, [], [Fake("steer", 0.1, 1e9)], [])
    assert clock.now == pytest.approx(1000 + 4) and results.records == []
    assert [one.reason for one in results.unmeasured] == ["the time was up"]


class Sleeps:
    """A case that would take a minute, in which an ordinary exception is handled."""

    operator, name, share = "steer", "a minute of sleep", 1.0

    def seconds(self, setup):
        return 0.1

    def smaller(self):
        return None

    def run(self, setup, until):
        yield bench.Unmeasured("steer", self.name, "one", "came before the end")
        try:
            time.sleep(60)
        except Exception:  # a deadline that is an ordinary exception would be lost here
            yield bench.Unmeasured("steer", self.name, "another", "was swallowed")


def test_a_case_is_broken_off_and_those_behind_it_are_named(monkeypatch):
    """By the real clock and signal."""
    behind = steer.cases(CPU, True, 0)
    monkeypatch.setattr(steer, "cases", lambda *_: [Sleeps(), *behind])
    monkeypatch.setattr(runner, "measure", lambda *_: FAST)
    start = time.monotonic()
    results = bench.run(["steer"], device="cpu", toy=True, seconds=2)
    assert time.monotonic() - start < 20  # of a minute; this machine may be busy
    assert [one.reason for one in results.unmeasured[:2]] == [
        "came before the end",
        "the time was up",
    ]
    assert [one.case for one in results.unmeasured[2:]] == [case.name for case in behind]
    assert all("s are left" in one.reason for one in results.unmeasured[2:])


def test_a_case_that_needs_more_than_is_left_is_not_begun(monkeypatch):
    slow = Rates(1e6, 1e6, 1e6, "sum")
    setup, results = Setup(CPU, torch.float32, False, slow), bench.Results({})
    case = cross_entropy.cases(CPU, False, 0)[0]
    monkeypatch.setattr(cross_entropy.CrossEntropy, "run", lambda *_: pytest.fail("it began"))
    left = Deadline(60, time.monotonic())
    assert runner._run_case(case, setup, left, 1.0, 1.0, 1.5, False, results) is None
    (missing,) = results.unmeasured
    assert missing.way == "all" and missing.reason.startswith("it takes about ")


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(("kind", "free"), [("cpu", 0), ("cuda", 139 << 30)])
def test_every_first_case_becomes_small(module, kind, free):
    setup = Setup(torch.device(kind), torch.float32, False, Rates(2e10, 1e10, 1e10, ""))
    case = module.cases(setup.device, False, free)[0]
    names, taken = [case.name], [case.seconds(setup)]
    while (case := case.smaller()) is not None:
        names.append(case.name)
        taken.append(case.seconds(setup))
    assert len(set(names)) == len(names) >= 3 and taken == sorted(taken, reverse=True)
    assert taken[-1] < 5


def test_a_library_whose_one_call_would_eat_the_share_is_named(monkeypatch):
    """A call of compiled code cannot be interrupted, so some of the rows are tried first."""
    clock, called = VirtualTime(), []
    clock.replace_in(monkeypatch, cross_entropy, timing)

    def slow(p):
        def loss():
            called.append(len(p.targets))
            clock.sleep(0.05 * len(p.targets))
            return peers.reference_eager(p)()

        return loss

    monkeypatch.setattr(peers, "LIBRARIES", {"slow": slow})
    p = peers.Problem.random(64, 16, 128, 64, torch.float32, CPU)
    truth = p.gradient(peers.reference_eager(p))
    found, once, why = cross_entropy._libraries(p, truth, 3.0)
    assert found == once == {} and called == [8, 8]
    assert why["slow"] == (
        "one call would take about 3.2 s, by 8 of 64 rows, and 1.5 s are left to try libraries"
    )
    monkeypatch.setattr(peers, "LIBRARIES", {"torch": peers.reference_eager, "slow": slow})
    found, once, why = cross_entropy._libraries(p, truth, 60.0)
    assert set(found) == {"torch"} and set(called) == {8}
    assert why["slow"].startswith("not the fastest library: 4") and "8 of 64 rows" in why["slow"]


def test_a_bound_inside_another_and_an_import_that_goes_on(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.5)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    start = time.monotonic()
    with pytest.raises(OutOfTime), bound(start + 0.1):
        import slow_to_import

        time.sleep(60)
    assert slow_to_import.whole and time.monotonic() - start < 30
    ended = []
    start = time.monotonic()
    with pytest.raises(OutOfTime), bound(start + 0.4):
        with pytest.raises(OutOfTime), bound(start + 0.1):
            time.sleep(60)
        ended.append("inner")
        with bound(start + 30):
            time.sleep(60)
    assert ended == ["inner"] and time.monotonic() - start < 30


def test_a_deadline_off_the_main_thread_ends_between_rounds(monkeypatch):
    """Where signals do not work, a round that has begun is completed."""
    clock, ended = VirtualTime(), []
    clock.replace_in(monkeypatch, deadline, timing)

    def nap():
        clock.sleep(0.125)

    def work():
        until = clock.now + 0.5
        with bound(until):
            taken = timing.turns({"nap": nap}, 100, until=until)
        ended.append(len(taken["nap"]))
        with pytest.raises(OutOfTime), bound(clock.now - 1):
            ended.append("went on")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [3]  # and the one that warms up


@pytest.mark.parametrize(("kind", "free"), [("cpu", 0), ("cuda", 12 << 30), ("cuda", 139 << 30)])
def test_the_cases_of_a_device_fit_a_minute(kind, free):
    """By the rates of 2 cores, of a small GPU, and of an H100."""
    rates = {0: Rates(9e10, 1e10, 1e10, ""), 12: Rates(3e13, 4e11, 4e11, "")}.get(
        free >> 30, Rates(6e14, 2.8e12, 3.2e12, "")
    )
    setup = Setup(torch.device(kind), torch.bfloat16, False, rates)
    cases = [case for module in MODULES for case in module.cases(setup.device, False, free)]
    assert len({(case.operator, case.name) for case in cases}) == len(cases) >= 5
    assert sum(case.seconds(setup) for case in cases) < 50
