"""The output of `dive generate`: its locks, its records as they come, its last lines."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from dive.cli.options import write_skipped
from dive.errors import DiveError
from dive.errors.console import to_stderr
from dive.errors.counting import counted

if TYPE_CHECKING:
    from dive.data import Skipped, Study
    from dive.files.json_lines import JsonlWriter
    from dive.generation.report_writer import Report
    from dive.generation.resume import WatchedStudy


def hold_outputs(
    context: typer.Context,
    out: Path,
    overwrite: bool,
    inputs: list[Any],
    dataset: tuple[str | None, Path | None, Path | None],
) -> tuple[dict[Path, str], Any]:
    """Checks that the outputs can be written, before anything is read, and locks them to the end
    of the command.

    inputs: files that the command reads. dataset: the values of --studies and of its two roots.
    Returns the outputs with their options, and the lock of `out`.
    """
    from dive.data.overwriting import check_not_of_spec, check_not_read
    from dive.data.skipping import check_skipped
    from dive.files.json_lines import check_output
    from dive.files.lock import hold_file

    check_output(out)
    left_out = _skipped_file(out)
    outputs = {out: "--out", left_out: f"--out {out}:"}
    check_not_read(outputs, inputs)
    check_not_of_spec(outputs, *dataset)
    check_skipped(left_out)
    lock = context.with_resource(hold_file(out))
    context.with_resource(hold_file(left_out))
    if out.is_file() and not overwrite:
        raise DiveError(
            f"{out}: is there already; give --overwrite to replace it, or another --out"
        )
    return outputs, lock


def _still_to_write(
    writer: "JsonlWriter", studies: "Mapping[str, WatchedStudy]"
) -> "list[WatchedStudy]":
    """The studies without a report; prints how many an earlier run has written."""
    if writer.done:
        there = f"{len(writer.done)} of {counted(len(studies), 'report')}"
        to_stderr().print(f"going on: {there} written before")
    return [study for study in studies.values() if study.id not in writer.done]


class End(NamedTuple):
    """How a run ended: reports in its output, those that are new, and of these how many the model
    ended by itself; the line about skipped studies, if any."""

    written: int
    new: int
    ended: int
    note: str


def write_all(
    writer: "JsonlWriter",
    reports: "Callable[[list[WatchedStudy]], Iterable[Report]]",
    studies: "Mapping[str, WatchedStudy]",
    skipped: "Skipped",
    on_error: str,
) -> End:
    """Append the reports of the studies that have none yet, and give the file its name.

    reports: opens what writes them. studies: by their ids.

    Raises:
        DiveError: no report was written; with on_error="fail" some studies got none.
    """
    earlier, ended = len(writer.done), 0
    failed: list[Report] = []
    if left := _still_to_write(writer, studies):
        noted = skipped if on_error == "skip" else None
        ended, failed = _append_reports(writer, reports(left), studies, noted)
    note = _finish(writer, writer.path, failed if on_error == "fail" else [], skipped)
    return End(len(writer.done), len(writer.done) - earlier, ended, note)


def _append_reports(
    writer: "JsonlWriter",
    reports: "Iterable[Report]",
    studies: "Mapping[str, Study]",
    skipped: "Skipped | None",
) -> "tuple[int, list[Report]]":
    """Appends a record per report; returns how many the model ended by itself, and those that ended
    in an error, which are not written but noted in `skipped`. studies: by their ids."""
    ended, failed = 0, []
    for report in reports:
        if report.error is not None:
            failed.append(report)
            if skipped is not None:
                skipped.add(report.id, studies[report.id].source, DiveError(report.error))
            continue
        ended += report.finish_reason == "eos"
        steered = {"adapter": report.adapter, "adapter_sha256": report.adapter_sha256}
        writer.append(
            {
                "id": report.id,
                "images": report.images,
                "report": report.text,
                "finish_reason": report.finish_reason,
                "num_tokens": report.num_tokens,
                "prompt_tokens": report.prompt_tokens,
                "seconds": round(report.seconds, 4),
                "engine": report.engine,
                **(steered if report.adapter is not None else {}),
            }
        )
    return ended, failed


def _finish(writer: "JsonlWriter", out: Path, failed: "list[Report]", skipped: "Skipped") -> str:
    """Ends the run of `writer`; returns the line about skipped studies, if any.

    Raises:
        DiveError: some reports have `failed`, or no report was written.
    """
    written = len(writer.done)
    if failed:
        raise DiveError(_without_report(failed, written, out))
    # first: without its list of skipped studies a run is not finished
    note = write_skipped(skipped, _skipped_file(out))
    if not written:
        raise DiveError(f"no report was written: {counted(len(skipped), 'study')} skipped")
    writer.finish()
    return note


def print_summary(out: Path, end: End, proposal: str) -> None:
    console = to_stderr()
    console.print(
        f"{counted(end.written, 'report')} in {out}; of {counted(end.new, 'new one')} the model "
        f"ended {end.ended} by itself"
    )
    for line in (end.note, proposal):
        if line:
            console.print(line)


def next_command(out: Path, section: str, skipped: "Skipped") -> str:
    """The line that proposes to evaluate the reports; paths of studies are not for a log."""
    more = "" if section == "findings" else f" --target {section}"
    more += " --allow-missing" if len(skipped) else ""
    return f"next: dive evaluate --predictions {out} --references STUDIES{more}"


def _skipped_file(out: Path) -> Path:
    """The file of skipped studies: reports.skipped.jsonl for reports.jsonl, and the whole name with
    ".skipped" for any other, so that no two outputs share one. DiveError where `out` has such a
    name itself."""
    if out.name.endswith((".skipped.jsonl", ".skipped")):
        raise DiveError(
            f"--out {out}: a file of that name lists what another output skips; name another"
        )
    if out.suffix == ".jsonl":
        return out.with_name(f"{out.stem}.skipped.jsonl")
    return out.with_name(f"{out.name}.skipped")


def _without_report(failed: list["Report"], written: int, out: Path) -> str:
    """The error, in one line, about studies whose logits were not finite."""
    names = [report.id for report in failed]
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"{counted(len(names), 'study')} got no report: {listed}: {failed[0].error}; "
        f"{counted(written, 'report')} kept: the same command tries the missing ones again, and "
        "with --on-error skip it finishes without them; where float16 overflows, another --dtype "
        "(and --out) may help"
    )
