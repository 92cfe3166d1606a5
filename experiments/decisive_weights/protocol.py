"""What the protocol fixes: hospitals, runs and margins. docs/decisive-study.md has the reasons.

Nothing here imports torch, so that records are read and judged without it.
"""

CONFIRMATORY = tuple(range(2001, 2013))
DEVELOPMENT = tuple(range(2901, 2907))
PARTS = {"confirmatory": CONFIRMATORY, "pilot": DEVELOPMENT, "rates": DEVELOPMENT}
WORLDS = ("tail", "noisy")
RARE = ("left pneumothorax", "right pneumothorax", "left nodule", "right nodule")
STEPS = 100  # of the main comparison

LEVEL = 0.05
MARGIN = 0.02  # AUROC: a difference below it does not matter

ARMS = {
    "U": "uniform weights",
    "P": "pathology 2.5, end 2.5 (the preset `dive`)",
    "P8": "pathology 8, end 2.5",
    "P1": "pathology 2.5, end 1",
    "E": "pathology 1, end 2.5",
    "D": "decision tokens, both branches",
    "S": "whole clauses, present and absent",
    "V": "visual: what the image changes",
    "R": "control: random template words",
    "FU": "fixed vectors, uniform weights",
    "FP": "fixed vectors, weights of P",
    "C": "P with a floor of 10% per class of findings (added later)",
}

# Added when the runs of the protocol were known: in no test, and not counted among them.
ADDED_RUNS = (("tail", "C", STEPS),)
# Of every hospital: world, arm, steps.
RUNS = (
    *(run for arm in ARMS if (run := ("tail", arm, STEPS)) not in ADDED_RUNS),
    *(("tail", arm, steps) for steps in (50, 200) for arm in ("U", "P", "FU", "FP")),
    *(("noisy", arm, STEPS) for arm in ("U", "P", "D")),
)
ALL_RUNS = (*RUNS, *ADDED_RUNS)
