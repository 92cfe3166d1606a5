"""Made-up records of the study of decisive weights."""

from experiments.decisive_weights import protocol

HOSPITALS = protocol.CONFIRMATORY

# Differences of twelve hospitals, one list for each verdict.
BIG = [0.04 + 0.002 * n for n in range(12)]
SMALL = [0.009 + 0.0002 * n for n in range(12)]
NOTHING = [0.005, -0.005] * 6
WIDE = [0.06, -0.05] * 6


def record(hospital=2001, arm="U", steps=100, world="tail", rare=0.8, **changes):
    found = {
        "part": "confirmatory", "world": world, "hospital": hospital, "arm": arm, "steps": steps,
        "learning_rate": 0.025, "seed": 0, "status": "ok",
        "rare_auroc": {name: rare for name in protocol.RARE}, "end_auroc": 0.9, "slot_nll": 0.4,
        "slot_positives": 20, "slot_hits": 10, "slot_true": 40, "rare_recall": 30.0,
        "rare_precision": 50.0, "style_f1": 60.0, "concept_f1": 80.0, "bleu4": 70.0,
        "early_stops": 1.0, "late_stops": 2.0, "commit": "abc", "machine": "a machine",
    }  # fmt: skip
    if arm in ("P", "C"):
        found |= {"slot_positives_T": 20, "slot_hits_T": 10}
    return found | changes


def whole_study(**differences):
    """All runs of the protocol; differences: of an arm's rare AUROC from 0.8, per hospital."""
    return runs_of(protocol.RUNS, **differences)


def runs_of(runs, **differences):
    made = []
    for world, arm, steps in runs:
        for index, hospital in enumerate(HOSPITALS):
            shift = differences[arm][index] if arm in differences else 0.0
            made.append(record(hospital, arm, steps, world, round(0.8 + shift, 6)))
    return made
