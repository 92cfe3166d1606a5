"""What a reader of a page must know first: what is missing, and what was left out."""

from collections.abc import Mapping, Sequence
from typing import Any

from dive.data import Study
from dive.errors.counting import counted, listed
from dive.page.films import Films
from dive.page.predictions import Predictions, number_of, text_of


def notes_of(
    studies: Sequence[Study],
    references: Sequence[str],
    predictions: Sequence[Predictions],
    films: Films,
    bootstrap: Mapping[str, Any] | None,
) -> list[str]:
    """The notes on these studies and methods, in sentences.

    bootstrap: its settings, as `dive.evaluate` returns them; None: there was none.
    """
    notes = [note for one in predictions for note in _of_method(one, studies)]
    empty = [study.id for study, text in zip(studies, references, strict=True) if not text.strip()]
    if empty:
        notes.append(
            f"{counted(len(empty), 'reference')} without a text, shown and not scored: "
            f"{listed(empty)}."
        )
    unknown = (bootstrap or {}).get("patients_unknown", 0)
    if 0 < unknown < len(studies):
        notes.append(
            f"{counted(unknown, 'scored study')} of no known patient: intervals are of reports "
            "drawn anew, and too narrow where patients have several."
        )
    return notes + _of_films(films)


def _of_method(one: Predictions, studies: Sequence[Study]) -> list[str]:
    notes = []
    lost = [study.id for study in studies if study.id not in one.records]
    if lost:
        notes.append(
            f"{one.name} has no report for {counted(len(lost), 'study')}: {listed(lost)}. "
            "Scores are of the studies that every method has a report for."
        )
    records = list(one.records.values())
    blank = [id for id, record in one.records.items() if not text_of(record).strip()]
    if blank:
        notes.append(
            f"{one.name} has {counted(len(blank), 'empty report')}, scored as the worst: "
            f"{listed(blank)}."
        )
    for key, words in (("prompt_tokens", "prompt length"), ("seconds", "time per report")):
        known = sum(number_of(record.get(key)) is not None for record in records)
        given = sum(record.get(key) is not None for record in records)
        if given and known < len(records):
            notes.append(
                f"{one.name}: no {words}, because {key} is no number in "
                f"{len(records) - known} of {counted(len(records), 'record')}."
            )
    reasons = sum(record.get("finish_reason") is not None for record in records)
    if 0 < reasons < len(records):
        notes.append(
            f"{one.name}: no share of reports that the model ended, because "
            f"{len(records) - reasons} of {counted(len(records), 'record')} have no finish_reason."
        )
    return notes


def _of_films(films: Films) -> list[str]:
    notes = []
    if films.missing:
        notes.append(
            f"Films of {counted(len(films.missing), 'study')} are gone or cannot be read: "
            f"{listed(films.missing)}."
        )
    if films.warnings:
        count = len(films.warnings)
        notes.append(f"{counted(count, 'warning')} about films; the first: {films.warnings[0]}.")
    if films.scaled_to is not None:
        notes.append(
            f"Films are scaled down so that the page stays small, some to {films.scaled_to} "
            "pixels; beside the page they have the size asked for (--images beside)."
        )
    return notes
