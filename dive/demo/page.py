"""The demo's web page: `dive report` for the hospital, with the scores that only it can have."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dive.data import Study
from dive.demo.methods import PROMPT, Hospital, Outcome
from dive.demo.table import caution
from dive.page import Predictions, Training, build_page, worst_first, write_page
from dive.page.add_inside import add_inside
from dive.page.schema import Metric, Score

if TYPE_CHECKING:
    from dive.backbone.load import Backbone

_EXPLAINED = 6  # studies
_SCALE = 4  # films are drawn small
_TOY = (
    "The radiographs are drawn, the hospital is invented and the backbone is a toy: no medical "
    "model or data can be shipped with a package. Nothing here says anything about patients."
)
# scores that need the hospital's own wording, in percent in results.json
_OWN = {
    "style_f1": ("style F1", "micro over findings worded exactly as this hospital words them"),
    "concept_f1": ("concept F1", "micro over findings named in any words of any hospital"),
}


def records_of(outcome: Outcome) -> list[dict[str, Any]]:
    """The reports of a method as `dive generate` writes them, without their images."""
    return [
        {
            "id": report.id,
            "report": report.text,
            "finish_reason": report.finish_reason,
            "num_tokens": report.num_tokens,
            "prompt_tokens": report.prompt_tokens,
            "seconds": round(report.seconds, 4),
        }
        for report in outcome.reports
    ]


def write_demo_page(
    path: Path,
    backbone: "Backbone",
    hospital: Hospital,
    outcomes: Mapping[str, Outcome],
    training: Sequence[Training],
    facts: Sequence[tuple[str, str]],
) -> None:
    """Writes the page; the inside is that of the last method with an adapter.

    training: curves of the methods that were trained. facts: for the page's foot.
    """
    scores = [outcome.record for outcome in outcomes.values()]
    data = build_page(
        [_larger(study) for study in hospital.test],
        [
            Predictions(name, {record["id"]: record for record in records_of(outcome)})
            for name, outcome in outcomes.items()
        ],
        title="DIVE on a hospital the model has never seen",
        more_scores=[
            (
                Metric(key=key, label=label, variant=variant, better="higher", unit="fraction"),
                [Score(value=record[key] / 100, interval=None) for record in scores],
            )
            for key, (label, variant) in _OWN.items()
        ],
        training=training,
        notes=[_TOY, caution(scores)],
        facts=facts,
    )
    trained = [n for n, outcome in enumerate(outcomes.values()) if outcome.adapter is not None]
    if trained:
        method = trained[-1]
        adapter = list(outcomes.values())[method].adapter
        assert adapter is not None
        chosen = {index: hospital.test[index] for index in worst_first(data, method)[:_EXPLAINED]}
        add_inside(data, backbone, adapter, chosen, method, name="adapter", prompt=PROMPT)
    write_page(path, data)


def _larger(study: Study) -> Study:
    film = study.load_images()[0]
    size = film.width * _SCALE, film.height * _SCALE
    return replace(study, images=(film.resize(size, Image.Resampling.BICUBIC),))
