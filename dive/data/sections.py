"""Sections of a MIMIC-CXR report, by the rules of the community.

What MIT-LCP's section script does to a report, quirks included, so that texts agree with published
ones; written anew from its rules. Its list of hand-made exceptions (54 studies) is not here: a
`mimic_cxr_sectioned.csv` made with that script lacks those studies, and the reader prefers it.

It is left in three places, where it would pass on text that is none of the section: "NDICATION" is
the indication and not the impression, and other headers a slip away from a section's name are taken
for it; a name of a section alone on its line, or with another mark behind it, is a header without
its colon; and a section ends where a line of underscores or the words FINAL REPORT begin another
report.
"""

import re

# A line break, a space, capitals (spaces among them), a colon and white space behind it.
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
# A section's name alone on its line, whose colon was forgotten, or became a semicolon or a dash.
_BARE = (
    "impression", "findings", "comparison", "indication", "history", "clinical history",
    "reason for examination", "reason for exam", "technique", "examination", "exam",
    "recommendation", "recommendations", "notification", "findings and impression", "conclusion",
)  # fmt: skip
_HEADER_ONLY = re.compile(rf"\n +({'|'.join(map(str.upper, _BARE))})[ \t]*(?:[;-]+(?=\s)|(?=\n|$))")
# What stands between a wet read or an addendum and the report itself.
_NEXT_REPORT = re.compile(
    r"\n[ \t]*(?:_{10,}|(?:FINAL|PRELIMINARY) REPORT|FINAL ADDENDUM)[ \t]*(?=\n|$)"
)
_PARAGRAPH = "\n \n"  # blank lines of these reports hold one space

# Headers by the section that they open.
_NAMES = {
    "preamble": "preamble",
    "full report": "full report",
    "impression": "impression, conclusion, findings and impression, findings/impression, "
    "findings/ impression, impresson, imprression, imoression, impressoin, imprssion, "
    "impresion, imperssion, mpression, impession",
    "findings": "findings, finding, findins, findindgs, findgings, findngs, findnings, finidngs, "
    "reference findings",
    "comparison": "comparison, comparisons, reference exam, comparison exam, comparison film, "
    "comparision, comparsion, comparrison, comparisions",
    "indication": "indication, reason for examination, reason for exam, clinical indication, "
    "idication, ndication, reason for study, reason for this examination, reason for this exam",
    "history": "history, clinical history, clinical information, patient history, pfi",
    "examination": "examination, exam, type of examination",
    "technique": "technique",
    "notification": "notification",
    "recommendations": "recommendations, recommendation, recommendation(s)",
    "addendum": "addendum",
    "date": "date",
    "comment": "comment",
    "wet read": "wet read, wetread",
}
_SECTION_OF = {header: name for name, headers in _NAMES.items() for header in headers.split(", ")}
# Names that a slip may spoil, and words that are near one and are no slip.
_SPELT = (
    "impression", "conclusion", "findings", "comparison", "indication", "history", "examination",
    "technique", "addendum", "recommendation",
)  # fmt: skip
_INDICATION = re.compile(r"\bindication")
_OTHER_WORDS = {"induction", "companion"}
_SECTION_OF["chest, two views"] = "findings"  # the one header with a comma in it
# Tried in this order where a header is not in the table.
_WITHIN = ("impression", "findings", "history", "comparison", "addendum")
# A header that names the examination stands before a description of it.
_VIEWS = re.compile(
    "chest|portable|pa and lat|ap and lateral|lateral and (?:pa|ap)|frontal and|two views|one view"
    "|(?:frontal|pa|ap|lateral) view|bone window|frontal (?:semi-)?upright|ribs"
)


def section_name(header: str) -> str:
    """The section that a header opens; its own lower-cased text where no rule knows it."""
    name = header.lower().strip()
    if name in _SECTION_OF:
        return _SECTION_OF[name]
    for main in _WITHIN:
        if main in name:
            return main
    if name not in _OTHER_WORDS and " " not in name:
        slips = {main: _slips(name, main) for main in _SPELT}
        nearest = min(_SPELT, key=slips.__getitem__)
        # "contusion" is two slips from the conclusion, and "depression" from the impression
        long = len(nearest) > 8 and nearest != "conclusion" and name[0] == nearest[0]
        if slips[nearest] <= (2 if long else 1):
            return _SECTION_OF[nearest]
    if _INDICATION.search(name):
        return "indication"
    return "findings" if _VIEWS.search(name) else name


def _slips(word: str, other: str) -> int:
    """Letters left out, put in, changed or exchanged with the next between two words; 3 where it
    is more than 2."""
    if abs(len(word) - len(other)) > 2:
        return 3
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(word):
        older, before = before, row
        row = [i + 1]
        for j, b in enumerate(other):
            row.append(min(before[j + 1] + 1, row[j] + 1, before[j] + (a != b)))
            if older and j and a == other[j - 1] and word[i - 1] == b:
                row[-1] = min(row[-1], older[j - 1] + 1)
    return min(row[-1], 3)


def split_sections(text: str) -> list[tuple[str, str]]:
    """(name, text) of every section in order, texts as they stand.

    Text before the first header is "preamble", a report with none is "full report". Empty findings
    and impressions are left out. Where neither is left, the last section is cut at its first blank
    line, and what follows is "last_paragraph".
    """
    sections: list[tuple[str, str]] = []
    match = _next_header(text, 0)
    if match is None:
        sections.append((section_name("full report"), text))
    else:
        sections.append((section_name("preamble"), text[: match.start(1)]))
    while match is not None:
        start = match.end()
        # What stands in the header's own line is text, even where it looks like a header.
        rest = max(text.find("\n", start), start) if match.re is _HEADER else start
        following = _next_header(text, rest)
        end = len(text) if following is None else following.start()
        body, *others = _NEXT_REPORT.split(text[start:end])
        sections.append((section_name(match.group(1)), body))
        if any(other.strip() for other in others):
            sections.append((section_name("preamble"), "\n".join(others)))
        match = following
    sections = [
        (name, body)
        for name, body in sections
        if body.strip() or name not in ("impression", "findings")
    ]
    if not any(name in ("impression", "findings") for name, _ in sections):
        name, body = sections[-1]
        before, blank, after = body.partition(_PARAGRAPH)
        if blank:
            sections[-1:] = [(name, before), ("last_paragraph", after)]
    return sections


def _next_header(text: str, start: int) -> re.Match[str] | None:
    """The first header from a place on, with or without its colon."""
    found = [match for one in (_HEADER, _HEADER_ONLY) if (match := one.search(text, start))]
    return min(found, key=re.Match.start, default=None)


def mimic_sections(text: str) -> dict[str, str]:
    """Sections by name, stripped. The last of a name wins. Windows line ends are taken as plain."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return {name: body.strip() for name, body in split_sections(text)}
