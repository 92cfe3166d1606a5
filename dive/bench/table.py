"""The results as a table, with units and the machine."""

from collections.abc import Iterator
from itertools import groupby

from rich.table import Table
from rich.text import Text

from dive.bench.results import Record, Results, Unmeasured
from dive.bench.timing import Interval
from dive.errors.console import PlainConsole
from dive.errors.counting import counted

_COLUMNS = ("way", "what ran", "ms", "against", "rate", "floor")
_NARROW = 12  # columns for a name, at least
_WIDE = 150  # columns in a file or a pipe, where nothing wraps


def show(results: Results, console: PlainConsole | None = None) -> None:
    """Prints the results."""
    if console is None:
        console = PlainConsole()
        if not console.is_terminal:  # text that may be searched for is not folded
            console = PlainConsole(width=max(_WIDE, sum(_widths(results.records)) + 12))
    say = lambda text, style="": console.print(text, style=style)  # noqa: E731
    for line in _machine(results):
        say(line)
    for title, table in _tables(results.records, console.width):
        say(f"\n{title}", "bold")
        console.print(table)
    if results.records:
        say(
            "\nms: median and 95% interval of rounds in which all ways took turns. against: the "
            "time over dive's (or the named way's) of the same rounds. floor: the least time, by "
            "what was measured in the same rounds, over the way's own; what fits a cache can pass "
            "100%.",
            "dim",
        )
    for line in _missing(results.unmeasured):
        say(line, "yellow")
    for bad in results.wrong:
        say(f"WRONG: {bad.operator}, {bad.case}: {bad.reason}; not timed", "bold red")
    if results.head["toy"]:
        say("toy sizes: these times mean nothing", "yellow")


def _machine(results: Results) -> list[str]:
    head, rates = results.head, results.rates
    machine = head["machine"]
    cores = ""
    if head["threads"]:
        cores = f", {counted(head['threads'], 'thread')} on {counted(machine['cores'], 'core')}"
    load = "" if machine["load_1min"] is None else f", load {machine['load_1min']}"
    versions = {"torch": machine["torch"], **machine["versions"], "Python": machine["python"]}
    lines = [
        f"{machine['device']}{cores}{load}; {head['device']}, {head['dtype']}",
        f"dive {head['dive']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    ]
    if rates:
        lines.append(
            f"measured here: matrix products {rate(rates['products_gflop_s'], 'GFLOP/s')}, "
            f"copies {rate(rates['copies_gb_s'], 'GB/s')}, "
            f"reads {rate(rates['reads_gb_s'], 'GB/s')} ({rates['read_by']})"
        )
    lines.append(f"{head['seconds_taken']} s of {head['seconds']:g} s")
    return lines


def _widths(records: list[Record]) -> list[int]:
    """Returns the widths of the columns, the same in the table of every case."""
    return [max(map(len, column)) for column in zip(_COLUMNS, *map(_cells, records), strict=True)]


def _tables(records: list[Record], width: int) -> Iterator[tuple[str, Table]]:
    """Yields a title and a table for each case; what exceeds `width` is folded and never cut."""
    widths = _widths(records)
    # numbers in one line, and the same columns in every table, if the width suffices
    least = sum(widths[2:]) + 2 * len(widths)
    fits = least + sum(widths[:2]) <= width
    numbers = fits or least + 2 * _NARROW <= width
    for (operator, case, mode), group in groupby(records, lambda r: (r.operator, r.case, r.mode)):
        table = Table(box=None, pad_edge=False)
        for at, (name, wanted) in enumerate(zip(_COLUMNS, widths, strict=True)):
            right = at > 1
            table.add_column(
                name,
                justify="right" if right else "left",
                no_wrap=right and numbers,
                overflow="fold",
                min_width=wanted if right and numbers else None,
                width=wanted if fits and not right else None,
            )
        for record in group:
            styled = [Text(cell) for cell in _cells(record)]
            if record.way.startswith("session") and record.ran != "dive._C":
                styled[1].stylize("bold yellow")
            table.add_row(*styled)
        yield f"{operator}, {mode}: {case}", table


def _missing(unmeasured: list[Unmeasured]) -> list[str]:
    """Returns one line per reason and operator, with every way that it left out."""
    lines: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in unmeasured:
        lines.setdefault((one.operator, one.reason), {}).setdefault(one.case, []).append(one.way)
    return [
        f"not run: {operator}, "
        + "; ".join(f"{case}: {' | '.join(ways)}" for case, ways in cases.items())
        + f": {reason}"
        for (operator, reason), cases in lines.items()
    ]


def _cells(record: Record) -> list[str]:
    times = ""
    if record.times is not None:
        of = "" if record.beside in ("dive", "session") else f" {record.beside}"
        times = "{:.2f}x ({:.2f} to {:.2f})".format(*record.times) + of
    return [
        record.way,
        record.ran,
        milliseconds(record.milliseconds),
        times,
        rate(record.rate, record.rate_unit),
        "" if record.floor_share is None else f"{record.floor_share:.0%}",
    ]


def milliseconds(taken: Interval) -> str:
    """Returns the median with its interval in parentheses, to three digits."""
    median, low, high = (digits(value) for value in taken)
    return f"{median} ({low} to {high})"


def digits(value: float) -> str:
    """Returns three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rate(value: float, unit: str) -> str:
    """Returns a rate with three digits, thousands of GFLOP/s as TFLOP/s."""
    if unit == "GFLOP/s" and value >= 1000:
        value, unit = value / 1000, "TFLOP/s"
    return f"{digits(value)} {unit}"
