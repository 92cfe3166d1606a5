"""Reports of drawn studies in a hospital's style, and the two extractors that read them back.

Both extractors are exact on the reports of `write_report` (tested on thousands of reports):

- `style_findings`: the findings that are worded exactly as this hospital words them, severity
  included;
- `concept_findings`: the findings that are stated at all, by any term of any hospital.
"""

import re
from collections.abc import Sequence

import numpy as np

from dive.demo.style import LABELS, SIDES, TERMS, ZONES, Style
from dive.demo.world import FINDINGS

_FINDINGS_OF = {
    concept: [i for i, (name, _, _) in enumerate(FINDINGS) if name == concept] for concept in TERMS
}


def write_report(style: Style, severities: Sequence[int] | np.ndarray) -> str:
    """Returns the report of one study; `severities` [13] as drawn by `world.draw_labels`."""
    fixed = {"mediastinum": style.mediastinum, "bones": style.bones, "abdomen": style.abdomen}
    parts = [style.header, style.comparison, style.technique, style.boilerplate]
    phrases = []
    for section in style.order:
        if section in fixed:
            sentences = [fixed[section]]
        else:
            found = [
                style.phrase_for(i, int(severities[i]))
                for i in _FINDINGS_OF[section]
                if severities[i]
            ]
            phrases += found
            sentences = [style.present[section].format(phrase=phrase) for phrase in found]
            if not found:
                sentences = [style.absent[section].format(term=style.terms[section])]
        if style.labelled:
            parts.append(LABELS[section])
        parts += sentences
    parts.append(style.impression)
    parts.append(style.separator.join(phrases) + "." if phrases else style.normal)
    parts += style.closing
    return " ".join(part for part in parts if part)


_CLAUSE = re.compile(r"[^.,;]+")
_NEGATION = re.compile(r"\b(?:no|without|negative|free|not)\b")


def _stated(text: str) -> list[str]:
    """Returns the clauses of a text that do not negate, without the headers before them."""
    clauses = []
    for match in _CLAUSE.finditer(text.lower()):
        clause = " ".join(match.group().rsplit(":", 1)[-1].split())
        if clause and not _NEGATION.search(clause):
            clauses.append(clause)
    return clauses


def _has(clause: str, words: str) -> bool:
    return f" {words} " in f" {clause} "


def style_findings(text: str, style: Style) -> frozenset[tuple[int, int]]:
    """Returns the (finding, severity) pairs stated in exactly this hospital's words."""
    clauses = _stated(text)
    return frozenset(
        (finding, severity)
        for finding in range(len(FINDINGS))
        for severity in (1, 2, 3)
        if any(_states_exactly(clause, style, finding, severity) for clause in clauses)
    )


def _states_exactly(clause: str, style: Style, finding: int, severity: int) -> bool:
    if not _has(clause, style.phrase_for(finding, severity)):
        return False
    # "small effusion" is inside no other phrase of the same hospital unless a side came first:
    # the clause must also be about this finding and no other.
    return finding in _concepts(clause)


_TERMS = sorted(
    ((term, concept) for concept, terms in TERMS.items() for term in terms),
    key=lambda pair: -len(pair[0]),
)
_ZONE_WORDS = {words: zone for table in ZONES for zone, words in table.items()}
_SIDE_WORDS = sorted(
    {words: side for table in SIDES for side, words in table.items()}.items(),
    key=lambda pair: -len(pair[0]),
)


def _concepts(clause: str) -> set[int]:
    found = set()
    rest = f" {clause} "
    for term, concept in _TERMS:
        if f" {term} " not in rest:
            continue
        rest = rest.replace(f" {term} ", " # ")  # longest first: a term inside another is used up
        sides = {side for words, side in _SIDE_WORDS if _has(clause, words)}
        zones = {zone for words, zone in _ZONE_WORDS.items() if _has(clause, words)}
        for finding in _FINDINGS_OF[concept]:
            _, side, zone = FINDINGS[finding]
            if (not side or side in sides) and (not zone or zone in zones):
                found.add(finding)
    return found


def concept_findings(text: str) -> frozenset[int]:
    """Returns the findings (indices into FINDINGS) that a report states in any words."""
    return frozenset().union(*(_concepts(clause) for clause in _stated(text)))


def micro_f1(predicted: Sequence[frozenset], true: Sequence[frozenset]) -> float:
    """Returns F1 in percent over the findings of all reports, and 100 if neither side has any."""
    hits = sum(len(p & t) for p, t in zip(predicted, true, strict=True))
    total = sum(map(len, predicted)) + sum(map(len, true))
    return 200.0 * hits / total if total else 100.0
