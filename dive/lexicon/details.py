"""The side and the severity that a report gives each of its findings.

A word of side or severity belongs to the finding whose noun phrase it opens ("small left pleural
effusion"), else to the finding before it ("effusion, moderate, on the left"), else, at the head of
a statement, to those that follow ("On the right there is ...", "LEFT LUNG: ..."). Findings joined
by "and" share a side that only one of them has. The words are in modifiers.yaml.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from dive.lexicon.modifiers import plain_words, table
from dive.lexicon.terms import Automaton, longest_first
from dive.lexicon.words import COLON, COMMA, JOINED, SEMICOLON, Words, split, word_set

LEFT, RIGHT = "left", "right"
STEPS = ("trace", "small", "moderate", "large")

_SIZE = re.compile(r"\d+(?:\.\d+)?(?:\s*(?:x|by|to|-)\s*\d+(?:\.\d+)?)*[\s-]*(mm|cm)\b", re.I)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DISTANCE = word_set("from above below proximal distal beyond to deep away superior inferior over")
_COMPARED = word_set("greater larger more worse bigger less smaller > <")
_JOINS = word_set("and or nor")
_WITH = word_set("with plus associated adjacent overlying underlying accompanying adjoining")
_DETERMINERS = word_set("a an the this that these those its another some")
_PLACED = word_set("in on at within along of to over through throughout near into from involving")
_IS = word_set("is are was were remain remains appear appears")
_VERBS = _IS | word_set(
    "has have had shows show demonstrates demonstrate contains reveals seen noted may might could"
    " can measures measure represents represent reflects obscures obscuring suggests causing cause"
)
_CONTRAST = word_set("but while whereas although though however")
_NONE = word_set("no none not without absent never nor")
# a noun phrase does not go back over these
_STOPS = (
    _JOINS | _PLACED | _DETERMINERS | _VERBS | _CONTRAST | _NONE
    | word_set("with plus than as by for due which there it via per vs versus if because since")
)  # fmt: skip
# what stands behind these is where a catheter ends
_ENDS = word_set("tip tips terminates terminating ending ends")
_REFERS = word_set("it this these they both")
_HEADING = 4  # words before a colon
_LONGEST = 40  # words of a noun phrase


class Placed(Protocol):
    """What is read of a mention: its characters, its entry and its class."""

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


class Detail(NamedTuple):
    """Sides ("left", "right") and steps (indices of STEPS) that are said together; empty: none."""

    sides: frozenset[str]
    steps: frozenset[int]


class _Item(NamedTuple):
    """Words [first, end) that give a side, or a step of severity, or a size in millimetres."""

    first: int
    end: int
    sides: frozenset[str]
    step: int | None = None
    size: float | None = None
    weak: bool = False  # a side only where no other is said


_BOTH = frozenset((LEFT, RIGHT))
_SIDES = {
    "left": (frozenset((LEFT,)), False),
    "right": (frozenset((RIGHT,)), False),
    "both": (_BOTH, False),
    "left_by_place": (frozenset((LEFT,)), True),
    "right_by_place": (frozenset((RIGHT,)), True),
    "both_by_place": (_BOTH, True),
}


class _Vocabulary:
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
        self.other = Automaton((t, "none") for t in data["severity_phrases"]["none"])
        terms = [
            f"[{graded}] (interval) (further) [{changes}]",
            f"[{'|'.join(data['earlier'])}] (a) [{graded}]",
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
def _vocabulary() -> _Vocabulary:
    return _Vocabulary()


def details(text: str, mentions: Sequence[Placed]) -> list[list[Detail]]:
    """What is said of the side and severity of each mention, in the order given.

    `mentions` are those of `dive.decisive.find_mentions(text)`. More than one detail where the
    report keeps them apart ("small right and moderate left effusions"); none where it gives none.
    """
    words = split(text)
    found: list[list[Detail]] = [[] for _ in mentions]
    sentence_of: dict[int, list[int]] = {}
    firsts = [first for first, _ in words.sentences]
    for k, mention in enumerate(mentions):
        at = bisect_right(words.starts, mention.start) - 1
        sentence_of.setdefault(bisect_right(firsts, at) - 1, []).append(k)
    free = [True] * len(words.words)
    heading: list[_Item] = []
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
        if not here and colon is None and not refers:
            last = None if words.words[first] not in _REFERS else last
            continue
        sentence = _Sentence(words, text, first, stop, [mentions[k] for k in here], free)
        if colon is not None:
            before = [i for i in sentence.items if i.end <= colon and i.sides and not i.weak]
            named = any(low < colon for low, _ in sentence.places)
            heading = [] if named else before
        if refers and last is not None:
            found[last] += sentence.bare(mentions[last])
            continue
        for k, own in zip(here, sentence.read(heading), strict=True):
            found[k] = own
        last = here[-1] if here else None
    return found


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
        mentions: Sequence[Placed],
        free: list[bool],
    ) -> None:
        self.all, self.words, self.before = words, words.words, words.before
        self.text, self.first, self.stop = text, first, stop
        self.mentions, self.known = mentions, _vocabulary()
        self.places: list[tuple[int, int]] = []  # first and last word of each mention
        self.owner: dict[int, int] = {}  # word -> mention whose own word it is
        for k, mention in enumerate(mentions):
            own = [i for span in mention.spans for i in self._range(*span)]
            self.places.append((own[0], own[-1]))
            self.owner.update(dict.fromkeys(own, k))
        # a word of the finding itself is no change: "mildly increased interstitial markings"
        self.free = free
        for i in self.owner:
            free[i] = False
        self.lows, self.highs = [low for low, _ in self.places], [high for _, high in self.places]
        self.items = self._items()
        self.at = {i: item for item in self.items for i in range(item.first, item.end)}

    def _range(self, start: int, end: int) -> range:
        """The words of text[start:end]; at least one."""
        low = max(bisect_right(self.all.starts, start) - 1, self.first)
        return range(low, max(bisect_left(self.all.starts, end), low + 1))

    # the words that say something

    def _items(self) -> list[_Item]:
        words, known, span = self.words, self.known, (self.first, self.stop)
        joined = self.all.joined
        items = []
        for match in longest_first(known.sides.matches(words, joined, *span)):
            if str(match.value) in _SIDES:
                sides, weak = _SIDES[str(match.value)]
                if words[match.first] == "both" and self._both_of_two(match.first):
                    continue
                items.append(_Item(match.first, match.end, sides, weak=weak))
        other = {i for match in known.other.matches(words, joined, *span) for i in match.words}
        for i in self.owner:
            if words[i] in known.steps and words[i] not in known.names:
                items.append(_Item(i, i + 1, frozenset(), known.steps[words[i]]))
        for match in longest_first(known.severities.matches(words, joined, *span, self.free)):
            if not isinstance(match.value, int) or match.first in other:
                continue
            if not self._of_a_form(match.first):
                items.append(_Item(match.first, match.end, frozenset(), match.value))
        items += self._sizes()
        return sorted(items)

    def _both_of_two(self, i: int) -> bool:
        """ "both effusion and atelectasis": no word of side."""
        k = self.owner.get(i + 1)
        if k is None:
            return False
        word = self.words[self.places[k][1]]
        return not word.endswith("s") or word.endswith("is")

    def _of_a_form(self, i: int) -> bool:
        """ "slightly loculated": the step of an adjective, unless that is the finding itself."""
        if not self.words[i].endswith("ly") or i + 1 >= self.stop or i + 1 in self.owner:
            return False
        after = self.words[i + 1]
        return after != "sized" and (after in self.known.form or after.endswith(("ed", "ing")))

    def _sizes(self) -> Iterable[_Item]:
        start, end = self.all.starts[self.first], self.all.ends[self.stop - 1]
        for match in _SIZE.finditer(self.text, start, end):
            low = bisect_right(self.all.starts, match.start()) - 1
            high = bisect_left(self.all.starts, match.end())
            near = self.words[max(low - 2, self.first) : low]
            if any(w in self.known.earlier for w in near):
                continue
            if high < self.stop and self.words[high] in _DISTANCE and self.before[high] == JOINED:
                continue
            unit = 10.0 if match.group(1).lower() == "cm" else 1.0
            numbers = _NUMBER.findall(match.group())
            yield _Item(low, high, frozenset(), size=unit * max(map(float, numbers)))

    # whose they are

    def read(self, heading: list[_Item]) -> list[list[Detail]]:
        """The details of each mention; `heading`: sides that hold where none is said."""
        inside: list[list[_Item]] = []
        opened: list[list[list[_Item]]] = []
        starts: list[int] = []
        claimed: set[_Item] = set()
        floor = self.first
        for low, high in self.places:
            start, segments = self._phrase(low, floor)
            own = list(dict.fromkeys(self.at[i] for i in range(low, high + 1) if i in self.at))
            inside.append(own)
            opened.append(segments)
            starts.append(start)
            claimed.update(own, *segments)
            floor = max(floor, high + 1)
        behind: list[list[list[_Item]]] = [[[]] for _ in self.mentions]
        context: list[list[_Item]] = [[] for _ in self.mentions]
        self._give([i for i in self.items if i not in claimed], behind, context)
        found = []
        for k, mention in enumerate(self.mentions):
            found.append(
                self._settled(mention, inside[k], opened[k], behind[k], context[k] or heading)
            )
        return self._share(found, starts, behind)

    def bare(self, mention: Placed) -> list[Detail]:
        """The details of a sentence without a mention, said of one before."""
        segments: list[list[_Item]] = [[]]
        self._give_to(self.items, segments, self.first)
        return self._settled(mention, [], [], segments, [])

    def _phrase(self, low: int, floor: int) -> tuple[int, list[list[_Item]]]:
        """The noun phrase that ends at word `low`: where it starts, and its items, kept apart where
        "and" or a comma does."""
        words, segments = self.words, [[]]  # type: tuple[list[str], list[list[_Item]]]
        i, limit = low, max(floor, low - _LONGEST)
        while i > limit:
            kind, word = self.before[i], words[i - 1]
            if kind == COMMA:
                if word in _JOINS or not self._crosses(i - 1, floor, comma=True):
                    break
                segments.insert(0, [])
            elif kind != JOINED:
                break
            item = self.at.get(i - 1)
            if item is not None and item.first >= limit:
                segments[0].insert(0, item)
                i = item.first
            elif word in ("and", "or") and i - 2 >= limit:
                if self.before[i - 1] != JOINED or not self._crosses(i - 2, floor, comma=False):
                    break
                if not self._is_range(i - 2, i):
                    segments.insert(0, [])
                i -= 1
            elif (word == "to" and self._is_range(i - 2, i)) or word == "than":
                i -= 1
            elif (over := self._quantity(i, limit)) is not None:
                i = over
            elif word in _STOPS:
                break
            else:
                i -= 1
        return i, segments

    def _is_range(self, a: int, b: int) -> bool:
        """Both words are steps: "small to moderate", "moderate or large"."""
        one, other = self.at.get(a), self.at.get(b)
        return one is not None and other is not None and None not in (one.step, other.step)

    def _quantity(self, i: int, limit: int) -> int | None:
        """Where "amount of (the)" before word i begins."""
        j = i
        while j - 1 >= limit and self.words[j - 1] in _DETERMINERS:
            j -= 1
        if j - 2 >= limit and self.words[j - 1] == "of" and self.before[j - 1] == JOINED:
            return j - 2 if self.words[j - 2] in self.known.quantities else None
        return None

    def _crosses(self, j: int, floor: int, *, comma: bool) -> bool:
        """Whether the words up to j, before an "and" or a comma, open the same noun phrase."""
        edge = self._run(j, floor)
        if edge > j:
            return False
        if edge == floor:
            if floor == self.first:
                return True
            return not comma and self.before[edge] == COMMA
        word = self.words[edge - 1]
        if word in _DETERMINERS:
            return edge - 2 < floor or self.words[edge - 2] not in _PLACED
        if word in _IS:
            there = edge - 2 >= self.first and self.words[edge - 2] == "there"
            return there or floor == self.first
        return word not in _PLACED

    def _run(self, j: int, floor: int) -> int:
        """The first of the modifiers in a row that end at word j; j + 1 where it is none."""
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

    def _give(
        self,
        items: list[_Item],
        behind: list[list[list[_Item]]],
        context: list[list[_Item]],
    ) -> None:
        """Items that open no noun phrase, to the mention before or to those that follow."""
        if not self.mentions:
            return
        breaks = [i for i in range(self.first + 1, self.stop) if self.before[i] == SEMICOLON]
        edges = [self.first, *breaks, self.stop]
        waiting: dict[int, list[_Item]] = {}
        for item in items:
            clause = bisect_right(edges, item.first)
            first, last = (bisect_left(self.lows, edges[clause - n]) for n in (1, 0))
            # mentions [first, last) are in the clause, [later, last) of them behind the item
            earlier, later = bisect_left(self.highs, item.first), bisect_left(self.lows, item.end)
            if later < last and earlier <= first:
                forward = last if item.sides else later + 1
            elif later < last and (ahead := self._ahead(item, later)):
                forward = last if ahead == "there" else later + 1
            else:
                if earlier:
                    waiting.setdefault(earlier - 1, []).append(item)
                continue
            head = self._head(item)
            for k in range(later, forward):
                if context[k] and self._head(context[k][0]) != head:
                    context[k] = []  # a later place is the nearer one
                context[k].append(item)
        for k, own in waiting.items():
            self._give_to(own, behind[k], self.highs[k] + 1)

    def _head(self, item: _Item) -> int:
        """Where the clause of an item begins: behind a mark, "and" or a contrast."""
        i, limit = item.first, max(self.first, item.first - _LONGEST)
        while i > limit and self.before[i] == JOINED:
            if self.words[i - 1] in _CONTRAST or (
                self.words[i - 1] in _JOINS and i - 2 not in self.at
            ):
                break
            i -= 1
        return i

    def _ahead(self, item: _Item, k: int) -> str:
        """Whether an item between two mentions is of the later one: "there" ("and on the left there
        is ..."), "subject" ("and the left lung shows ..."), or "" where it is not."""
        head = self._head(item)
        if head == self.first or any(head <= i < item.first for i in self.owner):
            return ""
        end = self._run_forward(item.end)
        if end >= self.stop or any(
            self.before[i] not in (JOINED, COMMA) for i in range(head + 1, end)
        ):
            return ""
        word = self.words[end]
        placed = any(w in _PLACED for w in self.words[head : item.first])
        if word == "there":
            return "there"
        low = self.places[k][0]
        same = all(
            self.before[i] == JOINED and self.words[i] not in {*_CONTRAST, "and", "there"}
            for i in range(end, low)
        )
        if word in _VERBS and same and not placed:
            return "subject"
        return "there" if word in ("is", "are") and placed and same else ""

    def _run_forward(self, i: int) -> int:
        """The first word from i on that is no modifier."""
        while i < self.stop and (
            i in self.at
            or self.words[i] in self.known.plain
            or (self.words[i] in _JOINS and i + 1 in self.at)
        ):
            i += 1
        return i

    def _give_to(self, items: list[_Item], segments: list[list[_Item]], begin: int) -> None:
        """Items behind a mention, kept apart where a mark or "and" does; those that are denied
        ("none on the left"), and the ends of catheters, are dropped."""
        at = begin
        for item in items:
            cut = dropped = False
            for i in range(at, item.first + 1):
                parts = self.words[i] in ("and", *_CONTRAST) or self.before[i] != JOINED
                cut = cut or (parts and i > begin) or (parts and self.before[i] != JOINED)
            low = max(begin, self._head(item))
            for i in range(low, item.first):
                dropped = dropped or self.words[i] in _NONE or self.words[i] in _ENDS
            at = item.end
            if dropped:
                continue
            if cut and segments[-1]:
                segments.append([])
            segments[-1].append(item)

    # what they come to

    def _settled(
        self,
        mention: Placed,
        inside: list[_Item],
        opened: list[list[_Item]],
        behind: list[list[_Item]],
        context: list[_Item],
    ) -> list[Detail]:
        groups = [inside, *opened, *behind]
        strong = any(i.sides and not i.weak for group in groups for i in group)
        weak = any(i.sides for group in groups for i in group)
        first = [self._detail(mention, inside, strong)]
        front = self._paired(mention, opened, strong)
        back = self._paired(mention, behind, strong)
        found = [d for d in (*_joined(first + front), *back) if d.sides or d.steps]
        if not strong and context and not weak:
            sides = self._detail(mention, context, any(not i.weak for i in context if i.sides))
            found = [d._replace(sides=sides.sides) for d in found] or [sides]
            found = [Detail(d.sides, d.steps or sides.steps) for d in found]
        elif context and not any(d.steps for d in found):
            steps = self._detail(mention, context, strong).steps
            found = [d._replace(steps=steps) for d in found] or [Detail(frozenset(), steps)]
        return [d for d in found if d.sides or d.steps]

    def _detail(self, mention: Placed, items: Iterable[_Item], strong: bool) -> Detail:
        """What one group of items says of a mention."""
        sides: set[str] = set()
        steps: set[int] = set()
        for item in items:
            if mention.name not in self.known.midline and not (item.weak and strong):
                sides |= item.sides
            if item.step is not None:
                steps.add(item.step)
            if item.size is not None and mention.name in self.known.sizes:
                limits = self.known.sizes[mention.name]
                steps.add(next((s for limit, s in limits if item.size < limit), len(STEPS) - 1))
        return Detail(frozenset(sides), frozenset(steps))

    def _paired(self, mention: Placed, segments: list[list[_Item]], strong: bool) -> list[Detail]:
        """The groups of one stretch, so that each has a side where any has."""
        found: list[Detail] = []
        waiting: frozenset[int] = frozenset()
        parts = [self._detail(mention, s, strong) for s in segments if s]
        for n, (sides, steps) in enumerate(parts):
            if not sides and n + 1 < len(parts) and parts[n + 1].sides and not parts[n + 1].steps:
                waiting |= steps  # "moderate, on the right"
                continue
            if sides and not steps:
                # "small left and right effusions"
                steps = waiting or (found[-1].steps if found and found[-1].sides else steps)
            elif not sides and found and found[-1].sides and not found[-1].steps:
                found[-1] = found[-1]._replace(steps=steps)  # "on the right, moderate"
                continue
            waiting = frozenset()
            found.append(Detail(sides, steps))
        return found

    def _share(
        self, found: list[list[Detail]], starts: list[int], behind: list[list[list[_Item]]]
    ) -> list[list[Detail]]:
        """A side of one of two findings that "and" joins holds for the other."""
        shared, midline = self.known.shared, self.known.midline
        fits = [m.cls in shared and m.name not in midline for m in self.mentions]
        count = len(self.mentions)
        for k in range(1, count):
            if fits[k - 1] and fits[k] and not _sides(found[k]) and self._direct(k, starts, _WITH):
                found[k] = _with_sides(found[k], _sides(found[k - 1]))
        for k in range(count - 1, 0, -1):
            last = frozenset(s for segment in behind[k] for i in segment for s in i.sides)
            if fits[k - 1] and fits[k] and last and not _sides(found[k - 1]):
                if self._direct(k, starts, frozenset()):
                    found[k - 1] = _with_sides(found[k - 1], _sides(found[k]))
                    behind[k - 1] = behind[k]
        return found

    def _direct(self, k: int, starts: list[int], also: frozenset[str]) -> bool:
        """Whether mention k is joined to the one before by "and" alone."""
        low, high = self.places[k - 1][1] + 1, starts[k]
        if any(self.before[i] > (JOINED if also else COMMA) for i in range(low, high + 1)):
            return False
        between = self.words[low:high]
        return all(w in _JOINS or w in also for w in between)


def _sides(found: Iterable[Detail]) -> frozenset[str]:
    return frozenset(side for one in found for side in one.sides)


def _with_sides(found: list[Detail], sides: frozenset[str]) -> list[Detail]:
    if not sides:
        return found
    return [d._replace(sides=sides) for d in found] or [Detail(sides, frozenset())]


def _joined(found: list[Detail]) -> list[Detail]:
    """What stands inside a mention, first in the list, goes with what opens its phrase."""
    own, *others = found
    if not others:
        return [own]
    return [Detail(one.sides | own.sides, one.steps | own.steps) for one in others]
