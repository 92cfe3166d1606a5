"""A decoder's place for what may be at work on it: what is decided there, and kept, a forward.

Hooks of its own stand around the decoder's forward; `dive.adapter.at_work` says what comes
and goes.
"""

import math
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakSet, WeakValueDictionary, ref

import torch
from torch import Tensor, nn

from dive.adapter.contexts import Own, as_no_hook, drop, frame_of, own_of
from dive.errors import DiveError

if TYPE_CHECKING:
    from dive.adapter.at_work import Work

GRACE = 1.0  # seconds in which what was attached may still turn out to be a `with`

# one for all models: what it guards takes microseconds. Re-entrant, since garbage that is collected
# meanwhile may detach.
changes = threading.Condition(threading.RLock())
# id of the first decoder layer -> its site; a layer, because a model and its base share them. A
# site lives by its hooks and holds its layer, so that no other layer has that id meanwhile.
sites: "WeakValueDictionary[int, Site]" = WeakValueDictionary()
# first layers of the models of which `_warn_unsteered` has warned
_warned: "WeakSet[nn.Module]" = WeakSet()


class _Running(threading.local):
    def __init__(self) -> None:
        self.forwards: list[tuple[Site, Work | None]] = []


_running = _Running()


class Site:
    """One decoder's place for what may be at work on it; there as long as there is something, or a
    context that has taken along a `with` which is over, and must not run unsteered in silence."""

    def __init__(self, owner: nn.Module) -> None:
        layers: Any = owner.layers
        self.decoder, self.first = owner, layers[0]
        self.works: list[Work] = []
        self.over: set[ReferenceType[Own]] = set()
        self.carried = False  # whether there is one, for compiled code to look at
        self.bare_trains = False  # a backward through a forward without any may follow
        self.scoped = False  # some context wanted something of its own
        # forwards that were under way before
        frames = {thread: frame_of(owner, thread) for thread in sys._current_frames()}
        self.begun = {thread: frame for thread, frame in frames.items() if frame is not None}
        self.handles: list[Any] = [
            owner.register_forward_pre_hook(_Begins(self), prepend=True),
            owner.register_forward_hook(_Ends(self), always_call=True),
        ]

    def carry(self, own: Own) -> None:
        """Stays until no context has this any more."""
        here = ref(self)

        def dropped(which: "ReferenceType[Own]") -> None:
            site = here()
            if site is not None:
                with changes:
                    site.over.discard(which)
                    site.close_if_idle()

        self.over.add(ref(own, dropped))
        self.carried = True

    def close_if_idle(self) -> None:
        self.carried = bool(self.over)
        if self.works or self.over:
            return
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.begun = {}
        if sites.get(id(self.first)) is self:
            del sites[id(self.first)]

    def retrace(self) -> None:
        """Says anew what compiled code may have built in; a change makes torch compile again."""
        alone = len(self.works) == 1 and not self.scoped
        for work in self.works:
            traced = alone and work.state == "wide"
            if work.traced != traced:
                work.traced = traced

    def current(self) -> "Work | None":
        """What this forward, of which a layer asks, is to have."""
        if torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled():
            return self.recomputed()
        held = own_of(self.first)
        if held is not None and held.holds():
            return held.work
        for site, decided in reversed(_running.forwards):
            if site is self:
                return decided
        if self.begun and self._began_before():
            return None
        return self.decide()

    def decide(self, is_forward: bool = True) -> "Work | None":
        """What a forward that begins now is to have.

        is_forward: whether it is a forward, and not only a question.
        """
        if torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled():
            return self.recomputed()
        held = own_of(self.first)
        if held is not None and held.holds():
            return held.work
        if is_forward:
            self.refuse_over()
        with changes:
            wide = self._for_all()
            if wide is None:
                if is_forward:
                    self._warn_unsteered()
            elif not wide.creator.is_current():
                wide.used_elsewhere = wide.used_elsewhere or is_forward
            return wide

    def refuse_over(self) -> None:
        """DiveError where this context has taken along a `with` that is over."""
        held = own_of(self.first)
        if held is None or not held.ended:
            return
        if held.creator.is_current():
            drop(self.first, held)  # its own `with`, which another has ended: told of once
        raise DiveError(
            "the `with dive.steer(...)` that this thread or task has taken along ended meanwhile, "
            "so that its adapter is gone: wait for the thread or task (join, await) inside the "
            "`with`. (After .detach() of the attachment in this context it runs unsteered.)"
        )

    def _for_all(self) -> "Work | None":
        """What contexts without anything of their own have; waits for what may yet be a `with`."""
        while True:
            wide = next((work for work in self.works if work.state == "wide"), None)
            # what is not ready yet comes for the forwards that begin later
            made = [work for work in self.works if work.state == "made" and work.since < math.inf]
            mine = next((work for work in made if work.creator.is_current()), None)
            if mine is not None and wide is not None:
                raise DiveError(
                    "two adapters are attached to this model for all threads, both without `with`: "
                    "detach one"
                )
            if wide is not None or not made:
                return wide
            # of a task of this thread none can come into its `with` while we wait
            now = mine or next((work for work in made if work.creator.is_current_thread()), None)
            first = min(made, key=lambda work: work.since)
            left = first.since + GRACE - time.monotonic()
            if now is None and left > 0:
                changes.wait(left)
                continue
            now = now or first
            now.state = "wide"
            self.retrace()
            changes.notify_all()

    def recomputed(self) -> "Work | None":
        """What the forward had that a backward computes again. Autograd's own threads have no
        context of the caller's, so that it must be told by what may have a backward at all."""
        held = own_of(self.first)
        having: list[Work | None] = [work for work in self.works if work.trains]
        if self.bare_trains:
            having.append(None)
        if held is not None and held.holds() and held.work in having:
            return held.work
        if len(having) == 1:
            return having[0]
        why = (
            "it ran before what is attached now was attached"
            if not having
            else f"{len(having)} of them have one to come on this model, in several threads"
        )
        raise DiveError(
            "a backward computes a forward again (gradient checkpointing), and it cannot be told "
            f"which adapter that had: {why}. Call backward inside the `with` of its forward"
        )

    def begins(self) -> None:
        decided, forwards = self.decide(), _running.forwards
        thread = threading.get_ident()
        if any(site is self for site, _ in forwards) and frame_of(self.decoder, thread) is None:
            forwards[:] = [one for one in forwards if one[0] is not self]  # were interrupted
        forwards.append((self, decided))
        if decided is not None:
            with changes:
                decided.in_flight[thread] = decided.in_flight.get(thread, 0) + 1

    def ends(self) -> None:
        forwards = _running.forwards
        index = next((i for i in reversed(range(len(forwards))) if forwards[i][0] is self), None)
        if index is None:
            return  # it began before
        decided = forwards[index][1]
        del forwards[index:]  # what lies above was interrupted
        if decided is None:
            return
        with changes:
            thread = threading.get_ident()
            left = decided.in_flight.pop(thread, 1) - 1
            if left > 0:
                decided.in_flight[thread] = left
            if decided.state == "gone" and not decided.in_flight:
                decided.remove_hooks()

    def learns_bare(self, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.bare_trains = self.bare_trains or wants_gradient(inputs, output)

    def _began_before(self) -> bool:
        """Whether a layer is called in a forward that was under way before this site was there."""
        thread = threading.get_ident()
        wanted = self.begun.get(thread)
        if wanted is None:
            return False
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame is wanted:
                return True
            frame = frame.f_back
        self.begun.pop(thread, None)  # that one has ended
        return False

    def _warn_unsteered(self) -> None:
        """Warns once a model where a forward is unsteered that may have been meant to be steered:
        a `with` is open, and this context has not got it."""
        if self.first in _warned:
            return
        if any(work.state == "scoped" and work.public for work in self.works):
            _warned.add(self.first)
            warnings.warn(
                "a forward runs unsteered in a thread or task that is not that of a `with "
                "dive.steer(...)` on its model: a `with` is for its own thread or task. For all of "
                "them call dive.steer without `with` (and .detach() in the end); for threads that "
                "work inside, take the context along: Thread(target=contextvars.copy_context().run"
                ", args=(model.generate,), kwargs=...), or in a pool that for each submit",
                stacklevel=2,
            )


class _Begins:
    """Hook before a decoder's forward."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, module: nn.Module, _inputs: Any) -> None:
        if module is not self.site.decoder:
            return
        if not torch.compiler.is_compiling():
            self.site.begins()
        elif self.site.carried:
            uncompiled(self.site.refuse_over)

    def __reduce__(self) -> Any:
        return as_no_hook, ()


class _Ends:
    """Hook after it, whatever came of it."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        if not torch.compiler.is_compiling() and module is self.site.decoder:
            self.site.ends()

    def __reduce__(self) -> Any:
        return as_no_hook, ()


@torch._disable_dynamo
def uncompiled(call: Callable[..., Any], *given: Any) -> Any:
    """`call(*given)` in every run of compiled code, whose graph breaks here."""
    return call(*given)


def wants_gradient(inputs: tuple[Any, ...], output: Tensor) -> bool:
    # under reentrant checkpointing no gradient is recorded yet, and only the input wants one
    first = inputs[0] if inputs else None
    return output.requires_grad or (isinstance(first, Tensor) and first.requires_grad)
