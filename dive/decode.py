"""DecodeSession: the text decoder run by `dive._C`, one call a token, steering included.

    session = DecodeSession(backbone, adapter)
    session.generate(**inputs, max_new_tokens=200)
    model.generate(**inputs, max_new_tokens=200, custom_generate=session)     # the same

Hugging Face's model reads the prompt and its images; the session takes over the cache and writes
the answer. What it cannot do it hands to transformers with the adapter attached, and says so.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GENERATION_MODES_MAPPING

from dive import extension
from dive.adapter import SteeringAdapter
from dive.attach import attachment_of, steer
from dive.decode_limits import EMBEDS, config_reason, input_reason, keyword_reason
from dive.decoder_spec import DecoderSpec, Unsupported, check_modules, read
from dive.errors import DiveError
from dive.structure import decoder, unwrap

log = logging.getLogger(__name__)

_POSITIONS = 512  # tables of cos and sin grow by so many


class Plan(NamedTuple):
    """Which code decodes, "dive._C" or "transformers", and why or how."""

    engine: str
    reason: str


class DecodeSession:
    """Decodes for one model. It holds no state from one call to the next but bound weights.

    adapter: steers prompt and answer; None takes what `dive.steer` has attached, if anything.
    The weights are used where they lie: memory holds them once. Training, moving or replacing them
    between two calls is noticed. Not to be used by two threads at once.
    """

    def __init__(self, backbone_or_model: Any, adapter: SteeringAdapter | None = None) -> None:
        self.model: Any = unwrap(backbone_or_model)
        self.adapter = adapter
        if adapter is not None:
            adapter.check_backbone(self.model)
        self._spec: DecoderSpec | None = None
        self._engine: Any = None
        self._weights: tuple[Any, ...] = ()
        self._positions = 0
        self._packed: tuple[Any, list[Any]] = (None, [])
        self._said: set[str] = set()

    def plan(self, **generate_kwargs: Any) -> Plan:
        """Which engine would run `generate(**generate_kwargs)`, and why."""
        given = generate_kwargs.get("generation_config") or self.model.generation_config
        config = GenerationConfig(**given.to_dict())
        config.update(**{k: v for k, v in generate_kwargs.items() if hasattr(config, k)})
        reason = self._bind() or keyword_reason(generate_kwargs) or config_reason(config)
        if reason is None and generate_kwargs.get("inputs_embeds") is not None:
            reason = EMBEDS
        if reason is not None:
            return Plan("transformers", reason)
        assert self._spec is not None
        info = extension.build_info() or {}
        dtype = str(self._spec.dtype).removeprefix("torch.")
        return Plan("dive._C", f"a {self._spec.family} decoder in {dtype} on {info.get('isa')}")

    def generate(self, *args: Any, streamer: Any = None, **kwargs: Any) -> Any:
        """`model.generate` with the same arguments, decoded by this session where it can.

        transformers gives a `custom_generate` function no streamer; here it gets the tokens.
        """
        plan = self.plan(**kwargs)
        if plan.engine != "dive._C":
            self._say(plan.reason)
            with self._steered():
                return self.model.generate(*args, streamer=streamer, **kwargs)
        self._streamer = streamer
        try:
            return self.model.generate(*args, streamer=streamer, custom_generate=self, **kwargs)
        finally:
            self._streamer = None

    _streamer: Any = None

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
        streamer = self._streamer if streamer is None else streamer
        reason = (
            self._bind()
            or config_reason(generation_config)
            or input_reason(input_ids, model_kwargs, synced_gpus)
            or self._attachment_reason()
        )
        if reason is not None:
            self._say(reason)
            more = {} if streamer is None else {"streamer": streamer}
            return self._by_transformers(
                input_ids,
                processors,
                criteria,
                generation_config,
                synced_gpus=synced_gpus,
                **more,
                **model_kwargs,
            )
        run = _Run(self, input_ids, processors, criteria, generation_config, streamer)
        run.check_context(model_kwargs)
        with self._steered() as adapter:
            scores = run.prefill(model_kwargs, self._steering(adapter))
        return run.decode(scores)

    # which engine

    def _bind(self) -> str | None:
        """Makes the engine ready, anew where the model changed; returns why it cannot be."""
        module = extension.load()
        if module is None:
            return "dive._C is not built here"
        try:
            if self._spec is not None and self._weights == _signature(self.model, self._spec):
                check_modules(self._spec.text, self._spec.head)
                return None
        except Unsupported as error:
            return str(error)
        except AttributeError:
            pass  # a module was replaced by one of another kind: read again
        self._engine = self._spec = None
        try:
            with _rope_deltas_kept(self.model):
                spec = read(self.model)
            positions = _POSITIONS
            self._engine = module.Engine(spec.describe(positions))
        except (Unsupported, ValueError) as error:
            return str(error)
        self._spec, self._positions, self._weights = spec, positions, _signature(self.model, spec)
        return None

    def _attachment_reason(self) -> str | None:
        attachment = attachment_of(self.model)
        if attachment is None or not attachment.enabled:
            return None
        return None if attachment.mask is None else "the attached adapter has a mask of positions"

    def _say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            log.info("decoding in transformers: %s", reason)

    def _by_transformers(
        self, input_ids: Tensor, processors: Any, criteria: Any, config: Any, **more: Any
    ) -> Any:
        mode = config.get_generation_mode()
        name = GENERATION_MODES_MAPPING.get(mode, "/")
        if "/" in name or mode == GenerationMode.ASSISTED_GENERATION:
            raise DiveError(
                f"{mode.value} does not go through custom_generate; call session.generate, or "
                "model.generate without the session"
            )
        with self._steered():
            return getattr(type(self.model), name)(
                self.model,
                input_ids,
                logits_processor=processors,
                stopping_criteria=criteria,
                generation_config=config,
                **more,
            )

    # steering

    @contextmanager
    def _steered(self) -> Iterator[SteeringAdapter | None]:
        """The adapter at work on the model's own forwards inside; yields it."""
        attachment = attachment_of(self.model)
        if attachment is None:
            if self.adapter is None:
                yield None
                return
            with steer(self.model, self.adapter):
                yield self.adapter
            return
        if self.adapter is None:
            yield attachment.adapter if attachment.enabled else None
            return
        if attachment.adapter is not self.adapter:
            raise DiveError("another adapter than the session's is attached to the model")
        before, attachment.enabled = attachment.enabled, True
        try:
            yield self.adapter
        finally:
            attachment.enabled = before

    def _steering(self, adapter: SteeringAdapter | None) -> list[Any] | None:
        """One packed steering or None a layer; packed again where a parameter changed."""
        if adapter is None:
            return None
        assert self._spec is not None
        tensors = [*adapter.parameters(), *adapter.buffers()]
        key = tuple((id(t), t.data_ptr(), t._version) for t in tensors)
        if self._packed[0] != key:
            steering: list[Any] = [None] * len(self._spec.layers)
            layers: Any = adapter.layers
            for index, layer in layers.items():
                packed = extension.pack_steering(
                    layer.down.detach().cpu(),
                    layer.down_bias.detach().cpu(),
                    layer.up.detach().cpu(),
                    layer.static.detach().cpu(),
                    layer.scale.detach() * layer.sigma,
                    dtype=self._spec.dtype,
                    activation=adapter.config.activation,
                    norm_preserving=adapter.config.norm_preserving,
                    eps=adapter.config.eps,
                )
                steering[int(index)] = packed.compiled
            self._packed = (key, steering)
        return self._packed[1]


class _Run:
    """One call of `generate`."""

    def __init__(
        self,
        session: DecodeSession,
        input_ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: Any,
        streamer: Any,
    ) -> None:
        assert session._spec is not None
        self.session, self.spec, self.engine = session, session._spec, session._engine
        self.processors, self.criteria, self.config = processors, criteria, config
        self.streamer = streamer
        self.input_ids = input_ids
        self.batch, self.prompt = input_ids.shape
        self.longest = criteria.max_length or config.max_length
        # what is decided here token by token; anything else is asked with all ids so far
        self.plain_stop = all(type(c) in (MaxLengthCriteria, EosTokenCriteria) for c in criteria)
        self.eos = {
            int(index)
            for criterion in criteria
            if hasattr(criterion, "eos_token_id")
            for index in criterion.eos_token_id.flatten().tolist()
        }
        self.pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)

    def check_context(self, model_kwargs: dict[str, Any]) -> None:
        mask = model_kwargs.get("attention_mask")
        self.pad = [0] * self.batch if mask is None else (mask == 0).sum(-1).tolist()
        context = self.spec.context
        longest = self.prompt - min(self.pad)
        new = self.longest - self.prompt
        if context is not None and longest + new > context:
            raise DiveError(
                f"a prompt of {longest} tokens and {new} new ones pass the model's context of "
                f"{context}"
            )

    def prefill(self, model_kwargs: dict[str, Any], steering: list[Any] | None) -> Tensor:
        """Runs the model on the prompt and takes its cache over; float32 logits after it [B, V]."""
        model = self.session.model
        inputs = model.prepare_inputs_for_generation(
            self.input_ids, is_first_iteration=True, **model_kwargs
        )
        outputs = model(**inputs, return_dict=True)
        positions = self._positions(inputs)
        self._reserve(max(positions) + self.longest - self.prompt)
        layers = outputs.past_key_values.layers
        for index, layer in enumerate(layers):
            first_slot = self.prompt - layer.keys.shape[-2]  # a sliding layer keeps the last ones
            for row, pad in enumerate(self.pad):
                start = max(first_slot, pad)
                kept = slice(start - first_slot, None)
                keys, values = layer.keys[row, :, kept], layer.values[row, :, kept]
                self.engine.adopt(index, row, start - pad, keys, values)
        for row, pad in enumerate(self.pad):
            self.engine.start_row(row, self.prompt - pad, positions[row])
            self.engine.steer_row(row, steering)
        return outputs.logits[:, -1].to(copy=True, dtype=torch.float32)

    def _positions(self, inputs: dict[str, Any]) -> list[int]:
        """The rotary position of each row's next token."""
        positions = inputs.get("position_ids")
        if positions is None:
            return [self.prompt - pad for pad in self.pad]
        # of several coordinates (Qwen-VL) the last tokens' are equal: text follows every image
        last = positions if positions.dim() == 2 else positions[-1]
        return (last[:, -1] + 1).expand(self.batch).tolist()

    def _reserve(self, positions: int) -> None:
        session = self.session
        if positions > session._positions:
            whole = -(-positions // _POSITIONS) * _POSITIONS
            self.engine.set_ropes(self.spec.ropes(whole))
            session._positions = whole
        try:
            self.engine.reserve(self.batch, self.longest - min(self.pad))
        except (RuntimeError, MemoryError) as error:
            raise DiveError(f"decoding: {error}") from None

    def decode(self, scores: Tensor) -> Tensor:
        """Tokens until every row ends; `scores` are the logits after the prompt."""
        pad_token = self.config._pad_token_tensor
        padding = 0 if pad_token is None else int(pad_token)
        sample = bool(self.config.do_sample)
        greedy = not sample and not self.processors
        ids = torch.full((self.batch, self.longest), padding, dtype=torch.long)
        ids[:, : self.prompt] = self.input_ids
        logits = None if greedy else scores.clone()
        tokens = scores.argmax(-1) if greedy else None
        rows = torch.arange(self.batch)
        alive = [True] * self.batch
        length = self.prompt
        while True:
            if tokens is None:
                assert logits is not None
                # a copy, since processors may write; of all rows, as the generator is drawn for all
                tokens = self._choose(ids[:, :length], logits.clone(), sample)
            if self.pads and rows.shape[0] < self.batch:
                tokens = torch.where(torch.tensor(alive), tokens, padding)
            ids[:, length] = tokens
            length += 1
            if self.streamer is not None:
                self.streamer.put(tokens)
            if self._stop(ids[:, :length], tokens, alive):
                break
            if self.pads and sum(alive) < rows.shape[0]:
                rows = torch.tensor([row for row, live in enumerate(alive) if live])
            whole = rows.shape[0] == self.batch
            new = torch.empty_like(rows)
            self.engine.step(tokens if whole else tokens[rows], rows, new, logits)
            if not greedy:
                tokens = None
            elif whole:
                tokens = new
            else:
                tokens = torch.full((self.batch,), padding).index_copy_(0, rows, new)
        if self.streamer is not None:
            self.streamer.end()
        return ids[:, :length].contiguous()

    def _choose(self, ids: Tensor, logits: Tensor, sample: bool) -> Tensor:
        scores = self.processors(ids, logits)  # type: ignore[arg-type]
        if not sample:
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), num_samples=1)[:, 0]

    def _stop(self, ids: Tensor, tokens: Tensor, alive: list[bool]) -> bool:
        """Marks the rows that end with these tokens; True when all have."""
        if not self.plain_stop:
            for row, done in enumerate(self.criteria(ids, None).tolist()):  # type: ignore[arg-type]
                alive[row] = alive[row] and not done
        elif self.eos:
            for row, token in enumerate(tokens.tolist()):
                if token in self.eos:
                    alive[row] = False
        return ids.shape[1] >= self.longest or not any(alive)


@contextmanager
def _rope_deltas_kept(model: Any) -> Iterator[None]:
    """Qwen-VL notes down offsets at every forward; the prompt's own must outlive ours."""
    base = vars(getattr(model, "base_model", model))
    kept = base.get("rope_deltas")
    try:
        yield
    finally:
        if "rope_deltas" in base:
            base["rope_deltas"] = kept


def _signature(model: Any, spec: DecoderSpec) -> tuple[Any, ...]:
    """The modules and weights that the engine was bound to; another one means to bind again."""
    text: Any = decoder(model)
    modules = (text, model.get_output_embeddings(), *text.layers)
    weights = tuple((id(w), w.data_ptr(), w.dtype) for w in spec.weights())
    return (tuple(map(id, modules)), weights)
