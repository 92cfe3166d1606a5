"""The program that runs the `green_score` package on pairs of reports.

`dive.metrics.isolated` starts it.

Only the standard library and the package are imported, so this file also runs under another Python
than the one that has dive.

    python green_worker.py version
    python green_worker.py score < REQUEST.json

Pairs are given to the package in its own batches, in order: the same batches as of one call.
"""

import importlib.metadata
import json
import os
import sys
import tempfile


def _score(request, answers):
    from green_score import GREEN

    settings = request["settings"]
    predictions, references = request["predictions"], request["references"]
    # the folder for temporary files is this process's own; who started it removes it
    scorer = GREEN(
        settings["model"],
        output_dir=tempfile.gettempdir(),
        cpu=settings["cpu"],
        compute_summary_stats=False,
    )
    for start in range(0, len(predictions), scorer.batch_size):
        batch = slice(start, start + scorer.batch_size)
        _, _, scores, _, _ = scorer(references[batch], predictions[batch])
        for score in scores:
            lost = {"error": "the model's answer has no counts"}
            answer = lost if score is None else {"score": float(score)}
            answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main():
    # output of the package goes to stderr; stdout carries answers alone
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # the script's folder is first on the path and has modules of its own
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    if sys.argv[1] == "version":
        answers.write(importlib.metadata.version("green_score") + "\n")
        answers.flush()
        return
    _score(json.load(sys.stdin), answers)


if __name__ == "__main__":
    main()
