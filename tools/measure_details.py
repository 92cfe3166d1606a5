"""Accuracy of sides and severities on Open-i's reports: `python tools/measure_details.py [side]`.

The reports are those of an installed torchxrayvision, as tools/measure_lexicon.py finds them; with
"side" or "severity" each disagreement is printed. The reports have headings that a human tagged
with side and severity ("Pleural Effusion/left/small"). Findings that are both stated in the text
and tagged are compared; taggers left out many details, so precision is a lower bound.
"""

import sys
from collections import Counter

from measure_lexicon import open_i, shipped

from dive.lexicon.detail_words import LEFT, RIGHT
from dive.metrics.findings import sides_and_severities

FINDINGS = {
    "pleural effusion": "Pleural Effusion", "pulmonary atelectasis": "Atelectasis",
    "opacity": "Lung Opacity", "infiltrate": "Lung Opacity", "airspace disease": "Lung Opacity",
    "pneumothorax": "Pneumothorax", "consolidation": "Consolidation", "nodule": "Lung Lesion",
    "mass": "Lung Lesion", "calcified granuloma": "Granuloma", "cardiomegaly": "Cardiomegaly",
    "pneumonia": "Pneumonia", "fractures, bone": "Fracture", "cicatrix": "Scar or Fibrosis",
    "diaphragm": "Diaphragm Elevation", "emphysema": "Emphysema",
    "scoliosis": "Scoliosis or Kyphosis", "pulmonary edema": "Edema",
    "pulmonary congestion": "Edema",
}  # fmt: skip
SIDES = {"left": {LEFT}, "right": {RIGHT}, "bilateral": {LEFT, RIGHT}}
STEPS = {"mild": "small", "small": "small", "moderate": "moderate", "severe": "large",
         "large": "large"}  # fmt: skip


def main(show: str = "") -> None:
    if shipped() is None:
        print("sides and severities: not read; torchxrayvision, which has the reports, is missing")
        return
    counts: Counter[tuple[str, str]] = Counter()
    for text, tags in open_i(None):
        tagged: dict[str, tuple[set[str], set[str]]] = {}
        for tag in tags:
            head, *parts = (part.strip().casefold() for part in tag.split("/"))
            if (name := FINDINGS.get(head)) is None:
                continue
            sides, steps = tagged.setdefault(name, (set(), set()))
            for part in parts:
                sides |= SIDES.get(part, set())
                steps |= {STEPS[part]} if part in STEPS else set()
        found = sides_and_severities(text)
        for name in tagged.keys() & found.keys():
            sides = {side for side, _ in found[name]} - {None}
            # there is no tag for a trace: minimal is tagged as mild
            steps = {"small" if step == "trace" else step for _, step in found[name]} - {None}
            for kind, read, true in zip(
                ("side", "severity"), (sides, steps), tagged[name], strict=True
            ):
                counts[kind, "findings"] += 1
                counts[kind, "read"] += len(read)
                counts[kind, "tagged"] += len(true)
                counts[kind, "both"] += len(read & true)
                counts[kind, "silent"] += bool(read) and not true
                counts[kind, "other"] += bool(read and true) and not read & true
                if show == kind and read != true:
                    print(f"{name}: read {sorted(read)} tagged {sorted(true)}: {text!r}")
    for kind in ("side", "severity"):
        one = {what: count for (of, what), count in counts.items() if of == kind}
        print(
            f"{kind}: {one['findings']:,} findings; precision {one['both'] / one['read']:.1%} of "
            f"{one['read']:,}, recall {one['both'] / one['tagged']:.1%} of {one['tagged']:,}; "
            f"{one['silent']:,} where the tags give none, {one['other']:,} the other one"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
