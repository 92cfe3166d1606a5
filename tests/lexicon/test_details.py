"""The side and the severity of each finding, as sentences state them."""

import time

import pytest

from dive.decisive.mentions import find_mentions
from dive.lexicon.details import details
from dive.metrics.findings import sides_and_severities

E, P, A, OP, N, C = (
    "Pleural Effusion", "Pneumothorax", "Atelectasis", "Lung Opacity", "Lung Lesion",
    "Cardiomegaly",
)  # fmt: skip
_OTHERS = ("Fracture", "Granuloma", "Edema", "Consolidation")
_SIDES = {"L": "left", "R": "right", "-": None}
_STEPS = {"t": "trace", "s": "small", "m": "moderate", "l": "large", "-": None}


def pairs(short: str) -> set[tuple[str | None, str | None]]:
    """ "Ls R-": small on the left, on the right without a severity."""
    return {(_SIDES[one[0]], _STEPS[one[1]]) for one in short.split()}


# fmt: off
CASES = [
    # a word before its finding
    ("Small left pleural effusion.", {E: "Ls"}),
    ("Large right pleural effusion.", {E: "Rl"}),
    ("Pleural effusion.", {E: "--"}),
    ("There is a tiny apical pneumothorax on the left.", {P: "Lt"}),
    ("Moderate-sized right-sided pleural effusion.", {E: "Rm"}),
    ("A moderate, loculated right pleural effusion is again seen.", {E: "Rm"}),
    ("SMALL BILATERAL EFFUSIONS", {E: "Ls Rs"}),
    ("A large amount of left pleural fluid.", {E: "Ll"}),
    ("Trace of pleural fluid on the right.", {E: "Rt"}),
    ("There is mild cardiomegaly.", {C: "-s"}),
    ("The heart is moderately enlarged.", {C: "-m"}),
    ("The left ventricle is enlarged.", {C: "--"}),
    # after it
    ("The left pleural effusion is small.", {E: "Ls"}),
    ("Pleural effusion, moderate in size, on the right.", {E: "Rm"}),
    ("Opacity in the left lower lobe.", {OP: "L-"}),
    ("Opacity is seen within the mid and lower zones of the right lung.", {OP: "R-"}),
    ("Atelectasis at both lung bases.", {A: "L- R-"}),
    ("Atelectasis at the lung bases.", {A: "L- R-"}),
    ("Pleural effusions are present bilaterally.", {E: "L- R-"}),
    ("Blunting of the left costophrenic angle.", {E: "L-"}),
    ("There is slight blunting of the right costophrenic angle.", {E: "Rs"}),
    ("Opacity obscures the right heart border.", {OP: "R-"}),
    ("Opacity behind the right atrium.", {OP: "--"}),
    # abbreviations
    ("RLL opacity and small L effusion.", {OP: "R-", E: "Ls"}),
    ("LUL nodule.", {N: "L-"}),
    ("Effusions, R>L.", {E: "L- R-"}),
    ("Opacity in RUL and LLL.", {OP: "L- R-"}),
    ("B/L effusions.", {E: "L- R-"}),
    ("Lingular opacity.", {OP: "L-"}),
    ("Middle lobe atelectasis.", {A: "R-"}),
    # the side first
    ("On the right there is a small effusion.", {E: "Rs"}),
    ("On the left, small effusion and atelectasis.", {E: "Ls", A: "L-"}),
    ("LEFT LUNG: Small effusion.", {E: "Ls"}),
    ("Left lung: Small effusion. Mild atelectasis.\nRight lung: Nodule.",
     {E: "Ls", A: "Ls", N: "R-"}),
    ("The right lung shows a nodule.", {N: "R-"}),
    ("The right lung is clear. The left lung shows moderate atelectasis.", {A: "Lm"}),
    ("In the right upper lobe there is a nodule and in the left lower lobe there is atelectasis.",
     {N: "R-", A: "L-"}),
    # several sides
    ("Bilateral pleural effusions, left greater than right.", {E: "L- R-"}),
    ("Small right and moderate left pleural effusions.", {E: "Rs Lm"}),
    ("There are moderate right and small left pleural effusions.", {E: "Rm Ls"}),
    ("Small left and right effusions.", {E: "Ls Rs"}),
    ("Moderate left greater than right pleural effusions.", {E: "Lm Rm"}),
    ("Right effusion is larger than the left.", {E: "L- R-"}),
    ("Bilateral effusions, small on the right and moderate on the left.", {E: "Rs Lm"}),
    ("Pleural effusion: large on the right, small on the left.", {E: "Rl Ls"}),
    ("Left effusion is small, right is moderate.", {E: "Ls Rm"}),
    ("Large left effusion and small right.", {E: "Ll Rs"}),
    ("Right lower lobe and left upper lobe opacities.", {OP: "L- R-"}),
    ("Right effusion but none on the left.", {E: "R-"}),
    ("Small left effusion. No right effusion.", {E: "Ls"}),
    ("Left effusion. The effusion is small.", {E: "Ls"}),
    ("Left effusion. It is small.", {E: "Ls"}),
    ("Small left effusion. Right effusion.", {E: "Ls R-"}),
    ("Right effusion. Impression: Stable effusion.", {E: "R-"}),
    # two steps
    ("Mild to moderate cardiomegaly.", {C: "-s -m"}),
    ("Small-to-moderate left effusion.", {E: "Ls Lm"}),
    ("Moderate or large right pneumothorax.", {P: "Rm Rl"}),
    # owners of words
    ("Small left effusion and large right pneumothorax.", {E: "Ls", P: "Rl"}),
    ("Large right pneumothorax with leftward mediastinal shift.", {P: "Rl"}),
    ("Opacity on the left, moderate right effusion.", {OP: "L-", E: "Rm"}),
    ("Bilateral effusions, left greater than right, small nodule.", {E: "L- R-", N: "-s"}),
    ("Mild cardiomegaly with small left effusion.", {C: "-s", E: "Ls"}),
    ("Left effusion and cardiomegaly.", {E: "L-", C: "--"}),
    ("Small left effusion and atelectasis.", {E: "Ls", A: "L-"}),
    ("Left lower lobe atelectasis and small effusion.", {A: "L-", E: "Ls"}),
    ("Left lower lobe atelectasis and a small nodule.", {A: "L-", N: "-s"}),
    ("Small right effusion with adjacent atelectasis.", {E: "Rs", A: "R-"}),
    ("Atelectasis and effusion at the left base.", {A: "L-", E: "L-"}),
    ("Small right effusion and the left lung is clear.", {E: "Rs"}),
    ("Small right effusion, left lung clear.", {E: "Rs"}),
    ("Right PICC and small effusion.", {E: "-s"}),
    ("Both effusion and atelectasis are present.", {E: "--", A: "--"}),
    ("Both effusions are small.", {E: "Ls Rs"}),
    ("Opacity in the right base may represent atelectasis.", {OP: "R-", A: "R-"}),
    ("Left basilar opacity. This likely represents atelectasis.", {OP: "L-", A: "L-"}),
    ("Opacification of the left hemithorax due to a massive effusion.", {OP: "L-", E: "Ll"}),
    ("Bilateral effusions, small on the left, with adjacent atelectasis.",
     {E: "Ls R-", A: "L- R-"}),
    ("Minimal left basilar scarring/atelectasis.", {A: "Lt"}),
    ("Tiny left, and moderate-sized right, pleural effusions.", {E: "Lt Rm"}),
    ("Left effusion, small; right effusion, large.", {E: "Ls Rl"}),
    ("Effusion (moderate, right) and pneumothorax (small, left).", {E: "Rm", P: "Ls"}),
    ("Findings: Right lung: clear. Left lung: small effusion. Heart: mildly enlarged.",
     {E: "Ls", C: "-s"}),
    # a step that is not the finding's
    ("Opacities in both lower lobes, more severe on the left.", {OP: "L- R-"}),
    ("Mild interval increase in the large left effusion.", {E: "Ll"}),
    ("Left effusion is slightly larger.", {E: "L-"}),
    ("Slightly improved moderate right effusion.", {E: "Rm"}),
    ("Previously large left effusion is now small.", {E: "Ls"}),
    ("Large, slightly loculated right effusion.", {E: "Rl"}),
    ("Minimally displaced left rib fracture.", {"Fracture": "L-"}),
    ("Fluid in the minor fissure.", {E: "--"}),
    ("The patient is rotated to the left, with a small effusion.", {E: "-s"}),
    ("Left effusion, which has increased slightly, now moderate.", {E: "Lm"}),
    # sizes
    ("4 mm nodule in the right upper lobe.", {N: "Rt"}),
    ("There is a 1.2 cm left lower lobe nodule.", {N: "Lm"}),
    ("A nodule measures 2 x 4 cm.", {N: "-l"}),
    ("Nodule, previously 4 mm, now 8 mm.", {N: "-s"}),
    ("Small calcified right upper lobe granuloma.", {"Granuloma": "Rs"}),
    ("Moderate right pneumothorax measuring 3 cm.", {P: "Rm"}),
    ("Nodule 4 cm above the carina.", {N: "--"}),
    # listed by side
    ("Effusion: R - large, L - small", {E: "Rl Ls"}),
    ("Effusions R: large L: small", {E: "Rl Ls"}),
    ("Effusions: right - moderate; left - small", {E: "Rm Ls"}),
    ("Effusion (R: large, L: small)", {E: "Rl Ls"}),
    ("Effusion: right (large), left (small)", {E: "Rl Ls"}),
    ("Effusions: moderate (R), small (L)", {E: "Rm Ls"}),
    ("Effusion: right large left small", {E: "Rl Ls"}),
    ("Effusion L=small R=large", {E: "Ls Rl"}),
    ("Left effusion, moderate, right, small.", {E: "Lm Rs"}),
    ("Effusions at the right base, large, at the left base, small.", {E: "Rl Ls"}),
    ("Effusions: small on the left - moderate on the right", {E: "Ls Rm"}),
    ("Effusion R: large, L: small, pneumothorax: L: tiny", {E: "Rl Ls", P: "Lt"}),
    ("Bilateral effusions, moderate, right greater than left.", {E: "Lm Rm"}),
    # listed in sentences and lines of their own
    ("Pleural effusion: Left: small. Right: large.", {E: "Ls Rl"}),
    ("Right effusion, small. Left, moderate.", {E: "Rs Lm"}),
    ("Pleural effusion\nLeft: small\nRight: large", {E: "Ls Rl"}),
    ("Effusions: left - small\nright - large", {E: "Ls Rl"}),
    ("Effusion\nRight: none\nLeft: small", {E: "Ls"}),
    ("Pleural effusion\nSide: left\nSize: small", {E: "Ls"}),
    ("Left effusion. Small in size.", {E: "Ls"}),
    ("Right lung: Large effusion. Left lung: Small.", {E: "Rl Ls"}),
    ("There is an effusion. It is on the left.", {E: "L-"}),
    ("There is a left effusion. This is small.", {E: "Ls"}),
    ("Small effusion. Left lung: Nodule.", {E: "-s", N: "L-"}),
    # a line ends where its answer does
    ("Effusion right: small\nEffusion left: none", {E: "Rs"}),
    ("Edema: mild\nConsolidation: left", {"Edema": "-s", "Consolidation": "L-"}),
    ("Effusion: small\nPneumothorax: right", {E: "-s", P: "R-"}),
    # sides that are answered no
    ("Effusion: left yes, right no", {E: "L-"}),
    ("Effusion: right no, left yes", {E: "L-"}),
    ("Effusion: L yes R no", {E: "L-"}),
    ("Effusion: left: yes; right: no", {E: "L-"}),
    ("Effusion: left +, right -", {E: "L-"}),
    ("Effusion: left (+), right (-).", {E: "L-"}),
    ("Effusion: R - large, L - none", {E: "Rl"}),
    ("Effusion on the left, not on the right", {E: "L-"}),
    ("Effusion on the left, no pneumothorax.", {E: "L-"}),
    # abbreviations, and sides that are joined
    ("Bi-basal atelectasis", {A: "L- R-"}),
    ("BL effusions", {E: "L- R-"}),
    ("Bi-lateral effusions", {E: "L- R-"}),
    ("Right as well as left effusion", {E: "L- R-"}),
    ("Right along with left effusion", {E: "L- R-"}),
    ("Small right as well as large left effusion", {E: "Rs Ll"}),
    ("Nodule as well as left effusion", {N: "--", E: "L-"}),
    ("Rt effusion", {E: "R-"}),
    ("Lt effusion", {E: "L-"}),
    ("Mod bilat effusions", {E: "Lm Rm"}),
    ("Sm L effusion", {E: "Ls"}),
    ("Sl R effusion", {E: "Rs"}),
    ("Sev L effusion", {E: "Ll"}),
    ("Min R effusion", {E: "Rt"}),
    # current steps
    ("Interval decrease in the large left effusion, now moderate.", {E: "Lm"}),
    ("Small bilateral effusions, now large on the right.", {E: "Ls Rl"}),
    ("Large left effusion has decreased to small.", {E: "Ls"}),
    ("Left effusion increased from small to large.", {E: "Ll"}),
    ("Large left effusion. It is now small.", {E: "Ls"}),
    ("Effusion on the left now moderate.", {E: "Lm"}),
    ("Left effusion, now small to moderate, previously large.", {E: "Ls Lm"}),
    # stated as absent
    ("No left effusion or pneumothorax.", {}),
    ("Possible small left effusion.", {E: "Ls"}),
]
# fmt: on


@pytest.mark.parametrize(("text", "wanted"), CASES, ids=[text for text, _ in CASES])
def test_side_and_severity(text: str, wanted: dict[str, str]) -> None:
    found = sides_and_severities(text)
    shown = {name: found[name] for name in (E, P, A, OP, N, C, *_OTHERS) if name in found}
    assert shown == {name: pairs(short) for name, short in wanted.items()}


@pytest.mark.parametrize(
    ("once", "often"),
    [
        ("", "and on the left there is effusion "),
        ("left " * 1500, "effusion "),
        ("nodule ", "1x2x"),
        ("nodule ", "1"),
        ("effusion ", "left: small, "),
    ],
)
def test_time_grows_with_the_length(once: str, often: str) -> None:
    """Ten times the length takes far less than a hundred times as long."""
    took = []
    for n in (150, 1500):
        text = once[: n * 5] + often * n
        mentions = find_mentions(text)
        times = []
        for _ in range(2):
            begin = time.process_time()
            assert len(details(text, mentions)) == len(mentions)
            times.append(time.process_time() - begin)
        took.append(min(times))
    assert took[1] < 30 * took[0] + 0.25
