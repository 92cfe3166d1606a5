"""What README's tables and sentences rest on, from the records alone: `make evidence`.

    python -m experiments.evidence            prints it, and checks every page against the records
    python -m experiments.evidence --render   writes into the pages what the records give

It runs nothing and imports no torch. Exit status 1: a page does not hold what the records give, or
records are torn, unknown or twice there.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dive.errors import DiveError
from dive.errors.visible import visible
from dive.files.atomic import write_text
from experiments import comparison_tables, demo_records, demo_sentences
from experiments.decisive_weights import pilot
from experiments.decisive_weights import records as decisive_records
from experiments.decisive_weights import tables as decisive_tables
from experiments.pages import fill, marked
from experiments.quoted_figures import said, unfounded

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/study.md", "docs/choices.md", "docs/decisive-study.md")
QUOTING = PAGES[:3]  # the demo study's figures


def texts(results: Path) -> dict[str, Callable[[], str]]:
    """Returns what each marker of a page stands for, from the records in a folder."""
    demo = demo_records.load(results / demo_records.FILE.name)
    decisive = decisive_records.load(results / decisive_records.FILE.name)
    development = decisive_records.load(results / pilot.PILOT.name)
    return {
        **comparison_tables.tables(demo),
        **demo_sentences.tables(demo),
        **decisive_tables.tables(decisive),
        **pilot.tables(development),
    }


def stale(root: Path, made: dict[str, Callable[[], str]]) -> list[str]:
    """Returns what is wrong with the pages: texts of other records, figures of no table."""
    found = []
    tables = marked((root / "docs" / "study.md").read_text(encoding="utf-8"))
    for name in PAGES:
        page = (root / name).read_text(encoding="utf-8")
        if fill(page, made) != page:
            found.append(
                f"{name} does not hold what the records give: "
                "python -m experiments.evidence --render"
            )
        if name in QUOTING:
            for figure in unfounded(said(page), "".join(tables)):
                found.append(f"{name} quotes {figure!r}, which no table of docs/study.md has")
    return found


def report(made: dict[str, Callable[[], str]]) -> str:
    """Returns everything that is printed of the records."""
    parts = [
        ("Demo study: records", made["demo records"]()),
        ("Demo study: what README says", made["demo sentences"]()),
        ("Demo study: the comparisons it rests on", made["demo basis"]()),
        ("Decisive weights: records", made["decisive records"]()),
        ("Decisive weights: verdicts", made["decisive verdicts"]()),
        ("Decisive weights: what README says", made["decisive sentence"]()),
        ("Decisive weights: a floor per class, added later", made["decisive floor sentence"]()),
    ]
    return "\n\n".join(f"{head}\n{'-' * len(head)}\n{text}" for head, text in parts)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evidence",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--render", action="store_true", help="write the pages")
    args = parser.parse_args(argv)
    made = texts(root / "benchmarks" / "results")
    if args.render:
        for name in PAGES:
            page = root / name
            write_text(page, fill(page.read_text(encoding="utf-8"), made))
    print(report(made))
    wrong = stale(root, made)
    for one in wrong:
        print(f"\n{one}")
    if not wrong:
        print(f"\nWhat the records give is what {', '.join(PAGES)} hold.")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DiveError as error:
        sys.exit(visible(f"error: {error}"))
