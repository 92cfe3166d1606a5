"""The side and the severity of each finding in a report.

A word of side or severity belongs to the finding whose noun phrase it opens ("small left pleural
effusion"), else to the finding before it ("effusion, moderate, on the left"), else, at the head of
a statement, to those that follow ("On the right there is ...", "LEFT LUNG: ..."). Findings joined
by "and" share a side that only one of them has. The words are in modifiers.yaml.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from dive.lexicon.checklist import answers
from dive.lexicon.detail_clauses import CONTRAST, LONGEST, Clauses
from dive.lexicon.detail_pairs import Detail, combined, sides_of
from dive.lexicon.detail_ties import DETERMINERS, IS, JOINS, MEANING, NONE, Extent, share
from dive.lexicon.detail_words import Item, items_of, vocabulary
from dive.lexicon.markup import without_markup
from dive.lexicon.words import COLON, COMMA, END, JOINED, SEMICOLON, Words, split, word_set

_COMPARED = word_set("greater larger more worse bigger less smaller > <")
_PREPOSITIONS = word_set(
    "in on at within along of to over through throughout near into from involving"
)
_VERBS = IS | word_set(
    "has have had shows show demonstrates demonstrate contains reveals seen noted may might could"
    " can measures measure represents represent reflects obscures obscuring suggests causing cause"
)
# a noun phrase does not extend back over these
_STOPS = (
    JOINS | _PREPOSITIONS | DETERMINERS | _VERBS | CONTRAST | NONE
    | word_set("with plus than as by for due which there it via per vs versus if because since")
)  # fmt: skip
# these join two sides like "and"
_JOINTS = tuple(
    tuple(words.split())
    for words in ("and also", "and", "or", "plus", "as well as", "along with", "together with")
)
_REFERS = word_set("it this these they both")
_ADJECTIVES = ("ed", "ic", "al", "ar", "ary", "ous", "ive")
_HEADING = 4  # words before a colon


class MentionLike(Protocol):
    """The properties of a mention that are read: its characters, its entry and its class."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def cls(self) -> str: ...
    @property
    def spans(self) -> tuple[tuple[int, int], ...]: ...


def details(text: str, mentions: Sequence[MentionLike]) -> list[list[Detail]]:
    """The sides and severities of each mention, in the order of the mentions.

    `mentions` are those of `dive.decisive.find_mentions(text)`. More than one detail where the
    report separates them ("small right and moderate left effusions"); none where it states none.
    """
    text = without_markup(text)
    words = split(text)
    _end_answers(words, text, [mention.spans[0][0] for mention in mentions])
    found: list[list[Detail]] = [[] for _ in mentions]
    sentence_of: dict[int, list[int]] = {}
    firsts = [first for first, _ in words.sentences]
    for k, mention in enumerate(mentions):
        at = bisect_right(words.starts, mention.start) - 1
        sentence_of.setdefault(bisect_right(firsts, at) - 1, []).append(k)
    free = [True] * len(words.words)
    heading: list[Item] = []
    last: int | None = None  # the mention that "it" may refer to
    for number, (first, stop) in enumerate(words.sentences):
        here = sentence_of.get(number, [])
        gap = text[words.ends[first - 1] : words.starts[first]] if first else ""
        if gap.count("\n") > 1:
            heading = []
        colon = next(
            (i for i in range(first + 1, min(first + _HEADING + 1, stop)) if _is(words, i, COLON)),
            None,
        )
        refers = not here and last is not None and words.words[first] in _REFERS
        if not here and colon is None and last is None:
            continue
        sentence = _Sentence(words, text, first, stop, [mentions[k] for k in here], free)
        if not here and last is not None and (refers or sentence.clauses.goes_on()):
            found[last] = sentence.with_continuation(mentions[last], found[last])
            heading = heading if refers and colon is None else []
            continue
        if colon is not None:
            before = [i for i in sentence.items if i.end <= colon and i.sides and not i.weak]
            named = any(low < colon for low, _ in sentence.extents)
            heading = [] if named else before
        if not heading and last is not None and here and sentence.interprets():
            sides = sides_of(found[last])
            context = [Item(first, first, sides)] if sides else []
        else:
            context = heading
        for k, own in zip(here, sentence.read_details(context), strict=True):
            found[k] = own
        last = here[-1] if here else None
    return found


def _end_answers(words: Words, text: str, mentioned: Sequence[int]) -> None:
    """End sentences at the line breaks that end an answered heading.

    `split` knows no answers, so "Effusion right: small" would continue in the next line.
    """
    broken = {
        i
        for first, stop in words.sentences
        for i in range(first + 1, stop)
        if "\n" in text[words.ends[i - 1] : words.starts[i]]
    }
    if not broken:
        return

    def names_finding(start: int, stop: int) -> bool:
        return bisect_left(mentioned, start) < bisect_left(mentioned, stop)

    edges = (edge for answer in answers(text, names_finding) for edge in (answer.start, answer.end))
    cuts = broken & {bisect_left(words.starts, edge) for edge in edges}
    for i in cuts:
        words.before[i], words.joined[i] = END, False
    firsts = sorted(cuts | {first for first, _ in words.sentences})
    words.sentences[:] = pairwise([*firsts, len(words.words)])


def _is(words: Words, i: int, kind: int) -> bool:
    return words.before[i] == kind


class _Sentence:
    """The mentions of one sentence and the details around them."""

    def __init__(
        self,
        words: Words,
        text: str,
        first: int,
        stop: int,
        mentions: Sequence[MentionLike],
        free: list[bool],
    ) -> None:
        self.all, self.words, self.before = words, words.words, words.before
        self.text, self.first, self.stop = text, first, stop
        self.mentions, self.known = mentions, vocabulary()
        self.extents: list[tuple[int, int]] = []  # first and last word of each mention
        self.owner: dict[int, int] = {}  # word -> mention whose own word it is
        for k, mention in enumerate(mentions):
            own = [i for span in mention.spans for i in self._range(*span)]
            self.extents.append((own[0], own[-1]))
            self.owner.update(dict.fromkeys(own, k))
        for i in self.owner:
            free[i] = False
        self.lows, self.highs = [low for low, _ in self.extents], [high for _, high in self.extents]
        ends = dict(enumerate(self.highs))
        self.items = items_of(words, text, (first, stop), self.owner, ends, free)
        self.clauses = Clauses(words, text, first, stop, self.items)
        self.at = self.clauses.at

    def _range(self, start: int, end: int) -> range:
        """The words of text[start:end]; at least one."""
        low = max(bisect_right(self.all.starts, start) - 1, self.first)
        return range(low, max(bisect_left(self.all.starts, end), low + 1))

    # owners of items

    def read_details(self, heading: list[Item]) -> list[list[Detail]]:
        """The details of each mention; `heading`: sides that hold where none is stated."""
        inside: list[list[Item]] = []
        opened: list[list[list[Item]]] = []
        starts: list[int] = []
        claimed: set[Item] = set()
        floor = self.first
        for low, high in self.extents:
            start, segments = self._phrase(low, floor)
            own = list(dict.fromkeys(self.at[i] for i in range(low, high + 1) if i in self.at))
            inside.append(own)
            opened.append(segments)
            starts.append(start)
            claimed.update(own, *segments)
            if start == floor > self.first and self._adjective(floor - 1):
                # "small calcified right apical granuloma": two mentions, one noun phrase
                starts[-1] = starts[-2]
                inside[-1] = [*inside[-2], *inside[-1], *(i for s in opened[-2] for i in s)]
            floor = max(floor, high + 1)
        behind: list[list[list[Item]]] = [[[]] for _ in self.mentions]
        context: list[list[Item]] = [[] for _ in self.mentions]
        self._assign([i for i in self.items if i not in claimed], behind, context)
        found = []
        for k, mention in enumerate(self.mentions):
            around = inside[k], opened[k], behind[k], context[k] or heading
            found.append(combined(mention.name, *around))
        extents = [
            Extent(start, low, high, one.name, one.cls)
            for start, (low, high), one in zip(starts, self.extents, self.mentions, strict=True)
        ]
        return share(found, extents, behind, self.all, self.text)

    def interprets(self) -> bool:
        """Return whether it interprets a finding before it: "This may represent pneumonia"."""
        before = self.words[self.first : self.lows[0]]
        return (
            before[:1] != [] and before[0] in _REFERS
            and len(before) <= LONGEST and any(w.startswith(MEANING) for w in before)
        )  # fmt: skip

    def with_continuation(self, mention: MentionLike, earlier: list[Detail]) -> list[Detail]:
        """The details of an earlier mention, of which `earlier` is known, with those of a sentence
        that has no mention."""
        segments = self.clauses.segments(self.items, self.first)
        return combined(mention.name, [], [], segments, [], earlier)

    def _phrase(self, low: int, floor: int) -> tuple[int, list[list[Item]]]:
        """The start of the noun phrase that ends at word `low`, and its items, in segments parted
        by "and" or a comma."""
        words, segments = self.words, [[]]  # type: tuple[list[str], list[list[Item]]]
        i, limit = low, max(floor, low - LONGEST)
        while i > limit:
            kind, word = self.before[i], words[i - 1]
            if kind == COMMA:
                if not self._crosses(i - 1, floor, comma=True):
                    break
                segments.insert(0, [])
            elif kind != JOINED:
                break
            item = self.at.get(i - 1)
            if item is not None and item.first >= limit:
                segments[0].insert(0, item)
                i = item.first
            elif (joint := self._joint(i, limit)) < i:
                comma = self.before[joint] == COMMA
                if not comma and self.before[joint] != JOINED:
                    break
                if not self._crosses(joint - 1, floor, comma=comma):
                    break
                if not self._is_range(joint - 1, i):
                    segments.insert(0, [])
                i = joint
            elif (word == "to" and self._is_range(i - 2, i)) or word == "than":
                i -= 1
            elif (over := self._quantity(i, limit)) is not None:
                i = over
            elif word in _STOPS:
                break
            else:
                i -= 1
        return i, segments

    def _joint(self, i: int, limit: int) -> int:
        """The start of an "and" that ends before word i, or i."""
        for words in _JOINTS:
            start = i - len(words)
            joined = all(self.before[j] == JOINED for j in range(start + 1, i))
            if start > limit and joined and tuple(self.words[start:i]) == words:
                return start
        return i

    def _adjective(self, i: int) -> bool:
        """Return whether the mention that ends at word i is an adjective of the next one."""
        slash = "/" in self.text[self.all.ends[i] : self.all.starts[i + 1]]
        joined = self.before[i + 1] == JOINED and not slash
        return joined and self.words[i].endswith(_ADJECTIVES)

    def _is_range(self, a: int, b: int) -> bool:
        """Return whether both words are steps: "small to moderate", "moderate or large"."""
        one, other = self.at.get(a), self.at.get(b)
        return one is not None and other is not None and None not in (one.step, other.step)

    def _quantity(self, i: int, limit: int) -> int | None:
        """The start of "amount of (the)" before word i, or None."""
        j = i
        while j - 1 >= limit and self.words[j - 1] in DETERMINERS:
            j -= 1
        if j - 2 >= limit and self.words[j - 1] == "of" and self.before[j - 1] == JOINED:
            return j - 2 if self.words[j - 2] in self.known.quantities else None
        return None

    def _crosses(self, j: int, floor: int, *, comma: bool) -> bool:
        """Return whether the words up to j, before "and" or a comma, open the same noun phrase."""
        edge = self._first_modifier(j, floor)
        if edge > j:
            return False
        if self.before[edge] == COMMA and edge > floor:
            return self._crosses(edge - 1, floor, comma=True)
        if edge == floor:
            if floor == self.first:
                return True
            return not comma and self.before[edge] == COMMA
        word = self.words[edge - 1]
        if self.before[edge] == COLON and floor > self.first and edge - 1 in self.at:
            return False  # "effusion: L: small, pneumothorax"
        if word in DETERMINERS:
            return edge - 2 < floor or self.words[edge - 2] not in _PREPOSITIONS
        if word in IS:
            there = edge - 2 >= self.first and self.words[edge - 2] == "there"
            return there or floor == self.first
        return word not in _PREPOSITIONS

    def _first_modifier(self, j: int, floor: int) -> int:
        """The first of consecutive modifiers that end at word j; j + 1 where it is none."""
        known = self.known.plain
        i = j + 1
        while i > floor and (i == j + 1 or self.before[i] == JOINED):
            word = self.words[i - 1]
            if (
                i - 1 not in self.at
                and word not in known
                and word not in _COMPARED | {"than", "to"}
            ):
                break
            i -= 1
        return i

    def _assign(
        self,
        items: list[Item],
        behind: list[list[list[Item]]],
        context: list[list[Item]],
    ) -> None:
        """Assign items outside noun phrases to the mention before or to those that follow."""
        if not self.mentions:
            return
        breaks = [i for i in range(self.first + 1, self.stop) if self.before[i] == SEMICOLON]
        edges = [self.first, *breaks, self.stop]
        waiting: dict[int, list[Item]] = {}
        assigned: dict[int, list[tuple[Item, int]]] = {}
        for item in items:
            clause = bisect_right(edges, item.first)
            first, last = (bisect_left(self.lows, edges[clause - n]) for n in (1, 0))
            # mentions [first, last) are in the clause, [later, last) of them after the item
            earlier, later = bisect_left(self.highs, item.first), bisect_left(self.lows, item.end)
            if later < last and earlier <= first:
                forward = last if item.sides else later + 1
            elif later < last and (opening := self._opening(item, later)):
                forward = last if opening == "there" else later + 1
            else:
                if earlier:
                    waiting.setdefault(earlier - 1, []).append(item)
                continue
            assigned.setdefault(later, []).append((item, forward))
        for k, own in waiting.items():
            behind[k] = self.clauses.segments(own, self.highs[k] + 1)
        lasting: list[Item] = []
        until = 0  # the first mention that `lasting` does not reach
        for k in range(len(context)):
            lasting = lasting if k < until else []
            context[k] = lasting
            for item, forward in assigned.get(k, ()):
                context[k] = self._with(context[k], item)
                if forward > k + 1:
                    lasting, until = self._with(lasting, item), forward

    def _with(self, context: list[Item], item: Item) -> list[Item]:
        """The context with the item; the item alone, as the nearer one, where it is of another
        clause."""
        same = context and self.clauses.head(context[0]) == self.clauses.head(item)
        return [*context, item] if same else [item]

    def _opening(self, item: Item, k: int) -> str:
        """How an item between two mentions opens the statement of the later one.

        "there" ("and on the left there is ..."), "subject" ("and the left lung shows ..."), or "".
        """
        head = self.clauses.head(item)
        if head == self.first or any(i in self.owner for i in range(head, item.first)):
            return ""
        end = self.clauses.skip_modifiers(item.end)
        if end >= self.stop or any(
            self.before[i] not in (JOINED, COMMA) for i in range(head + 1, end)
        ):
            return ""
        word = self.words[end]
        placed = any(w in _PREPOSITIONS for w in self.words[head : item.first])
        if word == "there":
            return "there"
        low = self.extents[k][0]
        same = all(
            self.before[i] == JOINED and self.words[i] not in {*CONTRAST, "and", "there"}
            for i in range(end, low)
        )
        if word in _VERBS and same and not placed:
            return "subject"
        return "there" if word in ("is", "are") and placed and same else ""
