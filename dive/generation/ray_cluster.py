"""A connection to Ray: a session on this machine, or a cluster, and the actors it has room for."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dive.errors import DiveError, checks
from dive.errors.private import public_reason

# The store of a session on this machine: only records of studies and reports are in it.
_STORE = 100_000_000  # bytes
# What actors of a cluster get of the driver's environment, where it is set; no secrets.
_ENVIRONMENT = ("PYTHONPATH", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
                "HF_HUB_DISABLE_TELEMETRY", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY",
                "VLLM_TARGET_DEVICE", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND",
                "VLLM_ENABLE_V1_MULTIPROCESSING")  # fmt: skip


class ActorDied(Exception):
    """An actor is no more; the message is Ray's."""


@dataclass(frozen=True)
class RayOptions:
    """Where actors are to run, and how many.

    Attributes:
        address: "local" for a session of this command's own, "auto" for the cluster that this
            machine belongs to, or HOST:PORT. None: $RAY_ADDRESS, else "local".
        actors: None is one per GPU's worth, or one per node without GPUs.
        gpus_per_actor: None is 1 where the cluster has GPUs and the device is not "cpu".
        cpus_per_actor: cores, and so the threads of torch.
    """

    address: str | None = None
    actors: int | None = None
    gpus_per_actor: float | None = None
    cpus_per_actor: int = 1

    def check(self, device: str) -> None:
        """Raise DiveError for a value that no cluster has, before anything is read."""
        if self.address is not None and self.address.startswith("ray://"):
            raise DiveError(
                f"--address is {self.address!r}, a client's, which has no streaming calls; want "
                "auto on a machine of the cluster ('ray job submit' runs the command there), "
                "HOST:PORT or local"
            )
        if self.actors is not None:
            checks.whole("--actors", self.actors, 1)
        checks.whole("--cpus-per-actor", self.cpus_per_actor, 1)
        if self.gpus_per_actor is not None and not 0 <= self.gpus_per_actor < 1024:
            raise DiveError(f"--gpus-per-actor is {self.gpus_per_actor!r}, want a number from 0 on")
        if device not in ("auto", "cpu", "cuda", "map"):
            raise DiveError(
                f"--device is {device!r}, want auto, cpu, cuda or map with --ray, which chooses "
                "each actor's GPUs"
            )


class Cluster:
    """A connected Ray: how many actors, with what, and the few calls of Ray that are needed.

    Attributes:
        actors: how many are to work. gpus, cpus: of each. device: "cuda" or "cpu".
    """

    def __init__(self, ray: Any, options: RayOptions, device: str) -> None:
        self._ray = ray
        have = ray.cluster_resources()
        there = have.get("GPU", 0)
        self.cpus = options.cpus_per_actor
        self.gpus = options.gpus_per_actor
        if self.gpus is None:
            self.gpus = 1 if there and device != "cpu" else 0
        self.device = "cuda" if self.gpus and device != "cpu" else "cpu"
        if device in ("cuda", "map") and self.device == "cpu":
            raise DiveError(f"--device is {device!r}, and the actors have no GPU; want cpu or auto")
        for name, wanted in (("GPU", self.gpus), ("CPU", self.cpus)):
            if wanted > have.get(name, 0):
                raise DiveError(
                    f"an actor wants {wanted:g} {name}, and the cluster has {have.get(name, 0):g}"
                )
        alive = sum(node["Alive"] for node in ray.nodes())
        self.actors = options.actors or (max(1, int(there // self.gpus)) if self.gpus else alive)

    def start(self, kind: type, *given: Any) -> Any:
        """An actor of this class; it dies with this process, and Ray does not restart it."""
        wanted = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": 0}
        return self._ray.remote(kind).options(**wanted).remote(*given)

    def first_of(self, waited: Sequence[Any], seconds: float = 1.0) -> Any:
        """The first of these calls that has something; None where none has within the time."""
        ready, _ = self._ray.wait(list(waited), num_returns=1, timeout=seconds)
        return ready[0] if ready else None

    def all_of(self, waited: Sequence[Any], seconds: float) -> None:
        """Wait until all of these calls have ended, or for so long."""
        if waited:
            self._ray.wait(list(waited), num_returns=len(waited), timeout=seconds)

    def message(self, waited: Any) -> Any:
        """What a call has: its result, the next one of several, or None at their end.

        Raises:
            ActorDied: the actor's process ended, or its node, or what it sent is lost.
        """
        try:
            return self._ray.get(next(waited) if hasattr(waited, "__next__") else waited)
        except StopIteration:
            return None
        except self._ray.exceptions.RayTaskError:
            raise  # of the actor's Python: a bug
        except self._ray.exceptions.RayError as error:
            raise ActorDied(str(error)) from error

    def kill(self, actor: Any) -> None:
        """End an actor, whatever it is doing."""
        with contextlib.suppress(Exception):  # it may have died, or the cluster may be gone
            self._ray.kill(actor)


@contextlib.contextmanager
def connected(options: RayOptions, device: str) -> Iterator[Cluster]:
    """A `Cluster`; a session that was begun for it ends with the context.

    Raises:
        DiveError: Ray is not installed, no cluster answers at the address, or it lacks what an
            actor wants.
    """
    options.check(device)
    try:
        import ray
    except ImportError as error:
        raise DiveError(
            "--ray: ray is not installed; want it, by 'pip install \"dive-mrg[ray]\"'"
        ) from error
    if ray.is_initialized():
        yield Cluster(ray, options, device)
        return
    try:
        _connect(ray, options)
        yield Cluster(ray, options, device)
    finally:
        ray.shutdown()


def _connect(ray: Any, options: RayOptions) -> None:
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # dive sends nothing anywhere
        cpus = max(os.cpu_count() or 1, (options.actors or 1) * options.cpus_per_actor)
        shared |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _STORE}
        failed = "no session of Ray can be begun on this machine"
    else:
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        shared |= {"runtime_env": {"env_vars": kept}}
        failed = "no cluster of Ray answers there; want auto, HOST:PORT or local"
    try:
        ray.init(address, **shared)
    except Exception as error:  # Ray raises bare ones
        reason = " ".join(public_reason(error).split())
        raise DiveError(f"--address is {address!r}: {failed}: {reason}") from error
