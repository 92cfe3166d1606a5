"""ReXrank's metrics: sentence BLEU-2, SembScore, RadGraph combined, BERTScore, RadCliQ-v1.

Each is compared with numbers of the official code; the command that made them stands beside them.
What needs trained weights runs on tiny models, in the official code and here.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_roberta import tiny_roberta

import dive
from dive.errors import DiveError
from dive.metrics import BertScore, CheXbert, RadGraphFile, radcliq
from dive.metrics.bertscore import BASELINE_F1
from dive.metrics.radcliq import COMPONENTS, radcliq_measure, radcliq_v1
from dive.metrics.radgraph_scores import radgraph_combined
from dive.metrics.semb import cosines
from dive.metrics.sentence_bleu import sentence_bleu2, sentence_words

# ---- sentence BLEU-2

# (prediction, reference, fast_bleu.BLEU([prep(reference)], {"bigram": (1/2., 1/2.)})
# .get_score([prep(prediction)])["bigram"][0]) of fast-bleu 0.0.90, built from its source;
# prep is prep_reports of CXR-Report-Metric (9c9ecad)
FAST_BLEU = [
    ("No effusion.", "No pleural effusion.", 0.5066641486392106),
    ("effusion", "effusion", 0.3162277660168379),
    ("a b c", "c b a", 0.223606797749979),
    ("", "a b", 0.0),
    ("heart", "the heart is big", 0.01574405340649719),
    ("x y", "a b", 0.0),
    ("The lungs are clear.\nNo effusion", "The lungs are clear.\nNo effusion.", 0.846481724890614),
    ("a. b.  c", "a . b . c", 1.0),
    ("a a a a", "a a", 0.408248290463863),
    ("a b c d e", "a b", 0.3162277660168379),
]


@pytest.mark.parametrize(("prediction", "reference", "wanted"), FAST_BLEU)
def test_sentence_bleu_is_fast_bleus(prediction: str, reference: str, wanted: float) -> None:
    assert sentence_bleu2(prediction, reference) == pytest.approx(wanted, abs=1e-15)


def test_sentence_bleu_is_nltks_with_method1() -> None:
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    draw = random.Random(3)
    words = ["No", "effusion.", "left", "heart", "is", "clear.", "\n", ""]
    seen = set()
    for _ in range(300):
        mine, theirs = (" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(2))
        said, true = sentence_words(mine), sentence_words(theirs)
        if not said or not true:
            continue
        wanted = bleu.sentence_bleu(
            [true], said, (0.5, 0.5), smoothing_function=bleu.SmoothingFunction().method1
        )
        assert sentence_bleu2(mine, theirs) == pytest.approx(wanted, abs=1e-12)
        seen.add(round(float(wanted), 3))
    assert len(seen) > 50


def test_words_are_those_of_cxr_report_metric() -> None:
    assert sentence_words(" No  effusion.\nRight, base. ") == [
        "no", "effusion", ".\nright,", "base", ".",
    ]  # fmt: skip


def test_evaluate_means_the_reports() -> None:
    predictions, references = (list(column) for column in list(zip(*FAST_BLEU, strict=True))[:2])
    got = dive.evaluate(predictions, references, ["sentence_bleu"], per_report=True)
    wanted = [value for _, _, value in FAST_BLEU]
    assert got["per_report"]["sentence_bleu2"] == pytest.approx(wanted, abs=1e-15)
    assert got["sentence_bleu2"] == pytest.approx(np.mean(wanted))
    assert "fast-bleu" in got["variants"]["sentence_bleu2"]


# ---- SembScore


@pytest.fixture(scope="module")
def chexbert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """chexbert.pth and its tokenizer's folder, of a BERT of random weights."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "no", "small", "right", "effusion"]
    (folder / "vocab.txt").write_text("\n".join([*words, "edema", "heart", "is", "large"]) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=14, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    config.save_pretrained(folder)
    torch.manual_seed(0)
    bert = BertModel(config)
    for parameter in bert.parameters():
        torch.nn.init.normal_(parameter)
    state = {f"module.bert.{name}": value for name, value in bert.state_dict().items()}
    for i in range(14):
        state[f"module.linear_heads.{i}.weight"] = torch.randn(4 if i < 13 else 2, 16)
        state[f"module.linear_heads.{i}.bias"] = torch.randn(4 if i < 13 else 2)
    torch.save({"model_state_dict": state}, folder / "chexbert.pth")
    return folder / "chexbert.pth", folder


PREDICTIONS = ["no effusion.", "", "small right effusion.\nHeart is large", "edema  edema"]
REFERENCES = ["no  effusion.", "no edema.", "small effusion", "heart is large. no edema"]


def _encoded(paths: tuple[Path, Path], texts: list[str]) -> list[torch.Tensor]:
    """What encode.py of CXR-Report-Metric saves: bert_encoder's output for the ids of `tokenize`.

    One report at a time, so that nothing is padded.
    """
    from transformers import BertConfig, BertModel, BertTokenizer

    weights, folder = paths
    tokenizer = BertTokenizer.from_pretrained(folder)
    bert = BertModel(BertConfig.from_pretrained(folder))
    state = torch.load(weights, weights_only=True)["model_state_dict"]
    prefix = "module.bert."
    bert.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if prefix in k})
    bert.eval()
    found = []
    for text in texts:
        pieces = tokenizer.tokenize(" ".join(text.split()))
        ids = [tokenizer.cls_token_id, *tokenizer.convert_tokens_to_ids(pieces)]
        ids = [*ids, tokenizer.sep_token_id] if len(ids) < 512 else [*ids[:511], 3]
        with torch.no_grad():
            found.append(bert(torch.tensor([ids]))[0][0, 0])
    return found


def test_embeddings_are_those_of_encode_py(chexbert: tuple[Path, Path]) -> None:
    texts = [*PREDICTIONS, *REFERENCES, "effusion " * 700]
    got = CheXbert(*chexbert, batch_size=3).embed(texts)
    assert got.dtype == np.float32 and got.shape == (9, 16)
    np.testing.assert_allclose(got, torch.stack(_encoded(chexbert, texts)), atol=2e-5)
    assert CheXbert(*chexbert).embed([]).shape == (0, 16)


def test_semb_is_add_semb_col(chexbert: tuple[Path, Path]) -> None:
    got = dive.evaluate(
        PREDICTIONS, REFERENCES, ["chexbert", "semb"], chexbert=CheXbert(*chexbert),
        per_report=True,
    )  # fmt: skip
    wanted = []
    pairs = zip(_encoded(chexbert, REFERENCES), _encoded(chexbert, PREDICTIONS), strict=True)
    for label, pred in ((one.numpy(), other.numpy()) for one, other in pairs):
        # the line of add_semb_col
        wanted.append((label * pred).sum() / (np.linalg.norm(label) * np.linalg.norm(pred)))
    assert got["per_report"]["semb"] == pytest.approx(wanted, abs=1e-6)
    assert got["semb"] == pytest.approx(np.mean(wanted), abs=1e-6)
    assert min(wanted) < 0.95
    assert "embedded by CheXbert (chexbert.pth)" in got["variants"]["semb"]
    assert "chexbert14_micro_f1" in got


def test_cosines_of_what_does_not_fit() -> None:
    assert cosines(np.zeros((1, 3)), np.ones((1, 3))).tolist() == [0]
    with pytest.raises(DiveError, match=r"shapes \(1, 3\) and \(2, 3\), want two of"):
        cosines(np.ones((1, 3)), np.ones((2, 3)))


# ---- RadGraph combined


def _annotation(*entities: tuple) -> dict[str, Any]:
    """Entities as (tokens, label, (relation, number of its target), ...)."""
    found = {}
    for i, (tokens, label, *relations) in enumerate(entities, 1):
        pairs = [[name, str(target)] for name, target in relations]
        found[str(i)] = {"tokens": tokens, "label": label, "start_ix": i - 1, "end_ix": i - 1,
                         "relations": pairs}  # fmt: skip
    return {"text": " ".join(entity[0] for entity in entities), "entities": found}


_DP, _DA = "Observation::definitely present", "Observation::definitely absent"
_ANATOMY = "Anatomy::definitely present"
ANNOTATIONS = [
    _annotation(("pleural", _ANATOMY), ("effusion", _DA, ("located_at", 1))),
    _annotation(("Small", _DP, ("modify", 2)), ("Effusion", _DP)),
    _annotation(
        ("small", _DP, ("modify", 3)), ("right", _ANATOMY), ("effusion", _DP, ("located_at", 2))
    ),
    _annotation(),
    _annotation(("effusion", _DP, ("located_at", 2), ("located_at", 3)),
                ("right", _ANATOMY, ("modify", 3)), ("base", _ANATOMY)),
]  # fmt: skip

# (prediction, reference): (entity F1, relation F1) that evaluate_radgraph of CXR-Report-Metric
# (9c9ecad, CXRMetric/radgraph_evaluate_model.py) writes for these annotations, computed once by
# that function; other pairs are 0, "Small Effusion" against "small right effusion" among them
COMBINED = {
    (0, 0): (1.0, 1.0),
    (1, 1): (1.0, 1.0),
    (2, 2): (1.0, 1.0),
    (2, 4): (0.6666666666666666, 0.4),
    (4, 2): (0.6666666666666666, 0.4),
    (4, 4): (1.0, 1.0),
}


@pytest.mark.parametrize("prediction", range(5))
@pytest.mark.parametrize("reference", range(5))
def test_combined_is_cxr_report_metrics(prediction: int, reference: int) -> None:
    wanted = sum(COMBINED.get((prediction, reference), (0, 0))) / 2
    got = radgraph_combined(ANNOTATIONS[prediction], ANNOTATIONS[reference])
    assert got == pytest.approx(wanted, abs=1e-12)


# ---- BERTScore

SAID = ["No effusion.", "no  effusion on the left", "The heart is large.", "",
        "Right effusion.\nNo left effusion.", "effusion " * 300]  # fmt: skip
TRUE = ["No effusion.", "left effusion", "No left effusion.", "No effusion.",
        "No  effusion on the right. The heart is normal.", "effusion " * 400 + "heart"]  # fmt: skip
# F1 of bert_score 0.3.13 under transformers 4.25.1 (ReXrank's versions) for the model of
# tiny_roberta, as add_bertscore_col calls it: re.sub(r" +", " ", ...) first, then
# BERTScorer(model_type=FOLDER, num_layers=5, batch_size=256, lang="en", idf=False,
#            rescale_with_baseline=True, baseline_path="rescale_baseline/en/distilroberta-base.tsv")
# .score(SAID, TRUE)[2]
BERT_SCORE = [1.0000008344650269, 0.41699597239494324, 0.6881827116012573, -5.550156116485596,
              0.704216480255127, 0.9272671341896057]  # fmt: skip


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_roberta(tmp_path_factory.mktemp("roberta") / "tiny")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_bertscore_is_that_of_the_package(roberta: Path, batch_size: int) -> None:
    # float32 rounds cosines by some 1e-7, and rescaling divides that by 0.15
    got = BertScore(roberta, batch_size=batch_size).score(SAID, TRUE)
    np.testing.assert_allclose(got, BERT_SCORE, atol=5e-6)


def test_baseline_is_the_packages() -> None:
    """bert-score's file for distilroberta-base: "5,0.84732,0.84759504,0.8473319"."""
    package = pytest.importorskip("bert_score", reason="needs bert-score")
    file = Path(package.__file__).parent / "rescale_baseline/en/distilroberta-base.tsv"
    layer, _, _, f1 = file.read_text().splitlines()[6].split(",")
    assert (layer, float(f1)) == ("5", BASELINE_F1)
    from bert_score.utils import model2layers

    assert model2layers["distilroberta-base"] == 5


def test_evaluate_with_bertscore(roberta: Path) -> None:
    got = dive.evaluate(SAID, TRUE, ["bertscore"], bertscore=BertScore(roberta), per_report=True)
    assert got["per_report"]["bertscore"] == pytest.approx(BERT_SCORE, abs=5e-6)
    assert got["bertscore"] == pytest.approx(np.mean(BERT_SCORE), abs=5e-6)
    variant = got["variants"]["bertscore"]
    assert "tiny layer 5" in variant and "no idf" in variant and str(roberta.parent) not in variant


def test_models_that_are_none(
    roberta: Path, chexbert: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DiveError, match=r"BERTScore: no folder .*nowhere: put config.json"):
        BertScore(tmp_path / "nowhere").score(["a"], ["a"])
    with pytest.raises(DiveError, match=r"is bert of 2 layers, want RoBERTa \(distilroberta-base"):
        BertScore(chexbert[1]).score(["a"], ["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiveError, match="BERTScore: cannot read the model empty"):
        BertScore(tmp_path / "empty").score(["a"], ["a"])
    with pytest.raises(DiveError, match="batch_size is 0"):
        BertScore(roberta, batch_size=0)
    # the default is looked for in the user's cache, then in the hub's
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dive.metrics.bertscore.in_hub_cache", lambda name: False)
    with pytest.raises(DiveError, match=r"no folder .*cache/dive/bertscore/distilroberta-base"):
        BertScore().score(["a"], ["a"])
    monkeypatch.setattr("dive.metrics.bertscore.in_hub_cache", lambda name: True)
    assert BertScore().model == "distilbert/distilroberta-base"


# ---- RadCliQ-v1

# (RadGraph combined, BERTScore, SembScore, BLEU-2) and what CompositeMetric.predict of
# CXR-Report-Metric (9c9ecad, run_eval.py) returns for them with the numbers of radcliq-v1.pkl,
# which were read from its opcodes, without running the pickle
OFFICIAL = [
    ((0.1667, -0.1302, 0.7308, 0.1466), 1.730526419258679),
    ((0, 0, 0, 0), 2.4501430833271307),
    ((1, 1, 1, 1), -1.4406902828047017),
    ((0.4583, 0.2788, 0.8521, 0.3162), 0.5715597898369736),
    ((0.0833, -5.5501568, 0.3, 0.0), 11.210435477835416),
    ((0.25, 0.5, -0.125, 0.75), 1.4377627998207052),
]
# rows of ReXrank's results/result_mimic-cxr.csv (8152f99): means over the test set. The score is
# linear, so that the mean of RadCliQ-v1 is that of the means
REXRANK = [
    ("CheXagent", (0.146, 0.304, 0.331, 0.094), 1.437),
    ("MedVersa", (0.273, 0.430, 0.315, 0.193), 1.088),
    ("RGRG", (0.176, 0.323, 0.337, 0.125), 1.363),
    ("LLM-CXR", (0.047, 0.158, 0.150, 0.036), 1.983),
    ("GPT4V", (0.085, 0.204, 0.190, 0.065), 1.819),
]


def test_radcliq_is_the_official_formula() -> None:
    components, wanted = zip(*OFFICIAL, strict=True)
    np.testing.assert_allclose(radcliq_v1(np.array(components)), wanted, rtol=0, atol=1e-13)
    assert COMPONENTS == ("radgraph_combined", "bertscore", "semb", "sentence_bleu2")
    with pytest.raises(DiveError, match=r"shape \(2, 3\), want \[\.\.\., 4\]: radgraph_combined"):
        radcliq_v1(np.zeros((2, 3)))


@pytest.mark.parametrize(("model", "components", "published"), REXRANK)
def test_radcliq_of_the_leaderboard(
    model: str, components: tuple[float, ...], published: float
) -> None:
    # three digits of each: half a unit times 1.25, 1.65 and 0.99, and half a unit of the result
    assert radcliq_v1(np.array(components)) == pytest.approx(published, abs=0.0005 * 4.9), model


def test_inverse_is_of_the_mean() -> None:
    components, wanted = zip(*OFFICIAL, strict=True)
    measure = radcliq_measure(np.array(components), source="stored")
    got = measure.scores(measure.statistics.sum(axis=0))
    assert got["radcliq"] == pytest.approx(np.mean(wanted))
    assert got["radcliq_inverse"] == pytest.approx(1 / np.mean(wanted))
    assert got["radcliq_inverse"] != pytest.approx(np.mean(1 / np.array(wanted)), rel=0.1)
    assert measure.per_report == ("radcliq",)


def test_evaluate_with_radcliq(roberta: Path, chexbert: tuple[Path, Path], tmp_path: Path) -> None:
    """All four components, of the models of this file, and a bootstrap over their sums."""
    predictions, references = PREDICTIONS[2:], REFERENCES[2:]
    annotated = {predictions[0]: 2, predictions[1]: 3, references[0]: 4, references[1]: 0}
    entries = {str(i): ANNOTATIONS[n] | {"text": text} for i, (text, n) in
               enumerate(annotated.items())}  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    got = dive.evaluate(
        predictions,
        references,
        ["radgraph", "sentence_bleu", "semb", "bertscore", "radcliq"],
        radgraph=RadGraphFile(tmp_path / "annotations.json"),
        chexbert=CheXbert(*chexbert),
        bertscore=BertScore(roberta),
        per_report=True,
        bootstrap=50,
    )
    each = got["per_report"]
    combined = (0.6666666666666666 + 0.4) / 2
    assert each["radgraph_combined"] == pytest.approx([combined, 0])
    columns = np.array([each[name] for name in COMPONENTS]).T
    assert each["radcliq"] == pytest.approx(radcliq_v1(columns).tolist())
    assert got["radcliq"] == pytest.approx(radcliq_v1(columns).mean())
    assert got["radcliq_inverse"] == pytest.approx(1 / got["radcliq"])
    assert got["intervals"].keys() >= {"radcliq", "radcliq_inverse", "radgraph_combined"}
    for part in "annotations.json", "tiny layer 5", "chexbert.pth":
        assert part in got["variants"]["radcliq"]


def test_radcliq_takes_the_first_radgraph_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from dive.metrics import by_models

    asked: list[str] = []
    monkeypatch.setattr(by_models, "RadGraph", asked.append)
    for metrics in ("radgraph",), ("radgraph", "radcliq"):
        options = type("Options", (), {"metrics": metrics, "radgraph": None})
        assert by_models.Models(options(), [], []).annotator is None
    assert asked == ["radgraph-xl", "radgraph"]


def test_the_default_metrics_load_no_model() -> None:
    """`dive evaluate` without --metrics starts as fast as before: no transformers, no torch."""
    import subprocess

    code = (
        "import sys, dive.metrics; "
        "dive.metrics.evaluate(['a'], ['a'], ['bleu', 'rougeL', 'findings']); "
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_inverse_of_a_mean_that_is_not_above_0_is_undefined() -> None:
    def scores(*totals: tuple[float, float]) -> list[float]:
        return radcliq._scores(np.array(totals))["radcliq_inverse"].tolist()

    assert scores((2.0, 4.0), (4.0, 4.0)) == [2.0, 1.0]
    assert np.isnan(scores((0.0, 4.0))).all()
    # one resample over the jump at 0: there is no interval
    assert np.isnan(scores((2.0, 4.0), (-0.1, 4.0))).all()
