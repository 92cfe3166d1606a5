"""The small language of the lexicon's terms, and the word automaton that finds them.

A term is a sequence of words, matched case-insensitively on whole words, hyphens, slashes and line
breaks counting as spaces:

    pleural effusion(s)              a suffix that may be missing
    (large) hiatal hernia            a word, or words, that may be missing
    [cardiac|heart] silhouette       one of several
    atelecta*                        any ending
    heart ... enlarged               up to six words in between
    no .. change                     up to three words in between
    {lungs are} clear                words that must be there and are not part of the mention
    t#                               # stands for a number

Words in between never cross punctuation.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from dive.errors import DiveError

GAPS = {"..": 3, "...": 6}
UNMARKED = "{"  # before a word that is context only
_PIECE = re.compile(r"\.\.\.|\.\.|[\[\](){}|]|(?:(?!\.\.)[^\s\[\](){}|])+|\s+")
_LIMIT = 20_000  # word sequences of one term; more is a mistake


def expand(term: str) -> list[tuple[str, ...]]:
    """All word sequences that `term` stands for.

    Gaps stay in them as `..` or `...`, and words of context begin with `{`.

    Raises:
        DiveError: a term with unbalanced brackets or without a word.
    """
    pieces = _PIECE.findall(term.strip().lower())
    strings, rest = _alternatives(pieces, None, term)
    if rest:
        raise DiveError(f"lexicon term {term!r}: unexpected {rest[0]!r}")
    sequences = list(dict.fromkeys(tuple(s.replace("-", " ").split()) for s in strings))
    for sequence in sequences:
        if not sequence or sequence[0] in GAPS or sequence[-1] in GAPS:
            raise DiveError(f"lexicon term {term!r}: begins or ends without a word")
        if all(atom in GAPS or atom.startswith(UNMARKED) for atom in sequence):
            raise DiveError(f"lexicon term {term!r}: all its words are in braces")
        for atom in sequence:
            if atom not in GAPS and not re.fullmatch(r"\{?[\w#'&]+\*?", atom):
                raise DiveError(
                    f"lexicon term {term!r}: {atom.lstrip('{')!r} is not a word (a star ends one)"
                )
    return sequences


def _alternatives(pieces: list[str], close: str | None, term: str) -> tuple[list[str], list[str]]:
    """Parse up to `close`; returns the strings it stands for and what is left."""
    options: list[str] = []
    current = [""]
    while pieces:
        piece, pieces = pieces[0], pieces[1:]
        if piece == close:
            return options + current, pieces
        if piece == "|":
            options, current = options + current, [""]
            continue
        if piece == "[":
            inner, pieces = _alternatives(pieces, "]", term)
        elif piece == "(":
            inner, pieces = _alternatives(pieces, ")", term)
            inner = ["", *inner]
        elif piece == "{":
            inner, pieces = _alternatives(pieces, "}", term)
            inner = [" ".join(UNMARKED + w for w in s.replace("-", " ").split()) for s in inner]
            if any(UNMARKED * 2 in s or f"{UNMARKED}.." in s for s in inner):
                raise DiveError(f"lexicon term {term!r}: braces hold plain words only")
        elif piece in ("]", ")", "}"):
            raise DiveError(f"lexicon term {term!r}: {piece!r} was never opened")
        elif piece in GAPS:
            inner = [f" {piece} "]
        else:
            inner = [" " if piece.isspace() else piece]
        current = [a + b for a, b in itertools.product(current, inner)]
        if len(current) + len(options) > _LIMIT:
            raise DiveError(f"lexicon term {term!r}: stands for more than {_LIMIT} phrases")
    if close is not None:
        raise DiveError(f"lexicon term {term!r}: {close!r} is missing")
    return options + current, []


@dataclass(slots=True)
class _Node:
    words: dict[str, "_Node"] = field(default_factory=dict)
    gaps: dict[int, "_Node"] = field(default_factory=dict)
    # the value of a term that ends here, and which of its words are marked
    value: object = None
    marked: tuple[bool, ...] = ()


class _Typos:
    """Long words of a vocabulary with one letter wrong, missing, doubled or swapped.

    Such words share a form with one letter left out, so a word is looked up by its own shortened
    forms; `_one_slip` confirms a match.
    """

    SHORTEST = 8

    def __init__(self, words: Iterable[str]) -> None:
        self._short: dict[str, set[str]] = {}
        for word in words:
            for form in _shortened(word.rstrip("*")):
                self._short.setdefault(form, set()).add(word)

    def meant(self, word: str) -> list[str]:
        """The words that `word` may misspell; one that begins like a stem has the stem corrected
        and its ending kept."""
        if len(word) < self.SHORTEST - 1 or not word.isalpha():
            return []
        found: set[str] = set()
        for n in range(self.SHORTEST - 2, len(word) + 1):
            part = word[:n]
            for form in _shortened(part):
                for known in self._short.get(form, ()):
                    stem = known.endswith("*")
                    if (stem or n == len(word)) and _one_slip(part, known.rstrip("*")):
                        found.add(known.removesuffix("*") + word[n:] if stem else known)
        return sorted(found)


def _shortened(word: str) -> set[str]:
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}


def _one_slip(a: str, b: str) -> bool:
    """Return whether one changed, added or missing letter, or two swapped neighbours, turn a into
    b.

    The first letter must be right.
    """
    if a[:1] != b[:1] or abs(len(a) - len(b)) > 1:
        return False
    i = 0
    while i < min(len(a), len(b)) and a[i] == b[i]:
        i += 1
    if len(a) == len(b):
        swapped = a[i : i + 2] == b[i : i + 2][::-1] and a[i + 2 :] == b[i + 2 :]
        return a[i + 1 :] == b[i + 1 :] or swapped
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return longer[i + 1 :] == shorter[i:]


class Match(NamedTuple):
    """A term found in a text: `words` are indices, `marked` those that are not context."""

    value: object
    words: tuple[int, ...]
    marked: tuple[int, ...]
    first: int
    end: int

    @property
    def taken(self) -> tuple[int, ...]:
        """The words that no other term may use; context is shared where words stand between."""
        return self.words if self.end - self.first == len(self.words) else self.marked


class Automaton:
    """An automaton that finds all terms at a word, at a cost independent of their number."""

    def __init__(
        self,
        terms: Iterable[tuple[str, object]],
        gap_stops: Iterable[str] = (),
        misspelt: Iterable[str] = (),
    ) -> None:
        """`terms`: pairs of a term and any value but None; the first of two equal terms wins.
        `gap_stops`: words that a gap does not cross. `misspelt`: words (or
        stems) that match with one misspelt letter, if any term has them."""
        self._root = _Node()
        self._gap_stops = frozenset(gap_stops)
        stems: set[str] = set()
        for term, value in terms:
            for sequence in expand(term):
                node = self._root
                marked = []
                for atom in sequence:
                    if atom in GAPS:
                        node = node.gaps.setdefault(GAPS[atom], _Node())
                        continue
                    marked.append(not atom.startswith(UNMARKED))
                    word = atom.removeprefix(UNMARKED)
                    if word.endswith("*"):
                        stems.add(word)
                    node = node.words.setdefault(word, _Node())
                if node.value is None:
                    node.value, node.marked = value, tuple(marked)
        # stems by length, so that a new word is compared with its own prefixes only
        self._stems = frozenset(stems)
        self._lengths = sorted({len(s) - 1 for s in stems})
        self._words = self._all_words(self._root)
        self._typos = _Typos(misspelt)
        self._keys: dict[str, tuple[str, ...]] = {}
        self._starts: dict[str, tuple[_Node, ...]] = {}

    def keys_of(self, word: str) -> tuple[str, ...]:
        """The edges that a word may take: itself, its number sign, the stems of its beginning."""
        keys = self._keys.get(word)
        if keys is None:
            whole = re.sub(r"\d+", "#", word)
            known = [word] if word == whole else [word, whole]
            known += [
                stem
                for n in self._lengths
                if n <= len(word) and (stem := word[:n] + "*") in self._stems
            ]
            if len(known) == 1 and word not in self._words:
                known += self._meant(word)
            keys = tuple(known)
            if len(self._keys) < 100_000:
                self._keys[word] = keys
        return keys

    def _meant(self, word: str) -> list[str]:
        """The edges of the words that a misspelt word may be."""
        found: dict[str, None] = {}
        for meant in self._typos.meant(word):
            found |= dict.fromkeys(self.keys_of(meant))
        return list(found)

    def _all_words(self, node: _Node) -> set[str]:
        found = set(node.words)
        for child in (*node.words.values(), *node.gaps.values()):
            found |= self._all_words(child)
        return found

    def starts(self, word: str) -> tuple[_Node, ...]:
        """The nodes after this word at the start of a term; empty where no term begins with it."""
        nodes = self._starts.get(word)
        if nodes is None:
            root = self._root.words
            nodes = tuple(root[key] for key in self.keys_of(word) if key in root)
            if len(self._starts) < 100_000:
                self._starts[word] = nodes
        return nodes

    def matches(
        self,
        words: list[str],
        joined: list[bool],
        start: int,
        stop: int,
        free: list[bool] | None = None,
    ) -> list[Match]:
        """Every term that begins within [start, stop) and ends there.

        `joined[i]`: nothing but spaces, hyphens or slashes stands between word i-1 and word i.
        `free[i]`: word i may be used (None: all may).
        """
        found: list[Match] = []
        for i in range(start, stop):
            nodes = self.starts(words[i])
            if nodes and (free is None or free[i]):
                for node in nodes:
                    self._walk(node, words, joined, i, stop, free, found)
        return found

    def _walk(
        self,
        node: _Node,
        words: list[str],
        joined: list[bool],
        start: int,
        stop: int,
        free: list[bool] | None,
        found: list[Match],
    ) -> None:
        stack: list[tuple[_Node, tuple[int, ...]]] = [(node, (start,))]
        while stack:
            node, path = stack.pop()
            i = path[-1] + 1
            if node.value is not None:
                marked = (
                    path
                    if all(node.marked)
                    else tuple(p for p, m in zip(path, node.marked, strict=True) if m)
                )
                found.append(Match(node.value, path, marked, path[0], i))
            if i >= stop or not joined[i]:
                continue
            if node.words and (free is None or free[i]):
                for key in self.keys_of(words[i]):
                    child = node.words.get(key)
                    if child is not None:
                        stack.append((child, (*path, i)))
            for width, after in node.gaps.items():
                for j in range(i, min(i + width + 1, stop)):
                    if not joined[j] or (free is not None and not free[j]):
                        break
                    for key in self.keys_of(words[j]):
                        child = after.words.get(key)
                        if child is not None:
                            stack.append((child, (*path, j)))
                    if words[j] in self._gap_stops:
                        break


def longest_first(matches: list[Match]) -> list[Match]:
    """A choice of matches that share no words: the one with most words first, then the one with
    most marked words, then the tightest, then the leftmost; in the order of the text."""
    if len(matches) > 1:
        matches.sort(key=lambda m: (-len(m.words), -len(m.marked), m.end - m.first, m.first))
    used: set[int] = set()
    chosen = []
    for match in matches:
        if used.isdisjoint(match.taken):
            used.update(match.taken)
            chosen.append(match)
    chosen.sort(key=lambda m: (m.marked[0], m.marked[-1]))
    return chosen
