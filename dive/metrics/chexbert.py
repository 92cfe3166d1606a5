"""CheXbert F1: fourteen observations, labelled in both reports by the CheXbert model, compared.

A label is 0 blank (not mentioned), 1 positive, 2 negative or 3 uncertain; "No Finding" is 0 or 1.
Whether uncertain counts as positive is a convention on which published numbers differ, so there are
both:

- `chexbert14_micro_f1` and the like: uncertain counts as positive (f1chexbert, RadEval);
- the same with `_uncertain_negative`: as negative (LLaVA-Rad's headline numbers, MAIRA).

Five of the fourteen (`chexbert5_*`) are the ones most often reported. Macro is the plain mean over
classes, a class without any positive counting as 0, as sklearn's classification_report has it.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dive.errors import DiveError, checks
from dive.files.pickles import refusal
from dive.lexicon import CHEXPERT_CLASSES
from dive.metrics.measure import Measure, f1
from dive.radgraph.model import WEIGHTS_REPO, user_cache

CLASSES = CHEXPERT_CLASSES  # in the order of the model's heads
TOP_FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)

_FIVE = [CLASSES.index(name) for name in TOP_FIVE]
_MODES = {"": (POSITIVE, UNCERTAIN), "_uncertain_negative": (POSITIVE,)}
_LONGEST = 512
# buffers of old transformers versions that hold no weights
_NO_WEIGHTS = ("bert.embeddings.position_ids",)


def default_weights() -> Path:
    return user_cache() / "dive" / "chexbert" / "chexbert.pth"


def default_tokenizer() -> Path:
    return user_cache() / "dive" / "chexbert" / "bert-base-uncased"


class CheXbert:
    """The labeler: BERT and fourteen linear heads on its first token. Loaded at the first text.

    `label` is for CheXbert F1, `embed` for SembScore.

    Args:
        weights: chexbert.pth, or a .safetensors file with the same names.
        tokenizer: folder with the tokenizer of bert-base-uncased; its config.json, if it has one,
            has the sizes of the BERT model, which else are those of bert-base.
        device: the device of the model.
        batch_size: reports per batch.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        tokenizer: str | Path | None = None,
        *,
        device: str = "cpu",
        batch_size: int = 16,
    ) -> None:
        self.weights = checks.path("weights", weights) if weights is not None else default_weights()
        self.tokenizer = (
            checks.path("tokenizer", tokenizer) if tokenizer is not None else default_tokenizer()
        )
        self.device, self.batch_size = device, batch_size
        self.source = f"labelled by CheXbert ({self.weights.name})"
        self.encoder = f"embedded by CheXbert ({self.weights.name})"
        self._loaded: tuple[Any, Any] | None = None

    def label(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, 14] int64: 0 blank, 1 positive, 2 negative, 3 uncertain, in the order of CLASSES.

        An empty text has the labels of the model for no words. Words beyond 512 word pieces are
        cut.

        Raises:
            DiveError: missing or unsuitable files.
        """
        return self.labels_of(self.embed(texts))

    def labels_of(self, embeddings: np.ndarray) -> np.ndarray:
        """The labels of texts by what `embed` returns of them; BERT does not run again."""
        import torch

        _, model = self._parts()
        with torch.inference_mode():
            states = torch.from_numpy(embeddings).to(self.device)
            labels = torch.stack([head(states).argmax(-1) for head in model.linear_heads], dim=1)
        return labels.cpu().numpy().astype(np.int64)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, hidden] float32: the last hidden state of the first token, for SembScore.

        Texts are read as `label` reads them, by the same weights; they need their heads, too.

        Raises:
            DiveError: missing or unsuitable files.
        """
        import torch

        tokenizer, model = self._parts()
        # the same spaces as CheXbert's own reader
        cleaned = [" ".join(text.split()) for text in texts]
        distinct = list(dict.fromkeys(cleaned)) or [""]
        ids = [_ids(tokenizer, text) for text in distinct]
        # texts of similar length together: less padding
        order = sorted(range(len(distinct)), key=lambda i: len(ids[i]))
        found: list[np.ndarray] = []
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            width = max(len(ids[i]) for i in batch)
            padded = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(padded)
            for row, i in enumerate(batch):
                padded[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = 1
            with torch.inference_mode():
                states = model(padded.to(self.device), mask.to(self.device))
            found.append(states.cpu().numpy())
        index = {distinct[i]: at for at, i in enumerate(order)}
        return np.concatenate(found)[np.array([index[text] for text in cleaned], dtype=int)]

    def _parts(self) -> tuple[Any, Any]:
        """The tokenizer and the model, loaded at the first call."""
        if self._loaded is None:
            self._loaded = _load(self.weights, self.tokenizer, self.device)
        return self._loaded


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [tokenizer.cls_token_id, *ids[: _LONGEST - 2], tokenizer.sep_token_id]


def _load(weights: Path, folder: Path, device: str) -> tuple[Any, Any]:
    import torch
    from torch import nn
    from transformers import AutoTokenizer, BertConfig, BertModel

    if not folder.is_dir():
        raise DiveError(
            f"CheXbert: no tokenizer folder {folder}: put config.json and the tokenizer files of "
            "bert-base-uncased there, or pass another folder (tokenizer=)"
        )
    state = _read_weights(weights)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = BertConfig()
        if (folder / "config.json").is_file():
            config = BertConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DiveError(f"CheXbert: {folder} holds no BERT tokenizer: {error}") from error

    class Labeler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(config)
            sizes = [4] * (len(CLASSES) - 1) + [2]
            self.linear_heads = nn.ModuleList(nn.Linear(config.hidden_size, n) for n in sizes)

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.bert(ids, attention_mask=mask).last_hidden_state[:, 0]

    model = Labeler()
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise DiveError(f"CheXbert: {weights} does not fit the model: {error}") from error
    return tokenizer, model.to(device=device, dtype=torch.float32).eval()


def _read_weights(path: Path) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise DiveError(
            f"CheXbert: no weights at {path}: put chexbert.pth of the Hugging Face repository "
            f"{WEIGHTS_REPO} there, or pass another file (weights=)"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            table: Any = load_file(path)
        else:
            table = torch.load(path, map_location="cpu", weights_only=True)
    # torch and safetensors may raise nearly anything for a broken file
    except (RuntimeError, ValueError, OSError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise DiveError(f"CheXbert: cannot read {path}: {refusal(error, path) or error}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise DiveError(f"CheXbert: cannot read {path}: {error}") from error
    if isinstance(table, Mapping) and isinstance(table.get("model_state_dict"), Mapping):
        table = table["model_state_dict"]
    if not isinstance(table, Mapping) or not all(isinstance(name, str) for name in table):
        raise DiveError(f"CheXbert: {path} holds no table of weights")
    state = {name.removeprefix("module."): value for name, value in table.items()}
    return {name: value for name, value in state.items() if name not in _NO_WEIGHTS}


def chexbert_measure(predictions: np.ndarray, references: np.ndarray, *, source: str) -> Measure:
    """The measure of label tables [reports, 14] (0 blank, 1 positive, 2 negative, 3 uncertain).

    Statistics per reading of uncertain and class: true positives, predicted, in the reference.
    """
    for name, table in ("predictions", predictions), ("references", references):
        _check_labels(name, table)
    columns = []
    for positive in _MODES.values():
        mine, theirs = np.isin(predictions, positive), np.isin(references, positive)
        columns += [mine & theirs, mine, theirs]
    statistics = np.concatenate(columns, axis=1).astype(np.int64)
    variants = {}
    for name, mode, classes, average in _names():
        uncertain = "negative" if mode else "positive"
        variants[name] = (
            f"{average} F1 over {len(classes)} classes, uncertain as {uncertain}, {source}"
        )
    micro14 = tuple(name for name in variants if name.startswith("chexbert14_micro"))
    return Measure(statistics, _scores, variants, micro14)


def _names() -> Iterator[tuple[str, str, list[int], str]]:
    for mode in _MODES:
        for classes in (list(range(len(CLASSES))), _FIVE):
            for average in ("micro", "macro"):
                yield f"chexbert{len(classes)}_{average}_f1{mode}", mode, classes, average


def _scores(totals: np.ndarray) -> dict[str, np.ndarray]:
    table = np.asarray(totals).reshape(*np.shape(totals)[:-1], len(_MODES), 3, len(CLASSES))
    modes = list(_MODES)
    scores = {}
    for name, mode, classes, average in _names():
        counts = table[..., modes.index(mode), :, :][..., classes]
        if average == "micro":
            counts = counts.sum(axis=-1, keepdims=True)
        scores[name] = f1(counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]).mean(axis=-1)
    return scores


def _check_labels(name: str, table: np.ndarray) -> None:
    table = np.asarray(table)
    if table.ndim != 2 or table.shape[1] != len(CLASSES):
        raise DiveError(
            f"{name} has the shape {table.shape}, want labels [reports, {len(CLASSES)}]"
        )
    wrong = np.argwhere((table < BLANK) | (table > UNCERTAIN))
    if len(wrong):
        row, column = wrong[0]
        raise DiveError(
            f"{name}, report {row}, {CLASSES[column]}: label {table[row, column]} is not 0 blank, "
            "1 positive, 2 negative or 3 uncertain"
        )
