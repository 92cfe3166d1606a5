"""The wording of a hospital's reports: a style is about forty independent choices.

The backbone has seen every word of every choice, but not the combination.
All terms are ordinary radiology words, so that the pathology lexicon finds them.
"""

from dataclasses import dataclass, field

import numpy as np

from dive.demo.world import FINDINGS

TERMS: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        "cardiomegaly",
        "cardiac enlargement",
        "enlargement of the cardiac silhouette",
        "enlarged heart",
    ),
    "effusion": ("pleural effusion", "effusion", "pleural fluid", "hydrothorax"),
    "pneumothorax": ("pneumothorax", "ptx", "collapsed lung", "pleural air"),
    "consolidation": (
        "consolidation",
        "airspace opacity",
        "infiltrate",
        "airspace disease",
        "pneumonia",
    ),
    "edema": ("pulmonary edema", "interstitial edema", "vascular congestion", "edema"),
    "nodule": ("nodule", "pulmonary nodule", "lung lesion", "nodular opacity"),
    "line": ("central venous catheter", "central line", "picc line", "venous port"),
}
SEVERITIES = (
    ("small", "moderate", "large"),
    ("mild", "moderate", "severe"),
    ("minor", "intermediate", "major"),
    ("slight", "definite", "marked"),
    ("minimal", "considerable", "extensive"),
)
SIDES = ({"left": "left", "right": "right"}, {"left": "left sided", "right": "right sided"})
ZONES = (
    {"upper": "upper lobe", "lower": "lower lobe"},
    {"upper": "upper zone", "lower": "lower zone"},
    {"upper": "apex", "lower": "base"},
    {"upper": "upper lung", "lower": "lower lung"},
)
# {sev} severity, {where} side and zone, {term}; without a side, the extra blanks are removed
PHRASES = (
    "{sev} {where} {term}",
    "{where} {sev} {term}",
    "{sev} {term} at the {where}",
    "{term} at the {where} of {sev} degree",
)
PHRASES_NO_SIDE = ("{sev} {term}", "{sev} {term}", "{sev} {term}", "{term} of {sev} degree")
ABSENT = (
    "no {term}.",
    "there is no {term}.",
    "no evidence of {term}.",
    "no {term} is seen.",
    "without {term}.",
    "negative for {term}.",
    "no visible {term}.",
)
PRESENT = (
    "{phrase}.",
    "there is {phrase}.",
    "{phrase} is seen.",
    "{phrase} is noted.",
    "the image shows {phrase}.",
    "we note {phrase}.",
    "{phrase} is present.",
)
HEADERS = (
    "findings:",
    "report:",
    "chest radiograph:",
    "observations:",
    "description:",
    "portable chest:",
)
COMPARISONS = (
    "",
    "comparison: none.",
    "comparison: prior examination.",
    "no previous images are available.",
    "compared with the previous film.",
)
TECHNIQUES = (
    "",
    "technique: single frontal view.",
    "one frontal view was obtained.",
    "frontal projection in inspiration.",
    "examination performed at the bedside.",
)
MEDIASTINA = (
    "the mediastinum is normal.",
    "mediastinal contours are unremarkable.",
    "hilar and mediastinal contours are within normal limits.",
    "midline structures are central.",
    "the trachea is midline.",
)
BONES = (
    "the bones are intact.",
    "no acute osseous abnormality.",
    "the skeleton is unremarkable.",
    "bony structures are preserved.",
    "visualized ribs appear normal.",
)
ABDOMENS = (
    "the upper abdomen is unremarkable.",
    "the diaphragm is smooth.",
    "gas pattern below the diaphragm is normal.",
    "both domes are well defined.",
    "subdiaphragmatic regions are clear.",
)
LABELS: dict[str, str] = {
    "cardiomegaly": "heart:",
    "effusion": "pleura:",
    "pneumothorax": "pleural space:",
    "consolidation": "lungs:",
    "edema": "vessels:",
    "nodule": "parenchyma:",
    "line": "devices:",
    "mediastinum": "mediastinum:",
    "bones": "bones:",
    "abdomen": "abdomen:",
}
SECTIONS = tuple(LABELS)
IMPRESSIONS = ("impression:", "conclusion:", "summary:", "opinion:", "assessment:")
SEPARATORS = (", ", "; ", ". ")
NORMALS = (
    "no acute abnormality.",
    "normal study.",
    "unremarkable examination.",
    "no acute cardiopulmonary process.",
    "nothing acute.",
)
BOILERPLATE = (
    "",
    "image quality is adequate.",
    "the patient is slightly rotated.",
    "the film is of good quality.",
    "inspiratory effort is satisfactory.",
)
# three optional closing sections, each absent in some styles
ADVICE = ("", "", "clinical correlation is advised.", "follow up as clinically indicated.")
NOTICES = ("", "", "results were sent to the referring team.", "thank you for this referral.")
SIGNATURES = ("", "", "electronically signed by the radiologist.", "end of report.")


@dataclass(frozen=True)
class Style:
    """One hospital's choices. Indices point into the tables above."""

    order: tuple[str, ...]
    terms: dict[str, str]
    absent: dict[str, str]
    present: dict[str, str]
    severities: tuple[str, str, str]
    sides: dict[str, str]
    zones: dict[str, str]
    phrase: int
    labelled: bool
    zone_first: bool
    header: str
    comparison: str
    technique: str
    boilerplate: str
    mediastinum: str
    bones: str
    abdomen: str
    impression: str
    separator: str
    normal: str
    closing: tuple[str, ...] = field(default=())

    def phrase_for(self, finding: int, severity: int) -> str:
        """Returns the hospital's words for a finding (index into FINDINGS) that is present."""
        concept, side, zone = FINDINGS[finding]
        where = self.sides[side] if side else ""
        if zone:
            parts = (self.zones[zone], where) if self.zone_first else (where, self.zones[zone])
            where = " ".join(parts)
        form = (PHRASES if side else PHRASES_NO_SIDE)[self.phrase]
        return form.format(sev=self.severities[severity - 1], where=where, term=self.terms[concept])


def draw_style(rng: np.random.Generator) -> Style:
    """Draws a style: every choice is independent and uniform."""

    def pick(options):
        return options[int(rng.integers(len(options)))]

    return Style(
        order=tuple(SECTIONS[i] for i in rng.permutation(len(SECTIONS))),
        terms={concept: pick(names) for concept, names in TERMS.items()},
        absent={concept: pick(ABSENT) for concept in TERMS},
        present={concept: pick(PRESENT) for concept in TERMS},
        severities=pick(SEVERITIES),
        sides=pick(SIDES),
        zones=pick(ZONES),
        phrase=int(rng.integers(len(PHRASES))),
        labelled=bool(rng.integers(2)),
        zone_first=bool(rng.integers(2)),
        header=pick(HEADERS),
        comparison=pick(COMPARISONS),
        technique=pick(TECHNIQUES),
        boilerplate=pick(BOILERPLATE),
        mediastinum=pick(MEDIASTINA),
        bones=pick(BONES),
        abdomen=pick(ABDOMENS),
        impression=pick(IMPRESSIONS),
        separator=pick(SEPARATORS),
        normal=pick(NORMALS),
        closing=(pick(ADVICE), pick(NOTICES), pick(SIGNATURES)),
    )


def hospital_style(seed: int) -> Style:
    """Returns the style of a hospital; pretraining, development and test use disjoint seeds."""
    return draw_style(np.random.default_rng([77, seed]))
