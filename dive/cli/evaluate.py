"""`dive evaluate`: predictions against references, joined by id."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dive.cli.options import (
    DropComparisonsOption,
    ImagesRootOption,
    JsonOption,
    ReadOption,
    ReportsRootOption,
    SplitOption,
    check_values,
    open_all,
    place,
    reading,
)
from dive.cli.tables import add_column, add_row, stdout, table
from dive.console import PlainConsole, styled
from dive.errors import DiveError
from dive.errors.counting import counted
from dive.errors.private import names_of, row_of
from dive.errors.visible import visible, visible_json

_SHOWN = 8  # ids named in a message


def evaluate(
    context: typer.Context,
    predictions: Annotated[
        Path,
        typer.Option(
            "--predictions", parser=place, metavar="FILE", help="reports.jsonl of dive generate."
        ),
    ],
    references: Annotated[
        str,
        typer.Option("--references", help="JSON lines or a dataset, as in dive distill."),
    ],
    target: Annotated[
        str, typer.Option("--target", help="Section compared: findings, impression or both.")
    ] = "findings",
    metrics: Annotated[
        str, typer.Option("--metrics", help="Comma-separated; see docs/metrics.md.")
    ] = "bleu,rougeL,findings",
    normalization: Annotated[
        str,
        typer.Option(help="Of BLEU and ROUGE-L: raw, lower or r2gen. Never compare across them."),
    ] = "lower",
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            parser=place,
            metavar="FILE",
            help="Other predictions; differences are printed, paired.",
        ),
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option("--bootstrap", help="Resamples, for confidence intervals.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="What the intervals hold.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    per_report: Annotated[
        Path | None,
        typer.Option(
            "--per-report",
            parser=place,
            metavar="FILE",
            help="Write every report's own scores here, one JSON line a report, in the order of "
            "the references.",
        ),
    ] = None,
    meteor_synonyms: Annotated[
        bool,
        typer.Option(
            help="METEOR: match WordNet's synonyms, too (needs its data; dive doctor says where "
            "from), or words and stems alone.",
        ),
    ] = True,
    radgraph_annotations: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="FILE",
            help="RadGraph: a file of annotations of all texts; no model is run.",
        ),
    ] = None,
    radgraph_model: Annotated[
        str, typer.Option(help="RadGraph: radgraph, radgraph-xl or modern-radgraph-xl.")
    ] = "radgraph-xl",
    radgraph_weights: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="PATH",
            help="RadGraph: folder or archive; default its own cache.",
        ),
    ] = None,
    radgraph_encoder: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="FOLDER",
            help="RadGraph: folder of the BERT model that its config.json names, if that is not "
            "in the Hugging Face cache.",
        ),
    ] = None,
    radgraph_python: Annotated[
        str | None, typer.Option(help="RadGraph: another Python that has the package.")
    ] = None,
    radgraph_case_sensitive: Annotated[
        bool, typer.Option("--radgraph-case-sensitive", help="As radgraph 0.1.18 from PyPI.")
    ] = False,
    chexbert_weights: Annotated[
        Path | None,
        typer.Option(
            parser=place, metavar="FILE", help="CheXbert: chexbert.pth; default its usual place."
        ),
    ] = None,
    chexbert_tokenizer: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="FOLDER", help="CheXbert: folder of bert-base-uncased."),
    ] = None,
    split: SplitOption = None,
    images_root: ImagesRootOption = None,
    reports_root: ReportsRootOption = None,
    drop_comparisons: DropComparisonsOption = False,
    read: ReadOption = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Count what has no partner, and score the rest."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score reports: BLEU, ROUGE-L, findings by the lexicon, termination, length."""
    from dive.data.overwriting import check_not_of_spec, check_not_read
    from dive.files.json_lines import check_file
    from dive.files.lock import hold_file
    from dive.metrics import METRICS, CheXbert, RadGraph
    from dive.metrics import evaluate as score

    asked = [name.strip() for name in metrics.split(",") if name.strip()]
    unknown = [name for name in asked if name not in METRICS]
    if not asked or unknown:
        raise DiveError(f"--metrics is {metrics!r}; wants some of {','.join(METRICS)}")
    check_values(target=target)
    if per_report is not None:
        check_file(per_report)
        written = {per_report: "--per-report"}
        check_not_read(
            written,
            [predictions, baseline, radgraph_annotations, radgraph_weights, radgraph_encoder,
             chexbert_weights, chexbert_tokenizer],
        )  # fmt: skip
        check_not_of_spec(written, references, images_root, reports_root)
        context.with_resource(hold_file(per_report))
    sources: dict[str, Any] = {}
    if "radgraph" in asked:
        sources["radgraph"] = radgraph_annotations or RadGraph(
            radgraph_model,
            weights=radgraph_weights,
            encoder=radgraph_encoder,
            python=radgraph_python,
        )
        sources["radgraph_case_sensitive"] = radgraph_case_sensitive
    if "chexbert" in asked:
        sources["chexbert"] = CheXbert(chexbert_weights, chexbert_tokenizer)
    rows = _predictions(predictions)
    options = reading(split, images_root, reports_root, drop_comparisons, read)
    truth = _references(references, target, options, allow_missing)
    files = {predictions: rows}
    if baseline is not None:
        files[baseline] = _predictions(baseline)
    ids = _joined(files, references, truth, allow_missing)
    known = [name for name in ids if rows[name].get("finish_reason") is not None]
    found = score(
        [rows[name]["report"] for name in ids],
        [truth[name] for name in ids],
        asked,
        normalization=normalization,
        meteor_synonyms=meteor_synonyms,
        per_report=per_report is not None,
        finish_reasons=[rows[name]["finish_reason"] for name in ids]
        if len(known) == len(ids)
        else None,
        baseline=None if baseline is None else [files[baseline][name]["report"] for name in ids],
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        **sources,
    )
    missing = {str(path): len(set(truth) - set(table)) for path, table in files.items()}
    extra = {str(path): len(set(table) - set(truth)) for path, table in files.items()}
    if per_report is not None:
        _write_per_report(per_report, ids, found.pop("per_report"))
    without = len(ids) - len(known)
    if as_json:
        counts: dict[str, Any] = {"without_prediction": missing, "without_reference": extra}
        counts["without_finish_reason"] = without
        print(visible_json(found | {"target": target} | counts))
        return
    console = stdout()
    _print(found, missing, extra, console)
    if known and without:
        console.print(
            styled(
                f"no termination_rate: {without} of {len(ids)} predictions have no finish_reason",
                "yellow",
            ).append(f" ({visible(predictions)})", "default")
        )
    if per_report is not None:
        console.print(f"every report's scores are in {per_report}", style="dim")


def _write_per_report(path: Path, ids: list[str], columns: dict[str, list[float | None]]) -> None:
    """One row a report: its id and its scores, null where it could not be scored."""
    from dive.files.json_lines import write_jsonl

    rows = [
        {"id": name} | {metric: values[place] for metric, values in columns.items()}
        for place, name in enumerate(ids)
    ]
    write_jsonl(path, rows)


def _print(
    found: dict[str, Any], missing: dict[str, int], extra: dict[str, int], console: PlainConsole
) -> None:
    intervals, differences = found.get("intervals", {}), found.get("differences", {})
    shown = table("metric", "score")
    if intervals:
        add_column(shown, f"{100 * found['bootstrap']['confidence']:.0f}% interval")
    if differences:
        add_column(shown, "baseline")
        add_column(shown, "difference")
    add_column(shown, "variant", "dim")
    for name, variant in found["variants"].items():
        row = [name, f"{found[name]:.4f}"]
        if intervals:
            row.append("{:.4f} to {:.4f}".format(*intervals[name]) if name in intervals else "")
        if differences:
            one = differences.get(name)
            row.append(f"{found['baseline'][name]:.4f}" if one else "")
            text = f"{one['difference']:+.4f}" if one else ""
            if one and "interval" in one:
                text += " ({:+.4f} to {:+.4f}, p {:.3f})".format(*one["interval"], one["p"])
            row.append(text)
        add_row(shown, *row, variant)
    console.print(shown)
    tested = sum("p" in one for one in differences.values())
    if tested > 1:
        console.print(
            f"each p is of one metric alone: it is not corrected for {tested} being compared",
            style="dim",
        )
    console.print(f"{found['scored']} of {found['reports']} reports scored", style="dim")
    for what, counts in (("reference", extra), ("prediction", missing)):
        for path, count in counts.items():
            if count:
                told = styled(f"{count} without a {what}", "yellow")
                console.print(told.append(f" ({visible(path)})", "default"))
    for what in ("empty_predictions", "empty_references"):
        if found[what]:
            console.print(f"{found[what]} {what.replace('_', ' ')}", style="yellow")


def _predictions(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by id; a row holds at least "id" and "report"."""
    from dive.data.absent import is_absent
    from dive.metrics import FINISH_REASONS

    rows: dict[str, dict[str, Any]] = {}
    for number, row in _lines(path):
        for key, kinds in (("id", (str, int)), ("report", str)):
            if key not in row:
                raise DiveError(
                    f'{row_of(path, number)}: wants "id" and "report", got the keys {names_of(row)}'
                )
            if key == "report" and row[key] is not None and is_absent(row[key]):
                continue  # NaN, too, is an empty report
            if not isinstance(row[key], kinds) or isinstance(row[key], bool):
                got = "null" if row[key] is None else f"a {type(row[key]).__name__}"
                raise DiveError(
                    f'{row_of(path, number)}: "{key}" is {got}, want a text'
                    + ('; of an empty report, ""' if key == "report" else "")
                )
        name, reason = row["id"], row.get("finish_reason")
        if reason not in (None, *FINISH_REASONS):
            raise DiveError(
                f'{row_of(path, number)}: "finish_reason" is another word, want one of '
                f"{', '.join(FINISH_REASONS)}, or none"
            )
        if str(name) in rows:
            raise DiveError(f"{row_of(path, number)}: id {name!r} comes twice")
        rows[str(name)] = row
    return rows


def _references(
    spec: str, target: str, options: dict[str, Any], allow_missing: bool
) -> dict[str, str]:
    """Reports by id. Images are neither needed nor looked for."""
    from dive.data import Study, check_target
    from dive.data.absent import is_absent
    from dive.data.open import parse_spec
    from dive.data.reading import SPLITS

    check_target(target)
    kind, path = parse_spec(spec)
    if kind != "jsonl":
        found = open_all(spec, target=target, **options | {"check_files": False})
        return {study.id: study.report(target) for study in found}
    # the readers of JSON lines want the images to be there; of their options this one is left
    split = options.pop("split", None)
    if split is not None and split.casefold() not in SPLITS:
        raise DiveError(f"--split is {split!r}; wants one of {', '.join(SPLITS)}")
    given = [name for name, value in options.items() if value not in (None, False)]
    if given:
        raise DiveError(f"{spec}: is JSON lines, for which {', '.join(given)} has no use")
    reports: dict[str, str] = {}
    for number, row in _lines(path):
        if split is not None:
            own = row.get("split")
            if not isinstance(own, str):
                raise DiveError(f"{row_of(path, number)}: has no 'split', and --split is {split!r}")
            if SPLITS.get(own.casefold(), own) != SPLITS[split.casefold()]:
                continue
        name = row.get("id")
        if not isinstance(name, (str, int)):
            raise DiveError(f'{row_of(path, number)}: "id" is missing')
        if str(name) in reports:
            raise DiveError(f"{row_of(path, number)}: id {name!r} comes twice")
        texts: dict[str, Any] = {key: row.get(key) for key in ("findings", "impression")}
        for key, text in texts.items():
            if not isinstance(text, str) and not is_absent(text):
                raise DiveError(f"{row_of(path, number)}: {key!r} wants a text")
        study = Study(id=str(name), images=(), source=f"{row_of(path, number)}", **texts)
        try:
            reports[study.id] = study.report(target)
        except DiveError:
            if not allow_missing or not study.placeholders:
                raise
            reports[study.id] = ""  # counted as an empty reference
    if not reports:
        raise DiveError(f"{path.name}: no reference is of the split {split!r}")
    return reports


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    from dive.files.input import lines_of

    found = []
    for number, line in _reported(path, lines_of(path)):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DiveError(f"cannot read {path}: line {number}: {error}") from error
        except RecursionError:
            raise DiveError(f"{path}:{number}: is nested too deeply") from None
        except ValueError as error:
            raise DiveError(f"{row_of(path, number)}: is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DiveError(f"{row_of(path, number)}: wants one JSON object a line")
        found.append((number, row))
    if not found:
        raise DiveError(f"{path}: has no lines")
    return found


def _reported(path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    try:
        yield from lines
    except OSError as error:
        raise DiveError(f"cannot read {path}: {error}") from error


def _joined(
    files: dict[Path, dict[str, Any]], references: str, truth: dict[str, str], allow_missing: bool
) -> list[str]:
    """The ids that every file has, in the order of the references."""
    for path, rows in files.items():
        lost = [name for name in truth if name not in rows]
        odd = [name for name in rows if name not in truth]
        for names, what in (
            (lost, f"{path} has no prediction"),
            (odd, f"{references} has no reference for what {path} has"),
        ):
            if names and not allow_missing:
                listed = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
                raise DiveError(
                    f"{what} under {counted(len(names), 'id')}: {listed}; --allow-missing counts "
                    "them and scores the rest"
                )
    ids = [name for name in truth if all(name in rows for rows in files.values())]
    if not ids:
        raise DiveError(f"no id of {references} is in {', '.join(map(str, files))}")
    return ids
