"""`dive.evaluate_methods`: several methods against the same references, each scored once."""

from collections.abc import Mapping, Sequence
from typing import Any

from dive.errors import DiveError
from dive.metrics.bootstrap import Resampling, units_of
from dive.metrics.evaluation import add_termination, completed, scorer_of
from dive.metrics.pairs import Pairs
from dive.metrics.results import all_results
from dive.metrics.scorer import ScorerOptions


def evaluate_methods(
    methods: Mapping[str, Sequence[str]],
    references: Sequence[str],
    metrics: Sequence[str] = ("bleu", "rougeL"),
    *,
    baseline: str | None = None,
    finish_reasons: Mapping[str, Sequence[str] | None] | None = None,
    per_report: bool = False,
    patients: Sequence[str | None] | None = None,
    bootstrap: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    bootstrap_unit: str | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Score several methods against the same references: what `dive.evaluate` returns of each.

    Every list of reports is read once, however many methods are compared with it, and every model
    is loaded once, but for those of RaTEScore and GREEN, which are loaded for each method.

    Args:
        methods: name -> reports as generated, one per reference.
        references, metrics, per_report, patients, bootstrap, confidence, seed, bootstrap_unit: as
            of `dive.evaluate`.
        baseline: name of the method that all others are compared with; None: no differences.
        finish_reasons: name -> one per report; None or no entry: not known.
        options: all other arguments of `dive.evaluate`.

    Returns:
        name -> its results; those of the baseline itself have no differences. In "placeholders" the
        reports of a method are "predictions of NAME".

    Raises:
        DiveError: as `dive.evaluate`; no method, an unknown baseline, or finish reasons of an
            unknown method.
    """
    if not isinstance(methods, Mapping):
        kind = type(methods).__name__
        raise DiveError(f"methods is a {kind}, want a mapping of names to lists of texts")
    if not methods:
        raise DiveError("methods are empty, want one or more")
    named = {"baseline": [] if baseline is None else [baseline], "finish_reasons": finish_reasons}
    for what, names in named.items():
        for name in names or ():
            if name not in methods:
                known = ", ".join(map(repr, methods))
                raise DiveError(f"{what} is {name!r}, want one of {known}")
    pairs = Pairs(references)
    whats = {name: f"predictions of {name}" for name in methods}
    texts = {name: pairs.scored(own, whats[name]) for name, own in methods.items()}
    units = units_of(pairs.patients(patients), bootstrap_unit)
    resampling = None if bootstrap is None else Resampling(bootstrap, confidence, seed, units)
    lists = {whats[name]: [own] for name, own in texts.items()}
    scorer = scorer_of(pairs, lists, ScorerOptions(metrics, **options))
    measures = {name: scorer.measures(own) for name, own in texts.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, own in measures.items():
        ours = [list(own)]
        reasons = (finish_reasons or {}).get(name)
        if reasons is not None:
            add_termination(ours, [pairs.scored(reasons, f"finish_reasons of {name}")])
        theirs = None if baseline in (None, name) else [measures[str(baseline)]]
        result = all_results(ours, theirs, resampling, False)
        counts = pairs.counts([texts[name]], whats[name])
        found[name] = completed(result, ours[0], pairs, counts, per_report)
    return found
