"""What `dive evaluate` prints: the scores, those of classes and terciles, and what was left out."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dive.cli.tables import add_column, add_row, stdout, table
from dive.errors.console import PlainConsole, styled
from dive.errors.counting import counted
from dive.errors.visible import visible

# columns of a terminal from which on variants stand beside intervals or differences
_WIDE = 140
_NARROWEST = 6  # to which other columns may be folded, so that names stay whole


def print_results(
    found: dict[str, Any], compared: int, reasons: dict[str, int], written: dict[Path, str]
) -> None:
    """Prints results of `dive.evaluate` with the counts of the command.

    compared: number of ids that were compared. reasons: file of predictions -> how many of them
        have no finish reason. written: files that hold more, and what.
    """
    console = stdout()
    print_scores(found, found["without_prediction"], found["without_reference"], console)
    print_groups(found, console)
    without = {path: count for path, count in reasons.items() if count}
    if without and sum(without.values()) < compared * len(reasons):
        for path, count in without.items():
            text = f"no termination_rate: {count} of {compared} predictions have no finish_reason"
            _print_warning(text, path, console)
    for output, what in written.items():
        console.print(f"{what} {output}", style="dim")


def print_scores(
    found: dict[str, Any], missing: dict[str, int], extra: dict[str, int], console: PlainConsole
) -> None:
    """Prints the scores of all reports, and counts by file of ids without a partner."""
    beside = console.width >= _WIDE or not found.keys() & {"intervals", "differences", "seeds"}
    _print_table(_score_table(found, beside), console)
    if not beside:
        variants = table("metric", "variant")
        for name, variant in found["variants"].items():
            add_row(variants, name, variant)
        console.print()
        console.print(variants, style="dim")
    if "seeds" in found:
        _print_seeds(found["seeds"], console)
    _print_words(found, console)
    console.print(f"{found['scored']} of {found['reports']} reports scored", style="dim")
    for what, counts in (("reference", extra), ("prediction", missing)):
        for path, count in counts.items():
            if count:
                _print_warning(f"{count} without a {what}", path, console)
    for what in ("empty_predictions", "empty_references"):
        if found[what]:
            console.print(f"{found[what]} {what.replace('_', ' ')}", style="yellow")


def _score_table(found: dict[str, Any], with_variants: bool) -> Table:
    intervals, differences = found.get("intervals", {}), found.get("differences", {})
    spread = found.get("seeds", {}).get("scores", {})
    settings = found.get("bootstrap", {})
    shown = table("metric", "score")
    if intervals:
        add_column(shown, f"{100 * settings['confidence']:g}% interval")
    if spread:
        add_column(shown, "SD of seeds")
        if intervals:
            add_column(shown, f"SD of {settings['unit']}s")
            add_column(shown, "interval with seeds")
    if differences:
        add_column(shown, "baseline")
        add_column(shown, "difference")
    if with_variants:
        add_column(shown, "variant", "dim")
    for name, variant in found["variants"].items():
        cells = [name, _number(found[name])]
        if intervals:
            cells.append(_range(intervals.get(name)))
        if spread:
            one = spread[name]
            cells.append(_number(one["sd_seeds"]))
            if intervals:
                cells += [_number(one["sd_patients"]), _range(one.get("interval_both"))]
        if differences:
            gap = differences.get(name)
            cells.append(_number(found["baseline"][name]) if gap else "")
            cells.append(_difference(gap) if gap else "")
        add_row(shown, *cells, *([variant] if with_variants else []))
    return shown


def _print_seeds(seeds: dict[str, Any], console: PlainConsole) -> None:
    """Prints the scores of every training seed."""
    shown = table("metric", *(f"seed {number + 1}" for number in range(seeds["count"])))
    for name, one in seeds["scores"].items():
        add_row(shown, name, *(_number(value) for value in one["values"]))
    console.print()
    console.print(shown)
    for number, path in enumerate(seeds.get("files", ())):
        console.print(f"seed {number + 1}: {path}", style="dim")


def _print_words(found: dict[str, Any], console: PlainConsole) -> None:
    """Prints what the numbers of the table mean."""
    from dive.metrics.tables import bootstrap_words, seed_words

    tested = sum("p" in one for one in found.get("differences", {}).values())
    if tested > 1:
        console.print(
            f"each p is of one metric alone: it is not corrected for {tested} being compared",
            style="dim",
        )
    settings = found.get("bootstrap", {})
    if "unit" in settings:
        console.print(bootstrap_words(settings), style="dim")
        unknown = settings["patients_unknown"]
        if 0 < unknown < found["scored"]:
            console.print(
                f"{unknown} of {found['scored']} references name no patient, so reports are drawn "
                "and not patients",
                style="yellow",
            )
    if "seeds" in found:
        console.print(seed_words(found), style="dim")


def print_groups(found: dict[str, Any], console: PlainConsole) -> None:
    """Prints the scores of findings by class and by tercile, where findings were asked for."""
    from dive.metrics.tables import range_of, times

    classes, terciles = found.get("classes", {}), found.get("terciles", {})
    if not classes:
        return
    stated = {name: one for name, one in classes.items() if one["references"]}
    if stated:
        counts = {name: str(one["references"]) for name, one in stated.items()}
        console.print()
        _print_table(_group_table("class", "references", stated, counts.values(), found), console)
    groups = {name: one for name, one in terciles.items() if one.get("scores") and one["findings"]}
    if groups:
        counts = {name: range_of(one["references"]) for name, one in groups.items()}
        groups = {
            f"{name} ({counted(len(one['findings']), 'finding')})": one
            for name, one in groups.items()
        }
        console.print()
        shown = _group_table("tercile", "references each", groups, counts.values(), found)
        _print_table(shown, console)
    invented = terciles["unreferenced"]
    if invented["findings"]:
        console.print(
            f"stated by predictions alone, {times(invented['predicted'])}: "
            f"{', '.join(invented['findings'])}",
            style="dim",
        )


def _group_table(
    name: str,
    count: str,
    groups: Mapping[str, dict[str, Any]],
    counts: Iterable[str],
    found: dict[str, Any],
) -> Table:
    shown = table(name, count, "precision", "recall", "F1", "detail F1")
    if "intervals" in found:
        add_column(shown, f"F1, {100 * found['bootstrap']['confidence']:g}% interval")
    if "differences" in found:
        add_column(shown, "F1 difference")
    for (label, group), number in zip(groups.items(), counts, strict=True):
        cells = [label, number, *(_number(value, 3) for value in group["scores"].values())]
        if "intervals" in found:
            cells.append(_range(group["intervals"]["finding_f1"], 3))
        if "differences" in found:
            cells.append(_difference(group["differences"]["finding_f1"], 3))
        add_row(shown, *cells)
    return shown


def _print_table(shown: Table, console: PlainConsole) -> None:
    """Prints a table; its first column is not folded where the others have room enough."""
    first, *others = shown.columns
    names = max(len(str(cell)) for cell in (first.header, *first.cells))
    if console.width >= names + len(others) * (2 + _NARROWEST):
        first.no_wrap = True
    console.print(shown)


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _range(ends: Sequence[float] | None, digits: int = 4) -> str:
    return "" if ends is None else " to ".join(_number(end, digits) for end in ends)


def _difference(one: Mapping[str, Any], digits: int = 4) -> str:
    if one["difference"] is None:
        return "-"
    text = f"{one['difference']:+.{digits}f}"
    if one.get("interval") is not None:
        low, high = one["interval"]
        text += f" ({low:+.{digits}f} to {high:+.{digits}f}, p {one['p']:.3f})"
    return text


def _print_warning(text: str, path: str | Path, console: PlainConsole) -> None:
    console.print(styled(text, "yellow").append(f" ({visible(path)})", "default"))
