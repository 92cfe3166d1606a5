"""`dive demo`: one unseen hospital, live.

Distils DIVE and the methods that it is compared with, prints the table, and writes the adapter, its
reports, the scores and a web page to the output folder.
"""

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from dive.demo.page import COLUMNS, caution, cells, marked, write_page
from dive.errors import checks
from dive.errors.console import PlainConsole, column, styled
from dive.errors.visible import visible
from dive.files.atomic import check_folder, write_bytes, write_text
from dive.files.json_lines import write_jsonl
from dive.files.lock import hold_folder

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

    `test.jsonl` and `images/` have the hospital's test studies, so that the other commands can be
    tried on them. Returns the records of results.json.

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

    outcomes: dict[str, Outcome] = {}
    with Progress(
        SpinnerColumn(),
        column("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=not console.is_terminal,
    ) as bar:
        for method in methods:
            task = bar.add_task(method.name, total=1)
            outcomes[method.name] = run_method(method, backbone, hospital, steps=steps)
            bar.advance(task)

    records = [outcome.record for outcome in outcomes.values()]
    console.print(_table(records))
    console.print(
        "Style F1: findings worded exactly as this hospital does; concept F1: findings named "
        "in any words.",
        style="dim",
    )
    console.print(caution(records), markup=False, highlight=False)
    last = outcomes[DIVE.name if DIVE.name in outcomes else methods[-1].name]
    shown = _two_studies(hospital, outcomes)
    for study in shown:
        _print_study(console, study)

    _write_outputs(out, hospital, records, last)
    write_page(
        out / "index.html",
        records,
        shown,
        seed=seed,
        train=train,
        test=test,
        steps=steps,
        seconds=round(time.perf_counter() - start),
        parameters=f"{sum(p.numel() for p in backbone.model.parameters()) / 1e6:.1f} million",
        version=dive.__version__,
    )
    console.print(f"\nDone in {time.perf_counter() - start:.0f} s. Written to {out}:")
    console.print("  index.html  results.json  reports.jsonl  adapter/  test.jsonl  images/")
    console.print("Try next:")
    console.print(f"  open {out / 'index.html'}", highlight=False)
    console.print(
        f"  dive evaluate --predictions {out / 'reports.jsonl'} --references {out / 'test.jsonl'}",
        highlight=False,
        soft_wrap=True,
    )
    console.print("  dive distill --help      (the same on a model and studies of your own)")
    return records


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


def _two_studies(hospital: Hospital, outcomes: dict[str, Outcome]) -> list[dict]:
    """Returns two studies with findings and their true reports: the first, not the best ones."""
    from dive.demo.reports import concept_findings

    found = [len(concept_findings(study.report())) for study in hospital.test]
    chosen = [n for n, count in enumerate(found) if count >= 2]
    trained = [name for name, outcome in outcomes.items() if outcome.adapter is not None]
    names = [name for name in outcomes if "shot" in name] + trained[-1:]
    return [
        {
            "id": hospital.test[n].id,
            "image": hospital.test[n].load_images()[0],
            "reports": [{"name": "truth", "text": hospital.test[n].report(), "ended": True}]
            + [
                {
                    "name": name,
                    "text": outcomes[name].reports[n].text,
                    "ended": outcomes[name].reports[n].finish_reason == "eos",
                }
                for name in reversed(names)
            ],
        }
        for n in (chosen or range(len(hospital.test)))[:2]
    ]


def _print_study(console: PlainConsole, study: dict) -> None:
    console.print(styled(f"\n{study['id']}", "bold"), " (findings stated are underlined)")
    for report in study["reports"]:
        if "shot" in report["name"]:
            continue  # two texts per study are enough for a terminal; the page has all
        text = styled(f"{report['name']}: ", "cyan")
        for piece in marked(report["text"]):
            text.append(
                visible(piece["text"]), style="underline bold" if piece["marked"] else "default"
            )
        text.append("" if report["ended"] else " ... (did not end)", style="red")
        console.print(text)


def _write_outputs(out: Path, hospital: Hospital, records: Sequence[dict], last: Outcome) -> None:
    if last.adapter is not None:
        last.adapter.save_pretrained(out / "adapter")
    write_text(out / "results.json", json.dumps(list(records), indent=1) + "\n")
    images = out / "images"
    paths = [_image_path(images, study) for study in hospital.test]
    for path, study in zip(paths, hospital.test, strict=True):
        film = io.BytesIO()
        study.load_images()[0].save(film, format="PNG")
        write_bytes(path, film.getvalue())
    relative = [f"images/{path.name}" for path in paths]
    write_jsonl(
        out / "test.jsonl",
        [
            {"id": study.id, "images": [name], "findings": study.findings}
            for study, name in zip(hospital.test, relative, strict=True)
        ],
    )
    write_jsonl(
        out / "reports.jsonl",
        [
            {
                "id": report.id,
                "images": [name],
                "report": report.text,
                "finish_reason": report.finish_reason,
                "num_tokens": report.num_tokens,
                "seconds": round(report.seconds, 4),
            }
            for report, name in zip(last.reports, relative, strict=True)
        ],
    )


def _image_path(folder: Path, study: Study) -> Path:
    return folder / f"{study.id}.png"
