"""Whose forward it is: what is at work on a model for the thread or task that runs it.

A forward takes, in this order,
1. what its own context has (see dive.adapter.contexts): dive's own call, else a `with
   dive.steer(...)`, which is an error where it has ended elsewhere meanwhile;
2. in a backward that computes a part of a forward again, on whatever thread, what that forward had;
3. what is attached for the whole model (`dive.steer(...)` without `with`);
4. nothing.
It keeps that from its first layer to its last, whatever is attached or detached meanwhile.
A call of dive's takes no other call's: what a streamer calls gets what it asks for.
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
    """What may be at work on a model: the part of an `Attachment` that says for whom.

    state: "made" until it is known whether a `with` follows; "scoped": it is for the contexts that
        took it; "wide": for every context without one of its own; "gone".
    public: of the user's own `with`: a forward that misses it is told of.
    traced: compiled code may have it built in: it is the only one, and for everybody.
    """

    enabled = True

    def register(self, model: nn.Module, scoped: bool = False) -> None:
        """Has its place on a model; DiveError where something is at work there in this context.

        scoped: it works only inside `working`.
        """
        self.model = model
        self.state, self.public = ("scoped", False) if scoped else ("made", True)
        self.traced = self.trains = self.used_elsewhere = False
        self.creator = ThreadAndTask()
        self.since = math.inf  # when it was ready: GRACE counts from there
        self._own: ReferenceType[Own] | None = None
        self.in_flight: dict[int, int] = {}  # threads in a forward under it, and in how many
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
        """All is in its place: whether a `with` follows should be known soon."""
        with changes:
            self.since = time.monotonic()
            changes.notify_all()

    def enter(self) -> None:
        """For this context alone, from now on."""
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
        """At work in this context, inside."""
        with scope(self.site.first, self):
            yield

    def leave(self) -> None:
        """Takes itself away: for forwards that run under it, when they have ended."""
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
                del own  # where no copy of this context has it, that was all
            self.in_flight = {
                thread: count
                for thread, count in self.in_flight.items()
                if frame_of(self.site.decoder, thread) is not None  # else it was interrupted
            }
            if not self.in_flight:
                self.remove_hooks()
            changes.notify_all()

    def remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self in self.site.works:
            self.site.works.remove(self)
        self.site.retrace()
        self.site.close_if_idle()

    def learns(self, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Notes that a backward through this may follow."""
        self.trains = self.trains or wants_gradient(inputs, output)


def at_work(first: nn.Module, is_forward: bool = True) -> Work | None:
    """What is at work for this context on the model with this first decoder layer."""
    site = sites.get(id(first))
    return None if site is None else site.decide(is_forward)


def in_the_way(first: nn.Module, scoped: bool = False, but: Work | None = None) -> Work | None:
    """What keeps this thread or task from an attachment of its own: another of its own, but not
    what others have attached for all.

    scoped: the attachment is a call's of dive's; where it is not, no call's is in its way.
    """
    held = own_of(first)
    if held is not None and held.holds():
        return held.work if scoped or not is_private(first) else None
    site = sites.get(id(first))
    works = [] if site is None else site.works
    waiting = (work for work in works if work.state in ("made", "wide") and work is not but)
    return next((work for work in waiting if work.creator.is_current()), None)


def refuse_two(first: nn.Module, scoped: bool, but: Work | None = None) -> None:
    if in_the_way(first, scoped, but) is not None:
        raise DiveError(
            "a steering adapter is already attached to this model; detach it first "
            "(two adapters at once are not defined)"
        )


@contextmanager
def scope(first: nn.Module | None, work: Work | None) -> Iterator[None]:
    """This at work in this context inside, or for sure nothing. Not to be held over a `yield` of a
    generator, whose next step may run in another context."""
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
    """A call of dive's, inside, has nothing of a call around it whose streamer, say, calls it."""
    if first is None:
        yield
        return
    with private(first, None):
        yield
