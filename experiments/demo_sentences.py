"""What README says of the built-in world, from the records: figures and counts alike.

<!-- experiment: demo sentences -->   README's list

Where the words presuppose an outcome ("in six of six"), the records are asked for it, and other
records are an error: the sentence must then be written anew.
"""

from collections.abc import Callable, Sequence
from statistics import mean

from dive.errors import DiveError
from experiments import demo_records
from experiments.comparison_tables import COMPARED, Difference, measured
from experiments.exact_test import as_text
from experiments.pages import items
from experiments.record_files import Record

_COUNTS = ("none", "one", "two", "three", "four", "five", "six")
STATE = "state-conditioned steering, for fixed vectors"
WEIGHTS, FIXED_WEIGHTS = "decisive weights", "the same, fixed vectors"
TEACHER, IMAGE = "KL to the teacher", "the patient's own image, for another's"
RANK_ONE = "the same, rank 1"
BASELINES = (
    "DIVE in place of no adapter",
    "DIVE in place of the 3-shot prompt",
    "DIVE in place of LIVE",
    STATE,
)


class Study:
    """The comparisons of all parts; `used` has those that a sentence has asked for, in order."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.used: dict[tuple[str, str, str], Difference] = {}
        self._known: dict[tuple[str, str, str], Difference] = {}
        self._tests: dict[str, list[Difference]] = {}
        for part in dict.fromkeys(record["part"] for record in records):
            for label, _, _, found in measured(self.of(part)):
                self._tests.setdefault(part, []).extend(found)
                for name, one in zip(COMPARED, found, strict=True):
                    self._known[part, label, name] = one

    def of(self, part: str, method: str | None = None) -> list[Record]:
        own = [record for record in self.records if record["part"] == part]
        return [record for record in own if method in (None, record["method"])]

    def tests(self, part: str) -> list[Difference]:
        return self._tests.get(part, [])

    def difference(self, label: str, name: str, part: str = "main") -> Difference:
        try:
            found = self._known[part, label, name]
        except KeyError:
            raise DiveError(f"the records have no comparison {label!r} of part {part!r}") from None
        return self.used.setdefault((part, label, name), found)

    def mean(self, method: str, name: str) -> float:
        return mean(record[name] for record in self.of("main", method))


def _hold(condition: bool, words: str) -> None:
    if not condition:
        raise DiveError(f"README's {words!r} is not what the records give: write it anew")


def _size(one: Difference) -> str:
    """Returns a size without its sign, as in "0.7 ± 0.7 lower"."""
    return f"{abs(one.size):.1f} ± {one.half:.1f}"


def _zero_inside(one: Difference) -> bool:
    return one.half is None or abs(one.size) <= one.half


def sentences(study: Study) -> list[str]:
    return [_proof(study), _baselines(study), _state(study), *_weights(study), _image(study)]


def _proof(study: Study) -> str:
    tests = study.tests("main")
    _hold(all(one.corrected == 1 for one in tests), "after correction all are 1")
    smallest = min(one.p for one in tests)
    hospitals = len({record["hospital"] for record in study.of("main")})
    _hold(smallest * 2**hospitals == 2, "cannot give a p below")
    return (
        f"**Nothing here is proven.** {_COUNTS[hospitals].capitalize()} hospitals cannot give a p "
        f"below {as_text(smallest)}, and after correction for the {len(tests)} tests of this part "
        "all are 1."
    )


def _baselines(study: Study) -> str:
    names = ("bleu4", "style_f1", "concept_f1")
    found = [study.difference(label, name) for label in BASELINES for name in names]
    _hold(all(one.higher == one.hospitals == 6 for one in found), "above in six of six hospitals")
    including = sum(map(_zero_inside, found))
    prompts = [one["prompt_tokens"] for one in study.of("main", "3-shot in context")]
    own = {one["prompt_tokens"] for one in study.of("main", "DIVE")}
    _hold(len(own) == 1, "a prompt of one length")
    _hold(all(one["terminated"] == 100 for one in study.of("main", "DIVE")), "ends every report")
    shown = study.of("main", "3-shot in context")
    ended = sum(one["terminated"] == 100 for one in shown)
    return (
        "DIVE's BLEU-4 and both F1s are above those of zero-shot, of the 3-shot prompt it was "
        "distilled from, of LIVE and of fixed vectors in six of six hospitals, at a prompt of "
        f"{own.pop():.0f} tokens in place of {min(prompts):.0f} to {max(prompts):.0f}; "
        f"{_COUNTS[including]} of these intervals include zero. It ends every report, as the "
        f"prompt does in {_COUNTS[ended]} of {_COUNTS[len(shown)]}."
    )


def _state(study: Study) -> str:
    rank_one = study.difference(RANK_ONE, "bleu4")
    longer = study.difference(STATE, "bleu4", "400 steps")
    _hold(min(rank_one.size, longer.size) > 0, "more BLEU-4 than fixed vectors")
    _hold(
        all(
            study.difference(STATE, name).size > study.difference(other, name).size
            for name in ("bleu4", "style_f1", "concept_f1")
            for other in (WEIGHTS, TEACHER)
        ),
        "The largest part is state-conditioned steering",
    )
    return (
        "The largest part is **state-conditioned steering**. Rank 1, with about three times the "
        f"parameters of fixed vectors, has {_size(rank_one)} BLEU-4 more; with four times the "
        f"steps (one seed) DIVE has {_size(longer)} more. Fixed vectors and LIVE train at the "
        "highest of three rates tried; a higher one may be right for them."
    )


def _weights(study: Study) -> list[str]:
    for name in COMPARED:
        _hold(_zero_inside(study.difference(WEIGHTS, name)), "no difference was seen (weights)")
        _hold(_zero_inside(study.difference(TEACHER, name)), "no difference was seen (teacher)")
    few = study.difference(WEIGHTS, "concept_f1", "16 studies")
    # without a hospital above 0, the least p is that of none being equal
    lower = few.higher == 0 and few.p * 2**few.hospitals == 2
    _hold(lower and few.hospitals == 6, "lower in six of six")
    fixed = [study.difference(FIXED_WEIGHTS, name) for name in ("style_f1", "concept_f1")]
    _hold(len({one.higher for one in fixed}) == 1, "both F1s are higher in as many hospitals")
    _hold(min(one.size for one in fixed) > 0, "both F1s are higher")
    longer = [
        study.difference(FIXED_WEIGHTS, name, "400 steps") for name in ("style_f1", "concept_f1")
    ]
    _hold(min(one.size for one in longer) > 0, "after 400 steps both are higher")
    teacher = study.difference(TEACHER, "style_f1")
    return [
        "**Decisive weights**: no difference was seen with state-conditioned steering, and with 16 "
        f"training studies concept F1 is {_size(few)} lower (six of six; p {as_text(few.p)}, "
        f"corrected {as_text(few.corrected)}). With fixed vectors both F1s are higher in "
        f"{_COUNTS[fixed[0].higher]} of {_COUNTS[fixed[0].hospitals]}; after 400 steps by "
        f"{_size(longer[0])} and {_size(longer[1])}. They stay on as the paper's method.",
        f"**KL to the teacher**: no difference was seen (style F1 {_size(teacher)}).",
    ]


def _image(study: Study) -> str:
    for name in ("bleu4", "concept_f1"):
        study.difference(IMAGE, name)
    other = "DIVE, shown another patient's image"
    return (
        f"Shown another patient's image, DIVE still has {study.mean(other, 'bleu4'):.1f} BLEU-4, "
        f"but {study.mean(other, 'concept_f1'):.1f} concept F1 in place of "
        f"{study.mean('DIVE', 'concept_f1'):.1f}."
    )


def basis(study: Study) -> str:
    """Returns the comparisons that the sentences rest on: size, hospitals, p and corrected p."""
    sentences(study)
    return "\n".join(
        f"- {part}: {label}, {name}: {one}" for (part, label, name), one in study.used.items()
    )


def tables(records: Sequence[Record]) -> dict[str, Callable[[], str]]:
    """Returns what each marker of a page stands for, by its name."""
    return {
        "demo sentences": lambda: items(sentences(Study(records))),
        "demo basis": lambda: basis(Study(records)),
        "demo records": lambda: demo_records.lines(records),
    }
