"""The facts about a distillation that an adapter keeps in its metadata."""

from typing import Any

from dive.lexicon import lexicon_version
from dive.training.fingerprint import for_metadata
from dive.training.preparation import Prepared
from dive.training.visual_weights import SOURCE


def distillation_metadata(prepared: Prepared, seconds: float) -> dict[str, Any]:
    """How the adapter of a finished training was made, as JSON values."""
    request, examples, validation = prepared.request, prepared.examples, prepared.validation
    decided = prepared.decision_share
    return for_metadata(request.fingerprint) | {
        "studies": len(examples) - len(examples.failed),
        "validation_studies": 0 if validation is None else len(validation) - len(validation.failed),
        "steps": prepared.steps,
        "seconds": round(seconds, 1),
        "sources": _sources(prepared),
        "decisive_source": _decisive_source(prepared),
        "decision_share": None if decided is None else decided.share,
        **({} if prepared.visual is None else {"visual_share": prepared.visual.share()}),
    }


def _decisive_source(prepared: Prepared) -> str:
    if prepared.visual is not None:
        return SOURCE
    annotator = prepared.request.annotator
    return f"the lexicon of dive {lexicon_version()}" if annotator is None else annotator.source


def _sources(prepared: Prepared) -> list[str]:
    """The datasets from which the adapter learnt, as far as its studies name them."""
    studies = [*prepared.examples.studies]
    studies += prepared.validation.studies if prepared.validation is not None else []
    studies += prepared.teacher.demonstrations.pool if prepared.teacher is not None else []
    return sorted({study.origin for study in studies if study.origin})
