"""The program that runs the `radgraph` package on texts; `dive.radgraph.model` starts it.

radgraph 0.1.18 calls two tokenizer methods that transformers 5 removed. They are restored here, in
this process and nowhere else. Only the standard library, radgraph and transformers are imported,
so this file also runs under another Python than the one that has dive.

    python worker.py version
    python worker.py annotate REQUEST.json

The request: {"model_type", "model_dir", "cuda", "texts"}. Answers are JSON lines on stdout:
{"index", "annotation"} for each text in order, or {"index", "error"}.
"""

import importlib.metadata
import json
import os
import sys

_AT_ONCE = 16  # texts per batch and write


def _restore_tokenizer_methods():
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase as Tokenizer

    def encode_plus(self, text=None, text_pair=None, **options):
        encoded = self(text, text_pair, **options)
        if options.get("return_token_type_ids") and "token_type_ids" not in encoded:
            encoded["token_type_ids"] = [0] * len(encoded["input_ids"])
        return encoded

    def build_inputs_with_special_tokens(self, first, second=None):
        ids = [self.cls_token_id, *first, self.sep_token_id]
        return ids if second is None else [*ids, *second, self.sep_token_id]

    for method in encode_plus, build_inputs_with_special_tokens:
        if not hasattr(Tokenizer, method.__name__):
            setattr(Tokenizer, method.__name__, method)


def _annotate(request, answers):
    _restore_tokenizer_methods()
    from radgraph import RadGraph

    model = RadGraph(
        model_type=request["model_type"],
        model_cache_dir=request["model_dir"],
        cuda=request["cuda"],
    )
    texts = request["texts"]
    for start in range(0, len(texts), _AT_ONCE):
        # the package's result lacks texts on which it fails
        found = model(texts[start : start + _AT_ONCE])
        for i in range(len(texts[start : start + _AT_ONCE])):
            if str(i) in found:
                answer = {"index": start + i, "annotation": found[str(i)]}
            else:
                answer = {"index": start + i, "error": "radgraph gave no annotation"}
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
        answers.write(importlib.metadata.version("radgraph") + "\n")
        answers.flush()
        return
    with open(sys.argv[2], encoding="utf-8") as file:
        _annotate(json.load(file), answers)


if __name__ == "__main__":
    main()
