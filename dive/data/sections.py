"""Sections of a MIMIC-CXR report, by the rules of the community.

What MIT-LCP's section script does to a report, quirks included, so that texts agree with published
ones; written anew from its rules. Its list of hand-made exceptions (54 studies) is not here: a
`mimic_cxr_sectioned.csv` made with that script lacks those studies, and the reader prefers it.
"""

import re

# A line break, a space, capitals (spaces among them), a colon and white space behind it.
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_PARAGRAPH = "\n \n"  # blank lines of these reports hold one space

# Headers by the section that they open. "ndication" means the impression, as in the original.
_NAMES = {
    "preamble": "preamble",
    "full report": "full report",
    "impression": "impression, conclusion, findings and impression, findings/impression, "
    "findings/ impression, ndication, impresson, imprression, imoression, impressoin, imprssion, "
    "impresion, imperssion, mpression, impession",
    "findings": "findings, finding, findins, findindgs, findgings, findngs, findnings, finidngs, "
    "reference findings",
    "comparison": "comparison, comparisons, reference exam, comparison exam, comparison film, "
    "comparision, comparsion, comparrison, comparisions",
    "indication": "indication, reason for examination, reason for exam, clinical indication, "
    "idication",
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
    return "findings" if _VIEWS.search(name) else name


def split_sections(text: str) -> list[tuple[str, str]]:
    """(name, text) of every section in order, texts as they stand.

    Text before the first header is "preamble", a report with none is "full report". Empty findings
    and impressions are left out. Where neither is left, the last section is cut at its first blank
    line, and what follows is "last_paragraph".
    """
    sections: list[tuple[str, str]] = []
    match = _HEADER.search(text)
    if match is None:
        sections.append((section_name("full report"), text))
    else:
        sections.append((section_name("preamble"), text[: match.start(1)]))
    while match is not None:
        start = match.end()
        # What stands in the header's own line is text, even where it looks like a header.
        rest = max(text.find("\n", start), start)
        following = _HEADER.search(text, rest)
        end = len(text) if following is None else following.start()
        sections.append((section_name(match.group(1)), text[start:end]))
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


def mimic_sections(text: str) -> dict[str, str]:
    """Sections by name, stripped. The last of a name wins. Windows line ends are taken as plain."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return {name: body.strip() for name, body in split_sections(text)}
