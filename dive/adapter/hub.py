"""Sharing an adapter: the model card, and the upload to a repository of the hub."""

import json
import re
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive.adapter.config import CONFIG_FILE
from dive.errors import DiveError
from dive.errors.private import public_name, public_source
from dive.errors.visible import visible
from dive.files.atomic import write_text

if TYPE_CHECKING:
    from dive.adapter.adapter import SteeringAdapter

# datasets that are handed out to named people under an agreement, as `Study.origin` names them
CREDENTIALED = {
    "mimic-cxr": "MIMIC-CXR (PhysioNet's credentialed data use agreement)",
    "chexpert-plus": "CheXpert Plus (Stanford AIMI's data use agreement)",
}


def credentialed(adapter: "SteeringAdapter") -> list[str]:
    """The printable names of those of the adapter's datasets that are under an agreement."""
    return [CREDENTIALED[name] for name in _sources(adapter) if name in CREDENTIALED]


def model_card(adapter: "SteeringAdapter") -> str:
    """The README.md of a repository with the adapter: Markdown, with the hub's header."""
    metadata, steering = adapter.metadata, adapter.config
    backbone, training = metadata["backbone"], metadata.get("distillation") or {}
    settings = training.get("config") or {}
    name = _public_name(backbone)
    header = ["library_name: dive-mrg", "pipeline_tag: image-text-to-text"]
    header += ["tags:", "- steering-adapter", "- radiology-report-generation"]
    if name.count("/") == 1:
        header.insert(0, f"base_model: {json.dumps(name)}")
    architecture = backbone.get("architecture") or "of unknown architecture"
    revision = f", revision {backbone['revision']}" if backbone.get("revision") else ""
    facts = {
        "Backbone": f"{name} ({architecture}{revision}); frozen, not included",
        "Form": f"rank {steering.rank}, {len(adapter.layers)} layers, {steering.activation}, "
        f"positions {steering.positions}; {adapter.num_parameters():,} parameters",
        "Preset": settings.get("preset"),
        "Objective": _objective(settings),
        "Trained on": _trained_on(training),
        "Demonstrations of the teacher": training.get("demonstrations"),
        "Target": metadata.get("target"),
        "Prompt": metadata.get("prompt"),
    }
    lines = [f"| {key} | {_one_line(value)} |" for key, value in facts.items() if value]
    return "\n".join(
        [
            "---", *header, "---", "",
            "# Steering adapter for radiology reports", "",
            "**Not for clinical use.** Reports that are written with it are for research; they "
            "can be wrong, leave findings out and make findings up.", "",
            "| | |", "| --- | --- |", *lines, "",
            "## Data", "",
            _data_note(adapter), "",
            "## Use", "",
            "```python", "import dive", "",
            f"backbone = dive.load_backbone({json.dumps(name)})",
            'adapter = dive.SteeringAdapter.from_pretrained("this repository")',
            'reports = dive.generate(backbone, ["film.png"], adapter=adapter)', "```", "",
        ]
    )  # fmt: skip


def push(
    adapter: "SteeringAdapter",
    repo_id: str,
    private: bool = True,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Steering adapter",
) -> str:
    """Creates the repository if need be, and uploads settings, weights and a model card.

    A new repository is private unless `private=False`; one that exists stays as it is. Warns where
    the adapter was trained on data under an agreement. A local path of the backbone is reduced to
    its last part. Returns the URL of the commit.

    Raises:
        DiveError: the name is not allowed, no permission, no network.
    """
    from huggingface_hub import HfApi

    agreements = credentialed(adapter)
    if agreements:
        warnings.warn(
            f"this adapter was trained on {', '.join(agreements)}: it is derived from that data, "
            "and the agreement says whether and with whom it may be shared"
            + ("" if private else "; a public repository is requested"),
            stacklevel=3,
        )
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapter.save_pretrained(folder)
        _forget_paths(folder / CONFIG_FILE)
        write_text(folder / "README.md", model_card(adapter))
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
        except (OSError, ValueError) as error:  # the hub's errors are among them
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DiveError(f"{repo_id}: the adapter cannot be uploaded: {reason}") from error
    return str(getattr(commit, "commit_url", commit))


def _sources(adapter: "SteeringAdapter") -> list[str]:
    return list((adapter.metadata.get("distillation") or {}).get("sources") or [])


def _public_name(backbone: dict[str, Any]) -> str:
    return public_name(str(backbone.get("name") or "")) or "unnamed"


def _forget_paths(path: Path) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    metadata = settings["metadata"]
    for owner in (metadata, metadata.get("distillation") or {}):
        if isinstance(owner.get("backbone"), dict):
            owner["backbone"]["name"] = _public_name(owner["backbone"])
    config = (metadata.get("distillation") or {}).get("config") or {}
    if config.get("decisive"):
        config["decisive"] = public_source(config["decisive"])
    write_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _objective(settings: dict[str, Any]) -> str:
    weights = ("ce_weight", "kd_weight", "align_weight", "pathology_weight", "eos_weight")
    # a unit is noted where it is another than mentions, and then polarity changes nothing
    unit = "decisive_unit" if settings.get("decisive_unit") else "polarity"
    names = (*weights, unit, "class_floor")
    parts = [f"{name} {settings[name]}" for name in names if settings.get(name) is not None]
    if settings.get("decisive"):
        parts.append(f"decisive by {public_source(settings['decisive'])}")
    return ", ".join(parts)


def _trained_on(training: dict[str, Any]) -> str:
    counts = [
        f"{training[name]} {name}"
        for name in ("studies", "steps")
        if training.get(name) is not None
    ]
    return ", ".join(counts)


def _data_note(adapter: "SteeringAdapter") -> str:
    known, agreements = _sources(adapter), credentialed(adapter)
    if agreements:
        return (
            f"Trained on {', '.join(agreements)}. The adapter is derived from that data; no report "
            "or image is contained in it as such. Share and use it only as the agreement allows."
        )
    if known:
        return f"Trained on {', '.join(map(_one_line, known))}."
    return "Its studies do not name their dataset; whoever shares it should."


def _one_line(value: object) -> str:
    """A value escaped for a cell of a Markdown table: no cell end, link, code or HTML."""
    text = visible(" ".join(str(value).split()))
    return re.sub(r"[\\|\[\]`]", r"\\\g<0>", text).replace("<", "&lt;")
