"""The arms: one distillation each, that differ in which tokens are weighted, and by how much.

No arm has a teacher in its loss (it changed nothing in the earlier experiment and doubles the
time); "V" runs one for its weights. The weight above 1 is matched: P, P1, D, S, V and R add the
same total to the weights of a hospital's training reports (V on average), so they differ in what
they aim at. C was added later: P's weights, and more on the rarest classes of findings.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dive.backbone.load import Backbone
from dive.data import Study
from dive.decisive.tokens import EOS, TEMPLATE, DecisiveTokens

PATHOLOGY, END = 2.5, 2.5  # as the preset "dive" has them
DOSE = 8.0  # of P8
FLOOR = 0.1  # of C; seven classes occur, so at most 1/7
# Mean sum of 1 - exp(-v) per report on hospitals 2901 to 2903. To know it for another hospital
# costs all of its teacher's forwards a second time; the records have the share that came of it.
VISUAL_PER_REPORT = 3.2


@dataclass(frozen=True)
class Arm:
    """One arm. What is weighted: "mention", "decision", "clause", "visual", "random", or ""."""

    name: str
    weighted: str = ""
    pathology: float = PATHOLOGY
    end: float = END
    fixed: bool = False  # fixed vectors in place of state-conditioned steering
    floor: float = 0.0  # the least share of the weight on pathology for each class of findings

    @property
    def needs_teacher(self) -> bool:
        return self.weighted == "visual"


ARMS = {
    arm.name: arm
    for arm in (
        Arm("U", end=1.0),
        Arm("P", "mention"),
        Arm("P8", "mention", pathology=DOSE),
        Arm("P1", "mention", end=1.0),
        Arm("E"),
        Arm("D", "decision"),
        Arm("S", "clause"),
        Arm("V", "visual"),
        Arm("R", "random"),
        Arm("FU", end=1.0, fixed=True),
        Arm("FP", "mention", fixed=True),
        Arm("C", "mention", floor=FLOOR),
    )
}


def settings(
    arm: Arm,
    backbone: Backbone,
    studies: Sequence[Study],
    number: int,
    demonstrations: Sequence[Study],
    folder: Path,
) -> dict[str, Any]:
    """Returns the fields of DistillConfig that an arm sets for a hospital's training studies.

    folder: where the annotations of random words are written.
    """
    made: dict[str, Any] = {"preset": "dive-ce", "rank": 0 if arm.fixed else 8}
    made |= {"eos_weight": arm.end, "pathology_weight": 1.0}
    if not arm.weighted:
        return made
    if arm.floor:
        made["class_floor"] = arm.floor
    tokenizer, reports = backbone.tokenizer, [study.report() for study in studies]
    mentions = counted(DecisiveTokens(tokenizer, modifiers=True), reports, tokenizer)
    wanted = (arm.pathology - 1) * sum(mentions)  # the weight to add, as P adds it
    if arm.weighted == "mention":
        return made | {"pathology_weight": arm.pathology}
    if arm.weighted == "random":
        path = folder / f"random-{number}.json"
        rng = np.random.default_rng([83, number])
        reports = list(dict.fromkeys(reports))  # the file has one annotation per text
        path.write_text(
            json.dumps([random_words(backbone, text, rng) for text in reports]), encoding="utf-8"
        )
        # "all": a drawn word like "clear" would be read as negative
        made |= {"decisive": f"radgraph:{path}", "modifiers": False, "polarity": "all"}
        return made | {"pathology_weight": arm.pathology}
    if arm.weighted == "visual":
        weight = 1 + wanted / (VISUAL_PER_REPORT * len(reports))
        return made | {"decisive": "visual", "pathology_weight": weight}
    weigher = DecisiveTokens(tokenizer, unit=arm.weighted)
    weigher.fit(reports)
    made |= {"decisive_unit": arm.weighted}
    return made | {"pathology_weight": 1 + wanted / sum(counted(weigher, reports, tokenizer))}


def counted(weigher: DecisiveTokens, reports: Sequence[str], tokenizer: Any) -> list[int]:
    """Returns the number of weighted tokens of each report, its end left out."""
    counts = []
    for text in reports:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        classes = weigher.label(text, offsets, len(offsets) + 1)
        counts.append(sum(kind not in (TEMPLATE, EOS) for kind in classes))
    return counts


def random_words(backbone: Backbone, text: str, rng: np.random.Generator) -> dict[str, Any]:
    """Returns a RadGraph annotation of as many words as P weights, drawn from all the others."""
    tokenizer = backbone.tokenizer
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    words = [text[start:end] for start, end in offsets]
    classes = DecisiveTokens(tokenizer, modifiers=True).label(text, offsets, len(offsets))
    template = [
        index
        for index, (word, kind) in enumerate(zip(words, classes, strict=True))
        if kind == TEMPLATE and word.isalpha()
    ]
    count = min(len(words) - classes.count(TEMPLATE), len(template))
    chosen = sorted(rng.permutation(template)[:count].tolist())
    entities = {
        str(number): {
            "tokens": words[index],
            "label": "Observation::definitely present",
            "start_ix": index,
            "end_ix": index,
            "relations": [],
        }
        for number, index in enumerate(chosen)
    }
    return {"text": " ".join(words), "entities": entities}
