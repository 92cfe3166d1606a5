"""The program that runs the `RaTEScore` package on pairs of reports.

`dive.metrics.isolated` starts it.

Only the standard library and the package are imported, so this file also runs under another Python
than the one that has dive.

    python ratescore_worker.py version
    python ratescore_worker.py score < REQUEST.json

Pairs are given to the package one by one. Of a list it skips reports without a sentence, so that
every later one is compared with another's reference (0.6.0, `run_ner`), and it fails where none is
left. A pair with such a report gets 0.5 here, which the package gives to every pair in which a
report has no entity.
"""

import importlib.metadata
import json
import os
import sys

_NO_ENTITY = 0.5


def _score(request, answers):
    from RaTEScore import RaTEScore
    from RaTEScore.utils import sentence_split

    settings = request["settings"]
    named = {key: settings[key] for key in ("bert_model", "eval_model") if settings[key]}
    scorer = RaTEScore(use_gpu=settings["use_gpu"], **named)
    for prediction, reference in zip(request["predictions"], request["references"], strict=True):
        score = _NO_ENTITY
        if all(sentence_split([text])[0] for text in (prediction, reference)):
            (score,) = map(float, scorer.compute_score([prediction], [reference]))
        answers.write(json.dumps({"score": score}) + "\n")
        answers.flush()


def main():
    # output of the package goes to stderr; stdout carries answers alone
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # the script's folder is first on the path and has modules of its own
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    if sys.argv[1] == "version":
        answers.write(importlib.metadata.version("RaTEScore") + "\n")
        answers.flush()
        return
    _score(json.load(sys.stdin), answers)


if __name__ == "__main__":
    main()
