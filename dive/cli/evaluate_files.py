"""The files of `dive evaluate`: which go together, and what it writes."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from dive.errors import DiveError

_TABLES = (".tex", ".csv")


def check_files(predictions: list[Path], baseline: list[Path], per_report: Path | None) -> None:
    """DiveError for numbers of files that do not go together."""
    for paths, option in ((predictions, "--predictions"), (baseline, "--baseline")):
        seen = set()
        for path in paths:
            file = os.path.realpath(path)
            if file in seen:
                raise DiveError(f"{option} is {path} twice, want another file per training seed")
            seen.add(file)
    if len(baseline) not in (0, 1, len(predictions)):
        raise DiveError(
            f"--baseline is given {len(baseline)} times and --predictions {len(predictions)} "
            "times, want one baseline or as many"
        )
    if per_report is not None and len(predictions) > 1:
        raise DiveError(
            f"--per-report is of one file of predictions, and {len(predictions)} are given; run "
            "it once per file"
        )


def check_tables(paths: list[Path]) -> None:
    """DiveError for a table whose name has the suffix of no format."""
    for path in paths:
        if path.suffix.lower() not in _TABLES:
            raise DiveError(f"--table is {path}, want a name that ends in .tex or .csv")


def outputs_of(given: Iterable[tuple[str, Path | None]]) -> dict[Path, str]:
    """The files to be written, each with the option that names it; DiveError for one named twice.

    given: (option, file), None where the option was not given.
    """
    from dive.files.atomic import target_of

    outputs: dict[Path, str] = {}
    seen = set()
    for option, path in given:
        if path is None:
            continue
        if target_of(path) in seen:
            raise DiveError(f"{option} {path}: is written already by this command; name another")
        seen.add(target_of(path))
        outputs[path] = option
    return outputs


def hold_outputs(
    context: typer.Context,
    outputs: dict[Path, str],
    read_files: list[Path | None],
    dataset: tuple[str, Path | None, Path | None],
) -> None:
    """Check that `outputs` can be written and are no inputs, and hold them until the command ends.

    outputs: file -> the option that names it. dataset: the references' specification, the root of
        its images and that of its reports.
    """
    from dive.data.overwriting import check_not_of_spec, check_not_read
    from dive.files.atomic import check_file
    from dive.files.lock import hold_file

    for path in outputs:
        check_file(path)
    check_not_read(outputs, read_files)
    check_not_of_spec(outputs, *dataset)
    for path in outputs:
        context.with_resource(hold_file(path))


def write_per_report(path: Path, ids: list[str], columns: dict[str, list[float | None]]) -> None:
    """One record per report: its id and its scores, null where it could not be scored."""
    from dive.files.json_lines import write_jsonl

    records = [
        {"id": name} | {metric: values[index] for metric, values in columns.items()}
        for index, name in enumerate(ids)
    ]
    write_jsonl(path, records)


def write_tables(
    paths: list[Path], found: dict[str, Any], predictions: list[Path], baseline: list[Path]
) -> None:
    """The tables, in the formats of their names."""
    from dive.files.atomic import write_text
    from dive.metrics.tables import TABLES

    names, others = ([path.name for path in one] for one in (predictions, baseline))
    for path in paths:
        write_text(path, TABLES[path.suffix.lower()](found, names, others))
