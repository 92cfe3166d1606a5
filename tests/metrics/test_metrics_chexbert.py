"""CheXbert F1: label tables by hand, the labeler on a tiny BERT; METEOR; requirements."""

import builtins
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dive
from dive.errors import DiveError
from dive.metrics import meteor, requirements
from dive.metrics.chexbert import (
    CLASSES,
    TOP_FIVE,
    CheXbert,
    chexbert_measure,
)

# Written out, because the model's heads have this order and no other.
_HEADS = (
    "Enlarged Cardiomediastinum, Cardiomegaly, Lung Opacity, Lung Lesion, Edema, Consolidation, "
    "Pneumonia, Atelectasis, Pneumothorax, Pleural Effusion, Pleural Other, Fracture, "
    "Support Devices, No Finding"
)
_ORDER = _HEADS.split(", ")


def test_order_of_the_heads() -> None:
    assert list(CLASSES) == _ORDER


# ---- scores of label tables


def _f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """As sklearn's classification_report: 0 where there is nothing to find and nothing found."""
    hits = int((true & predicted).sum())
    if hits == 0:
        return 0.0
    precision, recall = hits / predicted.sum(), hits / true.sum()
    return 2 * precision * recall / (precision + recall)


def _as_f1chexbert_reads(labels: np.ndarray) -> np.ndarray:
    """mode "rrg" of f1chexbert: '' for blank, 1 for positive and uncertain, 0 for negative; then
    whatever is an integer above 0 is 1."""
    spelled = {0: "", 3: 1, 2: 0, 1: 1}
    read = np.vectorize(spelled.get, otypes=[object])(labels)
    return np.vectorize(lambda v: isinstance(v, int) and v > 0, otypes=[bool])(read)


def _tables(reports: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    references = rng.choice(4, p=[0.5, 0.25, 0.15, 0.1], size=(reports, 14))
    predictions = np.where(
        rng.random((reports, 14)) < 0.6, references, rng.choice(4, (reports, 14))
    )
    references[:, 13], predictions[:, 13] = references[:, 13] == 1, predictions[:, 13] == 1
    references[:, 10] = predictions[:, 10] = 0  # a class that never occurs
    return predictions, references


@pytest.mark.parametrize("uncertain_as", ["positive", "negative"])
def test_scores_against_the_definition(uncertain_as: str) -> None:
    predictions, references = _tables(60, seed=1)
    measure = chexbert_measure(predictions, references, source="here")
    got = measure.scores(measure.statistics.sum(axis=0))
    if uncertain_as == "positive":
        said, true, suffix = *map(_as_f1chexbert_reads, (predictions, references)), ""
    else:
        said, true, suffix = predictions == 1, references == 1, "_uncertain_negative"
    five = [_ORDER.index(name) for name in TOP_FIVE]
    for classes, name in (range(14), "chexbert14"), (five, "chexbert5"):
        t, s = true[:, list(classes)], said[:, list(classes)]
        assert got[f"{name}_micro_f1{suffix}"] == pytest.approx(_f1(t, s))
        each = [_f1(t[:, c], s[:, c]) for c in range(t.shape[1])]
        assert got[f"{name}_macro_f1{suffix}"] == pytest.approx(np.mean(each))
        assert f"uncertain as {uncertain_as}" in measure.variants[f"{name}_micro_f1{suffix}"]


def test_scores_by_hand() -> None:
    blank, positive, negative, uncertain = 0, 1, 2, 3
    references = np.zeros((2, 14), dtype=int)
    predictions = references.copy()
    heart, edema = _ORDER.index("Cardiomegaly"), _ORDER.index("Edema")
    references[0, heart], predictions[0, heart] = positive, uncertain
    references[1, heart], predictions[1, heart] = negative, blank
    references[0, edema], predictions[0, edema] = positive, positive
    references[1, edema], predictions[1, edema] = blank, positive
    measure = chexbert_measure(predictions, references, source="here")
    got = measure.scores(measure.statistics.sum(axis=0))
    # uncertain as positive: heart 1 of 1 and 1; edema 1 of 2 and 1
    assert got["chexbert5_micro_f1"] == pytest.approx(2 * 2 / (3 + 2))
    assert got["chexbert5_macro_f1"] == pytest.approx((1 + 2 / 3) / 5)
    assert got["chexbert14_macro_f1"] == pytest.approx((1 + 2 / 3) / 14)
    # as negative: heart 0 of 0 and 1; edema as before
    assert got["chexbert5_micro_f1_uncertain_negative"] == pytest.approx(2 * 1 / (2 + 2))
    assert got["chexbert5_macro_f1_uncertain_negative"] == pytest.approx((2 / 3) / 5)


def test_labels_that_are_none() -> None:
    table = np.zeros((2, 14), dtype=int)
    with pytest.raises(
        DiveError, match=r"references has the shape \(2, 5\), want labels \[reports, 14\]"
    ):
        chexbert_measure(table, table[:, :5], source="here")
    table[1, 4] = -1
    with pytest.raises(DiveError, match="predictions, report 1, Edema: label -1"):
        chexbert_measure(table, table * 0, source="here")


# ---- the labeler, on a BERT of random weights in the layout of chexbert.pth


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "no", "small", "right", "effusion"]
    (folder / "vocab.txt").write_text("\n".join([*words, "edema", "heart", "is", "large"]) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    BertConfig(
        vocab_size=14, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _state(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    bert = BertModel(BertConfig.from_pretrained(folder))
    for parameter in bert.parameters():
        torch.nn.init.normal_(parameter)  # large, so that texts are labelled differently
    state = {f"bert.{name}": value for name, value in bert.state_dict().items()}
    for i in range(14):
        size = 4 if i < 13 else 2
        state[f"linear_heads.{i}.weight"] = torch.randn(size, 16)
        state[f"linear_heads.{i}.bias"] = torch.randn(size)
    return state


def _save(state: dict[str, torch.Tensor], path: Path) -> Path:
    """As the published file: trained in parallel, under the key model_state_dict."""
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


TEXTS = ["no effusion.", "", "small right effusion.\nHeart is large", "edema", "no  effusion."]


def test_labels_are_the_models(tokenizer: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    state = _state(tokenizer)
    state["bert.embeddings.position_ids"] = torch.arange(512)[None]  # in files of old versions
    labeler = CheXbert(_save(state, tmp_path / "chexbert.pth"), tokenizer, batch_size=2)
    got = labeler.label(TEXTS)

    # one report at a time, without padding
    bert = BertModel(BertConfig.from_pretrained(tokenizer)).eval()
    del state["bert.embeddings.position_ids"]
    bert.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("bert.")})
    words = BertTokenizer.from_pretrained(tokenizer)
    wanted = []
    for text in TEXTS:
        ids = torch.tensor([words(text)["input_ids"]])
        with torch.no_grad():
            first = bert(ids).last_hidden_state[0, 0]
        heads = [
            first @ state[f"linear_heads.{i}.weight"].T + state[f"linear_heads.{i}.bias"]
            for i in range(14)
        ]
        wanted.append([int(head.argmax()) for head in heads])
    assert got.tolist() == wanted
    assert len({tuple(row) for row in wanted}) > 1


def test_evaluate_with_chexbert(tokenizer: Path, tmp_path: Path) -> None:
    labeler = CheXbert(_save(_state(tokenizer), tmp_path / "chexbert.pth"), tokenizer)
    got = dive.evaluate(
        ["edema", "small effusion"],
        ["no effusion", "small effusion"],
        ["chexbert"],
        chexbert=labeler,
        per_report=True,
        bootstrap=20,
    )
    labels = labeler.label(["edema", "small effusion", "no effusion"])
    said, true = np.isin(labels[:2], (1, 3)), np.isin(labels[[2, 1]], (1, 3))
    assert got["chexbert14_micro_f1"] == pytest.approx(_f1(true, said))
    assert got["per_report"]["chexbert14_micro_f1"] == pytest.approx(
        [_f1(t, s) for t, s in zip(true, said, strict=True)]
    )
    assert got["intervals"].keys() >= {"chexbert5_macro_f1_uncertain_negative", "length_ratio"}
    assert "uncertain as positive" in got["variants"]["chexbert14_micro_f1"]
    assert "chexbert.pth" in got["variants"]["chexbert14_micro_f1"]


def test_long_reports_are_cut_at_512(tokenizer: Path, tmp_path: Path) -> None:
    labeler = CheXbert(_save(_state(tokenizer), tmp_path / "chexbert.pth"), tokenizer)
    start = "edema . " * 255
    labels = labeler.label([start, start + "effusion " * 300, start + "effusion " * 900])
    assert labels.shape == (3, 14)
    assert labels[1].tolist() == labels[2].tolist()


def test_safetensors_do_too(tokenizer: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = _state(tokenizer)
    save_file(state, tmp_path / "w.safetensors")
    pth = _save(state, tmp_path / "w.pth")
    one, other = (CheXbert(p, tokenizer).label(TEXTS) for p in (pth, tmp_path / "w.safetensors"))
    assert one.tolist() == other.tolist()


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_loading_is_strict(tokenizer: Path, tmp_path: Path, change: str) -> None:
    state = _state(tokenizer)
    if change == "missing":
        del state["linear_heads.3.bias"]
    elif change == "extra":
        state["linear_heads.14.bias"] = torch.zeros(2)
    else:
        state["linear_heads.13.bias"] = torch.zeros(4)
    labeler = CheXbert(_save(state, tmp_path / "chexbert.pth"), tokenizer)
    with pytest.raises(DiveError, match=r"chexbert.pth does not fit the model[\s\S]*linear_heads"):
        labeler.label(["edema"])


def test_missing_or_broken_files(tokenizer: Path, tmp_path: Path) -> None:
    pth = _save(_state(tokenizer), tmp_path / "chexbert.pth")
    with pytest.raises(DiveError, match=r"no tokenizer folder .*nowhere"):
        CheXbert(pth, tmp_path / "nowhere").label(["a"])
    with pytest.raises(DiveError, match=r"no weights at .*absent.pth: put chexbert.pth"):
        CheXbert(tmp_path / "absent.pth", tokenizer).label(["a"])
    for name in "cut.pth", "cut.safetensors":
        (tmp_path / name).write_bytes(pth.read_bytes()[:500])
        with pytest.raises(DiveError, match=f"cannot read .*{name}"):
            CheXbert(tmp_path / name, tokenizer).label(["a"])
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DiveError, match="holds no table of weights"):
        CheXbert(tmp_path / "list.pth", tokenizer).label(["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiveError, match="holds no BERT tokenizer"):
        CheXbert(pth, tmp_path / "empty").label(["a"])


def test_nothing_pickled_is_run(tokenizer: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple:
            return builtins.open, (str(marker), "w")

    torch.save({"model_state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DiveError, match=r"cannot read .*evil.pth"):
        CheXbert(tmp_path / "evil.pth", tokenizer).label(["a"])
    assert not marker.exists()


# ---- METEOR


def test_meteor_worked_by_hand() -> None:
    pytest.importorskip("nltk")
    got = dive.evaluate(
        ["effusions are small", ""],
        ["effusion is small", "clear"],
        ["meteor"],
        meteor_synonyms=False,
        per_report=True,
    )
    # "effusions" by its stem and "small": 2 of 3 words on either side, in 2 chunks of 2 matches
    f_mean = 2 / 3
    assert got["per_report"]["meteor"] == [pytest.approx(f_mean * (1 - 0.5 * (2 / 2) ** 3)), 0]
    assert got["meteor"] == pytest.approx(f_mean * 0.5 / 2)
    assert "no synonyms" in got["variants"]["meteor"]


def test_meteor_with_synonyms_needs_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = pytest.importorskip("nltk.corpus")

    def absent() -> None:
        raise LookupError("no data")

    monkeypatch.setattr(corpus, "wordnet", SimpleNamespace(ensure_loaded=absent))
    with pytest.raises(DiveError, match="needs WordNet's data"):
        dive.evaluate(["a"], ["a"], ["meteor"])
    assert not meteor.wordnet_present()


def test_meteor_matches_synonyms_of_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the data: "big" and "great" are one synset. (nltk looks stems up, so that
    it would not find "large", which it has made "larg".)"""
    corpus = pytest.importorskip("nltk.corpus")

    def lemma(name: str) -> SimpleNamespace:
        return SimpleNamespace(name=lambda: name)

    big = SimpleNamespace(lemmas=lambda: [lemma("big"), lemma("great")])
    fake = SimpleNamespace(
        ensure_loaded=lambda: None, synsets=lambda word: [big] if word in ("big", "great") else []
    )
    monkeypatch.setattr(corpus, "wordnet", fake)
    pair = ["heart is big"], ["heart is great"], ["meteor"]
    assert dive.evaluate(*pair)["meteor"] > 0.9
    assert dive.evaluate(*pair, meteor_synonyms=False)["meteor"] < 0.7


def test_meteor_without_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(DiveError, match="METEOR needs nltk: pip install nltk"):
        dive.evaluate(["a"], ["a"], ["meteor"], meteor_synonyms=False)
    assert not meteor.wordnet_present()


# ---- requirements


def test_requirements(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def needs() -> dict[str, dict[str, Any]]:
        return {need["name"]: need for need in requirements()}

    before = needs()
    for need in before.values():
        assert need.keys() == {"name", "present", "where", "how"}
        assert isinstance(need["present"], bool)
        assert need["where"] and need["how"]
    assert not before["CheXbert weights"]["present"]
    assert not before["RadGraph weights"]["present"]

    weights = Path(before["CheXbert weights"]["where"])
    weights.parent.mkdir(parents=True)
    _save(_state(tokenizer), weights)
    Path(before["CheXbert tokenizer"]["where"]).symlink_to(tokenizer)
    radgraph = Path(before["RadGraph weights"]["where"])
    radgraph.mkdir(parents=True)
    (radgraph / "weights.th").touch()
    after = needs()
    for name in "CheXbert weights", "CheXbert tokenizer", "RadGraph weights":
        assert after[name]["present"]
    # and the labeler looks for them there
    assert CheXbert().label(["edema"]).shape == (1, 14)


def test_bert_runs_once_per_text_for_labels_and_embeddings(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeler = CheXbert(_save(_state(tokenizer), tmp_path / "chexbert.pth"), tokenizer)
    calls = []
    embed = CheXbert.embed

    def counted(self: CheXbert, texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        return embed(self, texts)

    monkeypatch.setattr(CheXbert, "embed", counted)
    given = ["edema", "no effusion"], ["small effusion", "edema"]
    both = dive.evaluate(*given, ["chexbert", "semb"], chexbert=labeler)
    assert calls == [2, 2]
    for name in ("chexbert", "semb"):
        alone = dive.evaluate(*given, [name], chexbert=labeler)
        assert {key: both[key] for key in alone["variants"]} == {
            key: alone[key] for key in alone["variants"]
        }
