"""`build_page`: from references and the predictions of several methods to the data of the page."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dive import __version__
from dive.data import Study
from dive.data.absent import is_placeholder
from dive.errors import DiveError
from dive.errors.counting import counted, listed
from dive.lexicon import default_lexicon
from dive.page.films import FilmOptions, Films, films_of
from dive.page.outcomes import OUTCOMES, Reading, in_words, outcomes, pieces, read
from dive.page.schema import (
    FORMAT,
    Finding,
    Found,
    Method,
    Metric,
    PageData,
    Report,
    Score,
    StudyData,
    Training,
)
from dive.page.scores import Scores, scores_of


@dataclass(frozen=True)
class Predictions:
    """The reports of one method.

    Attributes:
        name: of the method, on the page.
        records: study id -> record of `dive generate`: "report", and where known "finish_reason",
            "prompt_tokens" and "seconds".
        file: last name of the file that they come from.
    """

    name: str
    records: Mapping[str, Mapping[str, Any]]
    file: str = ""


def build_page(
    studies: Sequence[Study],
    predictions: Sequence[Predictions],
    *,
    target: str = "findings",
    title: str = "Reports beside their references",
    metrics: Sequence[str] = ("bleu", "rougeL", "findings"),
    baseline: str | None = None,
    bootstrap: int | None = 1000,
    images: FilmOptions | None = None,
    training: Sequence[Training] = (),
    more_scores: Sequence[tuple[Metric, Sequence[Score]]] = (),
    notes: Sequence[str] = (),
    facts: Sequence[tuple[str, str]] = (),
    **evaluation: Any,
) -> PageData:
    """The data of the page for these studies and methods.

    A study without a report of some method is shown and not scored, as is one without a reference;
    a note on the page says which.

    Args:
        studies: with references (`Study.report(target)`) and films; unique ids.
        predictions: one per method; unique names.
        target: "findings", "impression" or "both".
        metrics: of `dive.evaluate`; "findings" adds scores by class and by tercile.
        baseline: name of the method that the others are compared with; default the first.
        bootstrap: resamples for the intervals; None: no intervals.
        images: how films get onto the page; default `FilmOptions()`.
        training: curves (`dive.page.training_of`).
        more_scores: of the caller's own, each with one value per method; the first on the page.
        notes: more for the head of the page.
        facts: [what, value] for its foot.
        evaluation: further arguments of `dive.evaluate` (normalization, radgraph, seed ...).

    Raises:
        DiveError: no method, a name or id that comes twice, a prediction for no study here, an
            unknown baseline, no study that every method has a report for, and what `dive.evaluate`
            raises.
    """
    _check(studies, predictions)
    references = [_reference(study, target) for study in studies]
    scored = _scored(studies, references, predictions)
    scores = _scores(
        [studies[index] for index in scored],
        [references[index] for index in scored],
        predictions,
        baseline,
        metrics,
        bootstrap=bootstrap,
        **evaluation,
    )
    readings = _Readings(references, predictions)
    shown = [readings.study(study, references[i], predictions) for i, study in enumerate(studies)]
    films = films_of(studies, images or FilmOptions())
    for entry, own in zip(shown, films.by_study, strict=True):
        entry["images"] = own
    _add_own_scores(shown, scored, scores)
    return PageData(
        format=FORMAT,
        version=__version__,
        title=title,
        notes=[*notes, *_notes(studies, references, predictions, films)],
        target=target,
        bootstrap=scores.bootstrap,
        methods=[_method(one, [study.id for study in studies]) for one in predictions],
        findings=readings.findings(shown, scored, len(predictions)),
        metrics=[*(one for one, _ in more_scores), *scores.metrics],
        scores=[
            {one["key"]: values[method] for one, values in more_scores} | own
            for method, own in enumerate(scores.scores)
        ],
        differences=scores.differences,
        classes=scores.classes,
        terciles=scores.terciles,
        studies=shown,
        training=list(training),
        explained=None,
        facts=[list(fact) for fact in facts],
    )


def worst_first(data: PageData, method: int) -> list[int]:
    """Indices of the studies that this method has a report for, most errors first.

    Of equal ones the order of the references.
    """
    errors = {
        index: report["errors"]
        for index, study in enumerate(data["studies"])
        if (report := study["reports"][method]) is not None
    }
    return sorted(errors, key=lambda index: -errors[index])


def _check(studies: Sequence[Study], predictions: Sequence[Predictions]) -> None:
    if not predictions:
        raise DiveError("predictions are empty, want one method or more")
    for what, names in (
        ("method", [one.name for one in predictions]),
        ("study", [study.id for study in studies]),
    ):
        name, count = Counter(names).most_common(1)[0] if names else ("", 0)
        if count > 1:
            raise DiveError(f"the {what} {name!r} comes {count} times, want each once")
    known = {study.id for study in studies}
    for one in predictions:
        odd = [name for name in one.records if name not in known]
        if odd:
            raise DiveError(
                f"{one.name} has reports for {counted(len(odd), 'study')} without a reference: "
                f"{listed(odd)}"
            )


def _reference(study: Study, target: str) -> str:
    """The reference, "" where a word such as "nan" stands for it."""
    try:
        return study.report(target)
    except DiveError:
        if not study.placeholders.keys() & {"findings", "impression"}:
            raise
        return ""


def _text(record: Mapping[str, Any]) -> str:
    """The report of a record, "" where a missing value stands for it."""
    return "" if is_placeholder(record["report"]) else str(record["report"])


def _scored(
    studies: Sequence[Study], references: Sequence[str], predictions: Sequence[Predictions]
) -> list[int]:
    """Indices of the studies with a reference and a report of every method."""
    found = [
        index
        for index, (study, reference) in enumerate(zip(studies, references, strict=True))
        if reference.strip() and all(study.id in one.records for one in predictions)
    ]
    if not found:
        raise DiveError("no study has a reference and a report of every method")
    return found


def _scores(
    studies: Sequence[Study],
    references: Sequence[str],
    predictions: Sequence[Predictions],
    baseline: str | None,
    metrics: Sequence[str],
    **evaluation: Any,
) -> Scores:
    """The scores of all methods on these studies."""
    records = {one.name: [one.records[study.id] for study in studies] for one in predictions}
    return scores_of(
        {name: [_text(record) for record in own] for name, own in records.items()},
        references,
        predictions[0].name if baseline is None else baseline,
        metrics,
        finish_reasons={name: _finish_reasons(own) for name, own in records.items()},
        patients=[study.patient for study in studies],
        **evaluation,
    )


def _finish_reasons(records: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The reasons, or None where some report has none."""
    reasons = [record.get("finish_reason") for record in records]
    return None if None in reasons else [str(reason) for reason in reasons]


class _Readings:
    """All texts as the lexicon reads them; the findings that the references state most come first.

    Each different text is read once.
    """

    def __init__(self, references: Sequence[str], predictions: Sequence[Predictions]) -> None:
        reports = (_text(record) for one in predictions for record in one.records.values())
        self._of = {text: read(text) for text in dict.fromkeys([*references, *reports])}
        named = dict.fromkeys(m.name for reading in self._of.values() for m in reading.mentions)
        stated = Counter(name for text in references for name in self._of[text].details)
        order = sorted(named, key=lambda name: (-stated[name], name))
        self._index_of = {name: index for index, name in enumerate(order)}

    def study(self, study: Study, reference: str, predictions: Sequence[Predictions]) -> StudyData:
        """The study without its films."""
        truth = self._of[reference]
        reports: list[Report | None] = []
        for one in predictions:
            record = one.records.get(study.id)
            if record is None:
                reports.append(None)
                continue
            own = self._of[_text(record)]
            found = self._found(truth, own) if reference.strip() else []
            reason = record.get("finish_reason")
            reports.append(
                Report(
                    pieces=pieces(own, self._index_of),
                    ended=None if reason is None else reason == "eos",
                    found=found,
                    errors=sum(entry["outcome"] != "hit" for entry in found),
                    scores={},
                )
            )
        return StudyData(
            id=study.id,
            patient=study.patient,
            indication=study.indication,
            images=[],
            reference=Report(
                pieces=pieces(truth, self._index_of), ended=None, found=[], errors=0, scores={}
            ),
            reports=reports,
        )

    def findings(
        self, shown: Sequence[StudyData], scored: Sequence[int], methods: int
    ) -> list[Finding]:
        """Every finding met, in the order of its index, with its counts over the scored studies."""
        classes = {entry.name: entry.cls for entry in default_lexicon()}
        made = [
            Finding(
                name=name,
                label=name,
                cls=classes.get(name, name),
                references=0,
                counts=[dict.fromkeys(OUTCOMES, 0) for _ in range(methods)],
            )
            for name in self._index_of
        ]
        for number in scored:
            for method, report in enumerate(shown[number]["reports"]):
                assert report is not None  # scored: every method has one
                for found in report["found"]:
                    made[found["finding"]]["counts"][method][found["outcome"]] += 1
        for finding in made:
            of_one = finding["counts"][0]
            finding["references"] = sum(of_one.values()) - of_one["invented"]
        return made

    def _found(self, truth: Reading, own: Reading) -> list[Found]:
        return [
            Found(
                finding=self._index_of[name],
                outcome=outcome,
                truth=in_words(truth.details.get(name)),
                stated=in_words(own.details.get(name)),
            )
            for name, outcome in outcomes(truth, own).items()
        ]


def _add_own_scores(shown: list[StudyData], scored: Sequence[int], scores: Scores) -> None:
    for position, number in enumerate(scored):
        for report, columns in zip(shown[number]["reports"], scores.per_report, strict=True):
            assert report is not None
            report["scores"] = {name: values[position] for name, values in columns.items()}


def _method(one: Predictions, ids: Sequence[str]) -> Method:
    records = [one.records[name] for name in ids if name in one.records]
    reasons = [record.get("finish_reason") for record in records]
    return Method(
        name=one.name,
        file=one.file,
        prompt_tokens=_mean(record.get("prompt_tokens") for record in records),
        seconds=_mean(record.get("seconds") for record in records),
        ended=None if None in reasons else _mean(reason == "eos" for reason in reasons),
        reports=len(records),
    )


def _mean(values: Iterable[Any]) -> float | None:
    """The mean; None where one is missing or no finite number, or there is none."""
    given = list(values)
    if not given or not all(isinstance(one, int | float) and math.isfinite(one) for one in given):
        return None
    return float(sum(given) / len(given))


def _notes(
    studies: Sequence[Study],
    references: Sequence[str],
    predictions: Sequence[Predictions],
    films: Films,
) -> list[str]:
    notes = []
    for one in predictions:
        lost = [study.id for study in studies if study.id not in one.records]
        if lost:
            notes.append(
                f"{one.name} has no report for {counted(len(lost), 'study')}: {listed(lost)}. "
                "Scores are of the studies that every method has a report for."
            )
    empty = [study.id for study, text in zip(studies, references, strict=True) if not text.strip()]
    if empty:
        notes.append(
            f"{counted(len(empty), 'reference')} without a text, shown and not scored: "
            f"{listed(empty)}."
        )
    if films.missing:
        notes.append(
            f"Films of {counted(len(films.missing), 'study')} are gone or cannot be read: "
            f"{listed(films.missing)}."
        )
    if films.scaled_to is not None:
        notes.append(
            f"Films are scaled down, to {films.scaled_to} pixels at the least, to keep the page "
            "small; beside it they have the size asked for (--images beside)."
        )
    return notes
