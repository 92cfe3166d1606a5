"""Loading of a frozen backbone with its processor."""

import inspect
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import is_flash_attn_2_available, is_torchvision_available

from dive.backbone.config_check import check_settings
from dive.backbone.image_processor import processor_without_video
from dive.backbone.processor_check import with_model_settings
from dive.backbone.structure import (
    computes_on,
    decoder,
    unwrap,
)
from dive.errors import DiveError, checks
from dive.files.input import open_file, read_file
from dive.files.pickles import refusal

logger = logging.getLogger("dive")

_TEXTS = (".json", ".jinja", ".txt", ".model")  # files that are read whole
_MAX_TEXT = 512 << 20  # the largest tokenizer of today has 35 MB


@dataclass
class Backbone:
    """A frozen model and its processor (for a text model: its tokenizer).

    The model may be in wrappers (PEFT, torch.compile); `dive.backbone.structure.unwrap` looks
    through them.
    """

    model: PreTrainedModel
    processor: Any

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def device(self) -> torch.device:
        """The device of the inputs (under a device_map that of the embeddings)."""
        embeddings: Any = unwrap(self.model).get_input_embeddings()
        return computes_on(embeddings)

    @property
    def dtype(self) -> torch.dtype:
        return unwrap(self.model).dtype

    @property
    def image_token_id(self) -> int | None:
        """The token whose embedding an image feature replaces; None for a text model."""
        return getattr(unwrap(self.model).config, "image_token_id", None)


@torch.inference_mode(False)  # gradients flow through its weights later
def load_backbone(
    path: str | PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str | None = "auto",
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    device_map: Any = None,
    quantization_config: Any = None,
    **hf: Any,
) -> Backbone:
    """A vision-language or text model from a folder or the hub, frozen and in eval mode.

    dtype: "auto" is the checkpoint's own; else a torch dtype or its name ("bfloat16").
    device: "auto" is the GPU where there is one. Give either `device` or `device_map`.
    attn_implementation: "auto" is flash attention where it is installed, the device is a GPU and
        the model's masks are causal; else the default of transformers (sdpa). The choice is
        logged. Models with bidirectional attention among image tokens (Gemma 3, PaliGemma) never
        get flash attention, which would silently make their image block causal.
    Anything else goes to `from_pretrained` of the model.

    Raises:
        DiveError: no such folder, an unknown or unsuitable model, weights that are missing,
            a vision-language model without its processor files.
    """
    source = source_of(path)
    shared = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    if device_map is not None and device != "auto":
        raise DiveError("load_backbone: give either device or device_map, not both")
    where = _device(device)
    with reported(source, "config"):
        config = AutoConfig.from_pretrained(source, **shared)
    auto = auto_class(source, config)
    if attn_implementation == "auto":
        cuda = where.type == "cuda"
        attn_implementation = _attention(auto, config, cuda)
    options = {**hf, "attn_implementation": attn_implementation}
    quantised = quantization_config or getattr(config, "quantization_config", None)
    if device_map is not None or quantised is not None:
        # quantised weights are made on their device and cannot be moved there afterwards
        options["device_map"] = device_map if device_map is not None else {"": where}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    with reported(source, "model"):
        model, info = auto.from_pretrained(
            source,
            config=config,
            dtype=_dtype(dtype),
            output_loading_info=True,
            **shared,
            **{"ignore_mismatched_sizes": True, **options},  # `_check_loaded` names them
        )
    if hf.get("ignore_mismatched_sizes"):
        info["mismatched_keys"] = ()
    _check_loaded(source, model, info)
    if "device_map" not in options:
        model = model.to(where)
    model.eval().requires_grad_(False)
    logger.info(
        "%s: %s in %s on %s, attention %s",
        source,
        type(model).__name__,
        str(model.dtype).removeprefix("torch."),
        model.device,
        model.config._attn_implementation,
    )
    processor = _processor(source, config, auto, shared)
    check_settings(source, model, getattr(processor, "tokenizer", processor))
    if getattr(processor, "image_processor", None) is not None:
        processor = with_model_settings(processor, model)
    return Backbone(model, processor)


def load_tokenizer(path: str | PathLike[str]) -> Any:
    """The tokenizer of a backbone, without its weights.

    Raises:
        DiveError: no such folder, or it holds no tokenizer.
    """
    source = source_of(path)
    with reported(source, "tokenizer"):
        return AutoTokenizer.from_pretrained(source)


def source_of(path: str | PathLike[str]) -> str:
    """The path of a folder with a config.json, or the name of a repository on the hub."""
    folder = checks.path("backbone", path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DiveError(f"{folder}: {_what_else(folder)}")
        _check_files(folder)
        return str(folder)
    name = str(path)
    is_path = checks.is_path(path) or name[:1] in ("/", ".", "~") or name.count("/") > 1
    if is_path or folder.exists():
        raise DiveError(f"{path}: is no folder, want that of a backbone")
    return name


def _check_files(folder: Path) -> None:
    """Raise DiveError for a file that loaders would wait for without end (a pipe), or too large."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in (*_TEXTS, ".safetensors", ".bin") or not path.exists():
            continue
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
        if path.suffix in _TEXTS and size > _MAX_TEXT:
            raise DiveError(f"{path} holds {size:,} bytes; the limit is {_MAX_TEXT:,}")


def _what_else(folder: Path) -> str:
    """Describe a folder without a model's config.json."""
    if not (folder / "adapter_config.json").is_file():
        return "no config.json here, so this is not a saved model"
    if (folder / "adapter.safetensors").is_file():
        return (
            "a steering adapter, and no model; give its backbone's folder, and this one as adapter"
        )
    return _of_peft(folder)


def _is_peft_alone(folder: Path) -> bool:
    """Return whether a folder holds PEFT's adapter and no weights of a model."""
    weights = [path for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind)]
    models = [path for path in weights if not path.name.startswith("adapter_model")]
    return (folder / "adapter_config.json").is_file() and not models


def _of_peft(folder: Path) -> str:
    """Describe a folder that holds a PEFT adapter alone."""
    try:
        found = json.loads(read_file(folder / "adapter_config.json", 1 << 24))
        base, kind = found.get("base_model_name_or_path"), found.get("peft_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = kind = None
    return (
        f"a PEFT adapter ({kind or 'of unknown type'}) of the base model {base or '(not named)'}, "
        "and no model; load that one, put the adapter on it with peft.PeftModel.from_pretrained, "
        "and give model and processor"
    )


@contextmanager
def reported(source: str, what: str) -> Iterator[None]:
    """Turn errors of transformers' loaders into one clear line."""
    try:
        yield
    except DiveError:
        raise
    except SafetensorError as error:
        raise DiveError(f"{source}: the weights are not readable safetensors: {error}") from error
    except Exception as error:
        if what == "model" and _is_peft_alone(Path(source)):
            raise DiveError(f"{source}: {_of_peft(Path(source))}") from error
        # for missing, damaged or unsuitable files transformers and the classes that it builds
        # may raise any error
        message = refusal(error, Path(source)) or " ".join(str(error).split())
        if not message or isinstance(error, (LookupError, AssertionError)):
            message = f"{type(error).__name__}: {message}".rstrip(": ")
        raise DiveError(f"{source}: cannot load the {what}: {message}") from error


def auto_class(source: str, config: Any) -> Any:
    remote = getattr(config, "auto_map", None) or {}
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if type(config) in auto._model_mapping or auto.__name__ in remote:
            return auto
    raise DiveError(
        f"{source}: model_type {config.model_type!r} is neither an image-text-to-text nor a causal "
        "language model of transformers"
    )


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DiveError(f"load_backbone: device is {device!r}, want auto, cpu, cuda ...") from error
    if where.type == "cuda" and not (where.index or 0) < torch.cuda.device_count():
        raise DiveError(
            f"load_backbone: device is {device!r}, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices here"
        )
    return where


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise DiveError(
            f"load_backbone: dtype is {dtype!r}, want auto, bfloat16, float16, float32 ..."
        )
    return found


def _attention(auto: Any, config: Any, cuda: bool) -> str | None:
    """Choose flash attention only where it is known to compute the model's own masks."""
    if not cuda or not is_flash_attn_2_available() or type(config) not in auto._model_mapping:
        return None
    model_class = auto._model_mapping[type(config)]
    return None if _both_ways(model_class, config) else "flash_attention_2"


def _both_ways(model_class: Any, config: Any) -> bool:
    """Return whether some tokens attend to later ones, by token types or a flag of the config."""
    text = config.get_text_config(decoder=True)
    inputs = inspect.signature(model_class.forward).parameters
    rope = getattr(text, "rope_parameters", None) or {}
    # the Qwen-VL line takes mm_token_type_ids too, but for its three-dimensional positions
    return (
        "token_type_ids" in inputs
        or ("mm_token_type_ids" in inputs and "mrope_section" not in rope)
        or bool(getattr(text, "use_bidirectional_attention", False))
    )


def _check_loaded(source: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raise DiveError for missing weights of the decoder or the head, or of a whole other part.

    Single ones elsewhere are a warning: checkpoints may lack layers that a model never runs.
    """
    for name, *shapes in info.get("mismatched_keys") or ():
        stored, wanted = (list(shape) for shape in shapes)
        raise DiveError(
            f"{source}: {name} is {stored} in the checkpoint, want {wanted} by config.json"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    missing = sorted(info.get("missing_keys") or ())
    head = model.get_output_embeddings()
    needed = [decoder(model)] if head is None else [decoder(model), head]
    fatal = sorted(
        {names[id(parameter)] for part in needed for parameter in part.parameters()} & {*missing}
    )
    for part in model.base_model.children():
        whole = {names[id(parameter)] for parameter in part.parameters()}
        if whole <= {*missing}:
            fatal += sorted(whole)
    if fatal:
        raise DiveError(f"{source}: the checkpoint lacks {len(missing)} weights ({fatal[0]} ...)")
    if missing:
        logger.warning(
            "%s: %d weights are not in the checkpoint and stay random: %s ...",
            source,
            len(missing),
            missing[0],
        )


def _processor(source: str, config: Any, auto: Any, shared: dict[str, Any]) -> Any:
    if auto is AutoModelForCausalLM:
        with reported(source, "tokenizer"):
            processor = AutoTokenizer.from_pretrained(source, **shared)
        _check_tokenizer(source, processor)
        return processor
    with reported(source, "processor"):
        if is_torchvision_available():
            processor = AutoProcessor.from_pretrained(source, **shared)
        else:
            processor = processor_without_video(source, config, shared)
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise DiveError(
                f"{source}: no {part.replace('_', ' ')}; a vision-language backbone needs its "
                "processor's files (processor_config.json or preprocessor_config.json, tokenizer)"
            )
    _check_tokenizer(source, processor.tokenizer)
    return processor


def _check_tokenizer(source: str, tokenizer: Any) -> None:
    """Raise DiveError for missing files, of which some classes make an empty tokenizer."""
    files = [name for name in tokenizer.vocab_files_names.values() if isinstance(name, str)]
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in files):
        raise DiveError(
            f"{source}: no tokenizer's files ({', '.join(sorted(set(files)))}) are here"
        )
