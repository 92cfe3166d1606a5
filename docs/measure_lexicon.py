"""How the lexicon reads Open-i's reports: `python docs/measure_lexicon.py indiana_reports.csv`.

Every report carries headings that a human tagged. A tag counts as found where the report's findings
and impression hold a mention of an entry with that heading; whether the text says it at all is not
known, so the share is a lower bound of recall.
"""

import csv
import re
import sys
import time
from collections import Counter

from dive.decisive import DecisiveTokens, find_mentions
from dive.lexicon import default_lexicon

_NO_FINDING = {"normal", "no indexing", "technical quality of image unsatisfactory"}


def main(path: str) -> None:
    lexicon, start = default_lexicon(), time.perf_counter()
    weighers = {name: DecisiveTokens(None, polarity=name) for name in ("all", "positive")}
    tags, found, words, reports = 0, 0, 0, 0
    decisive: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = f"{row['findings'].strip()}\n{row['impression'].strip()}".strip()
            if not text:
                continue
            reports += 1
            offsets = [match.span() for match in re.finditer(r"\w+", text)]
            words += len(offsets)
            for name, weigher in weighers.items():
                decisive[name] += sum(weigher.label(text, offsets, len(offsets)))
            named = {mention.name for mention in find_mentions(text)}
            for tag in filter(None, map(str.strip, row["MeSH"].split(";"))):
                head = tag.split("/")[0].strip()
                if head.casefold() in _NO_FINDING:
                    continue
                tags += 1
                entries = lexicon.with_heading(tag) or lexicon.with_heading(head)
                if named & {entry.name for entry in entries}:
                    found += 1
                else:
                    missed[head] += 1
    print(f"{reports:,} reports, {words:,} words, {time.perf_counter() - start:.1f} s")
    print(f"tags found in their report: {found:,} of {tags:,}, {found / tags:.1%}")
    for name in weighers:
        print(f"words decisive with polarity {name}: {decisive[name] / words:.1%}")
    print("most missed:", ", ".join(f"{head} {count}" for head, count in missed.most_common(8)))


if __name__ == "__main__":
    main(sys.argv[1])
