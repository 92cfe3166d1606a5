"""The fingerprint of a training: whatever decides what is learnt, as JSON values.

It is kept with the checkpoints. An unfinished training goes on only under the same fingerprint, and
most of it is kept in the adapter's metadata.
"""

import hashlib
import operator
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from dive.adapter.adapter import SteeringAdapter
from dive.data.films import films_of, name_of
from dive.data.study import Study
from dive.errors import checks
from dive.errors.private import public_source
from dive.files.digests import of_json
from dive.lexicon import lexicon_version
from dive.prompting.model_digest import computation_digests
from dive.prompting.prompter import DEFAULT_PROMPTS, Prompter
from dive.prompting.templates import difference
from dive.training.config import DistillConfig
from dive.training.selection import Selection

FINGERPRINT_FILE = "run.json"

# What no adapter needs to know; the facts about its template are in its metadata anyway.
_NOT_IN_ADAPTERS = ("unreadable", "films")

# How a training is run and monitored: none of it reaches the adapter, so it may differ before and
# after an interruption.
_FREE = {
    "logging_steps", "eval_steps", "save_steps", "workers", "gradient_checkpointing",
    "validation_hash",
}  # fmt: skip


# Settings that did not always exist, with the values by which a training is what it was without
# them: then they are left out, so that an unfinished one of an earlier version goes on.
_ADDED = {"decisive_unit": "mention", "class_floor": 0.0}


def settings_fingerprint(
    config: DistillConfig, target: str, prompt: str | None, max_image_tokens: int | None
) -> dict[str, Any]:
    """The part of the fingerprint that is known before the backbone or any study is read."""
    settings = asdict(config)
    for name, value in _ADDED.items():
        if settings[name] == value:
            del settings[name]
    return {
        # where features are kept changes nothing, and paths of this machine are private
        "config": settings
        | {"cache_images": bool(config.cache_images), "decisive": public_source(config.decisive)},
        "prompt": DEFAULT_PROMPTS.get(target) if prompt is None else prompt,
        "target": target,
        "max_image_tokens": max_image_tokens,
    }


def model_fingerprint(
    prompter: Prompter, adapter: SteeringAdapter, annotator: Any = None
) -> dict[str, Any]:
    """The part of the fingerprint that the backbone and the annotator decide.

    annotator: finds the pathology in reports; None: the lexicon does.
    """
    tuners = adapter.metadata["weights"]["tuner_samples"]
    return {
        "backbone": adapter.metadata["backbone"],
        **prompter.template.metadata(),
        "peft_hash": None if tuners is None else hashlib.sha256(tuners.encode()).hexdigest()[:16],
        **computation_digests(prompter),
        "decisive_hash": lexicon_version()
        if annotator is None
        else of_json(getattr(annotator, "identity", annotator.source)),
    }


def studies_fingerprint(
    selection: Selection, target: str, unreadable: Collection[str] = ()
) -> dict[str, Any]:
    """The part of the fingerprint that the studies decide.

    unreadable: ids of studies whose image files may have been repaired since.

    Raises:
        DiveError: a study lacks a report.
    """

    def digest(studies: Sequence[Study]) -> str:
        parts = [
            [study.id, study.report(target), study.indication or "", study.patient or ""]
            + [name_of(image) for image in study.images]
            for study in studies
        ]
        return of_json(parts, 16)

    studies, shown = selection.studies, selection.demonstrations
    learnt = digest(studies)
    films = films_of(studies, unreadable)
    if shown is None:
        pool = None
    elif len(shown.pool) == len(studies) and all(map(operator.is_, shown.pool, studies)):
        pool = learnt  # drawn from the studies; a digest of many takes seconds
    else:
        pool = digest(shown.pool)
        shows = films_of(shown.pool, unreadable)
        films |= {f"demonstration {key}": film for key, film in shows.items()}
    return {
        "studies_hash": learnt,
        "validation_hash": digest(selection.validation) if selection.validation else None,
        "demonstrations": None if shown is None else shown.count or len(shown.pool),
        "demonstrations_hash": pool,
        "films": films,
    }


def for_metadata(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The part of a fingerprint that is kept in an adapter's metadata."""
    return {
        name: value
        for name, value in fingerprint.items()
        if name not in _NOT_IN_ADAPTERS and not name.startswith("template_")
    }


# messages for digests, whose values mean nothing to a reader
_DIGESTS = {
    "studies_hash": "other studies to learn from (ids, reports, indications, patients or images)",
    "demonstrations_hash": "other demonstrations",
    "peft_hash": "other layers of PEFT's (LoRA) at work",
    "weights_hash": "other weights of the backbone",
    "config_hash": "other settings of the backbone (its config.json)",
    "processor_hash": "another tokenizer or image processor",
    "decisive_hash": "other annotations (or another lexicon) to find decisive tokens by",
}


# messages for fields whose values do not explain themselves
_WORDS = {
    "cache_images": "another choice of cache_images (--image-cache): features move last bits of "
    "what is learnt",
}


def _short(value: Any) -> str:
    """The value in one short line."""
    return checks.shown(value) if isinstance(value, str) else reprlib.repr(value)


# what fingerprints of earlier versions lack
_NOTED_SINCE = {
    "dtype", "device", "ranks", "versions", "weights_hash", "config_hash", "processor_hash",
    "decisive_hash",
}  # fmt: skip


def differences(earlier: Any, now: dict[str, Any]) -> list[str]:
    """The fields in which an earlier fingerprint differs from this one, in words, such as
    "rank 8 (now 4)"."""
    if not isinstance(earlier, dict):
        return ["no description"]
    found = []
    if "template_hash" in now:
        known = isinstance(earlier.get("template_hash"), str)
        other = difference(earlier, now) if known else "it does not say which"
        found += [] if other is None else [f"another chat template ({other})"]
    for name in now:
        old, new = earlier.get(name), now[name]
        if old == new or name in _FREE or name == "films" or name.startswith("template_"):
            continue
        if name not in earlier and name in _NOTED_SINCE:
            found.append(f"no word on its {name} (an earlier version of dive began it)")
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new)
        elif isinstance(new, dict):
            found.append(f"a damaged {FINGERPRINT_FILE} ({name} is {reprlib.repr(old)})")
        else:
            was = f"{name} {_short(old)} (now {_short(new)})"
            found.append(_DIGESTS.get(name, _WORDS.get(name, was)))
    return found
