"""The tables of docs/decisive-study.md, from the records alone.

<!-- experiment: decisive verdicts -->      every test of the protocol, its p values and its verdict
<!-- experiment: decisive arms -->          every arm: mean and standard deviation over hospitals
<!-- experiment: decisive steps -->         ranking by steps, form of steering and world
<!-- experiment: decisive exploratory -->   further differences, neither tested nor corrected
<!-- experiment: decisive floor -->         the same of the floor per class, added later
<!-- experiment: decisive records -->       the runs, their commits and machines; what is missing
<!-- experiment: decisive sentence -->      the outcome in words (sentences.py)
<!-- experiment: decisive floor sentence -->   what the floor per class does, in words
<!-- experiment: decisive secondary -->     the secondary comparisons by verdict
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean, stdev

from experiments.decisive_weights import protocol, sentences, verdicts
from experiments.decisive_weights.records import CONTROLS, Study, values
from experiments.decisive_weights.verdicts import Comparison, Result
from experiments.exact_test import as_text
from experiments.pages import items
from experiments.record_files import Record

NONE = "no confirmatory run yet"
# field: heading, digits
MEASURES = {
    "rare_auroc": ("rare AUROC", 3),
    "end_auroc": ("end AUROC", 3),
    "slot_nll": ("slot NLL", 3),
    "slot_positives": ("stated slots", 1),
    "slot_recall": ("slot recall", 3),
    "slot_precision": ("slot precision", 3),
    "rare_recall": ("rare recall %", 1),
    "rare_precision": ("rare precision %", 1),
    "style_f1": ("style F1", 1),
    "concept_f1": ("concept F1", 1),
    "bleu4": ("BLEU-4", 1),
    "early_stops": ("too early %", 1),
    "late_stops": ("too late %", 1),
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Returns a Markdown table, its first columns text and the others numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(heads) - text_columns)
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))


def size(result: Result) -> str:
    """Returns the mean difference and half of its 95% interval, in the digits of its measure."""
    return result.size(MEASURES[result.comparison.measure][1])


def hospitals(result: Result) -> str:
    """Returns in how many hospitals the difference is above 0, and of how many it is known."""
    text = f"{result.higher} of {len(result.differences)}"
    return text + (f" (of {len(protocol.CONFIRMATORY)})" if result.missing else "")


def verdict_table(study: Study) -> str:
    """Returns the table of both families; under it, what each incomplete comparison lacks."""
    if not study.part():
        return f"There is {NONE}."
    rows, missing = [], []
    for family in (verdicts.hypotheses(study), verdicts.secondary(study)):
        for name, results in family.items():
            for one in results:
                rows.append(
                    [
                        name,
                        _named(one),
                        MEASURES[one.comparison.measure][0],
                        one.verdict.value,
                        size(one),
                        hospitals(one),
                        *(
                            as_text(p) if one.differences and p else "-"
                            for p in (one.p, one.corrected)
                        ),
                    ]
                )
                missing += _missing(one)
    heads = (
        "of", "difference", "measure", "verdict", "size", "above 0", "p", "corrected",
    )  # fmt: skip
    lines = [table(heads, rows, 4)]
    if missing:
        lines += ["", items(missing)]
    return "\n".join(lines)


def secondary(study: Study) -> str:
    """Returns which secondary comparisons came to which verdict."""
    if not study.part():
        return f"There is {NONE}."
    by_word: dict[str, list[str]] = {}
    results = [one for own in verdicts.secondary(study).values() for one in own]
    for one in results:
        measure = MEASURES[one.comparison.measure][0]
        by_word.setdefault(one.verdict.value, []).append(
            f"{_named(one)} in {measure} ({size(one)})"
        )
    shown = [f"{word}: {', '.join(own)}" for word, own in by_word.items()]
    return items([f"{len(results)} secondary comparisons, corrected together.", *shown])


def _named(result: Result) -> str:
    steps, world = result.comparison.steps, result.comparison.world
    where = [f"{steps} steps"] if steps != protocol.STEPS else []
    where += [f"world {world}"] if world != "tail" else []
    return str(result.comparison) + (f", {', '.join(where)}" if where else "")


def _missing(result: Result) -> list[str]:
    """Returns one item that names each hospital without a difference; none where all have one."""
    if not result.missing:
        return []
    whole = len(protocol.CONFIRMATORY)
    by_reason: dict[str, list[str]] = {}
    for hospital, reason in result.missing.items():
        by_reason.setdefault(reason, []).append(str(hospital))
    reasons = "; ".join(f"{', '.join(own)}: {reason}" for reason, own in by_reason.items())
    measure = MEASURES[result.comparison.measure][0]
    known = len(result.differences)
    return [f"{_named(result)}, {measure}: {known} of {whole} hospitals ({reasons})."]


def arm_table(study: Study) -> str:
    """Returns every arm of the main comparison; one without a run has its line, too."""
    if not study.part():
        return f"There is {NONE}."
    rows = []
    control_of = {arm: control for control, arm in CONTROLS.items()}
    for arm, description in protocol.ARMS.items():
        known = list(study.find("tail", arm, protocol.STEPS).values())
        rows.append([f"{arm}: {description}", *_counts(known), *_scores(known)])
        if arm in control_of:
            rows.append(_control_line(study, control_of[arm], arm))
    heads = ["arm", "runs", "diverged", "failed", *(head for head, _ in MEASURES.values())]
    return table(heads, rows, 1)


def _counts(known: Sequence[Record]) -> list[str]:
    found = Counter(record["status"] for record in known)
    return [str(found[status]) for status in ("ok", "diverged", "failed")]


def _scores(known: Sequence[Record]) -> list[str]:
    """Returns mean ± standard deviation of each measure, and of how many if not of all runs."""
    done = [record for record in known if record["status"] == "ok"]
    return [
        spread(values(done, measure), digits, len(done))
        for measure, (_, digits) in MEASURES.items()
    ]


def spread(found: Sequence[float], digits: int, runs: int) -> str:
    if not found:
        return "-"
    text = f"{mean(found):.{digits}f}"
    if len(found) > 1:
        text += f" ± {stdev(found):.{digits}f}"
    return text + (f" (of {len(found)})" if len(found) < runs else "")


def _control_line(study: Study, control: str, arm: str) -> list[str]:
    """Returns the line of a control by a threshold, whose counts are in the records of its arm."""
    done = [
        record
        for record in study.find("tail", arm, protocol.STEPS).values()
        if record["status"] == "ok"
    ]
    known = [record for record in done if "slot_positives_T" in record]
    cells = [
        spread(values(known, f"{measure}_T"), digits, len(known))
        if measure in ("slot_recall", "slot_precision")
        else "-"
        for measure, (_, digits) in MEASURES.items()
    ]
    name = f"{control}: control, U stating as many slots as {arm}"
    return [name, str(len(known)), "-", "-", *cells]


def step_table(study: Study) -> str:
    """Returns rare AUROC by steps, and in the noisy world."""
    if not study.part():
        return f"There is {NONE}."
    rows = []
    for world, arm, steps in sorted(
        (run for run in protocol.RUNS if run[1] in ("U", "P", "FU", "FP") or run[0] == "noisy"),
        key=lambda run: (protocol.WORLDS.index(run[0]), list(protocol.ARMS).index(run[1]), run[2]),
    ):
        known = list(study.find(world, arm, steps).values())
        done = [record for record in known if record["status"] == "ok"]
        cells = [
            spread(values(done, measure), MEASURES[measure][1], len(done))
            for measure in ("rare_auroc", "end_auroc", "slot_nll")
        ]
        rows.append([world, f"{arm}: {protocol.ARMS[arm]}", str(steps), *_counts(known), *cells])
    heads = ("world", "arm", "steps", "runs", "diverged", "failed", "rare AUROC", "end AUROC",
             "slot NLL")  # fmt: skip
    return table(heads, rows, 2)


def size_table(study: Study, comparisons: Sequence[Comparison]) -> str:
    """Returns sizes and intervals of comparisons that are not tested."""
    if not study.part():
        return f"There is {NONE}."
    rows = [
        [_named(one), MEASURES[one.comparison.measure][0], size(one), hospitals(one)]
        for one in (verdicts.compare(study, comparison) for comparison in comparisons)
    ]
    return table(("difference", "measure", "size", "above 0"), rows, 2)


def record_lines(study: Study) -> str:
    """Returns how many runs there are, of which commits and machines, and what is missing."""
    own = study.part()
    if not own:
        return f"There is {NONE}."
    lines = []
    for head, runs in (("Runs", protocol.RUNS), ("Runs added later", protocol.ADDED_RUNS)):
        known = study.of_runs(runs)
        whole = len(runs) * len(protocol.CONFIRMATORY)
        found = Counter(record["status"] for record in known)
        lines.append(
            f"{head}: {len(known)} of {whole}; {found['ok']} with measures, {found['diverged']} "
            f"diverged, {found['failed']} failed."
        )
    lines.append(f"Failed before and repeated: {study.repeated}.")
    for name in ("commit", "machine"):
        counted = Counter(str(record.get(name, "unknown")) for record in own)
        lines.append(f"By {name}: " + "; ".join(f"{k} ({v})" for k, v in counted.items()) + ".")
    missing: dict[tuple[str, str, int, str], list[int]] = {}
    for hospital, *rest in study.missing():
        missing.setdefault(tuple(rest), []).append(hospital)  # type: ignore[arg-type]
    for (world, arm, steps, reason), numbers in missing.items():
        which = (
            "all hospitals"
            if len(numbers) == len(protocol.CONFIRMATORY)
            else ", ".join(map(str, numbers))
        )
        lines.append(
            f"Without measures: arm {arm}, {steps} steps, world {world}: {reason} ({which})."
        )
    return items(lines)


def tables(study: Study) -> dict[str, Callable[[], str]]:
    """Returns what each marker of a page stands for, by its name."""
    made: dict[str, Callable[[Study], str]] = {
        "decisive verdicts": verdict_table,
        "decisive arms": arm_table,
        "decisive steps": step_table,
        "decisive exploratory": partial(size_table, comparisons=verdicts.EXPLORATORY),
        "decisive floor": partial(size_table, comparisons=verdicts.ADDED),
        "decisive records": record_lines,
        "decisive sentence": sentences.outcome,
        "decisive floor sentence": sentences.floor,
        "decisive secondary": secondary,
    }
    return {name: partial(make, study) for name, make in made.items()}
