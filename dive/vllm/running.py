"""One vLLM engine with a backbone, opened for reports and closed after them."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from dive.adapter.adapter import SteeringAdapter
from dive.backbone.files import dtype_in_use
from dive.backbone.load import source_of
from dive.backbone.without_weights import load_without_weights
from dive.errors import DiveError, checks
from dive.errors.private import public_reason
from dive.vllm.adapters import AdapterFolders, check_together
from dive.vllm.installed import (
    OTHERS,
    called,
    check_architecture,
    check_device,
    check_installed,
)
from dive.vllm.plugin import PREFIX
from dive.vllm.requests import EngineRequest, RequestMaker

BATCH_SIZE = 64
# arguments of vllm.LLM that follow from dive's own
_DIVES = {
    "model": "backbone", "tokenizer": "backbone", "dtype": "dtype", "max_num_seqs": "batch_size",
    "seed": "seed", "generation_config": "the settings of decoding",
    "limit_mm_per_prompt": "max_images", "logits_processors": None, "skip_tokenizer_init": None,
    "hf_overrides": None, "enable_lora": None, "lora_target_modules": None, "max_lora_rank": None,
    "logprobs_mode": None, "runner": None, "convert": None, "enable_prompt_embeds": None,
}  # fmt: skip


class Written(NamedTuple):
    """What the engine wrote for one request.

    token_ids: with the token that ended it, if one did. seconds: its share of the engine's steps.
    most_likely: per token the log-probability of the most likely one, by the model's own logits.
    reason: vLLM's finish_reason ("stop", "length", or what went wrong).
    """

    name: str
    token_ids: list[int]
    seconds: float
    most_likely: list[float]
    reason: str


class Engine:
    """vLLM with one backbone, whose weights no other part of dive loads.

    Args:
        backbone: a folder or hub id.
        adapters: those that reports may be steered by; the first ones fix the settings that an
            engine has once (activation, norm_preserving, eps, positions) and its highest rank.
            Without any the model has no room for adapters.
        batch_size: reports that are decoded at once (vLLM's max_num_seqs).
        max_images: the most images of one prompt, demonstrations included.
        dtype: "auto" is the checkpoint's own (vLLM's own "auto" would make float16 of float32).
        device: "auto", or what this vLLM computes on.
        engine_options: further arguments of `vllm.LLM`, as tensor_parallel_size, quantization,
            gpu_memory_utilization, max_model_len.

    Attributes:
        backbone: processor and settings, without weights.
        requests: makes its requests.
        version: of vLLM.

    Raises:
        DiveError: vLLM is not installed or too old, has no model for the backbone, does not know an
            option, or fails to open it.
    """

    def __init__(
        self,
        backbone: str | Path,
        adapters: Sequence[SteeringAdapter] = (),
        *,
        batch_size: int = BATCH_SIZE,
        max_images: int = 1,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.version = check_installed()
        self.batch_size = checks.whole("batch_size", batch_size, 1)
        self.max_images = checks.whole("max_images", max_images, 0)
        options = checked_options(engine_options)
        check_device(device)
        source = source_of(backbone)
        self.backbone = load_without_weights(source)
        check_architecture(source, self.backbone.model.config)
        check_together(adapters)
        self._llm: Any = None
        self._adapters = AdapterFolders(adapters, source) if adapters else None
        try:
            self._llm = self._open(source, dtype, options)
            self._check_model()
            for request in self._adapters.requests if self._adapters is not None else ():
                self._load(request)
        except BaseException:
            self.close()
            raise
        config = self._llm.model_config
        self.max_model_len = int(config.max_model_len)
        self.vocab_size = int(config.get_vocab_size())
        self.requests = RequestMaker(self._render, self.max_model_len)
        self._seconds: dict[str, float] = {}  # of requests that are not finished, in order
        self._count = 0

    def _open(self, source: str, dtype: str | torch.dtype, options: Mapping[str, Any]) -> Any:
        sees = getattr(self.backbone.processor, "image_processor", None) is not None
        own: dict[str, Any] = {
            "model": source,
            "dtype": dtype_in_use(source, str(dtype).removeprefix("torch.")),
            "max_num_seqs": self.batch_size,
            "generation_config": "vllm",  # dive has the settings of decoding
            "disable_log_stats": True,
        }
        if sees:
            own["limit_mm_per_prompt"] = {"image": max(self.max_images, 1), "video": 0}
            own["mm_processor_cache_gb"] = 0  # archives do not repeat films
            if "mm_device_do_normalize" in known_options():
                own["mm_device_do_normalize"] = False  # pixels as dive has them, to be compared
        if self._adapters is not None:
            own |= self._adapters.arguments
        try:
            with _random_states_kept():
                return called("vllm", "LLM")(**{**own, **options})
        except Exception as error:  # vLLM and what it calls may raise anything
            raise DiveError(
                f"{source}: vLLM {self.version} cannot open this backbone: "
                f"{public_reason(error)}; {OTHERS}"
            ) from error

    def _check_model(self) -> None:
        """Raises DiveError where the engine's model would write other reports, or plain ones."""
        config = self._llm.model_config
        on_cpu = called("vllm.platforms", "current_platform").device_type == "cpu"
        if on_cpu and getattr(config, "is_mm_prefix_lm", False):
            raise DiveError(
                f"on a CPU vLLM {self.version} computes a causal mask within the images of this "
                f"backbone, in which they attend both ways; {OTHERS}"
            )
        names = list(config.architectures)
        if self._adapters is not None and not all(name.startswith(PREFIX) for name in names):
            raise DiveError(f"vLLM runs {', '.join(names)}, which has no room for adapters")

    def _load(self, request: Any) -> None:
        """Has the engine load an adapter, which its model checks."""
        try:
            self._llm.llm_engine.add_lora(request)
        except Exception as error:
            reason = public_reason(error)
            raise DiveError(f"vLLM refuses the adapter {request.name[:12]}: {reason}") from error

    def _lora(self, adapter: SteeringAdapter | None) -> Any:
        """vLLM's LoRARequest of a report's adapter; None for none."""
        if adapter is None:
            return None
        if self._adapters is None:
            raise DiveError(
                "this Engine was opened without adapters, and a report is to be steered: want "
                "Engine(backbone, [adapter])"
            )
        known = len(self._adapters.requests)
        request = self._adapters.request(adapter)
        if len(self._adapters.requests) > known:
            self._load(request)
        return request

    def forget_changed(self, adapters: Sequence[SteeringAdapter]) -> None:
        """Has those of these adapters loaded again whose numbers have changed since."""
        if self._adapters is not None:
            self._adapters.forget_changed(adapters)

    def _render(self, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # a request that is refused must not leave its films in the sender's cache alone
        made: list[dict[str, Any]] = self._llm.renderer.render_cmpl(prompts, skip_mm_cache=True)
        return made

    @property
    def unfinished(self) -> int:
        """The number of requests that are being written or waiting."""
        return len(self._seconds)

    def add(
        self,
        request: EngineRequest,
        arguments: Mapping[str, Any],
        adapter: SteeringAdapter | None = None,
    ) -> str:
        """Adds a request to write; returns the name by which `step` answers it.

        arguments: of SamplingParams. adapter: steers it.

        Raises:
            DiveError: vLLM refuses the settings or the adapter.
        """
        kind = called("vllm.sampling_params", "RequestOutputKind")
        lora = self._lora(adapter)
        name, self._count = f"dive-{self._count}", self._count + 1
        try:
            parameters = called("vllm", "SamplingParams")(**arguments, output_kind=kind.FINAL_ONLY)
            self._llm.llm_engine.add_request(
                name, {**request.inputs}, parameters, lora_request=lora
            )
        except Exception as error:
            raise DiveError(f"vLLM refuses the request: {public_reason(error)}") from error
        self._seconds[name] = 0.0
        return name

    def step(self) -> list[Written]:
        """Writes the next tokens; returns what has been finished.

        Raises:
            DiveError: the engine has failed; it writes nothing any more.
        """
        start = time.perf_counter()
        try:
            outputs = self._llm.llm_engine.step()
        except Exception as error:
            raise DiveError(f"vLLM's engine has failed: {public_reason(error)}") from error
        # the engine decodes the oldest requests, up to its batch size
        at_work = list(self._seconds)[: self.batch_size]
        each = (time.perf_counter() - start) / max(len(at_work), 1)
        for name in at_work:
            self._seconds[name] += each
        done = []
        for output in outputs:
            if not output.finished or output.request_id not in self._seconds:
                continue
            found = output.outputs[0]
            most = [max(one.logprob for one in by_id.values()) for by_id in found.logprobs or ()]
            seconds = self._seconds.pop(output.request_id)
            reason = str(found.finish_reason)
            done.append(Written(output.request_id, [*found.token_ids], seconds, most, reason))
        return done

    def abort(self) -> None:
        """Drops all requests that are not finished."""
        names = list(self._seconds)
        self._seconds.clear()
        if names:
            self._llm.llm_engine.abort_request(names)

    def close(self) -> None:
        """Ends the engine and its processes, and frees its memory; a second call does nothing."""
        llm, self._llm = self._llm, None
        if llm is not None:
            with suppress(Exception):  # it may have failed before
                llm.llm_engine.engine_core.shutdown()
        if self._adapters is not None:
            self._adapters.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: Any) -> None:
        self.close()


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restores the random generators, which vLLM seeds where it runs in this process."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def checked_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of an engine.

    Raises:
        DiveError: one that vLLM does not know, or that follows from an argument of dive.
    """
    options = dict(given or {})
    known = known_options()
    for name in options:
        if name in _DIVES:
            own = _DIVES[name]
            instead = f"give {own} instead" if own else "dive sets it"
            raise DiveError(f"engine_options has {name!r}: {instead}")
        if name not in known:
            raise DiveError(
                f"engine_options has {name!r}, and vLLM {called('vllm', '__version__')} has no "
                "such argument"
            )
    return options


def known_options() -> set[str]:
    """The arguments of `vllm.LLM` in this version."""
    return {one.name for one in fields(called("vllm.engine.arg_utils", "EngineArgs"))}
