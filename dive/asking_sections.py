"""Sections of a report that state nothing about the image: indication, history, comparison."""

import re

# they ask or tell a history: what they name is not stated by the image
_ASKING = re.compile(
    r"(?:^|(?<=[\n.:]))[ \t]*(?:(?:clinical|patient|past|medical|brief|relevant|present)[ \t]+)*"
    r"(?:indications?|histor(?:y|ies)|information|details|question|symptoms?|data|diagnosis"
    r"|reasons?[ \t]+for[ \t]+(?:this[ \t]+)?(?:exam(?:ination)?|study|request|referral)|reason"
    r"|comparisons?|hx)[ \t]*:",
    re.IGNORECASE,
)
_TELLING = re.compile(
    r"(?:^|(?<=[\n.:?!]))[ \t]*(?:findings?(?:[ \t]*(?:and|/|&)[ \t]*impressions?)?|impressions?"
    r"|conclusions?|opinion|reports?|observations?|interpretation|summary|description|assessment"
    r"|techniques?|views?|procedure|examination|exam|study|chest[^\n:.]{0,40}|radiograph[^\n:.]{0,20}"
    r"|comment|narrative|wet[ \t]read|final[ \t]report)[ \t]*:|\n[ \t]*[A-Z][A-Z /,()]{3,40}:",
    re.IGNORECASE,
)
_END_OF_SENTENCE = re.compile(r"(?<!\bdr)\.(?=\s)|\n", re.IGNORECASE)
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
_CAPITAL_HEADING = re.compile(r"\n[ \t]*[A-Z][A-Z /,()]{3,40}:")


def asking_sections(text: str) -> list[tuple[int, int]]:
    """Character ranges of sections that state nothing about the image ("Indication: ...")."""
    if ":" not in text:
        return []
    ranges = []
    for match in _ASKING.finditer(text):
        start = match.end()
        marks = [_TELLING, _CAPITAL_HEADING]
        if match.group().lower().lstrip().startswith("comparison"):
            # names earlier films; what follows in running text is said of this one
            line = text.rfind("\n", 0, match.start() + 1) + 1
            inline = text[line : match.start()].strip() or "\n" not in text[start:]
            marks.append(_END_OF_SENTENCE if inline else _PARAGRAPH)
        ends = [m.start() for p in marks if (m := p.search(text, start))]
        ranges.append((start, min(ends, default=len(text))))
    return ranges
