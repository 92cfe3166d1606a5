"""BERTScore as CXR-Report-Metric and ReXrank define it: distilroberta-base, rescaled, no idf.

Zhang et al., "BERTScore: evaluating text generation with BERT", ICLR 2020. Every word piece of one
report is matched to the most similar one of the other, by the cosine of hidden states; precision is
the mean over the pieces of the prediction, recall that over those of the reference. The pieces that
begin and end a text may be matched, and count in neither mean.

`add_bertscore_col` of CXRMetric/run_eval.py sets the model, the rescaling and no idf (ReXrank's
USE_IDF is False). bert-score 0.3.13 sets the rest: hidden states after layer 5 (model2layers), and
the baseline of that layer, 0.8473319 for F1 (rescale_baseline/en/distilroberta-base.tsv); so F1
is (F1 - baseline) / (1 - baseline). An empty prediction has F1 0 before that, and -5.55 after it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dive.errors import DiveError, checks
from dive.errors.private import public_name, public_reason
from dive.metrics.measure import Measure, mean_measure
from dive.radgraph.model import user_cache

MODEL = "distilroberta-base"
HUB_NAMES = (f"distilbert/{MODEL}", MODEL)  # today's name, and that of caches before 2024
LAYER = 5
BASELINE_F1 = 0.8473319
_LONGEST = 512


def default_bertscore_model() -> Path | str:
    """The folder dive/bertscore/distilroberta-base of the user's cache, or a name in the hub's."""
    folder = user_cache() / "dive" / "bertscore" / MODEL
    if folder.is_dir():
        return folder
    cached = (name for name in HUB_NAMES if in_hub_cache(name))
    return next(cached, folder)


def in_hub_cache(name: str) -> bool:
    """Whether the Hugging Face cache has a model's configuration."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


class BertScore:
    """BERTScore F1 by a RoBERTa model that is on this machine. Loaded at the first text.

    Args:
        model: folder of distilroberta-base, or a name in the Hugging Face cache; nothing is
            downloaded. Layer and baseline are those of distilroberta-base: with another model the
            numbers are not the published variant, which its name in the variant shows.
        device: the device of the model.
        batch_size: pairs of reports at a time.
    """

    def __init__(
        self, model: str | Path | None = None, *, device: str = "cpu", batch_size: int = 32
    ) -> None:
        if model is not None and not isinstance(model, str):
            model = checks.path("model", model)
        self.model = default_bertscore_model() if model is None else model
        self.device, self.batch_size = device, checks.whole("batch_size", batch_size, 1)
        self._loaded: tuple[Any, Any] | None = None

    @property
    def source(self) -> str:
        """Model, layer and baseline, as they appear in the name of a variant."""
        name = public_name(str(self.model))
        return f"{name} layer {LAYER}, rescaled with bert-score's baseline {BASELINE_F1}, no idf"

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """[reports] float64, the rescaled F1 of each pair. Words beyond 512 word pieces are cut.

        Raises:
            DiveError: the model is missing or unsuitable.
        """
        if self._loaded is None:
            self._loaded = _load(self.model, self.device)
        # CXR-Report-Metric's only cleaning
        pairs = [
            (re.sub(" +", " ", mine), re.sub(" +", " ", theirs))
            for mine, theirs in zip(predictions, references, strict=True)
        ]
        # pairs of similar length together: less padding
        order = sorted(range(len(pairs)), key=lambda i: max(map(len, pairs[i])))
        found = np.zeros(len(pairs))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            texts = list(dict.fromkeys(text for i in batch for text in pairs[i]))
            states = dict(zip(texts, _states(*self._loaded, texts, self.device), strict=True))
            for i in batch:
                found[i] = _f1(*(states[text] for text in pairs[i]))
        return (found - BASELINE_F1) / (1 - BASELINE_F1)


def bertscore_measure(values: np.ndarray, *, source: str) -> Measure:
    """The measure of bertscore from `BertScore.score`; source: the model, for the variant."""
    variant = f"BERTScore F1 as in CXR-Report-Metric, mean over reports, {source}"
    return mean_measure("bertscore", values.tolist(), variant)


def _f1(mine: Any, theirs: Any) -> float:
    """F1 of two reports' normalised states [pieces, hidden]; first and last do not count."""
    similar = mine @ theirs.T
    precision, recall = similar.max(dim=1).values[1:-1], similar.max(dim=0).values[1:-1]
    if not len(precision) or not len(recall):
        return 0.0
    p, r = float(precision.mean()), float(recall.mean())
    return 2 * p * r / (p + r) if p + r else 0.0


def _states(model: Any, tokenizer: Any, texts: list[str], device: str) -> list[Any]:
    """Per text the normalised hidden states [pieces, hidden] after layer 5."""
    import torch

    ids = [_ids(tokenizer, text) for text in texts]
    padded = torch.full((len(ids), max(map(len, ids))), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for i, one in enumerate(ids):
        padded[i, : len(one)] = torch.tensor(one)
        mask[i, : len(one)] = 1
    with torch.inference_mode():
        states = model(padded.to(device), attention_mask=mask.to(device)).last_hidden_state
        states = torch.nn.functional.normalize(states.float(), dim=-1).cpu()
    return [states[i, : len(one)] for i, one in enumerate(ids)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    # the space that bert-score asks for before the first word (add_prefix_space): transformers 4
    # sets it, 5 does not
    text = text.strip()
    ids = tokenizer.encode(f" {text}", add_special_tokens=False) if text else []
    return [tokenizer.cls_token_id, *ids[: _LONGEST - 2], tokenizer.sep_token_id]


def _load(name: Path | str, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoTokenizer, RobertaModel

    shown = public_name(str(name))
    how = (
        f"put config.json, model.safetensors and the tokenizer files of {HUB_NAMES[0]} into "
        f"{user_cache() / 'dive' / 'bertscore' / MODEL}, or pass another folder (model=)"
    )
    if isinstance(name, Path) and not name.is_dir():
        raise DiveError(f"BERTScore: no folder {name}: {how}")
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DiveError(
            f"BERTScore: cannot read the model {shown}: {public_reason(error)}: {how}"
        ) from error
    if config.model_type != "roberta" or config.num_hidden_layers < LAYER:
        raise DiveError(
            f"BERTScore: the model {shown} is {config.model_type} of {config.num_hidden_layers} "
            f"layers, want RoBERTa ({MODEL}) of {LAYER} or more"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        model: Any = RobertaModel.from_pretrained(
            name, add_pooling_layer=False, local_files_only=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DiveError(
            f"BERTScore: cannot read the model {shown}: {public_reason(error)}: {how}"
        ) from error
    model.encoder.layer = model.encoder.layer[:LAYER]  # later ones have no use
    return model.to(device).eval(), tokenizer
