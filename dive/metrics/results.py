"""From measures to the results of `dive.evaluate`: values, intervals, differences, groups, seeds.

A method is one list of measures per training seed, one list in all where nothing else was given.
Its scores are the means over its seeds. All that is resampled is scored on the same resamples:
every seed, both methods, every class and tercile.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from dive.metrics.bootstrap import Resampling, sign_p_value
from dive.metrics.finding_groups import TERCILES, FindingGroups
from dive.metrics.findings import FindingMeasure
from dive.metrics.measure import Measure
from dive.metrics.seed_spread import mean_with_both, seed_spread

Method = Sequence[Sequence[Measure]]  # [seeds][measures]


@dataclass(frozen=True)
class Scores:
    """The scores of one method.

    Attributes:
        values: name -> [seeds].
        samples: name -> [seeds, samples], on the resamples; empty without a bootstrap.
    """

    values: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]

    def mean(self, name: str) -> float:
        """The mean over seeds; NaN where it is undefined in one of them."""
        return float(self.values[name].mean())


class Scoring:
    """The scores of methods: all their measures are resampled at once, on the same draws."""

    def __init__(self, measures: Iterable[Measure], resampling: Resampling | None) -> None:
        every = list(measures)
        sampled = [] if resampling is None else resampling.scores(every)
        self._resampling = resampling
        self._samples = {id(measure): found for measure, found in zip(every, sampled, strict=False)}

    def of(self, method: Method) -> Scores:
        """The scores of the measures of every seed."""
        values, samples = [], []
        for measures in method:
            totals = [one.scores(one.statistics.sum(axis=0)) for one in measures]
            values.append({k: float(v) for found in totals for k, v in found.items()})
            drawn = [self._samples.get(id(one), {}) for one in measures]
            samples.append({k: v for found in drawn for k, v in found.items()})
        return Scores(_stacked(values), _stacked(samples))

    def results(self, ours: Scores, theirs: Scores | None) -> dict[str, Any]:
        """ "scores", and where asked for "intervals", "baseline" and "differences"."""
        found: dict[str, Any] = {"scores": {name: number(ours.mean(name)) for name in ours.values}}
        if self._resampling is not None:
            found["intervals"] = {
                name: self._resampling.interval(drawn.mean(axis=0))
                for name, drawn in ours.samples.items()
            }
        if theirs is not None:
            found["baseline"] = {name: number(theirs.mean(name)) for name in theirs.values}
            found["differences"] = {
                name: self._difference(ours, theirs, name) for name in theirs.values
            }
        return found

    def _difference(self, ours: Scores, theirs: Scores, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"difference": number(ours.mean(name) - theirs.mean(name))}
        if self._resampling is not None:
            mine, other = ours.samples[name], theirs.samples[name]
            gaps = mine.mean(axis=0) - other.mean(axis=0)
            found["interval"] = self._resampling.interval(gaps)
            found["p"] = sign_p_value(gaps)
            if len(mine) > 1 or len(other) > 1:
                both = mean_with_both(mine, self._resampling.seed, 0)
                both -= mean_with_both(other, self._resampling.seed, 1)
                found["interval_both"] = self._resampling.interval(both)
        return found

    def seeds(self, scores: Scores) -> dict[str, Any]:
        """The part "seeds": how the seeds of one method differ."""
        count = max(len(values) for values in scores.values.values())
        return {
            "count": count,
            "scores": {
                name: seed_spread(values, scores.samples.get(name), self._resampling)
                for name, values in scores.values.items()
            },
        }


def _stacked(seeds: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """name -> [seeds, ...]"""
    return {name: np.stack([one[name] for one in seeds]) for name in seeds[0]}


def number(value: float) -> float | None:
    """The value; None where it is undefined (NaN), as JSON has no other word for it."""
    return None if np.isnan(value) else float(value)


def all_results(
    ours: Method, theirs: Method | None, resampling: Resampling | None, seeds: bool
) -> dict[str, Any]:
    """The scores by name, and what follows from them; `seeds`: also how the seeds differ."""
    both: list[Method] = [ours] if theirs is None else [ours, theirs]
    groups = _Groups(both, seeds)
    scoring = Scoring(chain(*chain(*both), groups.measures()), resampling)
    scores = [scoring.of(method) for method in both]
    found = scoring.results(scores[0], None if theirs is None else scores[1])
    result: dict[str, Any] = found.pop("scores")
    if resampling is not None:
        result["bootstrap"] = resampling.settings()
    result |= found | groups.results(scoring)
    if seeds:
        result["seeds"] = scoring.seeds(scores[0])
        if theirs is not None:
            result["baseline_seeds"] = scoring.seeds(scores[1])
    return result


class _Groups:
    """The groups of findings of the methods; none where findings were not asked for."""

    def __init__(self, methods: Sequence[Method], seeds: bool) -> None:
        self._seeds = seeds
        findings = [
            [one for measures in method for one in measures if isinstance(one, FindingMeasure)]
            for method in methods
        ]
        self._findings = findings if findings[0] else []
        if not self._findings:
            return
        self._groups = groups = FindingGroups(list(chain(*findings)))
        self._classes = [[groups.by_class(one) for one in own] for own in findings]
        self._terciles = [[groups.by_tercile(one) for one in own] for own in findings]

    def measures(self) -> list[Measure]:
        """All measures of all groups."""
        if not self._findings:
            return []
        tables = chain(*self._classes, *self._terciles)
        return [measure for table in tables for measure in table.values()]

    def results(self, scoring: Scoring) -> dict[str, Any]:
        """ "classes" and "terciles"."""
        if not self._findings:
            return {}
        groups = self._groups
        classes = {
            name: {"references": count} | self._of(scoring, self._classes, name)
            for name, count in groups.classes.items()
        }
        terciles: dict[str, dict[str, Any]] = {}
        for name in TERCILES:
            findings = groups.of_tercile(name)
            counts = list(findings.values()) or [0]
            terciles[name] = {
                "findings": list(findings),
                "references": [min(counts), max(counts)],
            } | self._of(scoring, self._terciles, name)
        ours, *theirs = (self._unreferenced(own) for own in self._findings)
        terciles["unreferenced"] = ours | ({"baseline": theirs[0]} if theirs else {})
        return {"classes": classes, "terciles": terciles}

    def _unreferenced(self, measures: list[FindingMeasure]) -> dict[str, Any]:
        """What no reference states; `predicted` is the mean over seeds, as every number."""
        names, total = self._groups.unreferenced(chain(*(one.predicted for one in measures)))
        return {
            "findings": names,
            "predicted": total if len(measures) == 1 else total / len(measures),
        }

    def _of(
        self, scoring: Scoring, methods: list[list[dict[str, Measure]]], name: str
    ) -> dict[str, Any]:
        """The results of one group."""
        ours, *theirs = (scoring.of([[one[name]] for one in method]) for method in methods)
        found = scoring.results(ours, theirs[0] if theirs else None)
        return found | ({"seeds": scoring.seeds(ours)} if self._seeds else {})
