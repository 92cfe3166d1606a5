"""Where nltk's BLEU and METEOR agree with ours and where not, as docs/metrics.md has it."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import dive
from dive.metrics.normalization import words

bleu_score = pytest.importorskip("nltk.translate.bleu_score")
PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

PREDICTIONS = [
    "The heart is normal in size. No pleural effusion.",
    "Right-sided PICC line; tip in the SVC.",
    "1. Small left effusion. 2. No pneumothorax.",
]
REFERENCES = [
    "Heart size is normal. There is no pleural effusion.",
    "A right-sided PICC line ends in the SVC.",
    "1. Small left pleural effusion. 2. No pneumothorax is seen.",
]
SHORT = ["No effusion.", "The lungs are clear."]


def nltk_words(text: str) -> list[str]:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer().tokenize(text)


def nltk_bleu(
    predictions: list[str],
    references: list[str],
    cut: Callable[[str], list[str]] = words,
    smoothing: str = "method0",
) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning that it found no match
        return bleu_score.corpus_bleu(
            [[cut(text)] for text in references],
            [cut(text) for text in predictions],
            smoothing_function=getattr(bleu_score.SmoothingFunction(), smoothing),
        )


def bleu4(predictions: list[str], references: list[str]) -> float:
    return dive.evaluate(predictions, references, ["bleu"])["bleu4"]


def in_page(line: str) -> None:
    if not PAGE.is_file():
        pytest.skip("beside an installed wheel there are no docs")
    assert line in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_same_words_of_four_and_more_are_the_same_number() -> None:
    ours, theirs = bleu4(PREDICTIONS, REFERENCES), nltk_bleu(PREDICTIONS, REFERENCES)
    assert ours == pytest.approx(theirs, rel=1e-8)
    in_page(f"| the three reports above, the words of `lower` | {ours:.3f} | {theirs:.3f} |")


def test_its_own_tokenizer_keeps_case_and_hyphens() -> None:
    assert nltk_words("No effusion. Right-sided line isn't seen.") == [
        "No", "effusion.", "Right-sided", "line", "is", "n't", "seen", ".",
    ]  # fmt: skip
    ours = bleu4(PREDICTIONS, REFERENCES)
    theirs = nltk_bleu(PREDICTIONS, REFERENCES, nltk_words)
    in_page(f"| the same, the words of nltk's tokenizer in nltk | {ours:.3f} | {theirs:.3f} |")
    assert theirs < 0.6 * ours


def test_a_prediction_below_four_words_is_an_ngram_without_a_match_in_nltk() -> None:
    ours, theirs = bleu4(SHORT, SHORT), nltk_bleu(SHORT, SHORT)
    # "no effusion ." offers no 4-gram; nltk counts one, so that 2 match of 3
    assert (ours, theirs) == (pytest.approx(1), pytest.approx((2 / 3) ** 0.25))
    in_page(
        f'| "No effusion." and "The lungs are clear.", word for word | {ours:.3f} | {theirs:.3f} |'
    )


def test_an_empty_prediction_is_an_ngram_of_every_order_in_nltk() -> None:
    predictions = ["", SHORT[1]]
    ours, theirs = bleu4(predictions, SHORT), nltk_bleu(predictions, SHORT)
    brevity = pytest.approx(math.exp(1 - 8 / 5))
    assert ours == brevity
    precision = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert theirs / precision == brevity
    in_page(f"| the same, the first prediction empty | {ours:.3f} | {theirs:.3f} |")


def test_without_a_match_both_are_next_to_0_and_smoothing_is_not() -> None:
    pair = ["No large effusion."], ["Small left effusion."]
    ours, theirs, smoothed = bleu4(*pair), nltk_bleu(*pair), nltk_bleu(*pair, smoothing="method1")
    assert 0 < theirs < 1e-150 < ours < 1e-7 and smoothed > 0.1
    in_page(f"| no common 4-gram, unsmoothed | {ours:.0e} | {theirs:.0e} |".replace("e-0", "e-"))
    in_page(f"| the same, nltk's smoothing `method1` | | {smoothed:.3f} |")
    assert nltk_bleu(["Edema"], ["Clear"]) == 0 < bleu4(["Edema"], ["Clear"]) < 1e-7


def test_the_length_is_of_the_one_reference_and_of_the_closest_in_nltk() -> None:
    prediction, longer = "a b c d e", "a b c d e f g h"
    pair = [[longer.split(), prediction.split()]], [prediction.split()]
    assert bleu_score.corpus_bleu(*pair) == 1
    assert bleu4([prediction], [longer]) == pytest.approx(math.exp(1 - 8 / 5))
    assert bleu4([prediction], [longer]) == pytest.approx(nltk_bleu([prediction], [longer]))
    with pytest.raises(dive.DiveError, match="is a list, want a text"):
        dive.evaluate([prediction], [[longer, prediction]], ["bleu"])


class NoSynonyms:
    def synsets(self, word: str) -> list[str]:
        return []


def test_meteor_is_nltks_on_the_same_words_and_a_mean_over_reports() -> None:
    from nltk.translate.meteor_score import single_meteor_score

    def theirs(cut: Callable[[str], list[str]]) -> float:
        values = [
            single_meteor_score(cut(reference), cut(prediction), wordnet=NoSynonyms())
            for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
        return sum(values) / len(values)

    def ours(normalization: str) -> float:
        return dive.evaluate(
            PREDICTIONS, REFERENCES, ["meteor"], normalization=normalization, meteor_synonyms=False
        )["meteor"]

    assert ours("lower") == pytest.approx(theirs(words), rel=1e-12)
    # nltk lowers case, and the stemmer does so for us: `raw` is one number, too
    assert ours("raw") == pytest.approx(theirs(str.split), rel=1e-12)
    one, other = ours("lower"), theirs(nltk_words)
    in_page(f"of `lower` score {one:.3f}, those of nltk's tokenizer {other:.3f}, without synonyms.")


def test_normalisation_moves_the_score_as_the_page_says() -> None:
    for name in ("raw", "lower", "r2gen"):
        got = dive.evaluate(PREDICTIONS, REFERENCES, ["bleu", "rougeL"], normalization=name)
        in_page(f"| {name} | {got['bleu1']:.3f} | {got['bleu4']:.3f} | {got['rougeL']:.3f} |")
