"""The attachments registered with one decoder, and the decision which of them steers a forward.

A decision is made once per forward, by hooks around the decoder's own, and kept to its end;
`dive.adapter.at_work` registers and removes attachments.
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

GRACE = 1.0  # seconds in which a new attachment may still turn out to be that of a `with`

# one lock for all models: what it guards takes microseconds. Re-entrant, since garbage collection
# may detach while it is held.
changes = threading.Condition(threading.RLock())
# id of the first decoder layer -> its site; of a layer, because a model and its base share them. A
# site is kept alive by its hooks and holds its layer, so that the id is not used again meanwhile.
sites: "WeakValueDictionary[int, Site]" = WeakValueDictionary()
# first layers of the models of which `_warn_unsteered` has warned
_warned: "WeakSet[nn.Module]" = WeakSet()


class _Running(threading.local):
    def __init__(self) -> None:
        self.forwards: list[tuple[Site, Work | None]] = []


_running = _Running()


class Site:
    """The attachments of one decoder.

    It exists while there is one, or a context that has copied a `with` which is over: a forward in
    such a context must not run unsteered without an error.
    """

    def __init__(self, owner: nn.Module) -> None:
        layers: Any = owner.layers
        self.decoder, self.first = owner, layers[0]
        self.works: list[Work] = []
        self.over: set[ReferenceType[Own]] = set()
        self.carried = False  # whether `over` has an entry, as a flag that compiled code can read
        self.bare_trains = False  # a backward through an unsteered forward may follow
        self.scoped = False  # some context had an attachment of its own
        # forwards that were under way before the site was made
        frames = {thread: frame_of(owner, thread) for thread in sys._current_frames()}
        self.begun = {thread: frame for thread, frame in frames.items() if frame is not None}
        self.handles: list[Any] = [
            owner.register_forward_pre_hook(_Begins(self), prepend=True),
            owner.register_forward_hook(_Ends(self), always_call=True),
        ]

    def carry(self, own: Own) -> None:
        """Keeps the site until no context has this any more."""
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
        """Removes the site's hooks where there is nothing left to decide."""
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
        """Decides which attachment compiled code may contain; a change makes torch recompile."""
        alone = len(self.works) == 1 and not self.scoped
        for work in self.works:
            traced = alone and work.state == "wide"
            if work.traced != traced:
                work.traced = traced

    def current(self) -> "Work | None":
        """The attachment of the running forward, for one of its layers."""
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
        """The attachment of a forward that begins now.

        is_forward: whether one begins, which may warn or raise; else it is only a query.
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
        """Raises DiveError where this context has copied a `with` that is over."""
        held = own_of(self.first)
        if held is None or not held.ended:
            return
        if held.creator.is_current():
            drop(
                self.first, held
            )  # its own `with`, which another context has ended: one error is enough
        raise DiveError(
            "the `with dive.steer(...)` whose context this thread or task has copied is over, so "
            "that its adapter is gone: wait for the thread or task (join, await) inside the "
            "`with`. (After .detach() of the attachment in this context it runs unsteered.)"
        )

    def _for_all(self) -> "Work | None":
        """The attachment of contexts without one; waits while a new one may yet be a `with`."""
        while True:
            wide = next((work for work in self.works if work.state == "wide"), None)
            # what is not ready yet counts for forwards that begin later
            made = [work for work in self.works if work.state == "made" and work.since < math.inf]
            mine = next((work for work in made if work.creator.is_current()), None)
            if mine is not None and wide is not None:
                raise DiveError(
                    "two adapters are attached to this model for all threads, both without `with`: "
                    "detach one"
                )
            if wide is not None or not made:
                return wide
            # a task of this thread cannot enter its `with` while we wait
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
        """The attachment of the forward that a backward recomputes.

        Autograd's own threads do not have the caller's context, so it is inferred from which
        attachments can have a backward at all.

        Raises:
            DiveError: none or several can.
        """
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
            else f"{len(having)} forwards on this model, in several threads, wait for theirs"
        )
        raise DiveError(
            "a backward recomputes a forward (gradient checkpointing), and which adapter steered "
            f"that forward is not known: {why}. Call backward inside the `with` of its forward"
        )

    def begins(self) -> None:
        """Decides for a forward that begins."""
        decided, forwards = self.decide(), _running.forwards
        thread = threading.get_ident()
        if any(site is self for site, _ in forwards) and frame_of(self.decoder, thread) is None:
            forwards[:] = [one for one in forwards if one[0] is not self]  # they were interrupted
        forwards.append((self, decided))
        if decided is not None:
            with changes:
                decided.in_flight[thread] = decided.in_flight.get(thread, 0) + 1

    def ends(self) -> None:
        """Forgets the decision for the forward that ends."""
        forwards = _running.forwards
        index = next((i for i in reversed(range(len(forwards))) if forwards[i][0] is self), None)
        if index is None:
            return  # it began before the site was made
        decided = forwards[index][1]
        del forwards[index:]  # forwards inside it were interrupted
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
        """Whether a layer is called in a forward that was under way before the site was made."""
        thread = threading.get_ident()
        wanted = self.begun.get(thread)
        if wanted is None:
            return False
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame is wanted:
                return True
            frame = frame.f_back
        self.begun.pop(thread, None)  # that forward has ended
        return False

    def _warn_unsteered(self) -> None:
        """Warns, once per model, of an unsteered forward that may have been meant to be steered.

        A `with` is open, and this context is outside it.
        """
        if self.first in _warned:
            return
        if any(work.state == "scoped" and work.public for work in self.works):
            _warned.add(self.first)
            warnings.warn(
                "a forward runs unsteered in a thread or task that is not that of a `with "
                "dive.steer(...)` on its model: a `with` is for its own thread or task. For all of "
                "them call dive.steer without `with` (and .detach() in the end); for threads that "
                "work inside, copy the context: Thread(target=contextvars.copy_context().run"
                ", args=(model.generate,), kwargs=...), or in a pool that for each submit",
                stacklevel=2,
            )


class _Begins:
    """The hook before a decoder's forward."""

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
    """The hook after a decoder's forward, whether it returned or raised."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        if not torch.compiler.is_compiling() and module is self.site.decoder:
            self.site.ends()

    def __reduce__(self) -> Any:
        return as_no_hook, ()


@torch._disable_dynamo
def uncompiled(call: Callable[..., Any], *given: Any) -> Any:
    """Runs `call(*given)` in every run of compiled code, whose graph breaks here."""
    return call(*given)


def wants_gradient(inputs: tuple[Any, ...], output: Tensor) -> bool:
    """Whether a backward through a layer's output may follow."""
    # under reentrant checkpointing no gradient is recorded yet, and only the input requires one
    first = inputs[0] if inputs else None
    return output.requires_grad or (isinstance(first, Tensor) and first.requires_grad)
