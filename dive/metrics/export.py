"""Files of predictions and references for the official code: ReXrank's and RadEval's.

ReXrank: one JSON object, id -> {"section_findings", "section_impression", "model_prediction"}.
`split_json` of ReXrank's example_files/evaluation_script.md and json_to_csv.py of ReXrank-metric
turn it into the two tables of CXR-Report-Metric; the reference then begins with "Findings: ".

RadEval: JSON lines of {"id", "ref", "hyp"}, as its docs/file_formats.md reads them.

Both are ASCII, because those readers open files in the encoding of the machine.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dive.data import check_target
from dive.data.absent import is_absent
from dive.errors import DiveError
from dive.files.atomic import write_text

FORMATS = ("rexrank", "radeval")
_FINDINGS, _IMPRESSION = "Findings: ", " Impression: "


def write_export(
    format: str,
    path: str | Path,
    ids: Sequence[str],
    references: Sequence[str],
    predictions: Sequence[str],
    *,
    target: str = "findings",
) -> int:
    """Write what the official code reads, atomically; returns how many pairs are left out.

    Pairs whose reference is empty are left out, as in `dive.evaluate`: the official code ends with
    an error at one. All other texts are written as they are, empty predictions included (what is no
    text, such as NaN, is an empty one).

    Args:
        format: "rexrank" or "radeval".
        path: the file to write.
        ids, references, predictions: of the same length and order; ids are distinct.
        target: what the references are: "findings", "impression" or "both" ("Findings: ...
            Impression: ...", as `Study.report` has it). ReXrank's file has the sections apart.

    Raises:
        DiveError: an unknown format or target, lists that do not fit, an id that comes twice, a
            reference that is not of its target, a file that cannot be written.
    """
    if format not in FORMATS:
        raise DiveError(f"export format is {format!r}, want one of {', '.join(FORMATS)}")
    check_target(target)
    if not len(ids) == len(references) == len(predictions):
        raise DiveError(
            f"{len(ids)} ids, {len(references)} references and {len(predictions)} predictions: "
            "want one of each per report"
        )
    names = [str(one) for one in ids]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DiveError(f"id {twice[0]!r} comes twice, want ids that differ")
    pairs = [
        (name, reference, prediction if isinstance(prediction, str) else "")
        for name, reference, prediction in zip(names, references, predictions, strict=True)
        if not is_absent(reference)
    ]
    if format == "radeval":
        records = [{"id": name, "ref": ref, "hyp": hyp} for name, ref, hyp in pairs]
        write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    else:
        table = {
            name: _sections(name, reference, target) | {"model_prediction": prediction}
            for name, reference, prediction in pairs
        }
        write_text(path, json.dumps(table, indent=1) + "\n")
    return len(names) - len(pairs)


def _sections(name: str, reference: str, target: str) -> dict[str, str]:
    """The reference as the two sections of ReXrank's file; a section that is not known is empty."""
    found = {"section_findings": "", "section_impression": ""}
    if target != "both":
        return found | {f"section_{target}": reference}
    findings, between, impression = reference.removeprefix(_FINDINGS).partition(_IMPRESSION)
    if not between or not reference.startswith(_FINDINGS):
        raise DiveError(
            f"the reference of {name!r} has not both sections, want "
            f'"{_FINDINGS}...{_IMPRESSION}..."'
        )
    return {"section_findings": findings, "section_impression": impression}
