"""Requirements of the optional metrics beyond this package, for `dive doctor`."""

from importlib import metadata
from importlib.util import find_spec
from typing import Any

from dive.metrics import green, ratescore
from dive.metrics.bertscore import HUB_NAMES, default_bertscore_model, in_hub_cache
from dive.metrics.chexbert import default_tokenizer, default_weights
from dive.metrics.meteor import wordnet_present
from dive.radgraph.model import MODEL_TYPES, WEIGHTS_REPO, default_radgraph_weights

_HERE = "in this Python environment"


def requirements() -> list[dict[str, Any]]:
    """One dict per requirement: name, present (bool), its location, and how to get it."""
    try:
        version = metadata.version("radgraph")
    except metadata.PackageNotFoundError:
        version = "VERSION"
    models = [default_radgraph_weights(name, version) for name in MODEL_TYPES]
    present = [folder for folder in models if (folder / "weights.th").is_file()]
    first = default_radgraph_weights("radgraph", version)
    tokenizer = default_tokenizer()
    has_tokenizer = any((tokenizer / n).is_file() for n in ("tokenizer.json", "vocab.txt"))
    return [
        _need("nltk (METEOR)", find_spec("nltk") is not None, _HERE, "pip install nltk"),
        _need(
            "WordNet data (METEOR with synonyms)",
            wordnet_present(),
            "in nltk's data folder",
            "python -m nltk.downloader wordnet",
        ),
        _need(
            "radgraph and requests (RadGraph F1)",
            all(find_spec(name) is not None for name in ("radgraph", "requests")),
            f"{_HERE}, or another one (RadGraph(python=...))",
            "pip install radgraph requests",
        ),
        _need(
            "RadGraph weights",
            bool(present),
            ", ".join(map(str, present)) or str(default_radgraph_weights("radgraph-xl", version)),
            f"unpack radgraph-xl.tar.gz of the Hugging Face repository {WEIGHTS_REPO} there; the "
            "BERT model that its config.json names must be in the Hugging Face cache, or passed "
            "(RadGraph(encoder=...))",
        ),
        _need(
            "RadGraph weights for RadCliQ",
            (first / "weights.th").is_file(),
            str(first),
            f"unpack radgraph.tar.gz of {WEIGHTS_REPO} there, likewise",
        ),
        _need(
            "CheXbert weights",
            default_weights().is_file(),
            str(default_weights()),
            f"chexbert.pth of the Hugging Face repository {WEIGHTS_REPO}",
        ),
        _need(
            "CheXbert tokenizer",
            has_tokenizer,
            str(tokenizer),
            "config.json, tokenizer.json, tokenizer_config.json and vocab.txt of the Hugging Face "
            "repository google-bert/bert-base-uncased",
        ),
        *_bertscore(),
        *_packages(),
    ]


def _bertscore() -> list[dict[str, Any]]:
    model = default_bertscore_model()
    present = isinstance(model, str) or (model / "config.json").is_file()
    how = (
        f"config.json, model.safetensors and the tokenizer files of the Hugging Face repository "
        f"{HUB_NAMES[0]} there, or: hf download {HUB_NAMES[0]}"
    )
    return [_need("BERTScore model", present, str(model), how)]


def _packages() -> list[dict[str, Any]]:
    """Those of RaTEScore and GREEN; another Python may have them, which is not looked at here."""
    here = f"{_HERE}, or another one (RaTEScore(python=...))"
    present = all(find_spec(name) is not None for name in ("RaTEScore", "medspacy", "pandas"))
    needs = [_need("RaTEScore, medspacy and pandas", present, here, ratescore.PACKAGE.install)]
    here = f"{_HERE}, or another one (Green(python=...))"
    present = find_spec("green_score") is not None
    needs.append(_need("green_score (GREEN)", present, here, green.PACKAGE.install))
    weights = {
        "RaTEScore entity model": ratescore.HUB_NAMES[0],
        "RaTEScore encoder": ratescore.HUB_NAMES[1],
        "GREEN language model (7B)": green.MODEL,
    }
    where = "the Hugging Face cache"
    for name, repository in weights.items():
        needs.append(_need(name, in_hub_cache(repository), where, f"hf download {repository}"))
    return needs


def _need(name: str, present: bool, where: str, how: str) -> dict[str, Any]:
    return {"name": name, "present": present, "where": where, "how": how}
