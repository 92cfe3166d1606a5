"""Whether a finding is said to be present, absent or uncertain.

Each sentence is read once from left to right. A cue ("no", "possible", "versus") opens a reach that
goes forward until a stop ("but", "with", a semicolon) or until a comma or an "and" behind which a
new statement begins; "is not seen" and its kin reach back over the mentions of their own statement.
The cues are in dive/lexicon/cues.yaml.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dive.lexicon import default_cues
from dive.lexicon.statements import (
    ANSWER_TAIL,
    ASIDE,
    COMPANIONS,
    COURSE,
    DEGREE,
    EXISTING,
    FAR,
    HEDGES,
    LIST_BREAKS,
    NOT,
    OR,
    PARTS,
    PERCEIVED,
    PLACES,
    RESTART,
    UNITS,
    VERBS,
)
from dive.lexicon.terms import Match, longest_first
from dive.lexicon.words import COLON, COMMA, JOINED, QUERY, SEMICOLON, Words

POSITIVE, NEGATIVE, UNCERTAIN = "positive", "negative", "uncertain"


class Found(NamedTuple):
    """A mention before its polarity is known.

    `normal`: the words say that all is well; `uncertain`: the words themselves are a hedge
    ("borderline heart size"); `ignore`: they are no mention.
    """

    match: Match
    name: str
    normal: bool
    uncertain: bool
    ignore: bool


def polarities(
    words: Words, first: int, stop: int, found: Sequence[Found], free: list[bool]
) -> list[str]:
    """The polarity of each mention of one sentence, words [first, stop), in the order given.

    `found` is sorted by the first marked word and shares no words. `free` has an entry a word of
    the text, true where no mention has been yet; those of `found` are taken off.
    """
    for one in found:
        # "clear" is a mention and, before "of", a cue
        for index in () if one.normal else one.match.marked:
            free[index] = False
    cues = default_cues()
    matches = cues.matches(words.words, words.joined, first, stop, free)
    return _Sentence(words, first, stop, found, longest_first(matches)).read()


def _is_device(one: Found) -> bool:
    return getattr(one.match.value, "cls", "") == "Support Devices"


class _Sentence:
    """One reading of one sentence."""

    def __init__(
        self, words: Words, first: int, stop: int, found: Sequence[Found], cues: list[Match]
    ) -> None:
        self.words, self.before = words.words, words.before
        self.first, self.stop = first, stop
        self.found = found
        self.said = [UNCERTAIN if one.uncertain else POSITIVE for one in found]
        # a mention counts where it is complete, so that "heart is not enlarged" has its cue inside
        self.at: dict[int, int] = {one.match.marked[-1]: k for k, one in enumerate(found)}
        self.starts = {one.match.first: k for k, one in enumerate(found)}
        self.cues = {cue.first: cue for cue in cues}
        self.state = ""  # what the next mention is: "", NEGATIVE or UNCERTAIN
        self.naming = False  # the reach names what may be: "may represent atelectasis, scarring"
        self.specific = (
            False  # "removal of the left tube and the right line": a list of known things
        )
        self.passed: list[int] = []  # mentions of the statement that a cue may reach back to
        self.asserted = False  # the statement has its verb or its "no"
        self.alternative = False  # "X or ..." without a cue
        self.last: int | None = None  # the mention before, of whatever statement
        self.heading: list[int] = []  # mentions before a colon: "Pneumothorax: none"

    def read(self) -> list[str]:
        for i in range(self.first, self.stop):
            if i > self.first and self.before[i] != JOINED:
                self._mark(i)
            elif self.before[i] == QUERY:
                self._open(UNCERTAIN)
            if self.state == NEGATIVE and self._runs_on(i):
                self.state = ""
                self._new_statement()
            cue = self.cues.get(i)
            if cue is not None:
                self._cue(str(cue.value), cue)
            elif self.words[i] == "than" and self._prefers(i):
                self._open(UNCERTAIN)  # "more in keeping with atelectasis than pneumonia"
            elif (word := self.words[i]) == "and" or word == "plus":
                self._and(i)
            elif word == "or" and not self.state:
                self.alternative = bool(self.passed) and i - self._last_word() <= 4
                if (k := self.at.get(i - 1)) is not None and self.said[k] == POSITIVE:
                    self.said[k] = UNCERTAIN  # "atelectasis or fluid"
            if self.words[i] in VERBS or (self.words[i] in PERCEIVED and i - 1 in self.at):
                self.asserted = True
            if i in self.at:
                self._mention(self.at[i], i)
        self._answer_by_normality()
        return [self._normal(k) if one.normal else self.said[k] for k, one in enumerate(self.found)]

    def _prefers(self, i: int) -> bool:
        """Whether "more consistent with ..." stands before the "than" at word i."""
        before = self.words[self.first : i]
        likelier = ("keeping", "consistent", "compatible", "suggestive", "typical", "likely")
        return "more" in before and any(word in likelier for word in before) and not self.state

    # what a reach is opened and ended by

    def _open(self, state: str, naming: bool = False) -> None:
        self.state, self.naming, self.specific = state, naming, False

    def _new_statement(self) -> None:
        self.passed, self.asserted, self.alternative = [], False, False

    def _mark(self, i: int) -> None:
        """Punctuation before word i."""
        kind = self.before[i]
        if kind == QUERY:
            self._open(UNCERTAIN)
            return
        if kind == COMMA:
            if self.state and not self._list_goes_on(i):
                self.state = ""
            if self.asserted and self._begins_statement(i):
                self._new_statement()
            self.alternative = False
            return
        if kind == COLON:
            self.heading = list(self.passed)
        elif kind == SEMICOLON:
            self.heading = []
        self.state = ""
        self._new_statement()

    def _runs_on(self, i: int) -> bool:
        """Whether the next finding begins without a mark: "no ptx 2 cm nodule"."""
        if self.before[i] != JOINED or self._denied_just_before(i) is None:
            return False
        if (k := self.starts.get(i)) is not None and _is_device(self.found[k]):
            return True  # "no ptx ETT 4 cm above the carina"
        unit = any(word in UNITS for word in self.words[i + 1 : min(i + 4, self.stop)])
        return self.words[i].isdigit() and unit

    def _denied_just_before(self, i: int) -> int | None:
        """The mention that ends right before word i, if a reach has made it what it is."""
        k = self.at.get(i - 1)
        return None if k is None or self.said[k] != self.state or not self.state else k

    def _goes_on(self, cue: Match) -> bool:
        """Whether a reach goes on behind "with" or "due to", which ends most."""
        if self._denied_just_before(cue.first) is None or cue.end >= self.stop:
            return False
        word = self.words[cue.end]
        if word in COMPANIONS:
            return True
        if self.words[cue.first] != "with" and any(
            word == self.words[one.match.first] and one.match.first == cue.end for one in self.found
        ):
            return True  # "secondary to heart failure"
        return word not in DEGREE and word not in RESTART and self._follows(cue.end)

    def _and(self, i: int) -> None:
        if i + 1 >= self.stop:
            return
        if self.state and not self._list_goes_on(i + 1, after_and=True):
            self.state = ""
        if self.asserted and self._begins_statement(i + 1):
            self._new_statement()

    def _list_goes_on(self, i: int, after_and: bool = False) -> bool:
        """Whether the list that a cue opened goes on at word i, behind a comma or an "and"."""
        word = self.words[i]
        if word in OR:
            return True
        if word == "and" and not after_and:
            return i + 1 < self.stop and self._list_goes_on(i + 1, after_and=True)
        if word.isdigit() and any(w in UNITS for w in self.words[i + 1 : min(i + 4, self.stop)]):
            return False
        begins = word in RESTART and not (self.specific and word in ("the", "a", "an"))
        if begins and word not in PLACES:
            return False
        later = verb = False
        for j in range(i, min(i + FAR, self.stop)):
            if self.before[j] > COMMA and j > i:
                break
            other = self.words[j]
            if self.before[j] == COMMA and j > i and self._restarts(j):
                break
            if other == "in" and j - 1 in self.at and self._in_place(j) and not later:
                verb = True
                break
            if other in OR:
                later = True
            elif other in LIST_BREAKS:
                break
            elif other in COURSE and j - 1 in self.at and j - 1 >= i and not later:
                verb = True
                break
            elif other in VERBS:
                perceived = any(w in PERCEIVED for w in self.words[j + 1 : min(j + 4, self.stop)])
                verb = not perceived and not later
                break
        if later:
            return True
        if begins or ((k := self.starts.get(i)) is not None and self._is_new_device(k)):
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

    def _is_new_device(self, k: int) -> bool:
        """Whether a device comes behind denied findings that are none: "no ptx, ETT in place"."""
        if not self.passed or self.specific or not _is_device(self.found[k]):
            return False
        return not any(_is_device(self.found[p]) for p in self.passed)

    def _restarts(self, i: int) -> bool:
        """Whether ", and the heart" begins something else."""
        words = self.words[i : min(i + 2, self.stop)]
        return len(words) == 2 and words[0] == "and" and words[1] in RESTART - PLACES

    def _in_place(self, i: int) -> bool:
        """Whether "in good position" stands at word i: said of a device that is there."""
        return any(w in ("position", "place", "situ") for w in self.words[i + 1 : i + 4])

    def _begins_statement(self, i: int) -> bool:
        """Whether a subject with a verb of its own follows, or a finding said to be there."""
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

    # what cues do

    def _last_word(self) -> int:
        return self.found[self.passed[-1]].match.marked[-1]

    def _say(self, which: Sequence[int], state: str) -> None:
        for k in which:
            self.said[k] = state

    def _follows(self, end: int) -> bool:
        """Whether a mention comes before the next mark or stop behind a cue."""
        for j in range(end, self.stop):
            if self.before[j] != JOINED:
                return False
            cue = self.cues.get(j)
            if cue is not None and str(cue.value).startswith("stop"):
                return False
            if j in self.at:
                return not self.found[self.at[j]].normal
        return False

    def _cue(self, kind: str, cue: Match) -> None:
        if kind == "stop_unless_joined":
            if self._goes_on(cue):
                return
            kind = "stop"
        if kind == "stop_behind_finding":
            kind = "stop" if self.passed else "neutral"
        if kind == "stop_in_front":
            front = self.before[cue.first] != JOINED or self.words[cue.first - 1] == "and"
            kind = "stop" if front or cue.first == self.first else "neutral"
        if kind == "as_before":
            said = POSITIVE if self.last is None else self.said[self.last]
            self._new_statement()
            self._open("" if said == POSITIVE else said)
        elif kind in ("stop", "stop_forward"):
            self.state = ""
            if kind == "stop":
                self._new_statement()
                self.asserted = self.words[cue.first] == "there"
        elif kind == "negative_before" and self._says_unchanged(cue):
            pass
        elif kind == "negative_before":
            self._answer_heading(cue, NEGATIVE)
            self._open(NEGATIVE)
            self.specific = self.words[cue.end - 1] == "of"
            self.asserted = True
        elif kind == "negative_after" and self._of_a_part(cue):
            pass
        elif kind == "negative_after":
            self._answer_heading(cue, NEGATIVE)
            if self.passed:
                self._say(self.passed, NEGATIVE)
                self.state = ""
            elif not self.heading or self._follows(cue.end):
                self._open(NEGATIVE)
            self.asserted = True
        elif kind == "negative_back":
            self._say(self.passed, NEGATIVE)
        elif kind == "negative_either":
            if self.passed and not self._follows(cue.end):
                self._say(self.passed, NEGATIVE)
                self.state = ""
            else:
                self._new_statement()
                self._open(NEGATIVE)
            self.asserted = True
        elif kind == "uncertain_kind":
            if self._follows(cue.end):
                self._open(UNCERTAIN)
        elif kind == "uncertain_before":
            if self.passed and not self._follows(cue.end):
                self._say(self.passed, UNCERTAIN)  # "small effusions are difficult to exclude"
            elif not (self.state == NEGATIVE and self.words[cue.first] == "if"):
                self._open(UNCERTAIN, naming=True)
        elif kind == "uncertain_link":
            if self.state != NEGATIVE:
                self._open(UNCERTAIN, naming=True)
        elif kind == "uncertain_after":
            if self.passed:
                self._say(self.passed, UNCERTAIN)
                self.state = ""
            else:
                self._open(UNCERTAIN)
        elif kind == "uncertain_either":
            self._answer_heading(cue, UNCERTAIN)
            if self._follows(cue.end) or not self.passed:
                self._open(UNCERTAIN)
            elif self.state != NEGATIVE and not self._hedges_a_quality(cue):
                self._say([k for k in self.passed if self.said[k] == POSITIVE], UNCERTAIN)
        elif kind == "uncertain_between" and self.state != NEGATIVE:
            if self.passed and self.said[self.passed[-1]] == POSITIVE:
                self._say(self.passed[-1:], UNCERTAIN)
            self._open(UNCERTAIN)

    def _answer_by_normality(self) -> None:
        """ "Cardiomegaly: the heart is normal in size." answers its heading, too."""
        colon = next((j for j in range(self.first + 1, self.stop) if self.before[j] == COLON), None)
        if colon is None or "otherwise" in self.words[colon : self.stop]:
            return
        behind = [k for k, one in enumerate(self.found) if one.match.first >= colon]
        if not behind or not all(self.found[k].normal for k in behind):
            return
        if all(self._normal(k) == NEGATIVE for k in behind):
            before = [k for k, one in enumerate(self.found) if one.match.end <= colon]
            self._say([k for k in before if not self.found[k].normal], NEGATIVE)

    def _of_a_part(self, cue: Match) -> bool:
        """Whether "not seen" is said of a tube's tip or of a contour and not of a finding."""
        if not self.passed:
            return False
        match = self.found[self.passed[-1]].match
        subject = set(self.words[match.end : cue.first])
        if self.words[match.first - 1] in ("the", "a") or self.words[match.first - 1] == "of":
            whole = self.words[max(match.first - 4, self.first) : match.first]
            subject |= set(whole[: whole.index("of")]) if "of" in whole else set()
        return not PARTS.isdisjoint({*subject, self.words[match.end - 1]})

    def _says_unchanged(self, cue: Match) -> bool:
        """Whether it is "neither the effusion nor the nodule has changed"."""
        if self.words[cue.first] not in ("neither", "nor"):
            return False
        changed = ("changed", "increased", "decreased", "improved", "worsened", "enlarged", "grown")
        return any(word in changed for word in self.words[cue.end : self.stop])

    def _hedges_a_quality(self, cue: Match) -> bool:
        """Whether a hedge behind a finding is one of its kind: "effusion, likely loculated"."""
        if self.words[cue.end - 1] not in HEDGES or cue.end >= self.stop:
            return False
        if self.before[cue.end] != JOINED or self.words[cue.end] in EXISTING:
            return False
        other = ("and", "or", "but", "a", "an", "the", "artifact", "artefact", "artifacts")
        return self.words[cue.end] not in other and cue.end not in self.cues

    def _answer_heading(self, cue: Match, state: str) -> None:
        """ "Pneumothorax: none." and "Effusion: there is no effusion." answer their heading."""
        if not self.heading or self.passed:
            return
        heading, self.heading = self.heading, []
        begin = next((j for j in range(cue.first, self.first, -1) if self.before[j] == COLON), None)
        if begin is None or cue.first - begin > 3 or self._hedges_a_quality(cue):
            return
        last = self.found[heading[-1]].match.marked[-1]
        if any(word not in ASIDE for word in self.words[last + 1 : begin]):
            return  # "pneumothorax (tension: no)"
        names = {self.found[k].name for k in heading}
        after = [self.at[j] for j in range(cue.first, self.stop) if j in self.at]
        end = next((j for j in range(cue.end, self.stop) if self.before[j] != JOINED), self.stop)
        rest = self.words[cue.end : end]
        if not after and state == NEGATIVE and any(word not in ANSWER_TAIL for word in rest):
            return  # "nodule: no follow-up needed"
        if not after or self.found[after[0]].name in names:
            self._say([k for k in heading if not self.found[k].normal], state)

    def _mention(self, k: int, i: int) -> None:
        one = self.found[k]
        if self.state == NEGATIVE:
            self.said[k] = NEGATIVE
        elif self.state == UNCERTAIN:
            self.said[k] = UNCERTAIN
        elif self.alternative and self.passed:
            # "scarring or atelectasis": one of both
            last = self.passed[-1]
            if self.said[last] != NEGATIVE and i - self._last_word() <= 6:
                self._say([last, k], UNCERTAIN)
        self.alternative = False
        if not one.normal:
            self.passed.append(k)
            self.last = k

    def _normal(self, k: int) -> str:
        """Words that say that all is well are negative, unless "not" stands before them."""
        at = self.found[k].match.marked[0]
        denied = any(w in NOT for w in self.words[max(at - 2, self.first) : at])
        return POSITIVE if denied else NEGATIVE
