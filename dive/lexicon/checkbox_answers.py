"""Patterns of answers to a heading of a report: "No", "(+)", "cannot exclude", "[x] Yes".

checklist.py looks for the heading of each match. The named groups are the answers: `no`, `yes` or
`sure`, `maybe` or `doubt`, `empty`, with a prefix where a form has them twice.
"""

import re

_SEEN = (
    r"(?:seen|present|identified|evident|detected|visuali[sz]ed|demonstrated|noted|found|visible"
    r"|appreciated|apparent|observed|recogni[sz]ed|shown|discernible)"
)
_SIZE = (
    r"(?:tiny|trace|minimal(?:ly)?|mild(?:ly)?|small|moderate(?:ly)?|large|massive|severe(?:ly)?"
    r"|slight(?:ly)?|minor|marked|extensive|right|left|rt|lt|bilateral(?:ly)?|bibasal|bibasilar"
    r"|unchanged|stable|increas(?:ed|ing)|decreas(?:ed|ing)|improv(?:ed|ing)|worse(?:ned|ning)?)"
)
_SURE = r"(?: (?:definite|obvious|significant|convincing|acute|overt|visible|large|focal))?"
_NO = (
    rf"(?:no|none|nil)(?: longer| more)?{_SURE}(?: {_SEEN})?|n|neg(?:ative|\.)?|absent|abs"
    rf"|not (?:{_SEEN}|there|suspected)|no evidence(?: of (?:same|this|it|any))?|nope|nothing"
    r"|false|excluded|ruled out|resolved|cleared|gone|removed|-ve|[-–—−]+"
    r"|0(?:\.0+)?(?:[ \t]?(?:%|[cm]m))?|✗|✘|☐"
)
_YES = r"yes|y|1(?:\.0+)?(?![\d.]|[ \t]*[cm]m)|pos(?:itive|\.)?|\+ve|\++|true|✓|✔|☑|☒"
_MAYBE = (
    r"possib(?:le|ly)|probabl[ey]|likely|unlikely|maybe|perhaps|equivocal|indeterminate|uncertain"
    r"|unclear|questionabl[ey]|suspicious|suspected|doubtful|borderline|query|tbc|inconclusive"
    r"|\?+|\+/-|±|-1(?:\.0+)?|(?:may|might|could) be(?: present)?|not sure|\?\s?(?:yes|no|y|n)"
    r"|(?:cannot|can not|can't|could not|unable to|difficult to|not|hard to)(?: be)?"
    r"(?: (?:entirely|completely|fully|definitely|reliably))? (?:excluded?|rule out|ruled out)"
)
_EMPTY = (
    r"n/?a|not (?:assessed|evaluated|applicable|available|commented(?: on)?|done|examined|stated"
    r"|mentioned|reported|recorded|addressed)|null|nan|unknown|blank"
    r"|see (?:above|below|report|comments?|text)|_{2,}|\*{3,}|x{3,}"
)
_TAIL = (
    r"(?: (?:at (?:this time|present)|today|currently|now|on (?:this|the current|today's)"
    r" \w+|bilaterally|on either side|either side|b/l|of (?:note|significance)))?"
)
_END = (
    r"(?=\s*(?:$|[\n\t,;|()\[\]}!]|\.(?!\s?\d)| / | {2,}|\s[-–—] |[-–—]\n| but\b| and\b"
    r"|\s(?:and )?[^\n,;.:?=|()]{2,40}[:?=](?!\d)))"
)
# nothing at all may follow a sign, which might also be a dash or the bullet of a list
_ALL = r"(?=\s*(?:$|[\n\t,;|)\]}]|\.(?!\s?\d)| {2,}| / ))"
_OPEN, _QUOTE = r"[\[({][ \t]*", r"(?:\*\*|[\"'])?"


def _given(prefix: str) -> str:
    return (
        rf"(?:(?P<{prefix}maybe>{_MAYBE})(?: {_SIZE}){{0,3}}|(?P<{prefix}empty>{_EMPTY})"
        rf"|(?P<{prefix}no>(?:{_NO}){_TAIL})"
        rf"|(?P<{prefix}yes>{_SEEN}|in situ|in place|{_SIZE}(?: {_SIZE}){{0,3}}))"
    )


ANSWER = (
    rf"(?:{_QUOTE}{_OPEN}{_given('in_')}[ \t]*[\])}}]{_QUOTE}|{_QUOTE}{_given('')}{_QUOTE}{_END}"
    rf"|(?:{_OPEN})?(?P<doubt>\?(?=[ \t]?[a-z]))"
    rf"|{_QUOTE}(?:{_OPEN})?(?P<sure>{_YES})(?![a-z])(?:[ \t]*[\])}}])?{_QUOTE})(?![ \t)\]]*[:=])"
)
_FORM = (
    r"[ \t]*[:=]?[ \t]*[\[(]?\b(?:yes|y)[ \t]?(?:/|or)[ \t]?(?:no|n)\b[\])]?"  # "Effusion (Y/N)"
)
_WORD = r"(?:no|yes|n|y|none|nil|absent|present|neg(?:ative)?|pos(?:itive)?)"
_JOIN = (
    r"(?:[\"']?[ \t]*(?:[:=]|-+>|=+>|→|⇒|\.{3,}|…+|_{2,}|\|)(?:[ \t:=|]*|[ \t]*\n[ \t]*)"
    r"|(?<=\w)(?:\?+[ \t]*|[ \t]\?+[ \t]+)(?:\n[ \t]*)?(?:a(?:ns(?:wer)?)?[:.][ \t]*)?"
    rf"|[\"']?[,;](?=[\"']?(?:{_NO}|{_YES}|{_MAYBE})[\"']?[ \t\r]*(?:\n|$))"
    rf"|[ \t]*\n[ \t]*(?={_WORD}[ \t.]*(?:\n|$))"
    r"|[ \t]+[-–—−]+[ \t]*|[-–—−]+[ \t]+|[-–—](?=(?:no|yes|neg|pos|nil|none|absent|present)\b)"
    r"|\t[ \t]*|[ \t]{2,})"
)
JOINED = re.compile(rf"(?:{_FORM}\??[ \t:=|]*|{_JOIN}|[ \t]*(?=[\[({{])){ANSWER}", re.IGNORECASE)
# the form with nothing after it
UNFILLED = re.compile(rf"{_FORM}[ \t]*[:=]?(?=[ \t]*(?:$|[\n;,|]))", re.IGNORECASE)
BARE = re.compile(
    rf"(?<=[\w)])[ \t](?:(?P<doubt>\?)(?={_SIZE}\b)"
    r"|(?P<no>no(?: evidence| definite)?|none|nil(?: significant)?|neg|negative|absent|abs|-ve)"
    rf"{_END}|(?P<yes>yes|present|pos|positive|\+ve){_END}"
    rf"|(?P<maybe>\+/-|±|uncertain|equivocal|unclear|doubtful){_END}"
    rf"|(?:(?P<sign_no>n|-|0)|(?P<sign_yes>y|\+)|(?P<sign_maybe>\?+)){_ALL})",
    re.IGNORECASE,
)
ASKED = re.compile(
    r"(?<=\w)(?:\?+(?=[ \t]*(?:$|[\n;,)\]]|[ \t]))|[ \t]\?+(?=[ \t]*(?:$|[\n;,)\]])))"
    rf"(?!\s*{_SIZE}\b)",
    re.IGNORECASE,
)
# a form's empty field: nothing follows, or the next heading
LEFT_OPEN = re.compile(r"[ \t]*:[ \t]*(?=$|\n[ \t]*(?:$|\n|[^\n:]{2,60}:))")

_BOX = r"(?P<{0}>[\[(]\s?[xX✓✔*+−-]?\s?[\])]|[☐☑☒✓✔✗✘])"
_CHOSEN = (
    r"(?<![a-z])(?P<{0}>yes|no|y|n|present|absent|possible|pos|neg|positive|negative)\b[ \t]*[\])]?"
)
# "[ ] Yes [x] No", and "Yes [ ] No [x]"
CHOICE = re.compile(
    rf"[ \t]*[:=?|]?[ \t]*(?:{_BOX.format('m')}[ \t]*{_CHOSEN.format('w')}"
    rf"[ \t,/|]*{_BOX.format('m2')}[ \t]*{_CHOSEN.format('w2')}"
    rf"|{_CHOSEN.format('v')}[ \t]*{_BOX.format('n')}[ \t,/|]*{_CHOSEN.format('v2')}[ \t]*"
    rf"{_BOX.format('n2')})",
    re.IGNORECASE,
)
_MUCH = r"(?:tiny|trace|minimal|mild|small|moderate|large|massive|severe)"
_SIDE = r"(?:on (?:the )?)?(?:right|left|rt|lt|r|l|bilateral(?:ly)?)(?: side)?"
_APART = r"(?:[ \t]*[,;/][ \t]*|\.?[ \t]+|[ \t,;.]*\n[ \t]*(?:[-*•][ \t]*)?)(?:and )?"
_ONE_SIDE = (
    rf"(?:{_SIDE}(?: is| are)?[ \t]*[:=–-]?[ \t]*[\[(]?(?:{_NO}|{_YES}|{_MAYBE}|{_MUCH})[\])]?"
    rf"|(?:{_NO}|{_MUCH}) {_SIDE})"
)
SIDED = re.compile(
    r"(?:[ \t]*[:=-][ \t]*(?:\n[ \t]*(?:[-*•][ \t]*)?)?|,[ \t]+)"
    rf"{_ONE_SIDE}{_APART}{_ONE_SIDE}{_END}",
    re.IGNORECASE,
)
PART_OF_SIDED = re.compile(
    rf"(?<![a-z0-9])(?:(?P<maybe>{_MAYBE})|(?P<no>{_NO})|(?P<yes>{_YES}|{_MUCH}))(?![a-z])",
    re.IGNORECASE,
)
# a box's sign is group 1, a sign alone group 2, a word in brackets group 3
TICKED = re.compile(
    r"[\[(]\s?([xX✓✔*+−-]|)\s?[\])]|([☐☑☒✓✔✗✘])|[\[(]\s?(yes|no|y|n|\?|[+-]ve|pos|positive|neg"
    r"|negative|present|absent|none|possible|possibly|probable|maybe|equivocal)\s?[\])]",
    re.IGNORECASE,
)
# "+ effusion" at a line's start or behind a comma, "-PTX +edema" anywhere
SIGNED = re.compile(
    r"(?:^[ \t]*|[,;][ \t]+)([+-])[ \t]*(?=[a-z])|(?<=[ \t])([+-])(?=[a-z])",
    re.IGNORECASE | re.MULTILINE,
)
TICK_ENDS = re.compile(r"[;|\t,]|[.](?=\s|$)| {3,}")
LISTED = re.compile(
    r"(?:^|(?<=[\n.;]))[ \t]*(?:(?P<no>(?:pertinent )?neg(?:ative)?s?(?: findings?)?(?: for)?"
    r"|absent|no|none|nil|-ve"
    rf"|not (?:{_SEEN})|none of(?: the following)?|no evidence of(?: the following)?|excluded"
    r"|ruled out|without|denies)"
    r"|(?P<maybe>possible|probable|equivocal|questionable|uncertain|suspected|likely))"
    r"(?:[ \t]*(?::|=|-+>|→)|[ \t]+[-–—])[ \t]*(?=\w)",
    re.IGNORECASE,
)
