"""The steering adapter: what is learned, and how it is saved and loaded.

On disk an adapter is a folder with `adapter_config.json` (settings, the backbone it belongs to and
the trainer's metadata) and `adapter.safetensors` (parameters in float32). Nothing is pickled.
"""

import hashlib
import json
import math
import os
import warnings
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dive import __version__
from dive.adapter.config import CONFIG_FILE, FORMAT, WEIGHTS_FILE, SteeringConfig
from dive.adapter.files import check_pair, check_regular_file, check_weights, read_settings
from dive.adapter.numbers import check_numbers
from dive.backbone.fingerprint import difference, fingerprint
from dive.backbone.structure import backbone_facts, unwrap
from dive.errors import DiveError, checks
from dive.files.atomic import check_folder, identity, remove_leftovers, write_together
from dive.files.lock import hold_folder
from dive.files.strict_json import short

# fields that must be equal in the backbone of training and that of use; None (unknown) matches any
MUST_MATCH = ("architecture", "model_type", "hidden_size", "num_layers", "vocab_size", "revision")
_WAIT = 10.0  # seconds to wait for another save into the same folder
_WRAPPERS = ("OptimizedModule", "PeftM", "DistributedDataParallel", "DataParallel")


class LayerSteering(nn.Module):
    """The edit of one decoder layer: R vectors mixed by the hidden state, a fixed one and a scale.

    A new one is the identity: `up` and `static` are zero. `scale` is s and `sigma` the typical
    RMS of this layer's hidden states (set by `dive.training.calibration`); the operator is given
    their product.
    """

    def __init__(self, hidden_size: int, config: SteeringConfig) -> None:
        super().__init__()
        self.config = config
        rank = config.rank
        # with rank 0 these are empty, and an optimiser must not be given an empty parameter
        self.down = nn.Parameter(
            torch.randn(rank, hidden_size) / math.sqrt(hidden_size), requires_grad=rank > 0
        )
        self.down_bias = nn.Parameter(torch.zeros(rank), requires_grad=rank > 0)
        self.up = nn.Parameter(torch.zeros(hidden_size, rank), requires_grad=rank > 0)
        self.static = nn.Parameter(torch.zeros(hidden_size))
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.sigma: Tensor
        self.register_buffer("sigma", torch.tensor(1.0))

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Edits `hidden` [..., D] and keeps its dtype; `mask` [...] bool selects the positions."""
        from dive import ops

        return ops.steer(
            hidden,
            self.down,
            self.down_bias,
            self.up,
            self.static,
            self.scale * self.sigma,
            mask=mask,
            activation=self.config.activation,
            norm_preserving=self.config.norm_preserving,
            eps=self.config.eps,
        )


class SteeringAdapter(nn.Module):
    """One `LayerSteering` for each steered decoder layer of one backbone.

    adapter = SteeringAdapter(SteeringConfig(rank=16), backbone)
    with dive.steer(backbone, adapter): ...

    `layers` maps str(layer index) to its module; parameters are float32 whatever the backbone's
    dtype. `metadata` may hold any JSON values; its entry "backbone" describes the backbone.
    Initial values come from torch's global generator: `torch.manual_seed` repeats them.
    """

    def __init__(self, config: SteeringConfig, backbone_or_model: Any) -> None:
        super().__init__()
        model = unwrap(backbone_or_model)
        known = {"backbone": backbone_facts(model), "weights": fingerprint(model)}
        self._assemble(config, known)

    def _assemble(
        self,
        config: SteeringConfig,
        metadata: dict[str, Any],
        device: str = "cpu",
        name: str | Path = "SteeringConfig",
    ) -> None:
        if not isinstance(config, SteeringConfig):
            raise DiveError(f"SteeringAdapter: config is {config!r}, want a SteeringConfig")
        self.config = config
        self.metadata = metadata
        backbone = metadata["backbone"]
        count = backbone["num_layers"]
        indices = range(count) if config.layers == "all" else config.layers
        if max(indices) >= count:
            raise DiveError(
                f"{name}: layers names {max(indices)}, but the backbone has the layers "
                f"0 to {count - 1}"
            )
        # float32 and on this device whatever torch's defaults are at this moment
        with torch.device(device), torch.inference_mode(False):
            self.layers = nn.ModuleDict(
                {str(i): LayerSteering(backbone["hidden_size"], config).float() for i in indices}
            )

    def num_parameters(self) -> int:
        """The number of learned parameters (scalars)."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def check_backbone(self, backbone_or_model: Any) -> None:
        """Refuses a backbone that is not the adapter's own.

        Warns where it is the same model with other weights (with a LoRA in one of them, say).

        Raises:
            DiveError: names the first field that differs, or the tensor of the adapter whose
                values are not finite or too large (`dive.adapter.numbers`).
        """
        check_numbers(self)
        model = unwrap(backbone_or_model)
        mine, theirs = self.metadata["backbone"], backbone_facts(model)
        for field in MUST_MATCH:
            trained, given = mine.get(field), theirs.get(field)
            if field == "architecture" and str(trained).startswith(_WRAPPERS):
                continue  # saved before dive unwrapped these
            if trained is not None and given is not None and trained != given:
                raise DiveError(
                    f"this adapter belongs to another backbone: {field} is {given!r} here and was "
                    f"{trained!r} where the adapter was made ({mine.get('name') or 'unnamed'})"
                )
        found = difference(self.metadata.get("weights"), fingerprint(model))
        if found is not None:
            warnings.warn(
                f"the backbone: {found}; the adapter may do nothing or harm", stacklevel=2
            )

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes the folder, also over an older one, whose two files never mix with the new ones.

        A process that is killed between the two leaves a folder without settings, which is not
        loaded as an adapter. A save into the same folder at the same time is waited for.

        Raises:
            DiveError: the folder cannot be written, or another process (a training, say) holds it
                for longer than 10 seconds.
        """
        folder = checks.path("folder", folder)
        check_folder(folder)
        with hold_folder(folder, wait=_WAIT):
            self.write_held(folder)

    def write_held(self, folder: Path) -> None:
        """Writes the folder as `save_pretrained` does, for a caller that holds its lock."""
        settings = {
            "format": FORMAT,
            "dive_version": __version__,
            "steering": asdict(self.config),
            "metadata": self.metadata,
        }
        try:
            json.dumps(settings, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DiveError(f"adapter.metadata is not plain JSON: {error}") from error
        weights = self._weights_file()
        settings["weights_sha256"] = hashlib.sha256(weights).hexdigest()
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            remove_leftovers(folder / name)
        write_together({folder / WEIGHTS_FILE: weights, folder / CONFIG_FILE: text.encode("utf-8")})

    def weights_sha256(self) -> str:
        """The sha256 of the adapter.safetensors that `save_pretrained` writes, as 64 hex digits."""
        return hashlib.sha256(self._weights_file()).hexdigest()

    def _weights_file(self) -> bytes:
        """The bytes of adapter.safetensors."""
        return save(
            {
                name: tensor.detach().to("cpu", torch.float32).contiguous().clone()
                for name, tensor in self.state_dict().items()
            }
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Steering adapter",
    ) -> str:
        """Uploads what `save_pretrained` writes, with a model card; see `dive.adapter.hub.push`."""
        from dive.adapter.hub import push

        return push(self, repo_id, private, token, revision, commit_message)

    @classmethod
    @torch.inference_mode(False)  # real parameters, also for a caller in inference mode
    def from_pretrained(
        cls,
        folder_or_hub_id: str | PathLike[str],
        *,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Self:
        """Reads what `save_pretrained` wrote, from a folder or a repository on the hub.

        device: where the parameters go; None leaves them on the CPU.

        Raises:
            DiveError: no such folder or repository, or its files are not those of an adapter.
        """
        config_file = _find(folder_or_hub_id, CONFIG_FILE, revision, token)
        weights_file = _find(folder_or_hub_id, WEIGHTS_FILE, revision, token)
        before = identity(config_file)
        steering, metadata, digest = read_settings(config_file, FORMAT)
        config = _config_of(config_file, steering)
        adapter = cls.__new__(cls)
        nn.Module.__init__(adapter)
        # no memory is allocated before the file is known to hold the tensors
        adapter._assemble(config, metadata, device="meta", name=config_file)
        shapes = {name: tuple(one.shape) for name, one in adapter.state_dict().items()}
        check_weights(weights_file, shapes, config_file.name)
        try:
            tensors = load_file(weights_file)
        except (SafetensorError, OSError) as error:
            raise DiveError(f"{weights_file}: not a readable safetensors file: {error}") from error
        # copies, as the tensors that were read are mapped from the file
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        adapter.load_state_dict(copies, assign=True)
        check_numbers(adapter, str(weights_file))
        check_pair(config_file, weights_file, before, digest)
        return adapter if device is None else adapter.to(device)


def as_adapter(given: Any, name: str = "adapter") -> SteeringAdapter:
    """Returns an adapter as it is, or loads the one of a folder or hub id.

    name: of the argument, for the DiveError about any other value.
    """
    if isinstance(given, SteeringAdapter):
        return given
    if checks.names_a_path(given):
        return SteeringAdapter.from_pretrained(given)
    if isinstance(given, SteeringConfig):
        raise DiveError(
            f"{name} is a SteeringConfig, which has no weights, want a SteeringAdapter (of "
            "dive.distill), or the folder of one"
        )
    what = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
    raise DiveError(
        f"{name} is {what}, want a SteeringAdapter (its from_pretrained reads one), or the "
        "folder of one"
    )


def _find(source: str | PathLike[str], name: str, revision: str | None, token: Any) -> Path:
    folder = checks.path("adapter", source)
    if folder.is_dir():
        if not os.path.lexists(folder / name):
            raise DiveError(f"{folder}: no {name} here, so this is not a saved adapter")
        check_regular_file(folder / name)
        return folder / name
    is_path = checks.is_path(source) or str(source).startswith(("~", ".", "/"))
    if folder.exists() or is_path or str(source).count("/") != 1:
        raise DiveError(f"{source}: is no folder, want that of an adapter")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(source), name, revision=revision, token=token))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DiveError(f"{source}: no such folder, and not on the hub: {reason}") from error


def _config_of(path: Path, steering: dict[str, Any]) -> SteeringConfig:
    odd = sorted(steering.keys() - {field.name for field in fields(SteeringConfig)})
    if odd:
        raise DiveError(f"{path}: unknown settings in 'steering': {short(odd)}")
    try:
        return SteeringConfig(**steering)
    except DiveError as error:
        raise DiveError(f"{path}: {error}") from error
