"""Requirements of the optional metrics beyond this package, for `dive doctor`."""

from importlib import metadata
from importlib.util import find_spec
from typing import Any

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
    ]


def _need(name: str, present: bool, where: str, how: str) -> dict[str, Any]:
    return {"name": name, "present": present, "where": where, "how": how}
