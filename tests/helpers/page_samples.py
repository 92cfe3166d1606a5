"""Data of a page of any size, with reports that are made up here and belong to no patient.

`python tests/helpers/page_samples.py PAGE.html` writes a page of it, to look at.
"""

import base64
import functools
import io
import math
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Picture

from dive.page import schema

SIDES, SIZES = ("left", "right", "bilateral"), ("small", "moderate", "large")


class Entry(NamedTuple):
    """A finding: how it is stated (with side and size) and denied."""

    label: str
    cls: str
    stated: str
    denied: str
    share: float  # of the references


ENTRIES = (
    Entry("pleural effusion", "Pleural Effusion", "There is a {size} {side} |pleural effusion|.",
          "No |pleural effusion|.", 0.34),
    Entry("cardiomegaly", "Cardiomegaly", "The |heart is enlarged|.",
          "|Heart size| is normal.", 0.3),
    Entry("atelectasis", "Atelectasis", "{Size} {side} basilar |atelectasis|.",
          "The bases are |clear|.", 0.28),
    Entry("pulmonary oedema", "Edema", "{Size} interstitial |oedema| is seen.",
          "No |pulmonary oedema|.", 0.2),
    Entry("consolidation", "Consolidation", "|Consolidation| in the {side} lower lobe.",
          "No focal |consolidation|.", 0.14),
    Entry("pneumothorax", "Pneumothorax", "{Size} {side} apical |pneumothorax|.",
          "No |pneumothorax|.", 0.07),
    Entry("endotracheal tube", "Support Devices",
          "The |endotracheal tube| ends 4 cm above the carina.", "The |tube| has been removed.",
          0.15),
    Entry("rib fracture", "Fracture", "Healing {side} |rib fractures|.",
          "No acute |osseous abnormality|.", 0.06),
    Entry("nodule", "Lung Lesion", "A {size} |nodule| projects over the {side} upper lobe.",
          "No suspicious |nodule|.", 0.05),
    Entry("hiatal hernia", "Other", "There is a {size} |hiatal hernia|.", "", 0.04),
    Entry("pleural thickening", "Pleural Other", "{Side} apical |pleural thickening|.", "", 0.03),
)  # fmt: skip
INDICATIONS = ("Shortness of breath.", "Cough and fever for three days.", "Line placement.",
               "Fall, chest pain on the left.", "Pre-operative.",
               "Follow-up of an effusion.")  # fmt: skip
# hit rate, invented per report, wrong detail, and its name
SKILLS = (
    ("zero-shot", "zeroshot.jsonl", 0.42, 0.10, 0.3, 310),
    ("in-context, 8 examples", "icl8.jsonl", 0.6, 0.06, 0.2, 2650),
    ("DIVE adapter", "dive.jsonl", 0.72, 0.035, 0.12, 310),
    ("LoRA", "lora.jsonl", 0.66, 0.05, 0.15, 310),
    ("in-context, 16 examples", "icl16.jsonl", 0.62, 0.05, 0.2, 5020),
    ("prompt tuning", "prompt.jsonl", 0.5, 0.07, 0.25, 330),
    ("nearest neighbour", "nearest.jsonl", 0.45, 0.12, 0.3, 310),
)
METRICS = (
    ("bleu4", "BLEU-4", "Corpus BLEU of 4-grams; words: lower case, marks apart.", "higher",
     "fraction"),
    ("rougeL", "ROUGE-L", "Mean over reports of ROUGE-L, beta 1.2.", "higher", "fraction"),
    ("finding_f1", "Finding F1", "Micro F1 over findings that both state; the lexicon's words.",
     "higher", "fraction"),
    ("finding_detail_f1", "Finding F1 with side and severity",
     "As finding F1, but a finding counts only where side and severity agree, too.", "higher",
     "fraction"),
    ("length_ratio", "Length", "Words predicted over words of the references.", "near 1", "ratio"),
    ("termination_rate", "Ended", "Share of reports that the model ended by itself.", "higher",
     "fraction"),
)  # fmt: skip
Said = tuple[int, schema.State, str, str]  # finding, state, side, size


@functools.cache
def film(number: int, width: int = 240, height: int = 292) -> str:
    """A drawn chest, as the data URI of a JPEG of some 4 KB."""
    noise = np.random.default_rng(number)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    picture = 0.75 - 0.5 * np.abs(x - 0.5)
    for centre in (0.3, 0.7):
        lung = ((x - centre) / 0.16) ** 2 + ((y - 0.45) / 0.3) ** 2
        picture -= 0.5 / (1 + np.exp((lung - 1) * 8))
    for rib in range(9):
        curve = 0.14 + 0.075 * rib + 0.22 * (x - 0.5) ** 2
        picture += 0.09 * np.exp(-(((y - curve) / 0.009) ** 2)) * (np.abs(x - 0.5) < 0.4)
    heart = ((x - 0.55) / 0.15) ** 2 + ((y - 0.62) / 0.14) ** 2
    picture += 0.4 / (1 + np.exp((heart - 1) * 6)) + 0.25 * np.exp(-(((x - 0.5) / 0.035) ** 2))
    picture += noise.normal(0, 0.03, picture.shape)
    buffer = io.BytesIO()
    bytes_ = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    Picture.fromarray(bytes_).save(buffer, format="JPEG", quality=30)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pieces(said: list[Said]) -> list[schema.Piece]:
    pieces: list[schema.Piece] = []
    for finding, state, side, size in said:
        entry = ENTRIES[finding]
        text = entry.denied if state == "negative" else entry.stated
        text = text.format(side=side, size=size, Side=side.capitalize(), Size=size.capitalize())
        if state == "uncertain":
            text = "Possible: " + text
        before, words, after = text.split("|")
        pieces += [before, [words, finding, state], after + " "]
    return [piece for piece in pieces if piece]


def _detail(finding: int, side: str, size: str) -> str:
    form = ENTRIES[finding].stated.lower()
    return ", ".join(word for word, name in ((side, "{side}"), (size, "{size}")) if name in form)


def _truth(rng: random.Random) -> list[Said]:
    said: list[Said] = []
    for finding, entry in enumerate(ENTRIES):
        side, size = rng.choice(SIDES), rng.choice(SIZES)
        if rng.random() < entry.share:
            said.append((finding, "uncertain" if rng.random() < 0.12 else "positive", side, size))
        elif entry.denied and rng.random() < 0.5:
            said.append((finding, "negative", "", ""))
    return said or [(1, "negative", "", "")]


def _written(rng: random.Random, truth: list[Said], skill: Any) -> tuple[list[Said], list[Any]]:
    """What a method writes for a study, and the outcome of each finding."""
    _, _, hit, invented, wrong, _ = skill
    known = {one[0]: one for one in truth}
    said: list[Said] = []
    found: list[schema.Found] = []
    for finding, entry in enumerate(ENTRIES):
        there = known.get(finding)
        if there and there[1] != "negative":
            truth_words = _detail(finding, there[2], there[3])
            if rng.random() > hit:
                found.append(_found(finding, "missed", truth_words, ""))
                continue
            side, size = there[2], there[3]
            if rng.random() < wrong:
                if rng.random() < 0.5:
                    side = rng.choice([one for one in SIDES if one != side])
                else:
                    size = rng.choice([one for one in SIZES if one != size])
            form = entry.stated.lower()
            outcome = (
                "side" if side != there[2] and "{side}" in form
                else "severity" if size != there[3] and "{size}" in form
                else "hit"
            )  # fmt: skip
            said.append((finding, "positive", side, size))
            found.append(_found(finding, outcome, truth_words, _detail(finding, side, size)))
        elif rng.random() < invented:
            side, size = rng.choice(SIDES), rng.choice(SIZES)
            said.append((finding, "positive", side, size))
            found.append(_found(finding, "invented", "", _detail(finding, side, size)))
        elif entry.denied and rng.random() < 0.5:
            said.append((finding, "negative", "", ""))
    return said, found


def _found(finding: int, outcome: Any, truth: str, stated: str) -> schema.Found:
    return {"finding": finding, "outcome": outcome, "truth": truth, "stated": stated}


def _study(rng: random.Random, number: int, methods: int, words: int) -> schema.StudyData:
    truth = _truth(rng)
    filler = "The mediastinal contours are unchanged. " * (words // 5)
    reports: list[schema.Report | None] = []
    for method in range(methods):
        if number % 29 == 7 and method == methods - 1:
            reports.append(None)
            continue
        said, found = _written(rng, truth, SKILLS[method % len(SKILLS)])
        pieces = _pieces(said) or ["No acute cardiopulmonary process."]
        if filler:
            pieces.append(filler)
        errors = sum(one["outcome"] != "hit" for one in found)
        hits = len(found) - errors
        reports.append({
            "pieces": pieces, "ended": rng.random() > 0.04, "found": found, "errors": errors,
            "scores": {"rougeL": round(rng.uniform(0.15, 0.6), 4),
                       "finding_f1": round(hits / len(found), 4) if found else None},
        })  # fmt: skip
    images: list[schema.Image] = [
        {"src": film(number % 12), "width": 240, "height": 292, "view": "PA"}
    ]
    if number % 3 == 0:
        images.append(images[0] | {"src": film(20 + number % 5), "view": "LATERAL"})
    if number % 17 == 5:
        images.append({"src": None, "width": 0, "height": 0, "view": None})
    reference: schema.Report = {"pieces": [*_pieces(truth), *([filler] if filler else [])],
                                "ended": None, "found": [], "errors": 0, "scores": {}}  # fmt: skip
    return {"id": f"study-{number:04d}", "patient": f"patient-{number // 2:04d}",
            "indication": rng.choice(INDICATIONS), "images": images, "reference": reference,
            "reports": reports}  # fmt: skip


def _findings(studies: list[schema.StudyData], methods: int) -> list[schema.Finding]:
    findings: list[schema.Finding] = []
    for index, entry in enumerate(ENTRIES):
        counts = [
            dict.fromkeys(("hit", "side", "severity", "both", "missed", "invented"), 0)
            for _ in range(methods)
        ]
        references = 0
        for study in studies:
            stated = [piece for piece in study["reference"]["pieces"] if not isinstance(piece, str)]
            references += any(one[1] == index and one[2] != "negative" for one in stated)
            for method, report in enumerate(study["reports"]):
                for one in report["found"] if report else ():
                    if one["finding"] == index:
                        counts[method][one["outcome"]] += 1
        findings.append({"name": entry.label.replace(" ", "_"), "label": entry.label,
                         "cls": entry.cls, "references": references, "counts": counts})  # fmt: skip
    return findings


def _score(value: float, half: float) -> schema.Score:
    return {"value": round(value, 4), "interval": [round(value - half, 4), round(value + half, 4)]}


def _scored(rng: random.Random, skill: Any) -> dict[str, schema.Score]:
    hit = skill[2]
    values = {"bleu4": 0.05 + hit * 0.18, "rougeL": 0.15 + hit * 0.25, "finding_f1": hit * 0.9,
              "finding_detail_f1": hit * 0.75, "length_ratio": 0.7 + hit * 0.4,
              "termination_rate": 0.8 + hit * 0.2}  # fmt: skip
    return {key: _score(value, rng.uniform(0.008, 0.03)) for key, value in values.items()}


def _by_group(rng: random.Random, skill: Any, references: int) -> dict[str, Any]:
    scores: dict[str, float | None] = {
        key: round(min(skill[2] * rng.uniform(0.4, 1.3), 1), 4)
        for key in ("finding_precision", "finding_recall", "finding_f1", "finding_detail_f1")
    }
    if references < 2:
        scores["finding_recall"] = None
    return {"references": references, "scores": scores,
            "intervals": {
                key: None if value is None else [max(value - 0.06, 0), min(value + 0.07, 1)]
                for key, value in scores.items()
            }}  # fmt: skip


def _groups(rng: random.Random, findings: list[schema.Finding], skill: Any) -> tuple[Any, Any]:
    classes = {one["cls"]: _by_group(rng, skill, one["references"]) for one in findings}
    order = sorted(findings, key=lambda one: one["references"])
    third = math.ceil(len(order) / 3)
    terciles: dict[str, Any] = {}
    for index, name in enumerate(("rare", "middle", "common")):
        part = order[index * third : (index + 1) * third]
        terciles[name] = _by_group(rng, skill, 9) | {
            "findings": [one["name"] for one in part],
            "references": [part[0]["references"], part[-1]["references"]],
        }
    terciles["unreferenced"] = {"findings": ["pleural_plaque"], "predicted": rng.randrange(5)}
    return classes, terciles


def _training(rng: random.Random) -> schema.Training:
    steps = list(range(10, 410, 10))

    def curve(name: str, start: float, end: float, every: int = 1) -> schema.Curve:
        values = [end + (start - end) * math.exp(-step / 90) + rng.gauss(0, start / 60)
                  for step in steps]  # fmt: skip
        return {"name": name, "steps": steps[::every], "values": values[::every]}

    return {"name": "dive-adapter", "curves": [
        curve("loss", 2.4, 0.9), curve("eval_loss", 2.3, 1.05, 4),
        curve("loss_pathology", 3.0, 1.2), curve("loss_end", 1.1, 0.1),
        curve("loss_other", 2.1, 0.7),
        curve("learning_rate", 1e-3, 1e-5),
    ]}  # fmt: skip


def grid(values: Any, signed: bool = False) -> schema.Grid:
    """A matrix of numbers in one byte each."""
    values = np.asarray(values, dtype=float)
    most = float(np.abs(values).max()) or 1.0
    bytes_ = np.rint(values / most * 127) + 128 if signed else np.rint(values / most * 255)
    packed = base64.b64encode(bytes_.astype(np.uint8).tobytes()).decode()
    return {"rows": values.shape[0], "columns": values.shape[1], "maximum": most, "signed": signed,
            "data": packed}  # fmt: skip


def text_of(report: schema.Report) -> str:
    return "".join(piece if isinstance(piece, str) else piece[0] for piece in report["pieces"])


def _explanation(rng: random.Random, study: int, report: schema.Report) -> schema.Explanation:
    words = text_of(report).split(" ")[:90]
    tokens = [word if at == 0 else " " + word for at, word in enumerate(words)] + ["<|im_end|>"]
    count = len(tokens)
    noise = np.random.default_rng(study)
    with_, without = noise.beta(4, 1.5, count), noise.beta(1.5, 2, count)
    end = noise.beta(1, 40, count)
    end[-1] = 0.96
    strength = noise.gamma(2, 0.05, (28, count)) * np.linspace(0.3, 1.6, 28)[:, None]
    mixing: list[schema.Mixing] = [
        {"layer": layer, "vectors": [3, 7, 8, 21, 30, 31],
         "weights": grid(noise.normal(0, 0.4, (6, count)), signed=True)}
        for layer in (12, 20, 27)
    ]  # fmt: skip
    return {"study": study, "tokens": tokens, "probability": with_.round(5).tolist(),
            "probability_without": without.round(5).tolist(), "end": end.round(6).tolist(),
            "end_without": (end * noise.uniform(0.1, 0.9, count)).round(6).tolist(),
            "strength": grid(strength), "mixing": mixing}  # fmt: skip


def page_data(studies: int = 60, methods: int = 3, *, words: int = 0, seed: int = 0,
              explained: int = 4) -> schema.PageData:  # fmt: skip
    """Data of a page: `words` more words per report, and the inside of the first `explained`."""
    rng = random.Random(seed)
    rows = [_study(rng, number, methods, words) for number in range(studies)]
    findings = _findings(rows, methods)
    skills = [SKILLS[method % len(SKILLS)] for method in range(methods)]
    groups = [_groups(rng, findings, skill) for skill in skills]
    scores = [_scored(rng, skill) for skill in skills]
    inside: schema.Explained | None = None
    method = min(2, methods - 1)
    if explained and methods:
        known = [(at, row["reports"][method]) for at, row in enumerate(rows[:explained])]
        inside = {"method": method, "adapter": "adapters/dive", "layers": list(range(28)),
                  "studies": [_explanation(rng, at, one) for at, one in known if one]}  # fmt: skip
    return {
        "format": schema.FORMAT, "version": "0.0.0", "title": "Chest reports of a made-up hospital",
        "notes": ["The films are drawn and the reports made up.", "2 films are missing."],
        "target": "findings",
        "bootstrap": {"samples": 1000, "confidence": 0.95, "unit": "patient", "seed": 0},
        "methods": [
            {"name": skill[0] if at < len(SKILLS) else f"method {at}", "file": skill[1],
             "prompt_tokens": float(skill[5]), "seconds": round(0.4 + skill[5] / 2500, 2),
             "ended": 0.96, "reports": sum(row["reports"][at] is not None for row in rows)}
            for at, skill in enumerate(skills)
        ],
        "findings": findings,
        "metrics": [
            {"key": key, "label": label, "variant": variant, "better": better, "unit": unit}
            for key, label, variant, better, unit in METRICS
        ],  # type: ignore[typeddict-item]
        "scores": scores,
        "differences": [
            {"method": at, "baseline": 0, "scores": {
                key: {"difference": round(scores[at][key]["value"] - scores[0][key]["value"], 4),
                      "interval": [round(scores[at][key]["value"] - scores[0][key]["value"] + d, 4)
                                   for d in (-0.03, 0.03)], "p": 0.002 * (at + 1)}
                for key in scores[0]}}
            for at in range(1, methods)
        ],
        "classes": [one for one, _ in groups], "terciles": [one for _, one in groups],
        "studies": rows, "training": [_training(rng)], "explained": inside,
        "facts": [["dive report", "0.0.0"], ["studies", str(studies)], ["machine", "made up"]],
    }  # fmt: skip


if __name__ == "__main__":
    from dive.page.render import write_page

    write_page(Path(sys.argv[1]), page_data())
