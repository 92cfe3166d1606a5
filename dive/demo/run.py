"""`dive demo`: one unseen hospital, live.

Distils DIVE and the methods that it is compared with, prints the table, and writes the adapter, its
reports, the scores and a web page to the output folder.
"""

import io
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

import dive
from dive.data import Study
from dive.demo.methods import (
    BACKBONE,
    DEMO_METHODS,
    DIVE,
    Hospital,
    Method,
    Outcome,
    open_hospital,
    run_method,
)
from dive.demo.page import records_of, write_demo_page
from dive.demo.table import COLUMNS, caution, cells, marked
from dive.errors import checks
from dive.errors.console import PlainConsole, column, styled
from dive.errors.visible import visible
from dive.files.atomic import check_folder, write_bytes, write_text
from dive.files.json_lines import write_jsonl
from dive.files.lock import hold_folder
from dive.page import LOG_FILE, Training, training_of

if TYPE_CHECKING:
    from dive.backbone.load import Backbone
    from dive.generation.generate_reports import Report

HOSPITAL = 100  # not one of the experiment's


def main(
    out: Path = Path("dive-demo"),
    *,
    seed: int = HOSPITAL,
    train: int = 128,
    test: int = 64,
    steps: int = 100,
    methods: Sequence[Method] = DEMO_METHODS,
    console: PlainConsole | None = None,
) -> list[dict]:
    """Runs the demo and writes `adapter/`, `reports.jsonl`, `results.json`, `index.html` to `out`.

    `test.jsonl` and `images/` have the hospital's test studies and `predictions/` every method's
    reports, so that the other commands can be tried on them. Returns the records of results.json.

    Raises:
        DiveError: another process writes into `out`, or it cannot be written.
    """
    out = checks.path("out", out)
    check_folder(out)
    with hold_folder(out):
        return _run(out, seed, train, test, steps, methods, console or PlainConsole())


def _run(
    out: Path,
    seed: int,
    train: int,
    test: int,
    steps: int,
    methods: Sequence[Method],
    console: PlainConsole,
) -> list[dict]:
    start = time.perf_counter()
    console.print(
        styled("The embedded world.", "bold").append(
            " Drawn radiographs, an invented hospital and a toy backbone: a way to see DIVE work "
            "in minutes, and nothing about patients.",
            "default",
        )
    )
    backbone = dive.load_backbone(BACKBONE, dtype="float32", device="cpu")
    hospital = open_hospital(seed, train, test)
    console.print(
        f"Hospital {seed}: {train} training studies, {len(hospital.demonstrations)} "
        f"demonstrations, {test} test studies, {steps} steps per method."
    )

    outcomes, training, logs = _run_methods(methods, backbone, hospital, steps, console)
    records = [outcome.record for outcome in outcomes.values()]
    console.print(_table(records))
    console.print(
        "Style F1: findings worded exactly as this hospital does; concept F1: findings named "
        "in any words.",
        style="dim",
    )
    console.print(caution(records), markup=False, highlight=False)
    last = DIVE.name if DIVE.name in outcomes else methods[-1].name
    for index in _two_studies(hospital):
        _print_study(console, hospital.test[index], last, outcomes[last].reports[index])

    _write_outputs(out, hospital, outcomes, last)
    if last in logs:
        write_text(out / "adapter" / LOG_FILE, logs[last])
    millions = sum(p.numel() for p in backbone.model.parameters()) / 1e6
    write_demo_page(
        out / "index.html",
        backbone,
        hospital,
        outcomes,
        training,
        [
            ("hospital", str(seed)),
            ("training studies", str(train)),
            ("steps", f"{steps} of 8 studies"),
            ("backbone", f"{millions:.1f} million parameters"),
            ("seconds before this page", f"{time.perf_counter() - start:.0f}"),
        ],
    )
    console.print(f"\nDone in {time.perf_counter() - start:.0f} s. Written to {out}:")
    console.print(
        "  index.html  results.json  reports.jsonl  predictions/  adapter/  test.jsonl  images/"
    )
    console.print("Try next:")
    console.print(f"  open {out / 'index.html'}", highlight=False)
    console.print(
        f"  dive evaluate --predictions {out / 'reports.jsonl'} --references {out / 'test.jsonl'}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"  dive report --references {out / 'test.jsonl'} --predictions {out / 'reports.jsonl'}",
        highlight=False,
        soft_wrap=True,
    )
    console.print("  dive distill --help      (the same on a model and studies of your own)")
    return records


def _run_methods(
    methods: Sequence[Method],
    backbone: "Backbone",
    hospital: Hospital,
    steps: int,
    console: PlainConsole,
) -> tuple[dict[str, Outcome], list[Training], dict[str, str]]:
    """Runs every method under a bar; returns outcomes by name, curves, and logs by name."""
    outcomes: dict[str, Outcome] = {}
    training = []
    logs: dict[str, str] = {}
    with Progress(
        SpinnerColumn(),
        column("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=not console.is_terminal,
    ) as bar:
        for method in methods:
            task = bar.add_task(method.name, total=1)
            with tempfile.TemporaryDirectory(prefix="dive-demo-") as folder:
                outcomes[method.name] = run_method(
                    method, backbone, hospital, steps=steps, output_dir=Path(folder)
                )
                if method.config is not None:
                    training.append(training_of(method.name, Path(folder))[0])
                    logs[method.name] = (Path(folder) / LOG_FILE).read_text(encoding="utf-8")
            bar.advance(task)
    return outcomes, training, logs


# narrow enough that a terminal of 80 columns shows the methods' names
_HEADS = {
    "style_f1": "style\nF1",
    "concept_f1": "concept\nF1",
    "terminated": "ended\n%",
    "length_ratio": "length\nratio",
    "ms_per_report": "ms per\nreport",
    "prompt_tokens": "prompt\ntokens",
}


def _table(records: Sequence[dict]) -> Table:
    table = Table(
        title="One unseen hospital, one seed", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
    )
    for n, (key, name) in enumerate(COLUMNS.items()):
        justify: Any = "left" if n == 0 else "right"
        table.add_column(_HEADS.get(key, name), justify=justify, no_wrap=n > 0)
    for record in records:
        table.add_row(*cells(record), style="bold" if record["method"] == DIVE.name else "")
    return table


def _two_studies(hospital: Hospital) -> list[int]:
    """Returns the indices of two studies with findings: the first, not the best ones."""
    from dive.demo.reports import concept_findings

    found = [len(concept_findings(study.report())) for study in hospital.test]
    chosen = [n for n, count in enumerate(found) if count >= 2]
    return (chosen or list(range(len(found))))[:2]


def _print_study(console: PlainConsole, study: Study, name: str, report: "Report") -> None:
    console.print(styled(f"\n{study.id}", "bold"), " (findings stated are underlined)")
    ended = report.finish_reason == "eos"
    for who, text, end in (("truth", study.report(), True), (name, report.text, ended)):
        line = styled(f"{who}: ", "cyan")
        for piece in marked(text):
            line.append(
                visible(piece["text"]), style="underline bold" if piece["marked"] else "default"
            )
        line.append("" if end else " ... (did not end)", style="red")
        console.print(line)


def _write_outputs(
    out: Path, hospital: Hospital, outcomes: Mapping[str, Outcome], last: str
) -> None:
    """Writes what the other commands read; `reports.jsonl` and `adapter/` are of method `last`."""
    adapter = outcomes[last].adapter
    if adapter is not None:
        adapter.save_pretrained(out / "adapter")
    records = [outcome.record for outcome in outcomes.values()]
    write_text(out / "results.json", json.dumps(records, indent=1) + "\n")
    names = {study.id: f"images/{study.id}.png" for study in hospital.test}
    for study in hospital.test:
        film = io.BytesIO()
        study.load_images()[0].save(film, format="PNG")
        write_bytes(out / names[study.id], film.getvalue())
    write_jsonl(
        out / "test.jsonl",
        [
            {"id": study.id, "images": [names[study.id]], "findings": study.findings}
            for study in hospital.test
        ],
    )
    for name, outcome in outcomes.items():
        reports = [
            {"id": record["id"], "images": [names[record["id"]]]} | record
            for record in records_of(outcome)
        ]
        write_jsonl(out / "predictions" / f"{file_name(name)}.jsonl", reports)
        if name == last:
            write_jsonl(out / "reports.jsonl", reports)


def file_name(method: str) -> str:
    """A method's name as that of a file: "DIVE, fixed vectors" is DIVE-fixed-vectors."""
    return re.sub(r"[^0-9A-Za-z]+", "-", method)
