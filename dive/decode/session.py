"""DecodeSession: the text decoder run by `dive._C`, one call a token, steering included.

    session = DecodeSession(backbone, adapter)
    session.generate(**inputs, max_new_tokens=200)
    model.generate(**inputs, max_new_tokens=200, custom_generate=session)     # the same
    session.stream(requests, rows=8)      # many prompts; a waiting one takes a finished one's row

Hugging Face's model reads the prompt and its images; the session takes over the cache and writes
the answer. What it cannot do it hands to transformers with the adapter attached, and says so.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GENERATION_MODES_MAPPING

from dive.adapter.adapter import SteeringAdapter, as_adapter
from dive.adapter.at_work import call_of_its_own
from dive.adapter.attach import attachment_of, each_of_its_own, unsteered
from dive.backbone.load import Backbone
from dive.backbone.structure import decoder_layers, unwrap
from dive.backbone.turns import turn
from dive.decode import native
from dive.decode.batch import BatchRun
from dive.decode.continuous import Request, Slots, Written
from dive.decode.engine import Rows
from dive.decode.fallback import (
    Plan,
    asked_config,
    call_plan,
    check_names,
    named,
    offered_plan,
    own_plan,
    settings_plan,
)
from dive.decode.generate_arguments import with_tokenizer
from dive.decode.model_check import Unsupported, version
from dive.decode.spec import DecoderSpec, read
from dive.decode.steered import steered
from dive.decode.transformers_errors import refusals
from dive.decode.usable_logits import Watch, generate_watched
from dive.errors import DiveError, FallbackWarning, checks

log = logging.getLogger(__name__)


class DecodeSession:
    """Decodes for one model. It holds no state from one call to the next but bound weights.

    backbone_or_model: of a `Backbone` it knows the tokenizer, as stop_strings want it.
    adapter: steers prompt and answer; None takes what `dive.steer` has attached, if anything. A
        list has one adapter, or None for no steering, for every row of the batches that follow.
    strict: what the engine cannot decode is a DiveError and not left to transformers.
    ran: what decoded the last call (of `stream`: the last request that was prompted); None before.
    failed: rows of what the last `generate` returned whose logits said nothing (not finite, or all
        the same): the answer ends there, and padding follows. A warning says so; of `stream` every
        answer tells.
    The weights are used where they lie: memory holds them once. Training, moving or replacing them
    between two calls is noticed. Several threads may use one session: each call reads its prompt in
    its turn and decodes by itself; `ran` is then that of the last.
    """

    def __init__(
        self,
        backbone_or_model: Any,
        adapter: SteeringAdapter | str | Path | Sequence[SteeringAdapter | None] | None = None,
        *,
        strict: bool = False,
    ) -> None:
        self.strict = strict
        self.model: Any = unwrap(backbone_or_model)
        known = isinstance(backbone_or_model, Backbone)
        self.tokenizer: Any = backbone_or_model.tokenizer if known else None
        self.adapter: SteeringAdapter | None = None
        self.adapters: tuple[SteeringAdapter | None, ...] | None = None
        if adapter is None:
            pass
        elif isinstance(adapter, (list, tuple)):
            self.adapters = tuple(None if one is None else as_adapter(one) for one in adapter)
            if not self.adapters:
                raise DiveError("adapter is an empty list, want an adapter or None for every row")
        else:
            self.adapter = as_adapter(adapter)
        for one in {self.adapter, *(self.adapters or ())} - {None}:
            assert one is not None
            one.check_backbone(self.model)
        self._spec: DecoderSpec | None = None
        self._rows: Rows | None = None
        self._packed: WeakKeyDictionary[Any, tuple[Any, list[Any]]] = WeakKeyDictionary()
        self.ran: Plan | None = None
        self.failed: list[int] = []
        self._said: set[str] = set()

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """Which engine would run `generate(*args, **kwargs)`, and why.

        transformers is asked what it would hand over for these arguments; no forward is run. (It
        gives a `custom_generate` function neither assistant_model nor tokenizer: an assistant has
        no part there, and stop_strings are for `session.generate`.)
        DiveError where `generate` would not know one of the names, or refuses a setting.
        """
        given = self._named(args, kwargs)
        plan = self._plan(given)
        if plan.engine == "dive._C":
            assert self._spec is not None
            with turn(self.model), _looked_at(self.model), refusals(given):
                return offered_plan(self._spec, self.model, given)
        return plan

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What generate is to be called with; DiveError."""
        given = named(self.model, args, kwargs)
        check_names(self.model, given)
        with refusals(given):
            return with_tokenizer(self.model, given, self.tokenizer)

    def _plan(self, generate_kwargs: dict[str, Any]) -> Plan:
        """By model and settings alone; what transformers hands over is looked at when it does."""
        reason = self._bind()
        if reason is not None:
            return Plan("transformers", reason)
        assert self._spec is not None
        with refusals(generate_kwargs):
            return settings_plan(self.model, generate_kwargs) or own_plan(self._spec)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate` with the same arguments, decoded by this session where it can.

        transformers gives a `custom_generate` function no streamer; here it gets the tokens.
        """
        with call_of_its_own(decoder_layers(self.model)[0]):
            return self._generate(args, kwargs)

    def _generate(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = self._named(args, kwargs)
        plan = self._plan(given)
        if plan.engine != "dive._C":
            self.note(plan)
            with (
                turn(self.model),
                steered(self.model, self.adapters or self.adapter),
                refusals(given),
            ):
                output, watch = generate_watched(self.model, given, asked_config(self.model, given))
            self._tell(watch.cut(output))
            return output
        with refusals(given):
            return self.model.generate(
                **given, custom_generate=partial(self, streamer=given.get("streamer"))
            )

    def stream(self, requests: Iterable[Request], rows: int = 8) -> Iterator[Written]:
        """Answers to many prompts, each as it ends; the next prompt then takes its row.

        `requests` is read as rows become free. Every answer is the one that its prompt gets alone.
        Other calls of this session in between are no harm.
        """
        rows = checks.whole("rows", rows, 1)
        if not isinstance(requests, Iterable):
            raise DiveError(
                f"requests is {requests!r}, want an iterable of dive.decode.continuous.Request"
            )
        if self.adapters is not None:
            raise DiveError("a session with an adapter a row: give each request its own instead")
        return each_of_its_own(self.model, Slots(self, requests, rows).run())

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        generation_config: Any = None,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """What `model.generate` calls as its `custom_generate`; returns prompt and answer."""
        if model is not self.model:
            raise DiveError(
                f"this session decodes for another {type(self.model).__name__}; make one a model"
            )
        processors = logits_processor if logits_processor is not None else LogitsProcessorList()
        criteria = stopping_criteria if stopping_criteria is not None else StoppingCriteriaList()
        with turn(self.model):
            reason = self._bind() or self._attachment_reason()
            if reason is not None:
                plan = Plan("transformers", reason)
            else:
                assert self._spec is not None
                plan = call_plan(
                    self._spec, model, generation_config, input_ids, model_kwargs, synced_gpus
                )
            self.note(plan)
            if plan.engine != "dive._C":
                more = {} if streamer is None else {"streamer": streamer}
                output, watch = self._by_transformers(
                    input_ids,
                    processors,
                    criteria,
                    generation_config,
                    synced_gpus=synced_gpus,
                    **more,
                    **model_kwargs,
                )
                self._tell(watch.cut(output))
                return output
            rows = self._lend_rows()
            try:
                run = BatchRun(
                    model, rows, input_ids, processors, criteria, generation_config, streamer
                )
                run.check_context(model_kwargs)
                with steered(self.model, self.adapters or self.adapter) as adapters:
                    scores = run.prefill(model_kwargs, self._steerings(adapters, run.batch, rows))
            except BaseException:
                self._give_back(rows)
                raise
        try:
            output = run.decode(scores)
        finally:
            self._give_back(rows)
        self._tell(run.failed)
        return output

    def _tell(self, failed: list[int]) -> None:
        self.failed = failed
        if failed:
            warnings.warn(
                f"logits were not finite, or all the same, in row {', '.join(map(str, failed))} "
                "of the batch: the answer ends there (DecodeSession.failed)",
                stacklevel=4,
            )

    # which engine

    def _bind(self) -> str | None:
        """Makes the engine ready, anew where the model changed; returns why it cannot be."""
        module = native.load()
        if module is None:
            return native.find().reason
        with turn(self.model):
            try:
                if self._rows is not None and not self._rows.moved():
                    return None
            except Unsupported as error:
                return str(error)
            self._rows = self._spec = None
            try:
                with _looked_at(self.model):
                    spec = read(self.model)
                    self._rows = Rows(module, spec, self.model)
            except (Unsupported, ValueError) as error:
                return str(error)
            self._spec = spec
            return None

    def _lend_rows(self) -> Rows:
        """The bound engine, until it is given back; the session binds another if it needs one."""
        assert self._rows is not None
        rows, self._rows = self._rows, None
        return rows

    def _give_back(self, rows: Rows) -> None:
        if self._rows is None:
            self._rows, self._spec = rows, rows.spec

    @property
    def _engine(self) -> Any:
        return None if self._rows is None else self._rows.engine

    def _attachment_reason(self) -> str | None:
        attachment = attachment_of(self.model)
        if attachment is None or not attachment.enabled:
            return None
        return None if attachment.mask is None else "the attached adapter has a mask of positions"

    def note(self, plan: Plan) -> None:
        """Keeps what runs; says the first time why it is transformers, or refuses that."""
        if self.strict and plan.engine != "dive._C":
            raise DiveError(f"dive._C cannot decode this: {plan.reason}")
        self.ran = plan
        if plan.engine == "dive._C" or plan.reason in self._said:
            return
        self._said.add(plan.reason)
        line = f"decoding in transformers: {plan.reason}"
        if plan.asked:
            log.info(line)
        else:
            warnings.warn(f"{line} (dive._C is not used)", FallbackWarning, stacklevel=3)

    def _by_transformers(
        self, input_ids: Tensor, processors: Any, criteria: Any, config: Any, **more: Any
    ) -> tuple[Any, Watch]:
        """What transformers wrote, and what watched its logits."""
        mode = config.get_generation_mode()
        name = GENERATION_MODES_MAPPING.get(mode, "/")
        if "/" in name or mode == GenerationMode.ASSISTED_GENERATION:
            raise DiveError(
                f"{mode.value} does not go through custom_generate; call session.generate, or "
                "model.generate without the session"
            )
        watch = Watch.of(config)
        with turn(self.model), steered(self.model, self.adapters or self.adapter):
            output = getattr(type(self.model), name)(
                self.model,
                input_ids,
                logits_processor=watch.among(processors),
                stopping_criteria=criteria,
                generation_config=config,
                **more,
            )
        return output, watch

    # steering

    def _steerings(
        self, adapters: Sequence[SteeringAdapter | None], batch: int, rows: Rows
    ) -> list[Any]:
        """What `_steering` gives for each row of a batch; DiveError where it does not divide."""
        each, left = divmod(batch, len(adapters))
        if left:
            raise DiveError(
                f"the session has {len(adapters)} adapters, one a row, and the batch {batch} rows"
            )
        return [self._steering(one, rows.spec) for one in adapters for _ in range(each)]

    def _steering(
        self, adapter: SteeringAdapter | None, spec: DecoderSpec | None = None
    ) -> list[Any] | None:
        """One packed steering or None a layer; packed again where a parameter changed."""
        if adapter is None:
            return None
        spec = self._spec if spec is None else spec
        assert spec is not None
        tensors = [*adapter.parameters(), *adapter.buffers()]
        key = (
            spec.dtype,
            *map(version, tensors),
        )
        known = self._packed.get(adapter)
        if known is not None and known[0] == key:
            return known[1]
        steering: list[Any] = [None] * len(spec.layers)
        layers: Any = adapter.layers
        for index, layer in layers.items():
            packed = native.pack_steering(
                layer.down.detach().cpu(),
                layer.down_bias.detach().cpu(),
                layer.up.detach().cpu(),
                layer.static.detach().cpu(),
                layer.scale.detach() * layer.sigma,
                dtype=spec.dtype,
                activation=adapter.config.activation,
                norm_preserving=adapter.config.norm_preserving,
                eps=adapter.config.eps,
            )
            steering[int(index)] = packed.compiled
        self._packed[adapter] = (key, steering)
        return steering


@contextmanager
def _looked_at(model: Any) -> Iterator[None]:
    """For a forward that only looks at the model: unsteered, and it leaves no trace.

    Qwen-VL notes down offsets at every forward; the prompt's own must outlive ours.
    """
    base = vars(getattr(model, "base_model", model))
    kept = base.get("rope_deltas")
    try:
        with unsteered(model):
            yield
    finally:
        if "rope_deltas" in base:
            base["rope_deltas"] = kept
