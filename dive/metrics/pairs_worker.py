"""The program that runs the packages `RaTEScore` and `green_score` on pairs of reports.

`dive.metrics.isolated` starts it, for one of them.

Only the standard library and the package are imported, so this file also runs under another Python
than the one that has dive.

    python pairs_worker.py RaTEScore|green_score version
    python pairs_worker.py RaTEScore|green_score score < REQUEST.json
"""

import importlib.metadata
import json
import os
import sys
import tempfile

_NO_ENTITY = 0.5


def ratescores(settings, predictions, references):
    """Yields one score per pair.

    Pairs are given to the package one by one. Of a list it skips reports without a sentence, so
    that every later one is compared with another's reference (0.6.0, `run_ner`), and it fails where
    none is left. A pair with such a report gets 0.5 here, which the package gives to every pair in
    which a report has no entity.
    """
    from RaTEScore import RaTEScore
    from RaTEScore.utils import sentence_split

    named = {key: settings[key] for key in ("bert_model", "eval_model") if settings[key]}
    scorer = RaTEScore(use_gpu=settings["use_gpu"], **named)
    for prediction, reference in zip(predictions, references, strict=True):
        score = _NO_ENTITY
        if all(sentence_split([text])[0] for text in (prediction, reference)):
            (score,) = scorer.compute_score([prediction], [reference])
        yield score


def greens(settings, predictions, references):
    """Yields one score per pair; None where the package has none.

    Pairs are given to it in its own batches, in order: the same batches as of one call.
    """
    from green_score import GREEN

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
        yield from scores


SCORES = {"RaTEScore": ratescores, "green_score": greens}


def main():
    # output of the package goes to stderr; stdout carries answers alone
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # the script's folder is first on the path and has modules of its own
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    package, task = sys.argv[1:]
    if task == "version":
        answers.write(importlib.metadata.version(package) + "\n")
        answers.flush()
        return
    request = json.load(sys.stdin)
    for score in SCORES[package](
        request["settings"], request["predictions"], request["references"]
    ):
        lost = {"error": "the package has no score"}
        answers.write(json.dumps(lost if score is None else {"score": float(score)}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
