"""The polarity of a finding: stated as present, absent or uncertain.

Each sentence is read once from left to right. A cue ("no", "possible", "versus") opens a scope that
extends forward until a stop ("but", "with", a semicolon), or until a comma or an "and" after which
a new statement begins; "is not seen" and the like apply backward to the mentions of their
statement. The cues are in dive/lexicon/cues.yaml.
"""

from collections.abc import Callable, Sequence

from dive.decisive.sentence import Found, Sentence
from dive.lexicon import default_cues
from dive.lexicon.checklist import NEGATIVE, POSITIVE, UNCERTAIN
from dive.lexicon.statements import ANSWER_TAIL, ASIDE, NOT, PERCEIVED, VERBS
from dive.lexicon.terms import Match, longest_first
from dive.lexicon.words import COLON, COMMA, JOINED, QUERY, SEMICOLON, Words


def polarities(
    words: Words, first: int, stop: int, found: Sequence[Found], free: list[bool]
) -> list[str]:
    """The polarity of each mention of one sentence, words [first, stop), in the order given.

    `found` is sorted by the first marked word and shares no words. `free` has an entry per word
    of the text, true where no mention has been yet; the words of `found` become false.
    """
    for one in found:
        # "clear" is a mention and, before "of", also a cue
        for index in () if one.normal else one.match.marked:
            free[index] = False
    cues = default_cues()
    matches = cues.matches(words.words, words.joined, first, stop, free)
    return _Reading(words, first, stop, found, longest_first(matches)).read_polarities()


class _Reading(Sentence):
    """The reading of one sentence."""

    def read_polarities(self) -> list[str]:
        for i in range(self.first, self.stop):
            if i > self.first and self.before[i] != JOINED:
                self._punctuation(i)
            elif self.before[i] == QUERY:
                self._open(UNCERTAIN)
            if self.state == NEGATIVE and self.runs_on(i):
                self.state = ""
                self._new_statement()
            cue = self.cues.get(i)
            if cue is not None:
                self._cue(cue)
            elif self.words[i] == "than" and self.prefers(i):
                self._open(UNCERTAIN)  # "more in keeping with atelectasis than pneumonia"
            elif (word := self.words[i]) == "and" or word == "plus":
                self._and(i)
            elif word == "or" and not self.state:
                self.alternative = bool(self.passed) and i - self.last_word() <= 4
                if (k := self.at.get(i - 1)) is not None and self.polarity[k] == POSITIVE:
                    self.polarity[k] = UNCERTAIN  # "atelectasis or fluid"
            if self.words[i] in VERBS or (self.words[i] in PERCEIVED and i - 1 in self.at):
                self.asserted = True
            if i in self.at:
                self._mention(self.at[i], i)
        self._answer_by_normality()
        return [
            self._normal(k) if one.normal else self.polarity[k] for k, one in enumerate(self.found)
        ]

    # start and end of a scope

    def _open(self, state: str, naming: bool = False) -> None:
        self.state, self.naming, self.specific = state, naming, False

    def _new_statement(self) -> None:
        self.passed, self.asserted, self.alternative = [], False, False

    def _punctuation(self, i: int) -> None:
        """Apply the punctuation before word i."""
        kind = self.before[i]
        if kind == QUERY:
            self._open(UNCERTAIN)
            return
        if kind == COMMA:
            if self.state and not self.list_goes_on(i):
                self.state = ""
            if self.asserted and self.begins_statement(i):
                self._new_statement()
            self.alternative = False
            return
        if kind == COLON:
            self.heading = list(self.passed)
        elif kind == SEMICOLON:
            self.heading = []
        self.state = ""
        self._new_statement()

    def _and(self, i: int) -> None:
        if i + 1 >= self.stop:
            return
        if self.state and not self.list_goes_on(i + 1, after_and=True):
            self.state = ""
        if self.asserted and self.begins_statement(i + 1):
            self._new_statement()

    # effects of cues

    def _set(self, which: Sequence[int], polarity: str) -> None:
        for k in which:
            self.polarity[k] = polarity

    def _cue(self, cue: Match) -> None:
        kind = str(cue.value)
        action = _ACTIONS.get(self._stop_kind(kind, cue) if kind.startswith("stop") else kind)
        if action is not None:
            action(self, cue)

    def _stop_kind(self, kind: str, cue: Match) -> str:
        """The kind of a stop in its position: one that depends on it is "stop" or, without effect,
        ""."""
        if kind == "stop_unless_joined":
            return "" if self.goes_on(cue) else "stop"
        if kind == "stop_behind_finding":
            return "stop" if self.passed else ""
        if kind == "stop_in_front":
            front = self.before[cue.first] != JOINED or self.words[cue.first - 1] == "and"
            return "stop" if front or cue.first == self.first else ""
        return kind

    def _stop(self, cue: Match) -> None:
        self.state = ""
        self._new_statement()
        self.asserted = self.words[cue.first] == "there"

    def _stop_forward(self, cue: Match) -> None:
        self.state = ""

    def _as_before(self, cue: Match) -> None:
        earlier = POSITIVE if self.last is None else self.polarity[self.last]
        self._new_statement()
        self._open("" if earlier == POSITIVE else earlier)

    def _negative_before(self, cue: Match) -> None:
        if self.says_unchanged(cue):
            return
        self._answer_heading(cue, NEGATIVE)
        self._open(NEGATIVE)
        self.specific = self.words[cue.end - 1] == "of"
        self.asserted = True

    def _negative_after(self, cue: Match) -> None:
        if self.of_a_part(cue):
            return
        self._answer_heading(cue, NEGATIVE)
        if self.passed:
            self._set(self.passed, NEGATIVE)
            self.state = ""
        elif not self.heading or self.follows(cue.end):
            self._open(NEGATIVE)
        self.asserted = True

    def _negative_back(self, cue: Match) -> None:
        self._set(self.passed, NEGATIVE)

    def _negative_either(self, cue: Match) -> None:
        if self.passed and not self.follows(cue.end):
            self._set(self.passed, NEGATIVE)
            self.state = ""
        else:
            self._new_statement()
            self._open(NEGATIVE)
        self.asserted = True

    def _uncertain_kind(self, cue: Match) -> None:
        if self.follows(cue.end):
            self._open(UNCERTAIN)

    def _uncertain_before(self, cue: Match) -> None:
        if self.passed and not self.follows(cue.end):
            self._set(self.passed, UNCERTAIN)  # "small effusions are difficult to exclude"
        elif not (self.state == NEGATIVE and self.words[cue.first] == "if"):
            self._open(UNCERTAIN, naming=True)

    def _uncertain_link(self, cue: Match) -> None:
        if self.state != NEGATIVE:
            self._open(UNCERTAIN, naming=True)

    def _uncertain_after(self, cue: Match) -> None:
        if self.passed:
            self._set(self.passed, UNCERTAIN)
            self.state = ""
        else:
            self._open(UNCERTAIN)

    def _uncertain_either(self, cue: Match) -> None:
        self._answer_heading(cue, UNCERTAIN)
        if self.follows(cue.end) or not self.passed:
            self._open(UNCERTAIN)
        elif self.state != NEGATIVE and not self.hedges_a_quality(cue):
            self._set([k for k in self.passed if self.polarity[k] == POSITIVE], UNCERTAIN)

    def _uncertain_between(self, cue: Match) -> None:
        if self.state == NEGATIVE:
            return
        if self.passed and self.polarity[self.passed[-1]] == POSITIVE:
            self._set(self.passed[-1:], UNCERTAIN)
        self._open(UNCERTAIN)

    # mentions

    def _answer_by_normality(self) -> None:
        """Answer a heading by normality: "Cardiomegaly: the heart is normal in size."."""
        colon = next((j for j in range(self.first + 1, self.stop) if self.before[j] == COLON), None)
        if colon is None or "otherwise" in self.words[colon : self.stop]:
            return
        behind = [k for k, one in enumerate(self.found) if one.match.first >= colon]
        if not behind or not all(self.found[k].normal for k in behind):
            return
        if all(self._normal(k) == NEGATIVE for k in behind):
            before = [k for k, one in enumerate(self.found) if one.match.end <= colon]
            self._set([k for k in before if not self.found[k].normal], NEGATIVE)

    def _answer_heading(self, cue: Match, state: str) -> None:
        """Answer a heading: "Pneumothorax: none.", "Effusion: there is no effusion."."""
        if not self.heading or self.passed:
            return
        heading, self.heading = self.heading, []
        begin = next((j for j in range(cue.first, self.first, -1) if self.before[j] == COLON), None)
        if begin is None or cue.first - begin > 3 or self.hedges_a_quality(cue):
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
            self._set([k for k in heading if not self.found[k].normal], state)

    def _mention(self, k: int, i: int) -> None:
        one = self.found[k]
        if self.state == NEGATIVE:
            self.polarity[k] = NEGATIVE
        elif self.state == UNCERTAIN:
            self.polarity[k] = UNCERTAIN
        elif self.alternative and self.passed:
            # "scarring or atelectasis": one of the two
            last = self.passed[-1]
            if self.polarity[last] != NEGATIVE and i - self.last_word() <= 6:
                self._set([last, k], UNCERTAIN)
        self.alternative = False
        if not one.normal:
            self.passed.append(k)
            self.last = k

    def _normal(self, k: int) -> str:
        """The polarity of a statement of normality: negative, unless "not" stands before it."""
        at = self.found[k].match.marked[0]
        denied = any(w in NOT for w in self.words[max(at - 2, self.first) : at])
        return POSITIVE if denied else NEGATIVE


# by kind of cue, as dive/lexicon/cues.yaml names them; a kind that is not here does nothing
_ACTIONS: dict[str, Callable[[_Reading, Match], None]] = {
    "stop": _Reading._stop,
    "stop_forward": _Reading._stop_forward,
    "as_before": _Reading._as_before,
    "negative_before": _Reading._negative_before,
    "negative_after": _Reading._negative_after,
    "negative_back": _Reading._negative_back,
    "negative_either": _Reading._negative_either,
    "uncertain_kind": _Reading._uncertain_kind,
    "uncertain_before": _Reading._uncertain_before,
    "uncertain_link": _Reading._uncertain_link,
    "uncertain_after": _Reading._uncertain_after,
    "uncertain_either": _Reading._uncertain_either,
    "uncertain_between": _Reading._uncertain_between,
}
