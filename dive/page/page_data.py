"""`build_page`: from references and the predictions of several methods to the data of the page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dive import __version__
from dive.data import Study, check_target
from dive.errors import DiveError
from dive.errors.counting import counted, listed
from dive.lexicon import default_lexicon
from dive.page.films import FilmOptions, Films, films_of
from dive.page.notes import notes_of
from dive.page.outcomes import OUTCOMES, Reading, in_words, outcomes, pieces, read
from dive.page.predictions import Predictions, mean, text_of
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
from dive.page.scores import Scores, scores_of, with_more


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
        notes, facts: more for the head of the page, and [what, value] for its foot.
        evaluation: further arguments of `dive.evaluate` (normalization, radgraph, seed ...).

    Raises:
        DiveError: no method, a name or id that comes twice, a prediction for no study here, an
            unknown baseline, no study that every method has a report for, and what `dive.evaluate`
            raises.
    """
    _check(studies, predictions)
    images = images or FilmOptions()
    images.check(studies)
    references = [_reference(study, target) for study in studies]
    scored = _scored(studies, references, predictions)
    scores = _scores(
        [studies[index] for index in scored],
        [references[index] for index in scored],
        predictions,
        baseline,
        metrics,
        bootstrap if len(scored) > 1 else None,
        **evaluation,
    )
    scores = with_more(scores, more_scores)
    if bootstrap and not scores.bootstrap:
        notes = [*notes, "One study is scored, and of one there is no interval."]
    readings = _Readings(references, predictions)
    shown = [readings.study(study, references[i], predictions) for i, study in enumerate(studies)]
    films = films_of(studies, images)
    _add_films(shown, films)
    _add_own_scores(shown, scored, scores)
    return PageData(
        format=FORMAT,
        version=__version__,
        title=title,
        notes=[*notes, *notes_of(studies, references, predictions, films, scores.bootstrap)],
        target=target,
        bootstrap=scores.bootstrap,
        methods=[_method(one, [study.id for study in studies]) for one in predictions],
        findings=readings.findings(shown, scored, len(predictions)),
        metrics=scores.metrics,
        scores=scores.scores,
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
    """The reference, "" where the study has none: it is shown, and a note says so."""
    check_target(target)
    study.check()
    try:
        return study.report(target)
    except DiveError:
        return ""


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
    bootstrap: int | None,
    **evaluation: Any,
) -> Scores:
    """The scores of all methods on these studies."""
    records = {one.name: [one.records[study.id] for study in studies] for one in predictions}
    return scores_of(
        {name: [text_of(record) for record in own] for name, own in records.items()},
        references,
        predictions[0].name if baseline is None else baseline,
        metrics,
        finish_reasons={name: _finish_reasons(own) for name, own in records.items()},
        patients=[study.patient for study in studies],
        bootstrap=bootstrap,
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
        reports = (text_of(record) for one in predictions for record in one.records.values())
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
            own = self._of[text_of(record)]
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
                cls=classes[name],
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


def _add_films(shown: list[StudyData], films: Films) -> None:
    for entry, own in zip(shown, films.by_study, strict=True):
        entry["images"] = own


def _add_own_scores(shown: list[StudyData], scored: Sequence[int], scores: Scores) -> None:
    for position, number in enumerate(scored):
        for report, columns in zip(shown[number]["reports"], scores.per_report, strict=True):
            assert report is not None
            # neither side states a finding: an F1 of 0 would call a right report wrong
            unstated = not report["found"]
            report["scores"] = {
                name: None if unstated and name.startswith("finding_") else values[position]
                for name, values in columns.items()
            }


def _method(one: Predictions, ids: Sequence[str]) -> Method:
    records = [one.records[name] for name in ids if name in one.records]
    reasons = [record.get("finish_reason") for record in records]
    return Method(
        name=one.name,
        file=one.file,
        prompt_tokens=mean(record.get("prompt_tokens") for record in records),
        seconds=mean(record.get("seconds") for record in records),
        ended=None if None in reasons else mean(float(reason == "eos") for reason in reasons),
        reports=len(records),
    )
