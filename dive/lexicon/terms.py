"""The small language in which the lexicon's terms are written, and the word automaton that
finds them.

A term is a sequence of words, matched case-insensitively on whole words, hyphens, slashes and line
breaks counting as spaces:

    pleural effusion(s)              a suffix that may be missing
    (large) hiatal hernia            a word, or words, that may be missing
    [cardiac|heart] silhouette       one of several
    atelecta*                        any ending
    heart ... enlarged               up to six words in between
    no .. change                     up to two words in between

Words in between never cross punctuation.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dive.errors import DiveError

GAPS = {"..": 2, "...": 6}
_PIECE = re.compile(r"\.\.\.|\.\.|[\[\]()|]|[^\s\[\]()|]+|\s+")


def expand(term: str) -> list[tuple[str, ...]]:
    """All word sequences that `term` stands for; gaps stay in them as `..` or `...`.

    Raises DiveError for a term with unbalanced brackets or without a word.
    """
    pieces = _PIECE.findall(term.strip().lower())
    strings, rest = _alternatives(pieces, None, term)
    if rest:
        raise DiveError(f"lexicon term {term!r}: unexpected {rest[0]!r}")
    sequences = list(dict.fromkeys(tuple(s.replace("-", " ").split()) for s in strings))
    for sequence in sequences:
        if not sequence or sequence[0] in GAPS or sequence[-1] in GAPS:
            raise DiveError(f"lexicon term {term!r}: begins or ends without a word")
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
        elif piece in ("]", ")"):
            raise DiveError(f"lexicon term {term!r}: {piece!r} was never opened")
        elif piece in GAPS:
            inner = [f" {piece} "]
        else:
            inner = [" " if piece.isspace() else piece]
        current = [a + b for a, b in itertools.product(current, inner)]
    if close is not None:
        raise DiveError(f"lexicon term {term!r}: {close!r} is missing")
    return options + current, []


@dataclass
class _Node:
    words: dict[str, "_Node"] = field(default_factory=dict)
    gaps: dict[int, "_Node"] = field(default_factory=dict)
    value: object = None


class Automaton:
    """Finds the longest term that starts at a word. Cost does not grow with the number of terms."""

    def __init__(self, terms: Iterable[tuple[str, object]], gap_stops: Iterable[str] = ()) -> None:
        """`terms`: pairs of a term and any value but None; the first of two equal terms wins.
        `gap_stops`: words that a gap does not cross."""
        self._root = _Node()
        self._gap_stops = frozenset(gap_stops)
        stems: set[str] = set()
        for term, value in terms:
            for sequence in expand(term):
                node = self._root
                for atom in sequence:
                    if atom in GAPS:
                        node = node.gaps.setdefault(GAPS[atom], _Node())
                    else:
                        if atom.endswith("*"):
                            stems.add(atom)
                        node = node.words.setdefault(atom, _Node())
                if node.value is None:
                    node.value = value
        self._stems = sorted(stems, key=len, reverse=True)
        self._keys: dict[str, tuple[str, ...]] = {}

    def _keys_of(self, word: str) -> tuple[str, ...]:
        """The edges a word may take: itself, then the stems it begins with, longest first."""
        keys = self._keys.get(word)
        if keys is None:
            stems = tuple(s for s in self._stems if word.startswith(s[:-1]))
            keys = (word, *stems)
            if len(self._keys) < 200_000:
                self._keys[word] = keys
        return keys

    def longest(
        self, words: list[str], start: int, stop: int, joined: list[bool], free: list[bool] | None
    ) -> tuple[object, list[tuple[int, int]]] | None:
        """The longest term at word `start`, within `[start, stop)`.

        `joined[i]`: nothing but spaces, hyphens or slashes stands between word i-1 and word i.
        `free[i]`: word i may be used (None: all may). Returns its value and the ranges of words
        that matched (more than one where the term has a gap), or None.
        """
        best: tuple[object, list[tuple[int, int]]] | None = None
        best_end = start
        # (node, next word, ranges so far, start of the open range)
        stack: list[tuple[_Node, int, tuple[tuple[int, int], ...], int]] = []
        for key in self._keys_of(words[start]):
            node = self._root.words.get(key)
            if node is not None:
                stack.append((node, start + 1, (), start))
        while stack:
            node, i, ranges, opened = stack.pop()
            if node.value is not None and i > best_end:
                best_end = i
                best = (node.value, [*ranges, (opened, i)])
            if i >= stop or not joined[i]:
                continue
            if node.words and (free is None or free[i]):
                for key in self._keys_of(words[i]):
                    child = node.words.get(key)
                    if child is not None:
                        stack.append((child, i + 1, ranges, opened))
            for width, after in node.gaps.items():
                done = (*ranges, (opened, i))
                for j in range(i, min(i + width + 1, stop)):
                    if not joined[j] or (free is not None and not free[j]):
                        break
                    for key in self._keys_of(words[j]):
                        child = after.words.get(key)
                        if child is not None:
                            stack.append((child, j + 1, done, j))
                    if words[j] in self._gap_stops:
                        break
        return best

    def starts(self, word: str) -> bool:
        """Whether any term begins with this word."""
        root = self._root.words
        return any(key in root for key in self._keys_of(word))

    def scan(
        self, words: list[str], start: int, stop: int, joined: list[bool],
        free: list[bool] | None = None,
    ) -> Iterator[tuple[object, list[tuple[int, int]]]]:
        """All matches from left to right, each word used as a start once; matches never share the
        words they matched (a later match may lie in an earlier one's gap)."""
        root, keys_of = self._root.words, self._keys_of
        used: set[int] = set()
        for i in range(start, stop):
            if i in used or (free is not None and not free[i]):
                continue
            if not any(key in root for key in keys_of(words[i])):
                continue
            found = self.longest(words, i, stop, joined, free)
            if found is None:
                continue
            value, ranges = found
            if any(j in used for a, b in ranges for j in range(a, b)):
                continue
            for a, b in ranges:
                used.update(range(a, b))
            yield value, ranges
