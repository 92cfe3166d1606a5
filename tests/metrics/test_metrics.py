"""dive.evaluate and the text metrics, number for number against nltk and pycocoevalcap."""

import math
import random
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

import dive
from dive.errors import DiveError
from dive.metrics import overlap
from dive.metrics.normalization import r2gen_clean, words

_TEXT = (
    "no focal consolidation pleural effusion or pneumothorax the heart is normal in size lungs are "
    "clear mild pulmonary edema Left Right lower-lobe opacity , . degenerative ( 2 ) ; ___ change"
)
_WORDS = _TEXT.split()


def _reports(count: int, seed: int, longest: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(_WORDS, k=rng.randint(1, longest))) for _ in range(count)]


def _pairs(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Predictions that share runs of words with their references, longer and shorter ones."""
    rng = random.Random(seed)
    references = _reports(count, seed + 1)
    predictions = []
    for reference in references:
        kept = [w if rng.random() < 0.7 else rng.choice(_WORDS) for w in reference.split()]
        predictions.append(" ".join(kept[: rng.randint(1, len(kept))] + rng.choices(_WORDS, k=5)))
    return predictions, references


@pytest.mark.parametrize("normalization", ["raw", "lower", "r2gen"])
@pytest.mark.parametrize("count", [1, 40])
def test_same_numbers_as_pycocoevalcap(normalization: str, count: int) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    predictions, references = _pairs(count)
    hypotheses = {i: [" ".join(words(t, normalization))] for i, t in enumerate(predictions)}
    truths = {i: [" ".join(words(t, normalization))] for i, t in enumerate(references)}
    wanted, each = bleu.Bleu(4).compute_score(truths, hypotheses, verbose=0)
    wanted_rouge, each_rouge = rouge.Rouge().compute_score(truths, hypotheses)

    got = dive.evaluate(predictions, references, normalization=normalization, per_report=True)

    assert [got[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx(wanted, rel=1e-12)
    assert got["per_report"]["bleu4"] == pytest.approx(each[3], rel=1e-12)
    assert got["rougeL"] == pytest.approx(wanted_rouge, rel=1e-12)
    assert got["per_report"]["rougeL"] == pytest.approx(list(each_rouge), rel=1e-12)


def test_same_numbers_as_nltk() -> None:
    nltk_bleu = pytest.importorskip("nltk.translate.bleu_score")
    predictions, references = _pairs(60)
    mine = [words(text) for text in predictions]
    theirs = [[words(text)] for text in references]
    got = dive.evaluate(predictions, references, metrics=["bleu"])
    for n in (1, 2, 3, 4):
        wanted = nltk_bleu.corpus_bleu(theirs, mine, weights=[1 / n] * n)
        assert got[f"bleu{n}"] == pytest.approx(wanted, rel=1e-8)


def test_bleu_worked_by_hand() -> None:
    # 3 of 4 words, 1 of 3 pairs; the reference is 5 words long
    got = dive.evaluate(["a b x c"], ["a b c d e"], metrics=["bleu"])
    brevity = math.exp(1 - 5 / 4)
    assert got["bleu1"] == pytest.approx(3 / 4 * brevity)
    assert got["bleu2"] == pytest.approx(math.sqrt(3 / 4 * 1 / 3) * brevity)
    assert got["bleu4"] < 1e-4
    assert got["length_ratio"] == pytest.approx(4 / 5)


def test_bleu_clips_repeated_words() -> None:
    statistics = overlap.bleu_statistics([["the"] * 7], [["the", "cat", "the"]])
    assert overlap.bleu_from_totals(statistics.sum(axis=0))[0] == pytest.approx(2 / 7)


def test_rouge_beta() -> None:
    prediction, reference = list("abxc"), list("abcdef")
    precision, recall = 3 / 4, 3 / 6
    assert overlap.rouge_l(prediction, reference, beta=1) == pytest.approx(
        2 * precision * recall / (precision + recall)
    )
    got = dive.evaluate([" ".join(prediction)], [" ".join(reference)], ["rougeL"], rouge_beta=3)
    assert got["rougeL"] == pytest.approx(10 * precision * recall / (recall + 9 * precision))
    assert "beta 3" in got["variants"]["rougeL"]


def test_longest_common_subsequence_against_the_table() -> None:
    def by_table(a: list[str], b: list[str]) -> int:
        row = [0] * (len(b) + 1)
        for x in a:
            last = row
            row = [0]
            for j, y in enumerate(b):
                row.append(last[j] + 1 if x == y else max(last[j + 1], row[j]))
        return row[-1]

    rng = random.Random(3)
    for _ in range(200):
        a = rng.choices("abcd", k=rng.randint(0, 90))
        b = rng.choices("abcde", k=rng.randint(0, 90))
        assert overlap.longest_common_subsequence(a, b) == by_table(a, b)


def test_normalizations_move_the_score() -> None:
    prediction = ["The heart is normal in size. No effusion."]
    reference = ["the heart is normal in size . no effusion ."]
    scores = {
        name: dive.evaluate(prediction, reference, normalization=name)["bleu4"]
        for name in ("raw", "lower", "r2gen")
    }
    assert scores["lower"] == pytest.approx(1) == scores["r2gen"]
    assert scores["raw"] < 0.5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The heart is normal.", "the heart is normal ."),
        ("1. Clear lungs. 2. No effusion.", "clear lungs . no effusion ."),
        (
            "Right-sided ___ line,\n(tip at T6); unchanged..",
            "right-sided line tip at t6 unchanged .",
        ),
        ("Size 1.5 cm; L/R.  Stable?", "size 15 cm lr . stable ."),
        # ":" to "[" is a range in the published pattern: "<", "=", ">", "?" and "@" go with it
        ("a<b = c>d @ [e] {f} ~ $", "ab cd e f ~ $ ."),
        ('"quoted" it\'s \\ 100%', "quoted its 100 ."),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_r2gen_cleaning(text: str, wanted: str) -> None:
    assert " ".join(r2gen_clean(text).split()) == wanted
    assert words(text, "r2gen") == wanted.split()


def test_every_number_names_its_variant() -> None:
    got = dive.evaluate(["a b"], ["a b"], normalization="r2gen", finish_reasons=["eos"])
    numbers = {key for key, value in got.items() if isinstance(value, float)}
    assert numbers == set(got["variants"])
    assert all("r2gen" in got["variants"][name] for name in ("bleu4", "rougeL", "length_ratio"))


def test_empty_texts_are_scored_or_left_out_and_counted() -> None:
    got = dive.evaluate(
        ["a b c d", "  ", "", "x"],
        ["a b c d", "a b c d", "\n", ""],
        per_report=True,
        finish_reasons=["eos", "length", "length", "length"],
    )
    assert (got["reports"], got["scored"]) == (4, 2)
    assert (got["empty_predictions"], got["empty_references"]) == (1, 2)
    assert got["rougeL"] == pytest.approx(0.5)
    assert got["bleu1"] == pytest.approx(math.exp(1 - 8 / 4))
    assert got["termination_rate"] == 0.5
    assert got["per_report"]["rougeL"] == [pytest.approx(1.0), 0.0, None, None]


@pytest.mark.parametrize("normalization", ["raw", "lower", "r2gen"])
def test_all_predictions_empty_is_zero(normalization: str) -> None:
    got = dive.evaluate(["", ""], ["a b", "c"], normalization=normalization)
    assert got["bleu1"] == got["rougeL"] == got["length_ratio"] == 0
    assert got["empty_predictions"] == 2


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((["a"], ["a", "b"]), {}, "predictions: 1 for 2 references"),
        (("a", ["a"]), {}, "predictions is one text, want a list of texts"),
        ((3, ["a"]), {}, "predictions is a int, want a list of texts"),
        (({"x": "a"}, ["a"]), {}, "predictions is a dict, want a list of texts"),
        (({"a"}, ["a"]), {}, "predictions is a set, want a list of texts"),
        ((["a"], 3), {}, "references is a int, want a list of texts"),
        ((["a"], "a"), {}, "references is one text, want a list of texts"),
        ((["a"], [None]), {}, r"references\[0\] is a NoneType, want a text"),
        (([3], ["a"]), {}, r"predictions\[0\] is a int, want a text"),
        (([], []), {}, "no references were given"),
        ((["a"], [" "]), {}, "of 1 references none holds any text"),
        ((["a"], ["a"]), {"metrics": ["bleu", "cider"]}, "cider"),
        ((["a"], ["a"]), {"metrics": "bleu"}, "a list of some of bleu"),
        (
            (["a"], ["a"]),
            {"normalization": "upper"},
            "normalization is 'upper', want one of raw, lower, r2gen",
        ),
        ((["a"], ["a"]), {"finish_reasons": []}, "finish_reasons: 0 for 1 references"),
        ((["a"], ["a"]), {"baseline": []}, "baseline: 0 for 1 references"),
        ((["a"], ["a"]), {"bootstrap": 0}, "bootstrap is 0, want a number of resamples"),
        (
            (["a"], ["a"]),
            {"bootstrap": 9, "confidence": 95},
            "confidence is 95, want a number between 0 and 1",
        ),
        ((["a"], ["a"]), {"rouge_beta": 0}, "rouge_beta is 0, want a number above 0"),
    ],
)
def test_bad_input(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(DiveError, match=message):
        dive.evaluate(*arguments, **options)


def test_bootstrap_is_the_score_of_resampled_lists() -> None:
    from dive.metrics.bootstrap import resamples

    predictions, references = _pairs(30)
    got = dive.evaluate(predictions, references, bootstrap=40, seed=5, confidence=0.9)
    values: dict[str, list[float]] = {"bleu4": [], "rougeL": [], "length_ratio": []}
    for counts in np.concatenate(list(resamples(30, 40, 5))):
        drawn = np.repeat(np.arange(30), counts)
        assert len(drawn) == 30
        one = dive.evaluate([predictions[i] for i in drawn], [references[i] for i in drawn])
        for name, column in values.items():
            column.append(one[name])
    for name, column in values.items():
        assert got["intervals"][name] == pytest.approx(list(np.quantile(column, [0.05, 0.95])))
        assert got["intervals"][name][0] < got[name] < got["intervals"][name][1]


def test_bootstrap_repeats_with_its_seed() -> None:
    predictions, references = _pairs(25)
    first, again, other = (
        dive.evaluate(predictions, references, bootstrap=50, seed=seed)["intervals"]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_bootstrap_interval_covers_the_mean() -> None:
    """ROUGE-L is a mean of independent values: its interval must be the textbook one."""
    predictions, references = _pairs(400)
    got = dive.evaluate(predictions, references, ["rougeL"], bootstrap=2000, per_report=True)
    # a reference of punctuation alone is none
    each = np.array([one for one in got["per_report"]["rougeL"] if one is not None])
    half = 1.96 * each.std() / math.sqrt(len(each))
    low, high = got["intervals"]["rougeL"]
    assert low == pytest.approx(got["rougeL"] - half, abs=0.2 * half)
    assert high == pytest.approx(got["rougeL"] + half, abs=0.2 * half)


def test_paired_differences() -> None:
    predictions, references = _pairs(80)
    worse = [" ".join(text.split()[:-6] or ["x"]) for text in predictions]
    got = dive.evaluate(predictions, references, baseline=worse, bootstrap=300)
    alone = dive.evaluate(worse, references)
    for name in ("bleu4", "rougeL", "length_ratio"):
        difference = got["differences"][name]
        assert got["baseline"][name] == alone[name]
        assert difference["difference"] == pytest.approx(got[name] - alone[name])
        assert difference["interval"][0] <= difference["difference"] <= difference["interval"][1]
    assert got["differences"]["length_ratio"]["p"] == pytest.approx(2 / 301)

    same = dive.evaluate(predictions, references, baseline=predictions, bootstrap=50)
    assert same["differences"]["bleu4"] == {"difference": 0, "interval": [0, 0], "p": 1}


def test_differences_are_paired() -> None:
    """The same reports are drawn for both: a constant difference has an interval without width."""
    references = [" ".join(f"w{i}" for i in range(n)) for n in range(5, 60)]
    got = dive.evaluate(
        references, references, ["rougeL"], baseline=["x"] * len(references), bootstrap=100
    )
    assert got["differences"]["rougeL"]["interval"] == pytest.approx([1, 1])


def _mention(name: str, polarity: str) -> SimpleNamespace:
    spans = ((0, 1),)
    return SimpleNamespace(start=0, end=1, name=name, cls=name, polarity=polarity, spans=spans)


def test_findings_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule that turns mentions into counts, for any source of mentions."""

    def find_mentions(text: str) -> list[SimpleNamespace]:
        signs = {"+": "positive", "?": "uncertain", "-": "negative"}
        return [_mention(word[1:], signs[word[0]]) for word in text.split()]

    found = SimpleNamespace(find_mentions=find_mentions)
    monkeypatch.setitem(sys.modules, "dive.decisive.mentions", found)
    predictions = ["+edema -effusion +nodule", "-effusion +effusion", "-edema"]
    references = ["+edema ?effusion", "+effusion", "-edema +fracture"]
    got = dive.evaluate(predictions, references, ["findings"], per_report=True)
    # present: {edema, nodule} of {edema, effusion}; {effusion} of {effusion}; {} of {fracture}
    assert got["finding_precision"] == pytest.approx(2 / 3)
    assert got["finding_recall"] == pytest.approx(2 / 4)
    assert got["finding_f1"] == pytest.approx(2 * 2 / (3 + 4))
    # with their state: edema; effusion; edema absent: 3 of 5 predicted and of 5 in the references
    assert got["finding_state_f1"] == pytest.approx(2 * 3 / (5 + 5))
    assert got["per_report"]["finding_f1"] == pytest.approx([0.5, 1.0, 0.0])


_DETAILS = ("finding_f1", "finding_side_f1", "finding_severity_f1", "finding_detail_f1")


@pytest.mark.parametrize(
    ("prediction", "reference", "wanted"),
    [
        ("Small left pleural effusion.", "Large right pleural effusion.", (1, 0, 0, 0)),
        ("Small left pleural effusion.", "Small left effusion is seen.", (1, 1, 1, 1)),
        ("Small left pleural effusion.", "Small right pleural effusion.", (1, 0, 1, 0)),
        ("Small left pleural effusion.", "Large left pleural effusion.", (1, 1, 0, 0)),
        ("Pleural effusion.", "Effusion is present.", (1, 1, 1, 1)),  # both silent
        ("Pleural effusion.", "Left pleural effusion.", (1, 0, 1, 0)),
        ("Small pleural effusion.", "Pleural effusion.", (1, 1, 0, 0)),
        ("Bilateral pleural effusions.", "Left pleural effusion.", (1, 2 / 3, 1, 2 / 3)),
        ("Mild to moderate cardiomegaly.", "Moderate cardiomegaly.", (1, 1, 2 / 3, 2 / 3)),
        (
            "Trace left effusion.",
            "Small left effusion.",
            (1, 1, 0, 0),
        ),  # a neighbouring step is a miss
        # the same sides and the same sizes, the wrong way round
        (
            "Small right and moderate left pleural effusions.",
            "Small left and moderate right pleural effusions.",
            (1, 1, 1, 0),
        ),
        ("No left effusion. Small right effusion.", "Small right effusion.", (1, 1, 1, 1)),
        ("No left effusion.", "No right effusion.", (0, 0, 0, 0)),  # nothing is present
    ],
)
def test_findings_with_side_and_severity(
    prediction: str, reference: str, wanted: tuple[float, ...]
) -> None:
    for one, other in ((prediction, reference), (reference, prediction)):
        got = dive.evaluate([one], [other], ["findings"], per_report=True)
        assert [got[name] for name in _DETAILS] == pytest.approx(wanted)
        assert [got["per_report"][name][0] for name in _DETAILS] == pytest.approx(wanted)


def test_details_are_micro_averages_with_intervals_and_differences() -> None:
    predictions = ["Small left effusion. Mild cardiomegaly.", "Right effusion."] * 20
    references = ["Large left effusion. Mild cardiomegaly.", "Bilateral effusions."] * 20
    got = dive.evaluate(
        predictions, references, ["findings"], baseline=references, bootstrap=50, per_report=True
    )
    # side: (effusion, left), (cardiomegaly, none), (effusion, right) of 3 said and 4 true
    assert got["finding_side_f1"] == pytest.approx(2 * 3 / (3 + 4))
    assert got["finding_severity_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert got["finding_detail_f1"] == pytest.approx(2 * 2 / (3 + 4))
    for name in _DETAILS[1:]:
        low, high = got["intervals"][name]
        assert low <= got[name] <= high and low < high
        assert got["differences"][name]["difference"] == pytest.approx(got[name] - 1)
        assert len(got["per_report"][name]) == 40
        assert "none given" in got["variants"][name]


def test_texts_are_paired_in_their_order_whatever_they_are_held_in() -> None:
    """A pandas Series that was shuffled or filtered is indexed by labels and listed in order."""

    class Series:
        def __init__(self, texts: list[str], labels: list[int]) -> None:
            self.texts, self.labels = texts, labels

        def __len__(self) -> int:
            return len(self.texts)

        def __iter__(self) -> Iterator[str]:
            return iter(self.texts)

        def __getitem__(self, label: int) -> str:
            return self.texts[self.labels.index(label)]

    predictions, references = ["no edema", "large effusion"], ["no edema seen", "effusion is large"]
    wanted = dive.evaluate(predictions, references)
    for one, other in [
        (Series(predictions, [1, 0]), Series(references, [0, 1])),
        (Series(predictions, [7, 9]), references),
        (iter(predictions), iter(references)),
        (np.array(predictions), np.array(references)),
    ]:
        assert dive.evaluate(one, other) == wanted


def test_ten_thousand_reports_in_time() -> None:
    """The bound is 30 s for 10,000 reports; a tenth of them keeps the test short."""
    predictions, references = _pairs(1000)
    start = time.process_time()
    dive.evaluate(predictions, references)
    assert time.process_time() - start < 3
