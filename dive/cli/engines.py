"""From what a run asks for to its reports: the one place where `--engine` is decided.

These functions run in the command itself, or in an actor of Ray (`dive.generation.ray_actor`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dive.cli.options import demonstrations_of, open_backbone, pairs
from dive.errors import DiveError
from dive.errors.checks import whole

if TYPE_CHECKING:
    from dive.data import Skipped, Study
    from dive.generation.ray_cluster import Cluster, RayOptions
    from dive.generation.report_writer import Report
    from dive.generation.resume import WatchedStudy
    from dive.generation.run_request import RunInputs, RunRequest, Write


def read_inputs(request: "RunRequest") -> "RunInputs":
    """The adapter and the demonstrations that a request names.

    Raises:
        DiveError: no adapter there, or no file of studies with the sections that are asked for.
    """
    from dive.adapter.adapter import SteeringAdapter
    from dive.generation.run_request import RunInputs

    named = request.adapter
    adapter = None if named is None else SteeringAdapter.from_pretrained(named)
    if request.demonstrations is None:
        return RunInputs(adapter, None)
    shown = demonstrations_of(str(request.demonstrations), request.section(adapter))
    if isinstance(shown, int):
        raise DiveError(
            f"--demonstrations is {str(request.demonstrations)!r}, want a file of studies"
        )
    return RunInputs(adapter, shown)


def open_engine(request: "RunRequest", inputs: "RunInputs") -> "Write":
    """Open the engine of a request, to the end of this process; the function returned writes
    reports for studies, in order, as often as it is called.

    Raises:
        DiveError: no such backbone, a device that is not there, a package that is not installed.
    """
    if request.engine != "vllm":
        return _write_here(request, inputs)
    return _Lasting(request, inputs)


class _Lasting:
    """vLLM's engine, open until `close`, which writes as often as it is called."""

    def __init__(self, request: "RunRequest", inputs: "RunInputs") -> None:
        from dive.vllm.running import Engine

        self._asked = _asked(request, inputs)
        self._engine = Engine(
            request.backbone,
            [] if inputs.adapter is None else [inputs.adapter],
            batch_size=request.batch_size,
            max_images=request.most_images(inputs.shown),
            dtype=request.dtype,
            device=request.device,
            engine_options=request.engine_options,
        )

    def __call__(self, studies: "Sequence[Study]", skipped: "Skipped") -> "Iterator[Report]":
        from dive.vllm.engine import iter_reports

        return iter_reports(self._engine, studies, skipped=skipped, **self._asked)

    def close(self) -> None:
        """End vLLM's processes."""
        self._engine.close()


def open_engine_once(request: "RunRequest", inputs: "RunInputs") -> "Write":
    """As `open_engine`, for one call, with whose last report vLLM's processes end."""
    if request.engine != "vllm":
        return _write_here(request, inputs)
    from dive.vllm.engine import iter_reports

    own = {name: getattr(request, name) for name in ("batch_size", "dtype", "device")}
    asked = {**_asked(request, inputs), **own, "engine_options": request.engine_options}
    return partial(_written, iter_reports, request.backbone, asked)


def _write_here(request: "RunRequest", inputs: "RunInputs") -> "Write":
    from dive.generation.generate_reports import iter_reports

    backbone = open_backbone(request.backbone, request.dtype, request.device)
    asked = {**_asked(request, inputs), "engine": request.engine, "batch_size": request.batch_size}
    return partial(_written, iter_reports, backbone, asked)


def _asked(request: "RunRequest", inputs: "RunInputs") -> dict[str, Any]:
    """The arguments that all engines have."""
    names = ("prompt", "target", "max_new_tokens", "max_image_tokens", "template",
             "template_date", "on_error")  # fmt: skip
    asked = {name: getattr(request, name) for name in names}
    return {**asked, "adapter": inputs.adapter, "demonstrations": inputs.shown}


def _written(
    iter_reports: "Callable[..., Iterator[Report]]",
    backbone: Any,
    asked: "Mapping[str, Any]",
    studies: "Sequence[Study]",
    skipped: "Skipped",
) -> "Iterator[Report]":
    return iter_reports(backbone, studies, skipped=skipped, **asked)


def batch_size_of(given: int | None, engine: str) -> int:
    """The value of --batch-size, or the engine's default; DiveError below 1."""
    if given is None:
        return 64 if engine == "vllm" else 8
    return whole("--batch-size", given, 1)


def engine_options_of(given: list[str] | None, engine: str) -> dict[str, Any]:
    """The values of --engine-option by name.

    Raises:
        DiveError: no NAME=VALUE, or given for an engine that has none.
    """
    if given and engine != "vllm":
        raise DiveError(f"--engine-option: want --engine vllm too, --engine is {engine!r}")
    names = [pair.partition("=")[0] for pair in given or []]
    return pairs(given, [name for name in names if name.isidentifier()], "--engine-option")


def ray_options(
    ray: bool,
    address: str | None,
    actors: int | None,
    gpus_per_actor: float | None,
    cpus_per_actor: int | None,
    device: str,
) -> "RayOptions | None":
    """The values of --ray and of the options that belong to it, checked; None without --ray."""
    given = {
        "--address": address,
        "--actors": actors,
        "--gpus-per-actor": gpus_per_actor,
        "--cpus-per-actor": cpus_per_actor,
    }
    if not ray:
        for option, value in given.items():
            if value is not None:
                raise DiveError(f"{option} is {value!r}, want --ray too")
        return None
    from dive.generation.ray_cluster import RayOptions

    cores = 1 if cpus_per_actor is None else cpus_per_actor
    options = RayOptions(address, actors, gpus_per_actor, cores)
    options.check(device)
    return options


def reports_of(
    request: "RunRequest",
    inputs: "RunInputs",
    facts: "Mapping[str, Any]",
    cluster: "Cluster | None",
    skipped: "Skipped",
) -> "Callable[[list[WatchedStudy]], Iterable[Report]]":
    """The function that opens an engine here, or one in each actor of a cluster of Ray, and gives
    the reports of studies: in their order here, in any over Ray.

    facts: the run's fingerprint.
    """

    def reports(studies: "list[WatchedStudy]") -> "Iterable[Report]":
        if cluster is None:
            return open_engine_once(request, inputs)(studies, skipped)
        from dive.generation.ray_actor import Opening
        from dive.generation.ray_map import RayReports
        from dive.generation.run_request import of_inputs

        named = {study.id: study for study in studies}
        opening = Opening(read_inputs, open_engine)
        return RayReports(cluster, request, opening, of_inputs(facts), named, skipped)

    return reports
