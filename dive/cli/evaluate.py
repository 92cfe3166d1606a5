"""`dive evaluate`: predictions against references, joined by id."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dive.cli.evaluate_files import (
    check_files,
    check_tables,
    hold_outputs,
    outputs_of,
    write_per_report,
    write_tables,
)
from dive.cli.evaluate_tables import print_results
from dive.cli.options import (
    ComparedOption,
    DropComparisonsOption,
    ImagesRootOption,
    JsonOption,
    MeteorSynonymsOption,
    RadgraphAnnotationsOption,
    ReadOption,
    ReferencesOption,
    ReportsRootOption,
    SplitOption,
    as_path,
    check_values,
    reading,
)
from dive.cli.predictions import Joined, joined, predictions_of
from dive.cli.references import references_of
from dive.cli.scoring import export_words, exports_of, metrics_of, models_of, write_exports
from dive.errors import DiveError
from dive.errors.visible import visible_json


def evaluate(
    context: typer.Context,
    predictions: Annotated[
        list[Path],
        typer.Option(
            "--predictions",
            parser=as_path,
            metavar="FILE",
            help="reports.jsonl of dive generate; once per training seed, for their means.",
        ),
    ],
    references: ReferencesOption,
    target: ComparedOption = "findings",
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
        list[Path] | None,
        typer.Option(
            "--baseline",
            parser=as_path,
            metavar="FILE",
            help="Other predictions, one file or one per training seed; differences are printed, "
            "paired.",
        ),
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option("--bootstrap", help="Resamples, for confidence intervals.")
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Share of the resampled values that an interval holds.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    bootstrap_unit: Annotated[
        str | None,
        typer.Option(
            "--bootstrap-unit",
            metavar="UNIT",
            help="What is drawn: report, or patient (with all reports of a patient). Default: "
            "patient where the references name all patients.",
        ),
    ] = None,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            "--table",
            parser=as_path,
            metavar="FILE",
            help="Write all scores here, as LaTeX (.tex) or comma-separated values (.csv); may be "
            "given for both.",
        ),
    ] = None,
    per_report: Annotated[
        Path | None,
        typer.Option(
            "--per-report",
            parser=as_path,
            metavar="FILE",
            help="Write every report's own scores here, one JSON line per report, in the order of "
            "the references; of one file of predictions.",
        ),
    ] = None,
    meteor_synonyms: MeteorSynonymsOption = True,
    radgraph_annotations: RadgraphAnnotationsOption = None,
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
    from dive.data.overwriting import check_not_read
    from dive.data.overwriting import films as films_of

    requested = metrics_of(metrics)
    check_values(target=target)
    others = baseline or []
    check_files(predictions, others, per_report)
    check_tables(table or [])
    named = exports_of(export or [], len(predictions))
    outputs = outputs_of(
        [("--per-report", per_report)]
        + [("--table", path) for path in table or []]
        + [("--export", path) for path, _ in named]
    )
    exports = dict(named)
    if bootstrap_unit is not None and bootstrap is None:
        raise DiveError("--bootstrap-unit has no use without --bootstrap")
    if outputs:
        read_files = [*predictions, *others, radgraph_annotations, radgraph_weights,
                      radgraph_encoder, chexbert_weights, chexbert_tokenizer,
                      bertscore_model]  # fmt: skip
        hold_outputs(context, outputs, read_files, (references, images_root, reports_root))
    models = models_of(requested, context.params)
    files = {predictions[0]: predictions_of(predictions[0])}
    options = reading(split, images_root, reports_root, drop_comparisons, read)
    truth = references_of(references, target, options, allow_missing)
    check_not_read(outputs, films_of(one.study for one in truth.values()))
    files |= {path: predictions_of(path) for path in (*predictions[1:], *others)}
    data = joined(files, references, truth, allow_missing)
    left_out = write_exports(exports, data, predictions[0], target)
    found = _scores(
        data,
        predictions,
        others,
        metrics=requested,
        normalization=normalization,
        meteor_synonyms=meteor_synonyms,
        per_report=per_report is not None,
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        bootstrap_unit=bootstrap_unit,
        **models,
    )
    if per_report is not None:
        write_per_report(per_report, data.ids, found.pop("per_report"))
    write_tables(table or [], found, predictions, others)
    found |= _counts(data, predictions) | {"target": target}
    if exports:
        found["left_out_of_exports"] = {str(path): lost for path, lost in left_out.items()}
    if as_json:
        print(visible_json(found))
        return
    written = {path: "the scores are in" for path in table or []}
    for path, lost in left_out.items():
        written[path] = export_words(exports[path], len(data.ids) - lost, lost)
    if per_report is not None:
        written[per_report] = "every report's scores are in"
    print_results(found, len(data.ids), _without_reason(data, predictions), written)


def _scores(
    data: Joined, predictions: list[Path], baseline: list[Path], **options: Any
) -> dict[str, Any]:
    """The results of `dive.evaluate`, or of `dive.evaluate_seeds` for several files."""
    from dive.metrics import evaluate, evaluate_seeds

    reasons = data.finish_reasons(predictions)
    complete = not any(None in own for own in reasons)
    texts, references, others = data.reports(predictions), data.references(), data.reports(baseline)
    options["patients"] = data.patients()
    if len(predictions) == 1:
        return evaluate(
            texts[0],
            references,
            finish_reasons=reasons[0] if complete else None,
            baseline=others[0] if others else None,
            **options,
        )
    found = evaluate_seeds(
        texts,
        references,
        finish_reasons=reasons if complete else None,
        baseline=others or None,
        **options,
    )
    found["seeds"]["files"] = [str(path) for path in predictions]
    if baseline:
        found["baseline_seeds"]["files"] = [str(path) for path in baseline]
    return found


def _counts(data: Joined, predictions: list[Path]) -> dict[str, Any]:
    """What has no partner, in numbers and by id, and what has no finish reason."""
    lost, odd = data.without_prediction(), data.without_reference()
    return {
        "without_prediction": {path: len(names) for path, names in lost.items()},
        "without_reference": {path: len(names) for path, names in odd.items()},
        "ids_without_prediction": lost,
        "ids_without_reference": odd,
        "without_finish_reason": sum(_without_reason(data, predictions).values()),
    }


def _without_reason(data: Joined, predictions: list[Path]) -> dict[str, int]:
    """File -> how many of its predictions have no finish reason."""
    reasons = data.finish_reasons(predictions)
    return {str(path): own.count(None) for path, own in zip(predictions, reasons, strict=True)}
