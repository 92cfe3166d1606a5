"""The words after a finding, cut into the parts for one side and for another.

Punctuation and "and" part them: "small on the right and moderate on the left". So does a list by
sides, "R: large L: small", where a colon or a dash ties a side to the words that follow. A side
that is denied ("none on the left") or answered no ("left yes, right no") is no side of the finding.
"""

import re
from collections.abc import Sequence

from dive.lexicon.detail_ties import IS, JOINS, NONE
from dive.lexicon.detail_words import Item, vocabulary
from dive.lexicon.words import COLON, COMMA, JOINED, Words, word_set

CONTRAST = word_set("but while whereas although though however")
LONGEST = 40  # words of a noun phrase
# words after these describe the end of a catheter
_ENDS = word_set("tip tips terminates terminating ending ends")
_NO = word_set("no none nil absent negative neg n clear cleared resolved gone excluded nothing")
YES = word_set("yes y present positive pos seen noted identified there")
_NOT_SEEN = YES | word_set("not evident visible visualized visualised detected demonstrated")
ANSWERS = _NO | _NOT_SEEN
# "right -", "right (-)"; in "right - large" the dash is none
_MINUS = re.compile(r"[ \t]*[:=]?[ \t]*(?:[\[(][ \t]*[-–—−][ \t]*[\])]|[-–—−][ \t]*(?:[,;.|\n]|$))")


class Clauses:
    """The words of one sentence, [first, stop), and the items among them."""

    def __init__(
        self, words: Words, text: str, first: int, stop: int, items: Sequence[Item]
    ) -> None:
        self.all, self.words, self.before = words, words.words, words.before
        self.text, self.first, self.stop = text, first, stop
        self.known = vocabulary()
        self.at = {i: item for item in items for i in range(item.first, item.end)}

    def head(self, item: Item) -> int:
        """The start of an item's clause: after punctuation, "and" or a contrast."""
        i, limit = item.first, max(self.first, item.first - LONGEST)
        while i > limit and self.before[i] == JOINED:
            if self.words[i - 1] in CONTRAST or (
                self.words[i - 1] in JOINS and i - 2 not in self.at
            ):
                break
            i -= 1
        return i

    def skip_modifiers(self, i: int) -> int:
        """The first word from i on that is no modifier, at most `LONGEST` words later."""
        limit = min(self.stop, i + LONGEST)
        while i < limit and (
            i in self.at
            or self.words[i] in self.known.plain
            or (self.words[i] in JOINS and i + 1 in self.at)
        ):
            i += 1
        return i

    def segments(self, items: Sequence[Item], begin: int) -> list[list[Item]]:
        """The items after word `begin` in segments of those that belong together.

        Denied ones, and those of the ends of catheters, are dropped.
        """
        segments: list[list[Item]] = [[]]
        at = answered = begin
        colon = -1  # position of the colon of the previous side
        served = True  # the colon of the previous side has its item
        for item in items:
            breaks = [i for i in range(at, item.first + 1) if self.before[i] != JOINED]
            words = any(
                i > begin and self.words[i] in ("and", *CONTRAST)
                for i in range(at, item.first + 1)
            )  # fmt: skip
            cut = bool(breaks) or words
            tied = self._colon(item)
            if tied >= 0 and (cut or (colon >= 0 and served) or not segments[-1]):
                cut, colon, served = True, tied, False
            elif not served and not item.sides and not words and breaks in ([colon], []):
                cut, served = False, True
            at = item.end
            low = max(answered, self.head(item))
            if any(self.words[i] in NONE or self.words[i] in _ENDS for i in range(low, item.first)):
                continue
            if (end := self._answered_no(item)) is not None:
                answered, served = end, True
                continue
            if cut and segments[-1]:
                segments.append([])
            segments[-1].append(item)
        return segments

    def _colon(self, item: Item) -> int:
        """The word after the colon or dash that ends a side ("R -", "left base:"); or -1."""
        end = self._side_ends(item)
        return end if item.sides and end < self.stop and self.before[end] == COLON else -1

    def _side_ends(self, item: Item) -> int:
        """The first word after a side and its words of location."""
        i = item.end
        while (
            i < min(self.stop, item.end + LONGEST)
            and self.before[i] == JOINED
            and i not in self.at
            and (self.words[i] in self.known.plain or self.words[i] in ("side", "sides"))
        ):
            i += 1
        return i

    def _answered_no(self, item: Item) -> int | None:
        """The end of the "no" that answers a side, or None."""
        if not item.sides:
            return None
        i = self._side_ends(item)
        start = self.all.ends[i - 1]
        if _MINUS.match(self.text, start):
            return i
        tied = i < self.stop and self.before[i] == COLON
        while i < self.stop and self.before[i] == JOINED and self.words[i] in IS:
            i += 1
        if i >= self.stop or self.before[i] > COLON:
            return None
        if self.words[i] == "not":
            end = i + 2
            if self.words[i + 1 : end] == [] or self.words[i + 1] not in _NOT_SEEN:
                return None
        elif self.words[i] in _NO:
            end = i + 1
        else:
            return None
        if end >= self.stop or self.before[end] != JOINED or self.words[end] in JOINS | CONTRAST:
            return end
        # "left no right yes" answers; "on the left, none on the right" does not
        listed = end in self.at and bool(self.at[end].sides)
        after = self.at[end].end if listed else end
        more = after < self.stop and (
            self.words[after] in ANSWERS or self.before[after] == COLON or after in self.at
        )
        return end if listed and (tied or (more and self.before[i] != COMMA)) else None

    def all_known(self) -> bool:
        """Return whether the sentence has only words of side and severity, and answers."""
        known = self.known.plain | ANSWERS | IS | JOINS | _BESIDE_ITEMS
        return self.stop - self.first <= _SHORT and all(
            i in self.at or self.words[i] in known for i in range(self.first, self.stop)
        )

    def goes_on(self) -> bool:
        """Return whether a sentence without a finding continues the one before: "Left: small.",
        "Size: moderate", "Small in size.", "On the left."."""
        if not self.at or not self.all_known():
            return False
        colon = any(self.before[i] == COLON for i in range(self.first + 1, self.stop))
        if self.words[self.first] in _FIELDS:
            return True
        items = [item for item in dict.fromkeys(self.at.values())]
        informative = any(item.step is not None or item.size is not None for item in items)
        informative = informative or any(
            self.words[i] in ANSWERS for i in range(self.first, self.stop)
        )
        if colon:
            return informative and bool(items[0].sides)
        return informative or self.words[self.first] in _AT


_SHORT = 16
_AT = word_set("on in at to within along")
_FIELDS = word_set("side sides size severity laterality location grade degree amount extent site")
_BESIDE_ITEMS = _AT | _FIELDS | word_set("the a an of now currently also with than greater")
