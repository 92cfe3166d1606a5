"""The two files of a saved adapter, which may come from strangers.

What they declare is checked against their contents before memory is allocated for any of it.
"""

import errno
import hashlib
import stat
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from dive.data.study import TARGETS
from dive.errors import DiveError
from dive.errors.checks import is_whole
from dive.files.atomic import identity
from dive.files.input import open_file, read_file
from dive.files.strict_json import parse, short

MAX_SETTINGS_BYTES = 16 << 20  # the trainer writes some 30 kB
MAX_WEIGHTS_BYTES = 4 << 30  # rank 128 in 120 layers of width 16,384 takes half of it
MAX_HEADER_BYTES = 4 << 20
MAX_LAYERS, MAX_HIDDEN = 2048, 1 << 20

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip

Kind = tuple[Callable[[Any], bool], str]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _lists(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _is_date(value: Any) -> bool:
    try:
        return date.fromisoformat(value).isoformat() == value
    except (TypeError, ValueError):
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _from(least: int, most: int) -> Kind:
    return (
        lambda value: is_whole(value) and least <= value <= most,
        f"a whole number from {least} to {most:,}",
    )


_TEXT: Kind = (_is_text, "a text")
_TABLE: Kind = (lambda value: isinstance(value, dict), "an object")
_COUNT = _from(0, 1 << 53)

# the metadata that is read, by its path in the file; all but the first may be null or absent
_FIELDS: dict[str, Kind] = {
    "backbone": _TABLE,
    "backbone.architecture": _TEXT,
    "backbone.model_type": _TEXT,
    "backbone.name": _TEXT,
    "backbone.revision": _TEXT,
    "backbone.attn_implementation": _TEXT,
    "backbone.vocab_size": _from(1, 1 << 31),
    "weights": _TABLE,
    "weights.each": _from(1, 64),
    "weights.samples": _TEXT,
    "weights.made_up": (_lists(is_whole), "a list of whole numbers"),
    "weights.tuners": (_lists(_is_text), "a list of texts"),
    "weights.tuner_samples": _TEXT,
    "weights.folded": (lambda value: isinstance(value, bool), "true or false"),
    "prompt": (lambda value: _is_text(value) and bool(value.strip()), "a text that is not blank"),
    "target": (lambda value: _is_text(value) and value in TARGETS, "one of " + ", ".join(TARGETS)),
    "max_image_tokens": _from(1, 1 << 31),
    "template": (
        lambda value: _is_text(value) and ("{%" in value or "{{" in value),
        "the text of a Jinja template",
    ),
    "template_hash": _TEXT,
    "template_text_hash": _TEXT,
    "template_conversation": _TEXT,
    "template_date": (_is_date, "a date as 2024-07-26"),
    "end_token_id": _COUNT,
    "eos_token_ids": (_lists(is_whole), "a list of whole numbers"),
    "distillation": _TABLE,
    "distillation.sources": (_lists(_is_text), "a list of texts"),
    "distillation.studies": _COUNT,
    "distillation.validation_studies": _COUNT,
    "distillation.steps": _COUNT,
    "distillation.seconds": (_is_number, "a number"),
    "distillation.visual_share": (_is_number, "a number"),
    "distillation.backbone": _TABLE,
    "distillation.backbone.name": _TEXT,
    "distillation.config": _TABLE,
    "distillation.config.preset": _TEXT,
    "distillation.decision_share": (_is_number, "a number"),
    "distillation.config.decisive": _TEXT,
    "distillation.config.decisive_unit": _TEXT,
    "distillation.config.class_floor": (_is_number, "a number"),
    "distillation.config.polarity": _TEXT,
    **{
        f"distillation.config.{name}_weight": (_is_number, "a number")
        for name in ("ce", "kd", "align", "pathology", "eos")
    },
}
_NEEDED: dict[str, Kind] = {
    "backbone.hidden_size": _from(1, MAX_HIDDEN),
    "backbone.num_layers": _from(1, MAX_LAYERS),
}


def check_regular_file(path: Path) -> None:
    """Raises DiveError for a dangling link, or anything else that is not a regular file.

    (A socket cannot even be opened to see what it is.)
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            nowhere = f"that leads nowhere ({error.strerror})"
            why = "to itself" if error.errno == errno.ELOOP else nowhere
            raise DiveError(f"{path} is a symbolic link {why}, want a regular file") from error
        raise DiveError(f"{path}: cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in _KINDS if test(mode)), "no file")
        raise DiveError(f"{path} is {kind}, want a regular file")


def read_settings(
    path: Path, wanted_format: int
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Reads the entries "steering", "metadata" and "weights_sha256" of `adapter_config.json`.

    Older files lack the last.

    Raises:
        DiveError: not a regular file, too large, not strict JSON, of another format, or a field of
            the metadata of the wrong kind. Names the file and the field.
    """
    try:
        text = read_file(path, MAX_SETTINGS_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DiveError(f"{path}: not readable as JSON: {error}") from error
    settings = parse(text, str(path))
    if not isinstance(settings, dict) or "steering" not in settings:
        raise DiveError(f"{path}: no entry 'steering', so this is not an adapter written by dive")
    found = settings.get("format")
    if not is_whole(found) or found != wanted_format:
        raise DiveError(
            f"{path}: format is {short(found)}, this version of dive reads {wanted_format}"
        )
    steering, metadata = settings["steering"], settings.get("metadata")
    if not isinstance(steering, dict):
        raise DiveError(f"{path}: steering is {short(steering)}, want an object")
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict):
        raise DiveError(f"{path}: metadata is {short(metadata)}, want an object")
    for name, kind in (_FIELDS | _NEEDED).items():
        _check(path, name, kind, _value(metadata, name), name in _NEEDED)
    digest = settings.get("weights_sha256")
    if digest is not None and not isinstance(digest, str):
        raise DiveError(f"{path}: weights_sha256 is {short(digest)}, want a text")
    return steering, metadata, digest


def check_pair(
    config: Path, weights: Path, before: tuple[int, ...] | None, digest: str | None
) -> None:
    """Raises DiveError where the two files are of different adapters.

    before: the `identity` of `config` when it was read; digest: of `weights`, as stored in it.
    """
    with open_file(weights) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if identity(config) != before or (digest is not None and digest != found):
        raise DiveError(
            f"{config.parent}: {config.name} and {weights.name} are of two adapters (a save is "
            "under way, one was copied here, or the weights were changed without save_pretrained)"
        )


def check_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], settings: str) -> None:
    """Checks by header and size that `adapter.safetensors` holds exactly these float32 tensors.

    None of them is read.

    Raises:
        DiveError: names the file and the tensor. `settings`: name of the file that declares them.
    """
    try:
        header, size = _header(path)
    except OSError as error:
        raise _unreadable(path, error.strerror or error) from error
    header.pop("__metadata__", None)
    if shapes.keys() != header.keys():
        name = sorted(shapes.keys() ^ header.keys())[0]
        state = "is missing" if name in shapes else f"is not part of {settings}"
        raise DiveError(f"{path}: tensor {checked_name(name)} {state}")
    held = 0
    for name, shape in shapes.items():
        entry = header[name] if isinstance(header[name], dict) else {}
        dtype, given = entry.get("dtype"), entry.get("shape")
        if dtype != "F32" or given != list(shape) or any(map(lambda n: type(n) is bool, given)):
            known = _DTYPES.get(dtype) if isinstance(dtype, str) else None
            raise DiveError(
                f"{path}: tensor {name} is {f'torch.{known}' if known else short(dtype)} "
                f"{short(given)}, want torch.float32 {list(shape)} by {settings}"
            )
        count = 1
        for one in shape:
            count *= one
        held += 4 * count
    if held != size:
        raise _unreadable(path, f"{size:,} bytes of numbers, and its header declares {held:,}")


def checked_name(name: str) -> str:
    """A tensor's name, quoted and shortened where it is too long or not printable."""
    return name if len(name) <= 80 and name.isprintable() else short(name)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the number of bytes after it."""
    with open_file(path) as file:
        whole = file.seek(0, 2)
        if whole > MAX_WEIGHTS_BYTES:
            raise DiveError(f"{path} holds {whole:,} bytes; the limit is {MAX_WEIGHTS_BYTES:,}")
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if whole < 8 or length > whole - 8:
            raise _unreadable(path, f"{whole:,} bytes, and a header of {length:,}")
        if length > MAX_HEADER_BYTES:
            raise _unreadable(path, f"a header of {length:,} bytes; limit {MAX_HEADER_BYTES:,}")
        text = file.read(length)
    try:
        header = parse(text.decode("utf-8"), f"{path}: the header")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from error
    if not isinstance(header, dict):
        raise _unreadable(path, "its header is not an object")
    return header, whole - 8 - length


def _unreadable(path: Path, why: object) -> DiveError:
    return DiveError(f"{path}: not a readable safetensors file: {why}")


def _value(metadata: dict[str, Any], name: str) -> Any:
    value: Any = metadata
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check(path: Path, name: str, kind: Kind, value: Any, needed: bool) -> None:
    fits, wanted = kind
    if (value is not None or needed) and not fits(value):
        raise DiveError(f"{path}: metadata.{name} is {short(value)}, want {wanted}")
