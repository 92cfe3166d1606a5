"""The decisive tokens of a report: the mentions of pathology, and the end of the report.

`find_mentions` reads a report with the lexicon of dive/lexicon and the polarity rules of
dive/decisive/polarity.py, `radgraph_mentions` takes mentions from a RadGraph annotation;
`DecisiveTokens` maps them to the tokens of any fast tokenizer.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from dive.decisive.asking_sections import asking_sections
from dive.decisive.polarity import (
    NEGATIVE,
    POSITIVE,
    UNCERTAIN,
    Found,
    polarities,
)
from dive.errors import DiveError
from dive.lexicon import OTHER, Entry, Lexicon, default_lexicon
from dive.lexicon.checklist import SILENT, answered, answers, with_answers
from dive.lexicon.markup import without_markup
from dive.lexicon.modifiers import widen
from dive.lexicon.terms import Match, longest_first
from dive.lexicon.words import COLON, split
from dive.radgraph import Annotation, Annotator, entity_kind, entity_spans

if TYPE_CHECKING:
    from torch import Tensor

# classes of tokens; CLASS_NAMES[id] is the name of one in logs and tables
TEMPLATE, PATHOLOGY, EOS = 0, 1, 2
CLASS_NAMES = ("template", "pathology", "eos")


class Mention(NamedTuple):
    """A finding in a text.

    [start, end) are its outer characters; `spans` are the characters of its own words, more than
    one range where others stand in between ("heart is mildly enlarged"). `name` is the lexicon's
    entry, `cls` its CheXpert observation or "Other", `polarity` is "positive", "negative" or
    "uncertain". A statement of normality ("lungs are clear") has class "No Finding" and is
    negative.
    """

    start: int
    end: int
    name: str
    cls: str
    polarity: str
    spans: tuple[tuple[int, int], ...]


def find_mentions(text: str, lexicon: Lexicon | None = None) -> list[Mention]:
    """The findings that a report mentions, in its order; no two share a word.

    Sections that state nothing about the image (indication, history, comparison) are read too:
    findings that they name as present are uncertain.
    """
    lexicon = default_lexicon() if lexicon is None else lexicon
    automaton = lexicon.automaton
    text = without_markup(text)
    words = split(text)
    asking = asking_sections(text)
    mentions: list[Mention] = []
    free = [True] * len(words.words)

    terms = automaton.matches(words.words, words.joined, 0, len(words.words))
    firsts = [term.first for term in terms]

    def within(first: int, stop: int) -> list[Match]:
        among = terms[bisect_left(firsts, first) : bisect_left(firsts, stop)]
        return [term for term in among if term.end <= stop]

    def names_finding(start: int, stop: int) -> bool:
        return bool(within(bisect_left(words.starts, start), bisect_left(words.starts, stop)))

    for first, stop, answer in with_answers(words, answers(text, names_finding)):
        matches = _without_headings(within(first, stop), words.before)
        if not matches:
            continue
        found = [f for match in longest_first(matches) if not (f := _found(match)).ignore]
        for one, polarity in zip(found, polarities(words, first, stop, found, free), strict=True):
            if answer is not None:
                if answer.state == SILENT:
                    continue
                polarity = answered(polarity, one.normal, answer.state)
            entry = one.match.value
            assert isinstance(entry, Entry)
            spans = _spans(one.match.marked, words.starts, words.ends, words.joined)
            start, end = spans[0][0], spans[-1][1]
            if polarity == POSITIVE and any(a <= start < b for a, b in asking):
                polarity = UNCERTAIN
            mentions.append(Mention(start, end, entry.name, entry.cls, polarity, spans))
    return mentions


def _without_headings(matches: list[Match], before: Sequence[int]) -> list[Match]:
    """The matches without those that need no words of a heading: "Left lung: opacity"."""
    kept = []
    for match in matches:
        colon = next((i for i in match.words[1:] if before[i] == COLON), None)
        if colon is None or not any(
            other.value is match.value and other.first >= colon and other.end == match.end
            for other in matches
        ):
            kept.append(match)
    return kept


def _found(match: Match) -> Found:
    entry = match.value
    assert isinstance(entry, Entry)
    return Found(match, entry.name, entry.normal, entry.uncertain, entry.ignore)


def _spans(
    marked: Sequence[int], starts: list[int], ends: list[int], joined: list[bool]
) -> tuple[tuple[int, int], ...]:
    """Characters of the marked words; neighbours share one span."""
    spans = [(starts[marked[0]], ends[marked[0]])]
    for last, index in pairwise(marked):
        if index == last + 1 and joined[index]:
            spans[-1] = (spans[-1][0], ends[index])
        else:
            spans.append((starts[index], ends[index]))
    return tuple(spans)


def radgraph_mentions(
    text: str, annotation: Annotation, lexicon: Lexicon | None = None
) -> list[Mention]:
    """The observations of a RadGraph annotation, in the report's order; class "Other".

    Anatomy alone is no finding. To RadGraph a statement of normality ("clear", "normal") is an
    observation that is present: where the lexicon reads normality, the mention is negative here, as
    in `find_mentions`.

    Raises:
        DiveError: the annotation is of another text, or has a label of no RadGraph model.
    """
    well = [m.spans for m in find_mentions(text, lexicon) if m.cls == "No Finding"]
    normal = [span for spans in well for span in spans]
    entities = annotation["entities"].values()
    mentions = []
    for (start, end, label), entity in zip(entity_spans(text, annotation), entities, strict=True):
        kind, state = entity_kind(label)
        if kind != "observation":
            continue
        if state == POSITIVE and any(a < end and start < b for a, b in normal):
            state = NEGATIVE
        mentions.append(Mention(start, end, entity["tokens"], OTHER, state, ((start, end),)))
    return sorted(mentions)


class DecisiveTokens:
    """Classes and weights of a report's tokens: template 1, pathology and EOS as set.

    Args:
        tokenizer: a fast tokenizer (it must return character offsets). None is enough for `label`,
            which takes offsets.
        pathology: weight of a token of a decisive mention.
        eos: weight of the token that ends the report.
        polarity: "positive": findings stated as present are decisive; "all": negated findings and
            statements of normality ("clear") too.
        lexicon: from `dive.lexicon.load_lexicon`; None takes the built-in one.
        uncertain: whether "possible pneumonia" counts with polarity="positive". It does by
            default: readers act on a hedged finding as on a stated one.
        modifiers: weight the severity, side and location next to a decisive mention with it ("small
            left pleural effusion"); see dive/lexicon/modifiers.yaml.
        annotator: RadGraph's annotations (`dive.radgraph.RadGraph`, `RadGraphFile`) in place of the
            lexicon's mentions. Pass all reports to `prepare` first: starting the model for every
            single report takes minutes instead of seconds.
    """

    def __init__(
        self,
        tokenizer: Any,
        pathology: float = 4.0,
        eos: float = 4.0,
        polarity: str = "positive",
        lexicon: Lexicon | None = None,
        *,
        uncertain: bool = True,
        modifiers: bool = False,
        annotator: Annotator | None = None,
    ) -> None:
        if polarity not in ("positive", "all"):
            raise DiveError(f"polarity is {polarity!r}, want 'positive' or 'all'")
        for name, weight in (("pathology", pathology), ("eos", eos)):
            if not 0 <= weight < float("inf"):
                raise DiveError(f"the weight {name} is {weight!r}, want a finite number >= 0")
        if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
            raise DiveError(
                f"{type(tokenizer).__name__} returns no character offsets, which locate decisive "
                "tokens, want a fast tokenizer (tokenizer.json)"
            )
        self.tokenizer = tokenizer
        self.pathology, self.eos = float(pathology), float(eos)
        self.polarity, self.uncertain, self.modifiers = polarity, uncertain, modifiers
        self.lexicon = default_lexicon() if lexicon is None else lexicon
        self.annotator = annotator
        self._annotations: dict[str, Annotation] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Annotate reports, all at once; without effect where the lexicon reads them."""
        if self.annotator is None:
            return
        missing = [text for text in dict.fromkeys(texts) if text not in self._annotations]
        if missing:
            found = self.annotator.annotate(missing)
            self._annotations.update(zip(missing, found, strict=True))

    def mentions(self, text: str) -> list[Mention]:
        """All mentions of a report, whatever their polarity."""
        if self.annotator is None:
            return find_mentions(text, self.lexicon)
        self.prepare([text])
        return radgraph_mentions(text, self._annotations[text], self.lexicon)

    def decisive(self, text: str) -> list[Mention]:
        """The mentions that count under this polarity."""
        mentions = self.mentions(text)
        if self.polarity == "all":
            return mentions
        if self.uncertain:
            return [m for m in mentions if m.polarity != NEGATIVE]
        return [m for m in mentions if m.polarity == POSITIVE]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The characters of decisive words, sorted and without overlaps."""
        spans = [span for mention in self.decisive(text) for span in mention.spans]
        return merged(widen(text, *span) if self.modifiers else span for span in spans)

    def label(self, text: str, offsets: Sequence[tuple[int, int]], count: int) -> list[int]:
        """The class of each of a response's `count` tokens.

        Args:
            text: the report.
            offsets: characters (start, end) in `text` of its tokens.
            count: len(offsets), or one more with the end-of-turn token, which is EOS.

        Raises:
            DiveError: any other count.
        """
        if count not in (len(offsets), len(offsets) + 1):
            raise DiveError(
                f"a response of {count} tokens with {len(offsets)} offsets, want one offset per "
                "token, with or without one end-of-turn token after them"
            )
        hits = _overlaps(offsets, self.spans(text))
        classes = [PATHOLOGY if hit else TEMPLATE for hit in hits]
        return classes if count == len(offsets) else [*classes, EOS]

    def weights_of(self, classes: Iterable[int]) -> list[float]:
        """The weight of each class id."""
        table = (1.0, self.pathology, self.eos)
        return [table[kind] for kind in classes]

    def __call__(self, text_or_ids: "str | Sequence[int] | Tensor") -> "Tensor":
        """Weights [n + 1], float32, on the CPU: a report's n tokens, then its end (EOS).

        A text is tokenised without special tokens. Ids are decoded, special tokens left out of the
        text: those at the end (end of turn, padding) are not among the n, as the EOS event stands
        for them; others (a bos in front) stay, with weight 1.

        Raises:
            DiveError: there is no tokenizer.
        """
        import torch

        if self.tokenizer is None:
            raise DiveError("DecisiveTokens(None) cannot tokenise; give it a tokenizer")
        if isinstance(text_or_ids, str):
            encoded = self.tokenizer(
                text_or_ids, add_special_tokens=False, return_offsets_mapping=True
            )
            text, offsets = text_or_ids, encoded["offset_mapping"]
        else:
            text, offsets = self._decode(text_or_ids)
        classes = self.label(text, offsets, len(offsets) + 1)
        return torch.tensor(self.weights_of(classes), dtype=torch.float32)

    def _decode(self, ids: "Sequence[int] | Tensor") -> tuple[str, list[tuple[int, int]]]:
        """The text of ids, and each id's characters in it.

        A token's characters are those that decoding up to it adds, so any ids are accepted, also
        ones that the tokenizer itself would not have chosen.
        """
        flat = [int(index) for index in ids]
        special = set(self.tokenizer.all_special_ids)
        special.discard(self.tokenizer.unk_token_id)
        while flat and flat[-1] in special:
            flat.pop()
        plain = [index for index in flat if index not in special]
        text, ends = _growing(self.tokenizer, plain)
        spans = iter(zip([0, *ends], ends, strict=False))
        return text, [(0, 0) if index in special else next(spans) for index in flat]


def _growing(tokenizer: Any, ids: list[int]) -> tuple[str, list[int]]:
    """The decoded text, and its length after each id.

    Decoding every prefix would take quadratic time; a window behind the last complete character
    gives the same text, as the text of a token does not depend on tokens far before it.
    """

    def decode(part: list[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    ends: list[int] = []
    text = ""
    # text is the decoding of ids[:known]; ids[anchor:known] are context for the first new one
    anchor = known = 0
    for count in range(1, len(ids) + 1):
        old = decode(ids[anchor:known])
        new = decode(ids[anchor:count])
        if new.endswith("�"):
            ends.append(len(text) + 1)  # part of a character whose other bytes are still to come
            continue
        text += new[len(old) :]
        anchor, known = known, count
        ends.append(len(text))
    if known < len(ids):
        text += decode(ids[anchor:])[len(decode(ids[anchor:known])) :]
    return text, [min(end, len(text)) for end in ends]


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans sorted, with those that overlap or touch merged."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _overlaps(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token shares a character with one of the sorted spans, which do not overlap.

    Overlap and not containment: the first piece of a word often carries the space before it.
    Tokens without width (special tokens) share none.
    """
    hits = []
    k = 0
    for start, end in offsets:
        # offsets of byte pieces may repeat, and never go back far, so step back as needed
        while k > 0 and spans[k - 1][1] > start:
            k -= 1
        while k < len(spans) and spans[k][1] <= start:
            k += 1
        hits.append(end > start and k < len(spans) and spans[k][0] < end)
    return hits


def share(classes: Sequence[int], weights: Sequence[float]) -> dict[int, tuple[float, float]]:
    """class id -> (its share of the tokens, its share of the loss), each summing to 1.

    The share of the loss is by weight, as if every token cost the same. All three classes are in
    it, those without a token with (0, 0).
    """
    if len(classes) != len(weights):
        raise DiveError(
            f"{len(classes)} classes and {len(weights)} weights, want one weight per class"
        )
    total = float(sum(weights))
    table = {}
    for kind in range(len(CLASS_NAMES)):
        own = [float(w) for c, w in zip(classes, weights, strict=True) if c == kind]
        table[kind] = (
            len(own) / len(classes) if classes else 0.0,
            sum(own) / total if total else 0.0,
        )
    return table
