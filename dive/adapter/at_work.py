"""Which attachment steers a forward: that of the thread or asyncio task which runs it.

A forward takes, in this order,
1. the attachment of its own context (see dive.adapter.contexts): that of the running call of dive,
   else of a `with dive.steer(...)`, which is an error where the `with` has ended elsewhere;
2. in a backward that recomputes part of a forward, on any thread, the attachment of that forward;
3. what is attached for the whole model (`dive.steer(...)` without `with`);
4. none.
It keeps this attachment from its first layer to its last, whatever is attached or detached
meanwhile. A call of dive inherits nothing from a call around it, whose streamer may have made it.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor, nn

from dive.adapter.contexts import (
    Own,
    ThreadAndTask,
    drop,
    frame_of,
    is_private,
    own_of,
    private,
    put,
)
from dive.adapter.decoder_site import Site, changes, sites, wants_gradient
from dive.backbone.structure import decoder
from dive.errors import DiveError


class Work:
    """The part of an `Attachment` that decides for which threads and tasks it is in effect.

    state: "made" until it is known whether a `with` follows; "scoped": for the contexts that
        entered it; "wide": for every context without an attachment of its own; "gone": detached.
    public: of the user's own `with`: a forward outside it may warn.
    traced: compiled code may contain it: it is the only one, and "wide".
    """

    enabled = True

    def register(self, model: nn.Module, scoped: bool = False) -> None:
        """Registers itself with a model's decoder.

        scoped: it is in effect only inside `working`.

        Raises:
            DiveError: this context has attached something to the model already.
        """
        self.model = model
        self.state, self.public = ("scoped", False) if scoped else ("made", True)
        self.traced = self.trains = self.used_elsewhere = False
        self.creator = ThreadAndTask()
        self.since = math.inf  # the time at which it was ready, from which GRACE counts
        self._own: ReferenceType[Own] | None = None
        self.in_flight: dict[int, int] = {}  # forwards under way, per thread
        self._handles: list[Any] = []
        owner = decoder(model)
        first: Any = owner.layers[0]  # type: ignore[index]
        with changes:
            refuse_two(first, scoped)
            site = sites.get(id(first))
            self.site = Site(owner) if site is None else site
            sites[id(first)] = self.site
            self.site.works.append(self)
            self.site.retrace()

    def ready(self) -> None:
        """Notes that all hooks are registered: whether a `with` follows should be known soon."""
        with changes:
            self.since = time.monotonic()
            changes.notify_all()

    def enter(self) -> None:
        """Limits it to this context, from now on."""
        with changes:
            if self.state == "gone":
                raise DiveError("this attachment is detached: call dive.steer again")
            if self.state == "scoped":
                raise DiveError("this attachment is in a `with` already: call dive.steer again")
            if self.used_elsewhere:
                raise DiveError(
                    "this attachment has steered another thread's forward, as one without `with` "
                    "does: enter the `with` at once, or leave it out"
                )
            refuse_two(self.site.first, False, self)
            self.state = "scoped"
            own = Own(self)
            self._own = ref(own)
            put(self.site.first, own)
            self.site.retrace()
            changes.notify_all()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Puts it into effect for this context, inside."""
        with scope(self.site.first, self):
            yield

    def leave(self) -> None:
        """Ends its effect; forwards that run under it keep it until they end."""
        with changes:
            own = None if self._own is None else self._own()
            if own is not None:
                drop(self.site.first, own)
            if self.state == "gone":
                return
            self.state = "gone"
            if own is not None:
                own.ended = True
                self.site.carry(own)
                del own  # the last reference, unless a copy of this context has one
            self.in_flight = {
                thread: count
                for thread, count in self.in_flight.items()
                if frame_of(self.site.decoder, thread)
                is not None  # otherwise the forward was interrupted
            }
            if not self.in_flight:
                self.remove_hooks()
            changes.notify_all()

    def remove_hooks(self) -> None:
        """Removes its hooks, and itself from the decoder."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self in self.site.works:
            self.site.works.remove(self)
        self.site.retrace()
        self.site.close_if_idle()

    def learns(self, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Notes that a backward through this edit may follow."""
        self.trains = self.trains or wants_gradient(inputs, output)


def at_work(first: nn.Module, is_forward: bool = True) -> Work | None:
    """The attachment in effect for this context on the model with this first decoder layer.

    is_forward: whether a forward begins, which may wait, warn or raise; else it is only a query.
    """
    site = sites.get(id(first))
    return None if site is None else site.decide(is_forward)


def in_the_way(first: nn.Module, scoped: bool = False, but: Work | None = None) -> Work | None:
    """The attachment that keeps this thread or task from making another.

    One that others have made for all threads does not.

    scoped: the new attachment belongs to a call of dive; a user's own is not hindered by a call's.
    but: an attachment that is not counted.
    """
    held = own_of(first)
    if held is not None and held.holds():
        return held.work if scoped or not is_private(first) else None
    site = sites.get(id(first))
    works = [] if site is None else site.works
    waiting = (work for work in works if work.state in ("made", "wide") and work is not but)
    return next((work for work in waiting if work.creator.is_current()), None)


def refuse_two(first: nn.Module, scoped: bool, but: Work | None = None) -> None:
    """Raises DiveError where `in_the_way` finds an attachment."""
    if in_the_way(first, scoped, but) is not None:
        raise DiveError(
            "a steering adapter is already attached to this model; detach it first "
            "(two adapters at once are not defined)"
        )


@contextmanager
def scope(first: nn.Module | None, work: Work | None) -> Iterator[None]:
    """Puts `work` into effect for this context, inside; None: no attachment at all.

    Not to be held over a `yield` of a generator, whose next step may run in another context.
    """
    if first is None:
        yield
        return
    site = sites.get(id(first))
    if site is not None and not site.scoped and (work is None or work.state != "wide"):
        with changes:
            site.scoped = True
            site.retrace()
    with private(first, Own(work)):
        yield


@contextmanager
def call_of_its_own(first: nn.Module | None) -> Iterator[None]:
    """Runs a call of dive inside, without the attachment of a call of dive around it."""
    if first is None:
        yield
        return
    with private(first, None):
        yield
