"""`dive evaluate`: predictions against references, joined by id."""

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
    as_path,
    check_values,
    reading,
)
from dive.cli.predictions import joined_ids, predictions_of, references_of
from dive.cli.scoring import exports_of, models_of, write_exports
from dive.cli.tables import add_column, add_row, stdout, table
from dive.errors import DiveError
from dive.errors.console import PlainConsole, styled
from dive.errors.visible import visible, visible_json


def evaluate(
    context: typer.Context,
    predictions: Annotated[
        Path,
        typer.Option(
            "--predictions", parser=as_path, metavar="FILE", help="reports.jsonl of dive generate."
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
        typer.Option(
            help="Words of BLEU and ROUGE-L: raw, lower or r2gen. Never compare across them."
        ),
    ] = "lower",
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            parser=as_path,
            metavar="FILE",
            help="Other predictions; differences are printed, paired.",
        ),
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option("--bootstrap", help="Resamples, for confidence intervals.")
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Share of the resampled values that an interval holds.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    per_report: Annotated[
        Path | None,
        typer.Option(
            "--per-report",
            parser=as_path,
            metavar="FILE",
            help="Write every report's own scores here, one JSON line per report, in the order of "
            "the references.",
        ),
    ] = None,
    meteor_synonyms: Annotated[
        bool,
        typer.Option(
            help="METEOR: match WordNet's synonyms, too (needs its data, see dive doctor), or "
            "words and stems alone.",
        ),
    ] = True,
    radgraph_annotations: Annotated[
        Path | None,
        typer.Option(
            parser=as_path,
            metavar="FILE",
            help="RadGraph: a file of annotations of all texts; no model is run.",
        ),
    ] = None,
    radgraph_model: Annotated[
        str | None,
        typer.Option(
            help="RadGraph: radgraph, radgraph-xl or modern-radgraph-xl; default radgraph-xl, and "
            "radgraph with the metric radcliq.",
            show_default=False,
        ),
    ] = None,
    radgraph_weights: Annotated[
        Path | None,
        typer.Option(
            parser=as_path,
            metavar="PATH",
            help="RadGraph: folder or archive; default its own cache.",
        ),
    ] = None,
    radgraph_encoder: Annotated[
        Path | None,
        typer.Option(
            parser=as_path,
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
            parser=as_path, metavar="FILE", help="CheXbert: chexbert.pth; default its usual place."
        ),
    ] = None,
    chexbert_tokenizer: Annotated[
        Path | None,
        typer.Option(
            parser=as_path, metavar="FOLDER", help="CheXbert: folder of bert-base-uncased."
        ),
    ] = None,
    bertscore_model: Annotated[
        Path | None,
        typer.Option(
            parser=as_path,
            metavar="FOLDER",
            help="BERTScore: folder of distilroberta-base; default its usual place.",
        ),
    ] = None,
    ratescore_python: Annotated[
        str | None, typer.Option(help="RaTEScore: another Python that has the package.")
    ] = None,
    green_python: Annotated[
        str | None, typer.Option(help="GREEN: another Python that has green_score.")
    ] = None,
    green_model: Annotated[
        str | None,
        typer.Option(help="GREEN: folder of its language model, or a name in the hub's cache."),
    ] = None,
    metrics_device: Annotated[
        str,
        typer.Option(help="cpu, cuda or cuda:N, for CheXbert, BERTScore, RaTEScore and GREEN."),
    ] = "cpu",
    export: Annotated[
        list[str] | None,
        typer.Option(
            "--export",
            metavar="FORMAT:FILE",
            help="Write references and predictions for other programs: rexrank:FILE.json or "
            "radeval:FILE.jsonl. May be given again.",
        ),
    ] = None,
    split: SplitOption = None,
    images_root: ImagesRootOption = None,
    reports_root: ReportsRootOption = None,
    drop_comparisons: DropComparisonsOption = False,
    read: ReadOption = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Count records without a partner, and score the rest."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score reports: BLEU, ROUGE-L, findings by the lexicon, termination, length."""
    from dive.metrics import evaluate as score

    requested = _metrics_of(metrics)
    check_values(target=target)
    exports = exports_of(export or [], per_report)
    outputs = dict.fromkeys(exports, "--export")
    if per_report is not None:
        outputs[per_report] = "--per-report"
    read_files = [predictions, baseline, radgraph_annotations, radgraph_weights, radgraph_encoder,
                  chexbert_weights, chexbert_tokenizer, bertscore_model]  # fmt: skip
    _hold_outputs(context, outputs, read_files, (references, images_root, reports_root))
    models = models_of(requested, context.params)
    records = predictions_of(predictions)
    options = reading(split, images_root, reports_root, drop_comparisons, read)
    truth = references_of(references, target, options, allow_missing)
    files = {predictions: records}
    if baseline is not None:
        files[baseline] = predictions_of(baseline)
    ids = joined_ids(files, references, truth, allow_missing)
    reasons: list[Any] = [records[name].get("finish_reason") for name in ids]
    without_reason = reasons.count(None)
    left_out = write_exports(exports, ids, truth, records, target)
    found = score(
        [records[name]["report"] for name in ids],
        [truth[name] for name in ids],
        requested,
        normalization=normalization,
        meteor_synonyms=meteor_synonyms,
        per_report=per_report is not None,
        finish_reasons=None if without_reason else reasons,
        baseline=None if baseline is None else [files[baseline][name]["report"] for name in ids],
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        **models,
    )
    missing = {str(path): len(set(truth) - set(table)) for path, table in files.items()}
    extra = {str(path): len(set(table) - set(truth)) for path, table in files.items()}
    if per_report is not None:
        _write_per_report(per_report, ids, found.pop("per_report"))
    if as_json:
        counts: dict[str, Any] = {"without_prediction": missing, "without_reference": extra}
        counts["without_finish_reason"] = without_reason
        if exports:
            counts["left_out_of_exports"] = {str(path): lost for path, lost in left_out.items()}
        print(visible_json(found | {"target": target} | counts))
        return
    console = stdout()
    _print_scores(found, missing, extra, console)
    if 0 < without_reason < len(ids):
        _print_warning(
            f"no termination_rate: {without_reason} of {len(ids)} predictions have no "
            "finish_reason",
            predictions,
            console,
        )
    if per_report is not None:
        console.print(f"every report's scores are in {per_report}", style="dim")
    for path, lost in left_out.items():
        console.print(f"for {exports[path]}: {len(ids) - lost} reports in {path}", style="dim")
        if lost:
            _print_warning(f"{lost} without a reference are left out", path, console)


def _metrics_of(option: str) -> list[str]:
    """The metrics that --metrics names; DiveError for one that does not exist."""
    from dive.metrics import METRICS

    requested = [name.strip() for name in option.split(",") if name.strip()]
    if not requested or any(name not in METRICS for name in requested):
        raise DiveError(f"--metrics is {option!r}, want some of {','.join(METRICS)}")
    return requested


def _hold_outputs(
    context: typer.Context,
    outputs: dict[Path, str],
    read_files: list[Path | None],
    dataset: tuple[str, Path | None, Path | None],
) -> None:
    """Check that the outputs can be written and are no input, and hold them until the end.

    outputs: file -> the option that names it.
    dataset: the references' specification, the root of its images and that of its reports.
    """
    from dive.data.overwriting import check_not_of_spec, check_not_read
    from dive.files.atomic import check_file
    from dive.files.lock import hold_file

    for output in outputs:
        check_file(output)
    check_not_read(outputs, read_files)
    check_not_of_spec(outputs, *dataset)
    for output in outputs:
        context.with_resource(hold_file(output))


def _write_per_report(path: Path, ids: list[str], columns: dict[str, list[float | None]]) -> None:
    """One record per report: its id and its scores, null where it could not be scored."""
    from dive.files.json_lines import write_jsonl

    records = [
        {"id": name} | {metric: values[index] for metric, values in columns.items()}
        for index, name in enumerate(ids)
    ]
    write_jsonl(path, records)


def _print_scores(
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
        cells = [name, f"{found[name]:.4f}"]
        if intervals:
            cells.append("{:.4f} to {:.4f}".format(*intervals[name]) if name in intervals else "")
        if differences:
            one = differences.get(name)
            cells.append(f"{found['baseline'][name]:.4f}" if one else "")
            text = f"{one['difference']:+.4f}" if one else ""
            if one and "interval" in one:
                text += " ({:+.4f} to {:+.4f}, p {:.3f})".format(*one["interval"], one["p"])
            cells.append(text)
        add_row(shown, *cells, variant)
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
                _print_warning(f"{count} without a {what}", path, console)
    for what in ("empty_predictions", "empty_references"):
        if found[what]:
            console.print(f"{found[what]} {what.replace('_', ' ')}", style="yellow")


def _print_warning(text: str, path: str | Path, console: PlainConsole) -> None:
    console.print(styled(text, "yellow").append(f" ({visible(path)})", "default"))
