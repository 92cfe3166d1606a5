"""The demo's table: its columns, the caution beside it, and reports with their decisive words."""

from collections.abc import Sequence
from typing import Any

COLUMNS = {
    "method": "method",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "style_f1": "style F1",
    "concept_f1": "concept F1",
    "terminated": "ended %",
    "length_ratio": "length",
    "ms_per_report": "ms/report",
    "prompt_tokens": "prompt",
}
_SCORES = ("bleu4", "rouge_l", "style_f1", "concept_f1", "terminated")
_DIGITS = {"length_ratio": 2, "prompt_tokens": 0}


def cells(record: dict[str, Any]) -> list[str]:
    """Returns one record of results.json as the cells of the table."""
    return [
        record[key] if key == "method" else f"{record[key]:.{_DIGITS.get(key, 1)}f}"
        for key in COLUMNS
    ]


def caution(records: Sequence[dict[str, Any]]) -> str:
    """Returns what the table shows and does not show, and where the full method is behind.

    Args:
        records: records of results.json; scores in percent.
    """
    text = (
        "One hospital and one seed are an example, not evidence: another hospital or seed may put "
        "close methods in another order, and the full method below its own ablations."
    )
    full = next((record for record in records if record["method"] == "DIVE"), None)
    if full is not None:
        below = [
            f"{record['method']} ({', '.join(higher)})"
            for record in records
            if (higher := [COLUMNS[key] for key in _SCORES if record[key] > full[key]])
        ]
        text += f" Here DIVE is below {'; '.join(below)}." if below else " Here it is below none."
    return text + (
        " README and docs/study.md have six hospitals and three seeds, with intervals and exact "
        "tests, none of which is below .05 after correction."
    )


def marked(text: str) -> list[dict[str, Any]]:
    """Returns a report in pieces, in which those that training weights as decisive are marked."""
    from dive.decisive.tokens import DecisiveTokens

    pieces, done = [], 0
    for start, end in DecisiveTokens(None, modifiers=True).spans(text):
        pieces.append({"text": text[done:start], "marked": False})
        pieces.append({"text": text[start:end], "marked": True})
        done = end
    return [*pieces, {"text": text[done:], "marked": False}]
