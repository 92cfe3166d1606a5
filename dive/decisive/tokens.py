"""The decisive tokens of a report: the mentions of pathology, and the end of the report.

`DecisiveTokens` maps the mentions of dive/decisive/mentions.py, the clauses that state them or the
words that decide on them to the tokens of any fast tokenizer.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from dive.decisive.class_floor import raised
from dive.decisive.clauses import Clause, clauses
from dive.decisive.decision_tokens import DecisionTrees, grown
from dive.decisive.decoded import growing
from dive.decisive.mentions import Mention, find_mentions, radgraph_mentions
from dive.decisive.polarity import NEGATIVE, POSITIVE
from dive.decisive.spans import merged, overlapped
from dive.errors import DiveError, checks
from dive.lexicon import Lexicon, default_lexicon
from dive.lexicon.modifiers import widen
from dive.radgraph import Annotation, Annotator

if TYPE_CHECKING:
    from torch import Tensor

# classes of tokens; CLASS_NAMES[id] is the name of one in logs and tables
TEMPLATE, PATHOLOGY, EOS = 0, 1, 2
CLASS_NAMES = ("template", "pathology", "eos")
UNITS = ("mention", "clause", "decision")
FITTED = 50_000  # training reports, at most, that `DecisiveTokens.fit` reads
Apply = Callable[[Callable[[str], Any], Sequence[str]], Iterable[Any]]


def check_unit(unit: Any, class_floor: Any, prefix: str, name: str = "unit") -> None:
    """DiveError where `unit` is none of `UNITS`, or `class_floor` is no share below 1.

    prefix: of the message. name: what the unit is called there.
    """
    if not isinstance(unit, str) or unit not in UNITS:
        raise DiveError(f"{prefix}: {name} is {unit!r}, want one of {', '.join(UNITS)}")
    if not (checks.is_number(class_floor) or class_floor == 0) or not 0 <= class_floor < 1:
        raise DiveError(f"{prefix}: class_floor is {class_floor!r}, want a share from 0 to below 1")


class Marked(NamedTuple):
    """A decisive stretch of a text: its characters [start, end), and the classes of the findings
    that it is decisive for."""

    start: int
    end: int
    classes: tuple[str, ...]


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
        unit: the decisive part of a statement. "mention": the words of the finding, by `polarity`.
            "clause": all words of a clause that states findings, present or absent. "decision": the
            first token of the one word of such a clause at which the training reports part present
            and absent ("there is *a* small effusion", "there is *no* effusion"; see
            `DecisionTrees`); needs `fit`. With "clause" and "decision" both sides carry the weight,
            and `polarity`, `uncertain` and `modifiers` change nothing.
        class_floor: the least share of the decisive tokens' total weight for each class of findings
            (`Mention.cls`) that occurs among them, for which the tokens of rare classes weigh more
            than `pathology`; needs `fit`. "No Finding" is not among the classes, nor its tokens in
            the total. It tilts the model towards rare findings, as a weight on one outcome does.
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
        unit: str = "mention",
        class_floor: float = 0.0,
    ) -> None:
        check_unit(unit, class_floor, "DecisiveTokens")
        if class_floor and annotator is not None:
            raise DiveError(
                f"class_floor is {class_floor}, and RadGraph's observations have no classes: want "
                "class_floor 0, or the lexicon"
            )
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
        self.unit, self.class_floor = unit, float(class_floor)
        self._annotations: dict[str, Annotation] = {}
        self._trees: DecisionTrees | None = None
        self._weight_of_class: dict[str, float] | None = None

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

    def by(self, unit: str) -> "DecisiveTokens":
        """The same source of mentions, its annotations included, with another unit, no class floor
        and nothing fitted."""
        other = copy(self)
        other.unit, other.class_floor = unit, 0.0
        other._trees = other._weight_of_class = None
        return other

    @property
    def needs_fit(self) -> bool:
        """Whether `fit` must have read the training reports before others can be weighed."""
        return self.unit == "decision" or self.class_floor > 0

    def fit(self, texts: Iterable[str], apply: Apply = map) -> None:
        """Read the training reports, once: the decision trees, and the weights of the classes.

        Where neither is needed it does nothing. Of more than `FITTED` reports every n-th is read.

        Args:
            apply: like `map`; it may compute in other processes.

        Raises:
            DiveError: no finding is stated and denied ("decision"); so many classes occur that
                they cannot all have the share `class_floor`, or none does.
        """
        if not self.needs_fit:
            return
        if isinstance(texts, str):
            raise DiveError("fit: texts is one text, want the training reports as a list of texts")
        texts = list(texts)
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise DiveError(f"fit: report {number} is {text!r}, want a text")
        texts = texts[:: max(1, -(-len(texts) // FITTED))]
        self.prepare(texts)
        self._weight_of_class = self._trees = None
        if self.unit == "decision":
            self._trees = grown(chain.from_iterable(apply(self.clauses, texts)), len(texts))
        if self.class_floor:
            counts: Counter[str] = Counter()
            for found in apply(self._counted, texts):
                counts.update(found)
            counts.pop("No Finding", None)  # not a finding that could be rare
            self._weight_of_class = raised(counts, self.class_floor, self.pathology)

    def clauses(self, text: str) -> list[Clause]:
        """The clauses of a report that state a finding, present or absent."""
        return clauses(text, self.mentions(text))

    def marked(self, text: str) -> list[Marked]:
        """The decisive stretches of a report, in the order of their statements.

        Raises:
            DiveError: the unit is "decision", and `fit` was not called.
        """
        if self.unit == "mention":
            return [
                Marked(*(widen(text, *span) if self.modifiers else span), (mention.cls,))
                for mention in self.decisive(text)
                for span in mention.spans
            ]
        marked = []
        for clause in self.clauses(text):
            first, last = 0, -1
            if self.unit == "decision":
                index = self.trees.index(clause)
                if index is None:
                    continue
                first = last = index
            classes = dict.fromkeys(mention.cls for mention in clause.mentions)
            marked.append(Marked(clause.spans[first][0], clause.spans[last][1], (*classes,)))
        return marked

    @property
    def trees(self) -> DecisionTrees:
        """The decision trees of the training reports.

        Raises:
            DiveError: the unit is not "decision", or `fit` was not called.
        """
        if self._trees is None:
            raise DiveError(
                f"unit is {self.unit!r}, and no decision tree was grown: want unit 'decision', and "
                "a call of fit with the training reports"
            )
        return self._trees

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The characters of decisive words, sorted and without overlaps."""
        return merged((one.start, one.end) for one in self.marked(text))

    def label(self, text: str, offsets: Sequence[tuple[int, int]], count: int) -> list[int]:
        """The class of each of a response's `count` tokens.

        Args:
            text: the report.
            offsets: characters (start, end) in `text` of its tokens.
            count: len(offsets), or one more with the end-of-turn token, which is EOS.

        Raises:
            DiveError: any other count; or as for `marked`.
        """
        self._check_count(offsets, count)
        hits = self._hits(offsets, self.spans(text))
        classes = [TEMPLATE if hit is None else PATHOLOGY for hit in hits]
        return classes if count == len(offsets) else [*classes, EOS]

    def weigh(
        self, text: str, offsets: Sequence[tuple[int, int]], count: int
    ) -> tuple[list[int], list[float]]:
        """The class and the weight of each of a response's `count` tokens; as for `label`.

        Raises:
            DiveError: as for `label`; or there is a `class_floor`, and `fit` was not called.
        """
        if not self.class_floor:
            classes = self.label(text, offsets, count)
            return classes, self.weights_of(classes)
        if self._weight_of_class is None:
            raise DiveError(
                f"class_floor is {self.class_floor}, and how rare a class is is learnt from the "
                "training reports: call fit with them first"
            )
        self._check_count(offsets, count)
        table = self._weight_of_class
        weights = [1.0] * len(offsets)
        classes = [TEMPLATE] * len(offsets)
        for index, names in self._classes_of(text, offsets).items():
            classes[index] = PATHOLOGY
            # "No Finding", and a class of no training report, weigh as they would without a floor
            weights[index] = sum(table.get(name, self.pathology) for name in names) / len(names)
        if count > len(offsets):
            classes, weights = [*classes, EOS], [*weights, self.eos]
        return classes, weights

    def _check_count(self, offsets: Sequence[tuple[int, int]], count: int) -> None:
        if count not in (len(offsets), len(offsets) + 1):
            raise DiveError(
                f"a response of {count} tokens with {len(offsets)} offsets, want one offset per "
                "token, with or without one end-of-turn token after them"
            )

    def _hits(
        self, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
    ) -> list[int | None]:
        """Of each token the span that makes it decisive, or None."""
        hits = overlapped(offsets, spans)
        if self.unit != "decision":
            return hits
        firsts = {hit: index for index, hit in reversed([*enumerate(hits)])}
        return [hit if firsts[hit] == index else None for index, hit in enumerate(hits)]

    def _classes_of(
        self, text: str, offsets: Sequence[tuple[int, int]]
    ) -> dict[int, tuple[str, ...]]:
        """The classes of the findings that each decisive token is of, by its index."""
        marked = sorted(self.marked(text))
        spans = merged((one.start, one.end) for one in marked)
        within: list[list[Marked]] = [[] for _ in spans]
        for one in marked:
            within[bisect_right(spans, (one.start, len(text) + 1)) - 1].append(one)
        classes = {}
        for index, hit in enumerate(self._hits(offsets, spans)):
            if hit is not None:
                start, end = offsets[index]
                own = [one for one in within[hit] if one.start < end and start < one.end]
                classes[index] = (*dict.fromkeys(name for one in own for name in one.classes),)
        return classes

    def _counted(self, text: str) -> dict[str, float]:
        """How many decisive tokens of a report are of each class; one of several classes counts in
        part for each."""
        counts: dict[str, float] = {}
        for names in self._classes_of(text, self._offsets(text)).values():
            for name in names:
                counts[name] = counts.get(name, 0.0) + 1 / len(names)
        return counts

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters of a text's tokens; of its words, if there is no tokenizer."""
        if self.tokenizer is None:
            return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["offset_mapping"]

    def weights_of(self, classes: Iterable[int]) -> list[float]:
        """The weight of each class id, without a `class_floor`: see `weigh`."""
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
            text, offsets = text_or_ids, self._offsets(text_or_ids)
        else:
            text, offsets = self._decode(text_or_ids)
        _, weights = self.weigh(text, offsets, len(offsets) + 1)
        return torch.tensor(weights, dtype=torch.float32)

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
        text, ends = growing(self.tokenizer, plain)
        spans = iter(zip([0, *ends], ends, strict=False))
        return text, [(0, 0) if index in special else next(spans) for index in flat]


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
