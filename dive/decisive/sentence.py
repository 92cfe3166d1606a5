"""One sentence while it is read: its mentions and cues, and the state of the reading.

dive/decisive/polarity.py reads it. The predicates here look at words and change nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dive.lexicon.checklist import POSITIVE, UNCERTAIN
from dive.lexicon.statements import (
    COMPANIONS,
    COURSE,
    DEGREE,
    EXISTING,
    FAR,
    HEDGES,
    LIST_BREAKS,
    OR,
    PARTS,
    PERCEIVED,
    REGIONS,
    RESTART,
    UNITS,
    VERBS,
)
from dive.lexicon.terms import Match
from dive.lexicon.words import COMMA, JOINED, Words


class Found(NamedTuple):
    """A mention before its polarity is known.

    `normal`: the words state normality; `uncertain`: the words themselves are a hedge
    ("borderline heart size"); `ignore`: they are no mention.
    """

    match: Match
    name: str
    normal: bool
    uncertain: bool
    ignore: bool


def _is_device(one: Found) -> bool:
    return getattr(one.match.value, "cls", "") == "Support Devices"


class Sentence:
    """One sentence with its mentions and cues, the state of its reading, and predicates on it."""

    def __init__(
        self, words: Words, first: int, stop: int, found: Sequence[Found], cues: list[Match]
    ) -> None:
        self.words, self.before = words.words, words.before
        self.first, self.stop = first, stop
        self.found = found
        self.polarity = [UNCERTAIN if one.uncertain else POSITIVE for one in found]
        # a mention counts at its last word, so that "heart is not enlarged" has its cue inside
        self.at: dict[int, int] = {one.match.marked[-1]: k for k, one in enumerate(found)}
        self.starts = {one.match.first: k for k, one in enumerate(found)}
        self.cues = {cue.first: cue for cue in cues}
        self.state = ""  # polarity of the open scope: "", NEGATIVE or UNCERTAIN
        self.naming = False  # the scope lists possibilities: "may represent atelectasis, scarring"
        self.specific = (
            False  # "removal of the left tube and the right line": a list of known things
        )
        self.passed: list[int] = []  # mentions of the statement to which a cue may apply backward
        self.asserted = False  # the statement has its verb or its "no"
        self.alternative = False  # "X or ..." without a cue
        self.last: int | None = None  # the previous mention, of any statement
        self.heading: list[int] = []  # mentions before a colon: "Pneumothorax: none"

    def prefers(self, i: int) -> bool:
        """Return whether "more consistent with ..." stands before the "than" at word i."""
        before = self.words[self.first : i]
        likelier = ("keeping", "consistent", "compatible", "suggestive", "typical", "likely")
        return "more" in before and any(word in likelier for word in before) and not self.state

    def runs_on(self, i: int) -> bool:
        """Return whether the next finding begins without punctuation: "no ptx 2 cm nodule"."""
        if self.before[i] != JOINED or self.denied_just_before(i) is None:
            return False
        if (k := self.starts.get(i)) is not None and _is_device(self.found[k]):
            return True  # "no ptx ETT 4 cm above the carina"
        unit = any(word in UNITS for word in self.words[i + 1 : min(i + 4, self.stop)])
        return self.words[i].isdigit() and unit

    def denied_just_before(self, i: int) -> int | None:
        """The mention that ends right before word i, if the open scope determined its polarity."""
        k = self.at.get(i - 1)
        return None if k is None or self.polarity[k] != self.state or not self.state else k

    def goes_on(self, cue: Match) -> bool:
        """Return whether a scope continues after "with" or "due to", which ends most."""
        if self.denied_just_before(cue.first) is None or cue.end >= self.stop:
            return False
        word = self.words[cue.end]
        if word in COMPANIONS:
            return True
        if self.words[cue.first] != "with" and any(
            word == self.words[one.match.first] and one.match.first == cue.end for one in self.found
        ):
            return True  # "secondary to heart failure"
        return word not in DEGREE and word not in RESTART and self.follows(cue.end)

    def list_goes_on(self, i: int, after_and: bool = False) -> bool:
        """Return whether a cue's list goes on at word i, after a comma or an "and"."""
        word = self.words[i]
        if word in OR:
            return True
        if word == "and" and not after_and:
            return i + 1 < self.stop and self.list_goes_on(i + 1, after_and=True)
        if word.isdigit() and any(w in UNITS for w in self.words[i + 1 : min(i + 4, self.stop)]):
            return False
        begins = word in RESTART and not (self.specific and word in ("the", "a", "an"))
        if begins and word not in REGIONS:
            return False
        later, verb = self._rest_of_list(i)
        if later:
            return True
        if begins or ((k := self.starts.get(i)) is not None and self.is_new_device(k)):
            return False
        if self.state == UNCERTAIN and not after_and and not self.naming:
            return False
        if (
            word in DEGREE
            and not self.specific
            and not (after_and and self.words[i - 2 : i - 1] in (["left"], ["right"]))
        ):
            return False
        return not verb

    def _rest_of_list(self, i: int) -> tuple[bool, bool]:
        """Return whether an "or" after word i continues the list, and whether a verb ends it."""
        later = False
        for j in range(i, min(i + FAR, self.stop)):
            if self.before[j] > COMMA and j > i:
                break
            other = self.words[j]
            if self.before[j] == COMMA and j > i and self.restarts(j):
                break
            if other == "in" and j - 1 in self.at and self.in_place(j) and not later:
                return later, True
            if other in OR:
                later = True
            elif other in LIST_BREAKS:
                break
            elif other in COURSE and j - 1 in self.at and j - 1 >= i and not later:
                return later, True
            elif other in VERBS:
                perceived = any(w in PERCEIVED for w in self.words[j + 1 : min(j + 4, self.stop)])
                return later, not perceived and not later
        return later, False

    def is_new_device(self, k: int) -> bool:
        """Return whether a device follows denied findings that are none: "no ptx, ETT in place"."""
        if not self.passed or self.specific or not _is_device(self.found[k]):
            return False
        return not any(_is_device(self.found[p]) for p in self.passed)

    def restarts(self, i: int) -> bool:
        """Return whether ", and the heart" begins something else."""
        words = self.words[i : min(i + 2, self.stop)]
        return len(words) == 2 and words[0] == "and" and words[1] in RESTART - REGIONS

    def in_place(self, i: int) -> bool:
        """Return whether "in good position" stands at word i, as after a device that is present."""
        return any(w in ("position", "place", "situ") for w in self.words[i + 1 : i + 4])

    def begins_statement(self, i: int) -> bool:
        """Return whether a subject with its own verb follows, or a finding stated as present."""
        if self.words[i] in RESTART or self.words[i] in DEGREE:
            return True
        for j in range(i, self.stop):
            if self.before[j] >= COMMA and j > i:
                return False
            if self.words[j] in VERBS:
                return j > i
            if j in self.cues and str(self.cues[j].value) == "negative_after":
                return any(w in self.at for w in range(i, j))
        return False

    def last_word(self) -> int:
        return self.found[self.passed[-1]].match.marked[-1]

    def follows(self, end: int) -> bool:
        """Return whether a mention follows a cue before the next punctuation or stop."""
        for j in range(end, self.stop):
            if self.before[j] != JOINED:
                return False
            cue = self.cues.get(j)
            if cue is not None and str(cue.value).startswith("stop"):
                return False
            if j in self.at:
                return not self.found[self.at[j]].normal
        return False

    def of_a_part(self, cue: Match) -> bool:
        """Return whether "not seen" concerns a tube's tip or a contour and no finding."""
        if not self.passed:
            return False
        match = self.found[self.passed[-1]].match
        subject = set(self.words[match.end : cue.first])
        before = self.words[max(match.first - 4, self.first) : match.first]
        if before and before[-1] in ("of", "the", "a") and "of" in before:
            subject |= set(before[: before.index("of")])
        return not PARTS.isdisjoint({*subject, self.words[match.end - 1]})

    def says_unchanged(self, cue: Match) -> bool:
        """Return whether a cue denies a change: "neither effusion nor nodule has changed"."""
        if self.words[cue.first] not in ("neither", "nor"):
            return False
        changed = ("changed", "increased", "decreased", "improved", "worsened", "enlarged", "grown")
        return any(word in changed for word in self.words[cue.end : self.stop])

    def hedges_a_quality(self, cue: Match) -> bool:
        """Return whether a hedge after a finding is of a quality: "effusion, likely loculated"."""
        if self.words[cue.end - 1] not in HEDGES or cue.end >= self.stop:
            return False
        if self.before[cue.end] != JOINED or self.words[cue.end] in EXISTING:
            return False
        other = ("and", "or", "but", "a", "an", "the", "artifact", "artefact", "artifacts")
        return self.words[cue.end] not in other and cue.end not in self.cues
