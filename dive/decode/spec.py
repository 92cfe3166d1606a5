"""A text decoder's sizes, settings and weights, read from the model for `dive._C.Engine`.

`read_decoder` looks at the modules themselves (their weights, sizes, windows, norms), and at the
config only for what no module has. An unknown decoder is refused with a reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dive.backbone.structure import decoder, output_head, text_config, unwrap
from dive.decode import native
from dive.decode.model_check import (
    Unsupported,
    check_alike,
    check_modules,
    layers_of,
    path_to,
    window_of,
)
from dive.errors import DiveError

# text decoders (config.model_type) whose forward the engine computes
FAMILIES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen2_vl_text": "Qwen2-VL",
    "qwen2_5_vl_text": "Qwen2.5-VL",
    "qwen3": "Qwen3",
    "gemma3_text": "Gemma 3",
}
GATES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
DTYPES = {  # of the weights, by their device type
    "cpu": {torch.float32: "float32", torch.bfloat16: "bfloat16"},
    "cuda": {
        torch.float32: "float32",
        torch.bfloat16: "bfloat16",
        torch.float16: "float16",
    },
}
# types whose tables do not depend on the length of the sequence
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: its attention window and the modules whose weights are used."""

    module: Any
    window: int  # positions that attention sees, the own one included; 0: all
    rope: int  # index into DecoderSpec.rope_types
    four_norms: bool  # norms before and after attention and MLP

    def linears(self) -> dict[str, nn.Module]:
        attention, mlp = self.module.self_attn, self.module.mlp
        return {
            "query": attention.q_proj,
            "key": attention.k_proj,
            "value": attention.v_proj,
            "output": attention.o_proj,
            "gate": mlp.gate_proj,
            "up": mlp.up_proj,
            "down": mlp.down_proj,
        }

    def norms(self) -> dict[str, nn.Module | None]:
        layer, attention = self.module, self.module.self_attn
        own = {
            "before_attention": layer.input_layernorm,
            "after_attention": None,
            "before_mlp": layer.post_attention_layernorm,
            "after_mlp": None,
            "query_norm": getattr(attention, "q_norm", None),
            "key_norm": getattr(attention, "k_norm", None),
        }
        if self.four_norms:
            own["after_attention"] = layer.post_attention_layernorm
            own["before_mlp"] = layer.pre_feedforward_layernorm
            own["after_mlp"] = layer.post_feedforward_layernorm
        return own


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder that the engine can run.

    family: its common name; dtype and device: of weights and KV cache; context: longest sequence
    in tokens, or None.
    rope_types: the layer types that `rotary_emb` distinguishes, or (None,) where there is one.
    """

    family: str
    dtype: torch.dtype
    device: torch.device
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int
    context: int | None
    norm_eps: float
    norm_plus_one: bool
    attention_scale: float
    logits_softcap: float
    embedding_scale: float
    gate: str
    rope_types: tuple[str | None, ...]
    layers: tuple[LayerSpec, ...]
    text: Any  # the module that owns the layers
    path: str  # its name in the model
    head: Any  # the output embeddings

    @property
    def engine_device(self) -> str:
        """The device in the terms of `dive._C`: "cpu", or "cuda:" and a number."""
        if self.device.type == "cpu":
            return "cpu"
        return f"{self.device.type}:{self.device.index or 0}"

    def weights(self) -> Iterator[Tensor]:
        """Every tensor that the engine reads in place, always in the same order."""
        yield self.text.embed_tokens.weight
        yield self.head.weight
        yield self.text.norm.weight
        if self.head.bias is not None:
            yield self.head.bias
        for layer in self.layers:
            for linear in layer.linears().values():
                yield linear.weight  # type: ignore[misc]
                if linear.bias is not None:
                    yield linear.bias  # type: ignore[misc]
            for norm in layer.norms().values():
                if norm is not None:
                    yield norm.weight  # type: ignore[misc]

    def ropes(self, positions: int) -> list[dict[str, Tensor]]:
        """cos and sin tables, float32 [positions, rotated width / 2], by the model's own module."""
        return [self._rope(name, positions) for name in self.rope_types]

    @torch.no_grad()
    def _rope(self, layer_type: str | None, positions: int) -> dict[str, Tensor]:
        position_ids = torch.arange(positions, device=self.device)[None]
        # in float32, so that the tables are not rounded to the model's dtype
        x = torch.zeros(1, 1, 1, device=self.device)
        if "mrope_section" in (getattr(self.text.config, "rope_parameters", None) or {}):
            # the three coordinates are equal in generated text
            position_ids = position_ids.expand(3, 1, positions)
        if layer_type is None:
            cos, sin = self.text.rotary_emb(x, position_ids)
        else:
            cos, sin = self.text.rotary_emb(x, position_ids, layer_type)
        tables = []
        for table in (cos, sin):
            table = table.reshape(-1, positions, table.shape[-1])[0]
            half = table.shape[-1] // 2
            if not torch.equal(table[:, :half], table[:, half:]):
                raise Unsupported("its rotary embedding does not rotate the two halves of a head")
            tables.append(table[:, :half].float().contiguous())
        return {"cos": tables[0], "sin": tables[1]}

    def engine_arguments(self, positions: int) -> dict[str, Any]:
        """The argument of `dive._C.Engine`: sizes, and the model's own tensors.

        positions: length of the rotary tables.
        """

        def linear(module: Any) -> tuple[Tensor, Tensor | None]:
            bias = module.bias
            return module.weight.detach(), None if bias is None else bias.detach()

        def norm(module: Any) -> Tensor | None:
            return None if module is None else module.weight.detach()

        return {
            "device": self.engine_device,
            "dtype": DTYPES[self.device.type][self.dtype],
            "width": self.width,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_width": self.head_width,
            "mlp_width": self.mlp_width,
            "norm_eps": self.norm_eps,
            "norm_plus_one": self.norm_plus_one,
            "attention_scale": self.attention_scale,
            "attention_softcap": 0.0,
            "logits_softcap": self.logits_softcap,
            "embedding_scale": self.embedding_scale,
            "gate": self.gate,
            "embedding": (self.text.embed_tokens.weight.detach(), None),
            "head": linear(self.head),
            "final_norm": norm(self.text.norm),
            "ropes": self.ropes(positions),
            "layers": [
                {
                    "window": layer.window,
                    "rope": layer.rope,
                    **{name: linear(module) for name, module in layer.linears().items()},
                    **{name: norm(module) for name, module in layer.norms().items()},
                }
                for layer in self.layers
            ],
        }


def read_decoder(backbone_or_model: Any) -> DecoderSpec:
    """The spec of a model's text decoder.

    Raises:
        Unsupported: why the engine cannot run it.
    """
    model = unwrap(backbone_or_model)
    try:
        return _decoder_spec(model)
    except Unsupported:
        raise
    except AttributeError as error:
        raise Unsupported(
            f"{type(model).__name__} is not built as transformers builds it ({error})"
        ) from None
    except DiveError as error:
        name = f"{type(model).__name__}: "
        raise Unsupported(name + str(error).removeprefix(name)) from None


def _decoder_spec(model: Any) -> DecoderSpec:
    text: Any = decoder(model)
    config = text_config(model)
    family = FAMILIES.get(config.model_type)
    if family is None or not type(text).__module__.startswith("transformers.models."):
        raise Unsupported(
            f"its text decoder is a {type(text).__name__} ({config.model_type}); known are "
            + ", ".join(FAMILIES.values())
        )
    head: Any = model.get_output_embeddings()
    path = path_to(model, text)
    check_modules(model, path, head)
    check_alike(text)
    _check_device(text.embed_tokens.weight.device)
    if getattr(config, "use_bidirectional_attention", False):
        raise Unsupported("its text attends in both directions")
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise Unsupported(
            "its attention has a soft-cap"
        )  # which Gemma 3's config has and its forward ignores
    rope_types = _rope_types(config)
    layers = tuple(
        _layer(config, module, i, rope_types) for i, module in enumerate(layers_of(text))
    )
    first = layers[0].module.self_attn
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in GATES:
        raise Unsupported(f"its MLP's activation is {activation}; known are " + ", ".join(GATES))
    embedding = text.embed_tokens
    scale = getattr(embedding, "embed_scale", None)
    spec = DecoderSpec(
        family=family,
        dtype=embedding.weight.dtype,
        device=embedding.weight.device,
        width=embedding.weight.shape[1],
        heads=first.q_proj.weight.shape[0] // first.head_dim,
        kv_heads=first.k_proj.weight.shape[0] // first.head_dim,
        head_width=first.head_dim,
        mlp_width=layers[0].module.mlp.gate_proj.weight.shape[0],
        vocabulary=head.weight.shape[0],
        context=getattr(config, "max_position_embeddings", None),
        norm_eps=config.rms_norm_eps,
        norm_plus_one=_norm_plus_one(text.norm, config.rms_norm_eps),
        attention_scale=float(first.scaling),
        logits_softcap=float(output_head(model).softcap or 0.0),
        # rounded to the weights' dtype, as by the embedding
        embedding_scale=1.0 if scale is None else float(scale.to(embedding.weight.dtype)),
        gate=GATES[activation],
        rope_types=rope_types,
        layers=layers,
        text=text,
        path=path,
        head=head,
    )
    _check_weights(spec)
    return spec


def _rope_types(config: Any) -> tuple[str | None, ...]:
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = {k: v for k, v in parameters.items() if isinstance(v, dict)}
    for one in by_layer.values() if by_layer else [parameters]:
        if one.get("rope_type", "default") not in ROPE_TYPES:
            raise Unsupported(
                f"its rotary embedding is of type {one.get('rope_type')}; known are "
                + ", ".join(ROPE_TYPES)
            )
    if not by_layer:
        return (None,)
    return tuple(sorted(set(config.layer_types)))


def _layer(config: Any, module: Any, index: int, rope_types: tuple[str | None, ...]) -> LayerSpec:
    attention, mlp = module.self_attn, module.mlp
    for name, linear in {
        **{f"self_attn.{n}_proj": getattr(attention, f"{n}_proj") for n in "qkvo"},
        **{f"mlp.{n}_proj": getattr(mlp, f"{n}_proj") for n in ("gate", "up", "down")},
    }.items():
        if type(linear) is not nn.Linear:
            raise Unsupported(
                f"layers.{index}.{name} is a {type(linear).__name__}, not a plain linear layer "
                "(quantised weights and added adapters run in transformers)"
            )
    types = getattr(config, "layer_types", None)
    kind = types[index] if types else None
    if kind not in (None, "full_attention", "sliding_attention"):
        raise Unsupported(f"layers.{index} is of the type {kind}")
    return LayerSpec(
        module=module,
        window=window_of(config, index) or 0,
        rope=rope_types.index(kind) if rope_types != (None,) else 0,
        four_norms=hasattr(module, "pre_feedforward_layernorm"),
    )


@torch.no_grad()
def _norm_plus_one(norm: Any, eps: float) -> bool:
    """Whether the norm multiplies by 1 + weight (Gemma) or by weight, by its output."""
    weight = norm.weight.float()
    x = torch.linspace(0.5, 1.5, weight.shape[0], device=weight.device)
    got = norm(x.to(norm.weight.dtype)).float()
    x = x * torch.rsqrt(x.square().mean() + eps)
    tolerance = 0.02 if norm.weight.dtype != torch.float32 else 1e-5
    for plus in (0.0, 1.0):
        if torch.allclose(got, x * (plus + weight), rtol=tolerance, atol=tolerance):
            return plus == 1.0
    raise Unsupported(f"its norm, a {type(norm).__name__}, is no known RMSNorm")


def _check_device(device: torch.device) -> None:
    if device.type not in DTYPES:
        raise Unsupported(f"its weights are on {device}; known are " + ", ".join(DTYPES))
    if device.type == "cuda" and not (native.build_info() or {}).get("cuda"):
        raise Unsupported(f"its weights are on {device}, and dive._C was built without CUDA")


def _check_weights(spec: DecoderSpec) -> None:
    devices = {str(weight.device): weight.device for weight in spec.weights()}
    if len(devices) > 1:
        raise Unsupported(f"its weights are on {', '.join(sorted(devices))}, want one device")
    _check_device(spec.device)
    dtypes = DTYPES[spec.device.type]
    if spec.dtype not in dtypes:
        raise Unsupported(
            f"its weights are {spec.dtype}; known on {spec.device.type} are "
            + ", ".join(dtypes.values())
        )
    norms = {id(spec.text.norm.weight)}
    for layer in spec.layers:
        norms |= {id(norm.weight) for norm in layer.norms().values() if norm is not None}
    for weight in spec.weights():
        if weight.dtype != spec.dtype and not (
            id(weight) in norms and weight.dtype == torch.float32
        ):
            raise Unsupported(f"its weights are of {spec.dtype} and {weight.dtype}, want one dtype")
        if weight.stride(-1) != 1:
            raise Unsupported("a weight's last dimension is not contiguous")
