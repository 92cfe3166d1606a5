"""From what a run asks for to its reports: the one place where `--engine` is decided.

These functions run in the command itself, or in an actor of Ray (`dive.generation.ray_actor`).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dive.cli.options import demonstrations_of, open_backbone
from dive.errors import DiveError

if TYPE_CHECKING:
    from dive.data import Skipped, Study
    from dive.generation.report_writer import Report
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
    """Open the engine of a request; the function returned writes reports for studies, in order,
    as often as it is called.

    Raises:
        DiveError: no such backbone, a device that is not there, a package that is not installed.
    """
    shared = {
        "prompt": request.prompt,
        "adapter": inputs.adapter,
        "demonstrations": inputs.shown,
        "max_new_tokens": request.max_new_tokens,
        "batch_size": request.batch_size,
        "target": request.target,
        "max_image_tokens": request.max_image_tokens,
        "template": request.template,
        "template_date": request.template_date,
        "on_error": request.on_error,
    }
    from dive.generation.generate_reports import iter_reports

    backbone = open_backbone(request.backbone, request.dtype, request.device)

    def write(studies: "Sequence[Study]", skipped: "Skipped") -> "Iterator[Report]":
        return iter_reports(backbone, studies, engine=request.engine, skipped=skipped, **shared)

    return write
