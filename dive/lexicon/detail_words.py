"""The words of side, severity and size in a sentence, for details.py."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from dive.lexicon.modifiers import plain_words, table
from dive.lexicon.terms import Automaton, longest_first
from dive.lexicon.words import JOINED, Words, word_set

LEFT, RIGHT = "left", "right"
STEPS = ("trace", "small", "moderate", "large")

_SIZE = re.compile(
    r"(?<!\d)\d+(?:\.\d+)?(?:\s*(?:x|by|to|-)\s*\d+(?:\.\d+)?){0,3}[\s-]*(mm|cm)\b", re.I
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NOW = word_set("now currently presently today become becomes became becoming")
_OTHERS = word_set("and with but while whereas")
_NEAR = 6
_DISTANCE = word_set("from above below proximal distal beyond to deep away superior inferior over")


class Item(NamedTuple):
    """Words [first, end) with a side, or a step of severity, or a size in millimetres."""

    first: int
    end: int
    sides: frozenset[str]
    step: int | None = None
    size: float | None = None
    weak: bool = False  # counts only where no other side is stated
    now: bool = False  # a step that replaces others: "now small", "decreased to small"


_BOTH = frozenset((LEFT, RIGHT))
_SIDES = {
    "left": (frozenset((LEFT,)), False),
    "right": (frozenset((RIGHT,)), False),
    "both": (_BOTH, False),
    "left_by_place": (frozenset((LEFT,)), True),
    "right_by_place": (frozenset((RIGHT,)), True),
    "both_by_place": (_BOTH, True),
}


class Vocabulary:
    """modifiers.yaml, compiled."""

    def __init__(self) -> None:
        data = table()
        words, severity = data["words"], data["words"]["severity"]
        sides = [(w, k) for k, group in words["side"].items() for w in group if k in _SIDES]
        phrases = [(t, k) for k, terms in data["side_phrases"].items() for t in terms]
        self.sides = Automaton([*phrases, *sides])
        self.steps = {
            w: STEPS.index(k) for k, group in severity.items() if k in STEPS for w in group
        }
        graded = "|".join(self.steps)
        changes = "|".join(data["changes"])
        self.changes = tuple(word.rstrip("*") for word in data["changes"])
        self.other = Automaton((t, "none") for t in data["severity_phrases"]["none"])
        terms = [
            f"[{graded}] (interval) (further) [{changes}]",
            f"[{'|'.join(data['earlier'])}] (a|seen|noted|described) [{graded}]",
            f"[{changes}] [{'|'.join(w for w in self.steps if w.endswith('ly'))}]",
            f"[more|less|most] [{graded}]",
        ]
        self.severities = Automaton([*((t, "none") for t in terms), *self.steps.items()])
        self.plain = frozenset(plain_words({k: g for k, g in words.items() if k != "measure"}))
        self.form = frozenset(words["form"])
        self.earlier, self.names = frozenset(data["earlier"]), frozenset(data["names"])
        self.quantities = frozenset(data["quantities"])
        self.midline, self.shared = frozenset(data["midline"]), frozenset(data["shared"])
        self.sizes = {
            name: sorted((limit, STEPS.index(step)) for step, limit in limits.items())
            for name, limits in data["sizes"].items()
        }


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    return Vocabulary()


def items_of(
    words: Words,
    text: str,
    sentence: tuple[int, int],
    owner: Mapping[int, int],
    ends: Mapping[int, int],
    free: list[bool],
) -> list[Item]:
    """The items of one sentence, in its order.

    `owner`: word -> the mention whose own word it is; `ends`: mention -> its last word; `free` has
    an entry per word of the text, false where it is a mention's own.
    """
    return sorted(_Reader(words, text, sentence, owner, ends, free).read_items())


class _Reader:
    def __init__(
        self,
        words: Words,
        text: str,
        sentence: tuple[int, int],
        owner: Mapping[int, int],
        ends: Mapping[int, int],
        free: list[bool],
    ) -> None:
        self.all, self.words, self.text = words, words.words, text
        self.first, self.stop = sentence
        self.owner, self.ends, self.free = owner, ends, free
        self.known = vocabulary()

    def read_items(self) -> list[Item]:
        words, known, span = self.words, self.known, (self.first, self.stop)
        joined = self.all.joined
        items = []
        for match in longest_first(known.sides.matches(words, joined, *span)):
            if words[match.first] == "both" and self._both_of_two(match.first):
                continue
            if str(match.value) in _SIDES:
                sides, weak = _SIDES[str(match.value)]
                items.append(Item(match.first, match.end, sides, weak=weak))
        for i in self.owner:
            if words[i] in known.steps and words[i] not in known.names:
                items.append(Item(i, i + 1, frozenset(), known.steps[words[i]]))
        other = {i for match in known.other.matches(words, joined, *span) for i in match.words}
        # a word of the finding itself is no change: "mildly increased interstitial markings"
        for match in longest_first(known.severities.matches(words, joined, *span, self.free)):
            if not isinstance(match.value, int) or match.first in other:
                continue
            if not self._of_a_form(match.first):
                now = self._is_now(match.first)
                items.append(Item(match.first, match.end, frozenset(), match.value, now=now))
        return items + self._sizes()

    def _is_now(self, i: int) -> bool:
        """Return whether a step is current: "now moderate", "decreased in size to small"."""
        low = max(self.first, i - _NEAR)
        while i > low and self.all.before[i] == JOINED and self.words[i - 1] not in _OTHERS:
            i -= 1
            if self.words[i] in _NOW:
                return True
            if self.words[i] == "to":
                changed = self.words[max(self.first, i - 3) : i]
                if any(word.startswith(self.known.changes) for word in changed):
                    return True
        return False

    def _both_of_two(self, i: int) -> bool:
        """Return whether "both" is no side: "both effusion and atelectasis"."""
        k = self.owner.get(i + 1)
        if k is None:
            return False
        word = self.words[self.ends[k]]
        return not word.endswith("s") or word.endswith("is")

    def _of_a_form(self, i: int) -> bool:
        """Return whether a step belongs to an adjective other than the finding: "slightly
        loculated"."""
        if not self.words[i].endswith("ly") or i + 1 >= self.stop or i + 1 in self.owner:
            return False
        after = self.words[i + 1]
        return after != "sized" and (after in self.known.form or after.endswith(("ed", "ing")))

    def _sizes(self) -> list[Item]:
        start, end = self.all.starts[self.first], self.all.ends[self.stop - 1]
        found = []
        for match in _SIZE.finditer(self.text, start, end):
            low = bisect_right(self.all.starts, match.start()) - 1
            high = bisect_left(self.all.starts, match.end())
            near = self.words[max(low - 2, self.first) : low]
            if any(w in self.known.earlier for w in near):
                continue
            if (
                high < self.stop
                and self.words[high] in _DISTANCE
                and self.all.before[high] == JOINED
            ):
                continue
            unit = 10.0 if match.group(1).lower() == "cm" else 1.0
            numbers = _NUMBER.findall(match.group())
            found.append(Item(low, high, frozenset(), size=unit * max(map(float, numbers))))
        return found
