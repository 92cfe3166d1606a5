"""Sections of a MIMIC-CXR report, by the rules of the community.

The rules are those of MIT-LCP's section script, quirks included, so that texts agree with published
ones; the code is our own. The script's list of hand-made exceptions (54 studies) is not included: a
`mimic_cxr_sectioned.csv` made with that script lacks those studies, and the reader prefers it.

There are three deviations, where the script would return text of another section: "NDICATION" is
the indication and not the impression, and other headers with a typing error are recognised; the
name of a section alone on its line, or with another mark behind it, is a header without its colon;
and a section ends where a line of underscores or the words FINAL REPORT begin another report.
"""

import re

# A line break, a space, capitals (spaces among them), a colon and white space behind it.
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
# The name of a section alone on its line, with a semicolon, a dash or nothing for the colon.
_BARE = (
    "impression", "findings", "comparison", "indication", "history", "clinical history",
    "reason for examination", "reason for exam", "technique", "examination", "exam",
    "recommendation", "recommendations", "notification", "findings and impression", "conclusion",
)  # fmt: skip
_HEADER_ONLY = re.compile(rf"\n +({'|'.join(map(str.upper, _BARE))})[ \t]*(?:[;-]+(?=\s)|(?=\n|$))")
# Separators between a wet read or an addendum and the report itself.
_NEXT_REPORT = re.compile(
    r"\n[ \t]*(?:_{10,}|(?:FINAL|PRELIMINARY) REPORT|FINAL ADDENDUM)[ \t]*(?=\n|$)"
)
_PARAGRAPH = "\n \n"  # blank lines of these reports hold one space

# Section -> its headers.
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
# Names whose typing errors are recognised, and words that are similar and no typing error.
_SPELT = (
    "impression", "conclusion", "findings", "comparison", "indication", "history", "examination",
    "technique", "addendum", "recommendation",
)  # fmt: skip
_INDICATION = re.compile(r"\bindication")
_OTHER_WORDS = {"induction", "companion"}
_SECTION_OF["chest, two views"] = "findings"  # the only header with a comma
# Searched in this order if a header is not in the table.
_WITHIN = ("impression", "findings", "history", "comparison", "addendum")
# A header that names the examination opens its description.
_VIEWS = re.compile(
    "chest|portable|pa and lat|ap and lateral|lateral and (?:pa|ap)|frontal and|two views|one view"
    "|(?:frontal|pa|ap|lateral) view|bone window|frontal (?:semi-)?upright|ribs"
)


def section_name(header: str) -> str:
    """The section that a header opens; the header itself in lower case if no rule matches."""
    name = header.lower().strip()
    if name in _SECTION_OF:
        return _SECTION_OF[name]
    for main in _WITHIN:
        if main in name:
            return main
    if name not in _OTHER_WORDS and " " not in name:
        slips = {main: _slips(name, main) for main in _SPELT}
        nearest = min(_SPELT, key=slips.__getitem__)
        # "contusion" is two edits from the conclusion, and "depression" from the impression
        long = len(nearest) > 8 and nearest != "conclusion" and name[0] == nearest[0]
        if slips[nearest] <= (2 if long else 1):
            return _SECTION_OF[nearest]
    if _INDICATION.search(name):
        return "indication"
    return "findings" if _VIEWS.search(name) else name


def _slips(word: str, other: str) -> int:
    """The edit distance of two words, with transpositions; 3 if it is more than 2."""
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
    """(name, text) of every section in order, texts unchanged.

    Text before the first header is "preamble", a report without headers is "full report". Empty
    findings and impressions are left out. If neither is left, the last section is cut at its first
    blank line, and the rest is "last_paragraph".
    """
    sections: list[tuple[str, str]] = []
    match = _next_header(text, 0)
    if match is None:
        sections.append((section_name("full report"), text))
    else:
        sections.append((section_name("preamble"), text[: match.start(1)]))
    while match is not None:
        start = match.end()
        # The rest of the header's line is text, even if it looks like a header.
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
    """The first header from `start` on, with or without its colon."""
    found = [match for one in (_HEADER, _HEADER_ONLY) if (match := one.search(text, start))]
    return min(found, key=re.Match.start, default=None)


def mimic_sections(text: str) -> dict[str, str]:
    """Sections by name, stripped; of equal names the last counts. Accepts Windows line ends."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return {name: body.strip() for name, body in split_sections(text)}
