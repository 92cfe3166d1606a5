"""The results of `dive.evaluate` as a table for a paper (LaTeX) or for a program (CSV).

LaTeX has what was asked for and four digits; CSV has every column, always, and every digit. Names
of files are a user's text: they are escaped, and a cell that a spreadsheet would take for a formula
begins with an apostrophe.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dive import __version__
from dive.errors.counting import counted
from dive.errors.visible import visible

Result = Mapping[str, Any]


class Scored(NamedTuple):
    """One score of a group of findings, or of all reports, with what is known of it.

    Attributes:
        group: "all", "class" or "tercile".
        name: of the class or tercile, "" for "all".
        references: the least and the most references that state one of its findings.
        findings: of a tercile.
        score: the key of `dive.evaluate`.
        value, baseline: None where undefined or not asked for.
        interval: of the value.
        difference: "difference", "interval", "interval_both", "p".
        seeds: "values", "sd_seeds", "sd_patients", "interval_both".
    """

    group: str
    name: str
    references: Sequence[int]
    findings: Sequence[str]
    score: str
    value: float | None
    interval: Sequence[float] | None
    baseline: float | None
    difference: Mapping[str, Any]
    seeds: Mapping[str, Any]


def scored(result: Result) -> list[Scored]:
    """All scores of a result: those of all reports, of the classes, of the terciles."""
    scores = {key: result[key] for key in result["variants"]}
    found = _of_group({**result, "scores": scores}, "all")
    for name, group in result.get("classes", {}).items():
        found += _of_group(group, "class", name, [group["references"]] * 2)
    for name, group in result.get("terciles", {}).items():
        if "scores" in group:
            found += _of_group(group, "tercile", name, group["references"], group["findings"])
    return found


def _of_group(
    group: Result,
    kind: str,
    name: str = "",
    references: Sequence[int] = (),
    findings: Sequence[str] = (),
) -> list[Scored]:
    intervals, baseline = group.get("intervals", {}), group.get("baseline", {})
    differences, seeds = group.get("differences", {}), group.get("seeds", {}).get("scores", {})
    return [
        Scored(
            kind, name, references, findings, key, value,
            intervals.get(key), baseline.get(key), differences.get(key, {}), seeds.get(key, {}),
        )
        for key, value in group["scores"].items()
    ]  # fmt: skip


# CSV

_HEADER = (
    "group", "name", "references_least", "references_most", "findings", "score", "value",
    "low", "high", "baseline", "difference", "difference_low", "difference_high", "p",
    "seed_values", "sd_seeds", "sd_patients", "both_low", "both_high", "difference_both_low",
    "difference_both_high", "confidence", "unit", "units", "scored", "reports", "predictions",
    "baseline_predictions", "variant",
)  # fmt: skip


def csv_table(result: Result, predictions: Sequence[str], baseline: Sequence[str] = ()) -> str:
    """The result as comma-separated values, one score per line below a header.

    Numbers have all their digits. A cell is empty where a score is undefined, or where nothing
    asked for it. What predictions alone state has the line tercile, unreferenced, predicted.

    Args:
        result: of `dive.evaluate` or `dive.evaluate_seeds`.
        predictions, baseline: the names of their files.
    """
    bootstrap = result.get("bootstrap", {})
    shared: list[Any] = [
        *(bootstrap.get(key) for key in ("confidence", "unit", "units")),
        result["scored"],
        result["reports"],
        _unformulated("; ".join(predictions)),
        _unformulated("; ".join(baseline)),
    ]
    rows = [
        [
            one.group,
            one.name,
            *(one.references or (None, None)),
            "; ".join(one.findings),
            one.score,
            one.value,
            *(one.interval or (None, None)),
            one.baseline,
            one.difference.get("difference"),
            *(one.difference.get("interval") or (None, None)),
            one.difference.get("p"),
            "; ".join("none" if v is None else repr(v) for v in one.seeds.get("values", ())),
            one.seeds.get("sd_seeds"),
            one.seeds.get("sd_patients"),
            *(one.seeds.get("interval_both") or (None, None)),
            *(one.difference.get("interval_both") or (None, None)),
            *shared,
            result["variants"].get(one.score, ""),
        ]
        for one in scored(result)
    ]
    invented = result.get("terciles", {}).get("unreferenced")
    if invented is not None:
        row = dict.fromkeys(_HEADER) | dict(zip(_HEADER[-8:-1], shared, strict=True))
        row |= {"group": "tercile", "name": "unreferenced", "references_least": 0,
                "references_most": 0, "findings": "; ".join(invented["findings"]),
                "score": "predicted", "value": invented["predicted"],
                "baseline": invented.get("baseline", {}).get("predicted"),
                "variant": "findings that predictions state and no reference does"}  # fmt: skip
        rows.append(list(row.values()))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return " ".join(visible(value).split()) if isinstance(value, str) else repr(value)


def _unformulated(name: str) -> str:
    """A user's text, no formula for a spreadsheet."""
    name = name.lstrip()
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


# LaTeX

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
        **{sign: f"\\{sign}" for sign in "&%$#_"},
    }
)  # fmt: skip


def escaped(text: str) -> str:
    """The text for LaTeX, on one line, with nothing that LaTeX would obey."""
    return " ".join(visible(text).split()).translate(_ESCAPES)


class _Column(NamedTuple):
    head: str
    cell: Callable[[Scored], str]


def latex_table(result: Result, predictions: Sequence[str], baseline: Sequence[str] = ()) -> str:
    r"""The result as a LaTeX table (UTF-8, package booktabs, T1 encoding).

    Classes without a reference are named in the notes and have no lines. The notes state the
    variants, which are a part of the numbers.

    Args:
        result: of `dive.evaluate` or `dive.evaluate_seeds`.
        predictions, baseline: the names of their files.
    """
    columns = _columns(result)
    lines = [
        f"% dive {__version__}; needs \\usepackage{{booktabs}} and \\usepackage[T1]{{fontenc}}",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["Score", *(column.head for column in columns)]) + r" \\",
    ]
    before = None
    for one in scored(result):
        if one.group != "all" and not any(one.references):
            continue
        if (one.group, one.name) != before:
            before = (one.group, one.name)
            lines.append(r"\midrule")
            if one.group != "all":
                head = escaped(_heading(one))
                lines.append(rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textit{{{head}}}}} \\")
        indent = "" if one.group == "all" else r"\quad "
        cells = [column.cell(one) for column in columns]
        lines.append(indent + " & ".join([escaped(one.score), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\smallskip"]
    lines += [r"\begin{minipage}{\linewidth}\footnotesize\raggedright"]
    lines += [f"{escaped(note)}\\par" for note in _notes(result, predictions, baseline)]
    return "\n".join([*lines, r"\end{minipage}", r"\end{table}", ""])


def _columns(result: Result) -> list[_Column]:
    share = f"{100 * result['bootstrap']['confidence']:g}\\% " if "bootstrap" in result else ""
    columns = [_Column("Value", lambda one: _number(one.value))]
    if share:
        columns.append(_Column(f"{share}interval", lambda one: _range(one.interval)))
    if "seeds" in result:
        columns.append(_Column("SD of seeds", lambda one: _number(one.seeds.get("sd_seeds"))))
    if "seeds" in result and share:
        unit = result["bootstrap"]["unit"]
        columns += [
            _Column(f"SD of {unit}s", lambda one: _number(one.seeds.get("sd_patients"))),
            _Column(f"{share}with seeds", lambda one: _range(one.seeds.get("interval_both"))),
        ]
    if "differences" in result:
        columns += [
            _Column("Baseline", lambda one: _number(one.baseline)),
            _Column("Difference", lambda one: _number(one.difference.get("difference"), "+")),
        ]
        if share:
            columns += [
                _Column(
                    f"{share}interval", lambda one: _range(one.difference.get("interval"), "+")
                ),
                _Column("$p$", lambda one: _number(one.difference.get("p"), digits=3)),
            ]
    return columns


def _number(value: float | None, sign: str = "", digits: int = 4) -> str:
    return "--" if value is None else f"${value:{sign}.{digits}f}$"


def _range(ends: Sequence[float] | None, sign: str = "") -> str:
    return "--" if ends is None else " to ".join(_number(end, sign) for end in ends)


def _heading(one: Scored) -> str:
    if one.group == "class":
        return f"{one.name}, in {counted(one.references[0], 'reference')}"
    noun = "reference" if one.references[1] == 1 else "references"
    return f"{one.name} findings ({len(one.findings)}, each in {range_of(one.references)} {noun})"


def range_of(ends: Sequence[int]) -> str:
    """Two counts in words: "2 to 5", and "2" where they are equal."""
    least, most = ends
    return f"{least}" if least == most else f"{least} to {most}"


def _notes(result: Result, predictions: Sequence[str], baseline: Sequence[str]) -> Iterable[str]:
    yield f"{result['scored']} of {result['reports']} reports scored: {', '.join(predictions)}."
    if baseline:
        yield f"Baseline: {', '.join(baseline)}."
    if "bootstrap" in result:
        yield bootstrap_words(result["bootstrap"])
    if "seeds" in result:
        yield seed_words(result)
    tested = sum("p" in one for one in result.get("differences", {}).values())
    if tested:
        yield "Each p is of one score alone and not corrected for the number of scores."
    unstated = [name for name, one in result.get("classes", {}).items() if not one["references"]]
    if unstated:
        yield f"In no reference: {', '.join(unstated)}."
    for name, group in result.get("terciles", {}).items():
        if name == "unreferenced":
            if group["findings"]:
                yield (
                    f"In predictions alone, {times(group['predicted'])}: "
                    f"{', '.join(group['findings'])}."
                )
        elif group["findings"]:
            yield f"{name.capitalize()} findings: {', '.join(group['findings'])}."
    keys_of: dict[str, list[str]] = {}
    for key, words in result["variants"].items():
        keys_of.setdefault(words, []).append(key)
    for words, keys in keys_of.items():
        yield f"{', '.join(keys)}: {words}."


def times(number: float) -> str:
    """How often something was found; not a whole number as a mean over seeds."""
    return "once" if number == 1 else f"{number:.4g} times"


def bootstrap_words(settings: Mapping[str, Any]) -> str:
    """What was resampled, in one sentence."""
    unit, units = settings["unit"], settings["units"]
    drawn = "patients, each with all their reports" if unit == "patient" else "reports"
    return f"Intervals are from {settings['samples']} resamples of {units} {drawn}."


def seed_words(result: Result) -> str:
    """What the numbers of several seeds are, in words."""
    text = (
        f"Values are means over {result['seeds']['count']} training seeds; SD of seeds is the "
        "standard deviation between single trainings."
    )
    if "bootstrap" in result:
        units = f"{result['bootstrap']['unit']}s"
        gaps = ", and those of differences," if "differences" in result else ""
        text += (
            f" SD of {units} is that of the mean when {units} are drawn anew; the first intervals"
            f"{gaps} are of the same draws. Those with seeds draw seeds as well, which is rough "
            "for a small number of seeds."
        )
    return text


TABLES: dict[str, Callable[[Result, Sequence[str], Sequence[str]], str]] = {
    ".tex": latex_table,
    ".csv": csv_table,
}
