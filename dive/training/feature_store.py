"""Projected image features on disk: trainings after the first one run no vision tower.

An entry is one safetensors file, named by the content of a study's images, in a folder that is
named by everything else on which the features depend: the image processor and its settings, the
weights in front of the decoder, dtype, device and versions. A change of any of them changes the
name, so that a stale entry is never found. Files appear complete or not at all; any number of
processes may share a folder.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import PIL
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dive.backbone.structure import decoder, unwrap
from dive.backbone.tuners import is_tuner, state_of
from dive.data.images.digests import digest_of_image
from dive.data.images.load import LazyImage, load_rgb
from dive.data.study import Study
from dive.errors import DiveError, checks
from dive.files.atomic import check_folder, write_bytes
from dive.files.digests import of_json
from dive.files.disk import reason
from dive.prompting.prompter import Prompter

log = logging.getLogger(__name__)

_FORMAT = 3  # of the entries, and of how images are read
SETTINGS_FILE = "settings.json"


def check_cache(folder: str | Path) -> None:
    """DiveError unless features could be kept in this folder, which need not exist yet."""
    root = checks.path("cache_images", folder)
    try:
        check_folder(root)
    except DiveError as error:
        raise DiveError(f"the image cache {root} cannot be written: {error}") from error


class FeatureStore:
    """The features below `folder` for one backbone and one processor.

    Attributes:
        read, written: the numbers of entries that this process read and added.

    Raises:
        DiveError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path, prompter: Prompter) -> None:
        self.root = checks.path("cache_images", folder)
        self._settings = settings_of(prompter)
        self.folder = self.root / of_json(self._settings, 16)
        self.read = self.written = 0
        self._full = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiveError(
                f"the image cache {self.root} cannot be written: {reason(error, self.root)}"
            ) from error

    @property
    def proved(self) -> bool:
        """Whether features under these settings were verified to replace pixels."""
        return (self.folder / SETTINGS_FILE).is_file()

    def prove(self) -> None:
        """Store that they were verified, and the settings, which explain the folder to a reader."""
        text = json.dumps(self._settings, indent=1) + "\n"
        self._write(self.folder / SETTINGS_FILE, text.encode("utf-8"))

    def get(self, key: str) -> dict[str, Any] | None:
        """The features under this key on the CPU; None if there are none that can be read."""
        path = self._path(key)
        try:
            tensors = load(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("image cache: %s cannot be read and is made anew: %s", path, error)
            return None
        self.read += 1
        return _nested(tensors)

    def put(self, key: str, features: dict[str, Any]) -> None:
        """Store the features. A full disk is reported once, and does not stop the training."""
        flat = {name: tensor.contiguous() for name, tensor in _flat(features)}
        self.written += self._write(self._path(key), save(flat))

    def _write(self, path: Path, data: bytes) -> bool:
        try:
            write_bytes(path, data)
        except DiveError as error:
            if not self._full:
                self._full = True
                log.warning("image cache: %s; the training goes on without", error)
            return False
        return True

    def summary(self) -> str:
        """Entries read and added, and their size on the disk, in one line."""
        sizes = [path.stat().st_size for path in self.folder.glob("*/*.safetensors")]
        everything = sum(p.stat().st_size for p in self.root.glob("*/*/*.safetensors"))
        return (
            f"image cache {self.root}: {self.read} studies read, {self.written} added; "
            f"{len(sizes)} entries of {sum(sizes) / 1e6:.1f} MB for this backbone and processor, "
            f"{everything / 1e6:.1f} MB in all"
        )

    def _path(self, key: str) -> Path:
        # some file systems are slow to list 200,000 files in one folder
        return self.folder / key[:2] / f"{key}.safetensors"


def settings_of(prompter: Prompter) -> dict[str, Any]:
    """Everything but the image itself on which features depend, as JSON values.

    Raises:
        DiveError: weights in front of the decoder are offloaded, so they cannot be identified.
    """
    backbone = prompter.backbone
    model: Any = unwrap(backbone)
    config = json.loads(model.config.to_json_string(use_diff=False))
    for name in ("text_config", "_name_or_path", "transformers_version"):
        config.pop(name, None)
    processor, images = prompter.processor, prompter.processor.image_processor
    settings = {
        "format": _FORMAT,
        "versions": {
            "torch": str(torch.__version__),
            "transformers": str(transformers.__version__),
            "Pillow": str(PIL.__version__),
        },
        "processor": [type(processor).__name__, type(images).__name__, images.to_dict()],
        "budget": prompter.image_settings,
        "model": [type(model).__name__, config],
        "weights": _weights_before_decoder(model),
        "dtype": str(backbone.dtype),
        "device": backbone.device.type,
    }
    return json.loads(json.dumps(settings, default=str, sort_keys=True))


def _weights_before_decoder(model: Any) -> str:
    """A digest of the weights of vision tower and projector. The name of a revision would not do:
    folders have none, and two revisions may share these weights."""
    heads = (decoder(model), model.get_output_embeddings())
    behind = {id(p) for module in heads if module is not None for p in module.parameters()}
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        if id(tensor) in behind:
            continue
        if tensor.device.type == "meta":
            raise DiveError(
                f"cache_images: {name} is offloaded, and a cache on disk is named by the weights; "
                "keep the vision tower on a device, or use cache_images=true"
            )
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(data.numpy()))
    for name, module in sorted(model.named_modules(), key=lambda pair: pair[0]):
        if is_tuner(module) and not any(id(p) in behind for p in module.parameters()):
            digest.update(f"{name} {state_of(module)}\n".encode())
    return digest.hexdigest()


def key_of(study: Study) -> str:
    """A digest of the content of a study's images, in their order."""
    named = zip(study.images, study.image_names, strict=True)
    return of_json([_content(image, study.where, name) for image, name in named], 64)


def _content(image: Path | Image.Image | LazyImage, where: str, name: str) -> str:
    def of_pixels(given: Image.Image) -> str:
        film = load_rgb(given, where, name=name)
        return hashlib.sha256(f"{film.size}".encode() + film.tobytes()).hexdigest()

    return digest_of_image(image, where, name, of_pixels)


def _flat(value: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """The tensors of nested dicts and lists with their paths: ("pooler_output/0", tensor) ..."""
    if isinstance(value, Tensor):
        return [(name, value)]
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return [
        one for key, part in parts for one in _flat(part, f"{name}/{key}" if name else str(key))
    ]


def _nested(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The inverse of `_flat`; names of digits are indices of a list."""
    groups: dict[str, Any] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition("/")
        if rest:
            groups.setdefault(first, {})[rest] = tensor
        else:
            groups[first] = tensor
    return {name: _as_list(value) for name, value in groups.items()}


def _as_list(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value
    inner = _nested(value)
    return [inner[index] for index in sorted(inner, key=int)]
