"""`python -m dive.data SPEC`: read a dataset, say what was kept and why, write it as JSON lines.

A look at a download before a long run, and the way to feed it to anything that takes JSON lines.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import NoReturn

from dive.data.open import open_studies
from dive.data.overwriting import check_not_of_spec, check_not_read, films
from dive.data.skipping import Skipped
from dive.data.study import TARGETS, Study
from dive.errors import DiveError, checks
from dive.errors.visible import visible
from dive.files.json_lines import check_file, write_jsonl
from dive.files.lock import hold_file


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(visible(message))


def main(arguments: list[str] | None = None) -> int:
    parser = _Parser("python -m dive.data", description=__doc__)
    parser.add_argument("spec", help="mimic-cxr:ROOT, chexpert-plus:ROOT, iu-xray:ROOT, ...")
    parser.add_argument("--target", default="findings", choices=TARGETS)
    parser.add_argument("--split")
    parser.add_argument("--views", help="frontal, lateral, all, or names: PA,AP")
    parser.add_argument("--max-images", type=int)
    parser.add_argument("--min-words", type=int, default=0)
    parser.add_argument("--images", help="folder of images, if not under ROOT")
    parser.add_argument("--reports", help="folder or zip of reports, likewise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drop-comparisons", action="store_true")
    parser.add_argument("--strip-placeholders", action="store_true")
    parser.add_argument("--no-check-files", dest="check_files", action="store_false")
    parser.add_argument("--on-error", default="fail", choices=("fail", "skip"))
    parser.add_argument("--out", help="write the studies here, as JSON lines")
    options = vars(parser.parse_args(arguments))
    spec, out = options.pop("spec"), options.pop("out")
    skipped = Skipped()
    try:
        with contextlib.ExitStack() as ends:
            if out is not None:
                out = checks.place("--out", out)
                check_file(out)  # before anything is read
                written = {out: "--out"}
                check_not_of_spec(written, spec, options["images"], options["reports"])
                ends.enter_context(hold_file(out))
            studies = open_studies(spec, skipped=skipped, **options).read()
            if out is not None:
                check_not_read(written, films(studies))
                write_jsonl(out, map(_row, studies))
    except DiveError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 1
    print(visible(studies.report))
    for entry in skipped.entries[:10]:
        print(visible(f"  skipped: {entry['reason']}"))
    if len(skipped) > 10:
        print(f"  skipped: and {len(skipped) - 10:,} more")
    if out is not None:
        note = "it holds reports, and the agreement of its source covers it"
        print(visible(f"  wrote {out}: {note}"))
    return 0


def _row(study: Study) -> dict:
    # Paths in JSON lines are relative to the file; absolute ones hold wherever it lies.
    row = {"id": study.id, "images": [str(Path(str(image)).absolute()) for image in study.images]}
    fields = ("patient", "origin", "split", "indication", "findings", "impression")
    return row | {name: getattr(study, name) for name in fields if getattr(study, name) is not None}


if __name__ == "__main__":
    sys.exit(main())
