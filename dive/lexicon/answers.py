"""The words and marks that answer a heading of a report: "No", "(+)", "cannot exclude", "[x] Yes".

What each pattern finds is taken for an answer by dive/checklist.py, which looks for the heading.
Its named groups say what is answered: `no`, `yes` or `seen`, `maybe` or `doubt`, `empty`.
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
    r"|false|excluded|ruled out|resolved|cleared|gone|removed|-ve|[-–—−]+|0|✗|✘|☐"
)
_YES = r"yes|y|1(?![\d.]|[ \t]*[cm]m)|pos(?:itive|\.)?|\+ve|\++|true|✓|✔|☑|☒"
_MAYBE = (
    r"possib(?:le|ly)|probabl[ey]|likely|unlikely|maybe|perhaps|equivocal|indeterminate|uncertain"
    r"|unclear|questionabl[ey]|suspicious|suspected|doubtful|borderline|query|tbc|inconclusive"
    r"|\?+|\+/-|±|(?:may|might|could) be(?: present)?|not sure|\?\s?(?:yes|no|y|n)"
    r"|(?:cannot|can not|can't|could not|unable to|difficult to|not|hard to)(?: be)?"
    r"(?: (?:entirely|completely|fully|definitely|reliably))? (?:excluded?|rule out|ruled out)"
)
_EMPTY = (
    r"n/?a|not (?:assessed|evaluated|applicable|available|commented(?: on)?|done|examined|stated"
    r"|mentioned|reported|recorded|addressed)|null|nan|unknown|blank"
    r"|see (?:above|below|report|comments?|text)|_{2,}|\*{2,}|x{3,}"
)
_TAIL = (
    r"(?: (?:at (?:this time|present)|today|currently|now|on (?:this|the current|today's)"
    r" \w+|bilaterally|on either side|either side|b/l|of (?:note|significance)))?"
)
_END = (
    r"(?=\s*(?:$|[\n\t,;|()\[\]}!]|\.(?!\d)| / | {2,}|\s[-–—] |[-–—]\n| but\b| and\b"
    r"|\s(?:and )?[^\n,;.:?=|()]{2,40}[:?=](?!\d)))"
)
_OPEN = r"[\"']?(?:\*\*)?(?:[\[({][ \t]*)?"
_SHUT = r"(?:[ \t]*[\])}])?(?:\*\*)?[\"']?"
ANSWER = (
    rf"(?:(?:(?P<maybe>{_MAYBE})(?: {_SIZE}){{0,3}}|(?P<empty>{_EMPTY})|(?P<no>(?:{_NO}){_TAIL})"
    rf"|(?P<seen>{_SEEN}|in situ|in place|{_SIZE}(?: {_SIZE}){{0,3}})){_SHUT}{_END}"
    r"|(?P<doubt>\?(?=[ \t]?[a-z]))"
    rf"|(?P<yes>{_YES})(?![a-z]){_SHUT})(?![ \t)\]]*[:=])"
)
_FORM = r"[ \t]*[\[(]?\b(?:yes|y)[ \t]?(?:/|or)[ \t]?(?:no|n)\b[\])]?"  # "Effusion (Y/N): N"
_JOIN = (
    r"(?:[\"']?[ \t]*(?:[:=]|-+>|=+>|→|⇒|\.{3,}|…+|_{2,}|\|)(?:[ \t:=|]*|[ \t]*\n[ \t]*)"
    r"|(?<=\w)(?:\?+[ \t]*|[ \t]\?+[ \t]+)(?:\n[ \t]*)?(?:a(?:ns(?:wer)?)?[:.][ \t]*)?"
    rf"|[,;](?=(?:{_NO}|{_YES}|{_MAYBE})[ \t\r]*(?:\n|$))"
    r"|[ \t]+[-–—−]+[ \t]*|[-–—−]+[ \t]+|[-–—](?=(?:no|yes|neg|pos|nil|none|absent|present)\b)"
    r"|\t[ \t]*|[ \t]{2,})"
)
JOINED = re.compile(
    rf"(?:{_FORM}[ \t:=|]*|{_JOIN}|[ \t]*(?=[\[({{])){_OPEN}{ANSWER}", re.IGNORECASE
)
BARE = re.compile(
    rf"[ \t](?P<doubt>\?)(?={_SIZE}\b)"
    r"|[ \t](?:(?P<no>no(?: evidence| definite)?|none|nil(?: significant)?|neg|negative|absent|abs"
    r"|n|-|-ve|0)|(?P<yes>yes|y|present|pos|positive|\+|\+ve)"
    rf"|(?P<maybe>\?+|\+/-|±|uncertain|equivocal|unclear|doubtful)){_END}",
    re.IGNORECASE,
)
ASKED = re.compile(
    rf"(?<=\w)[ \t]?\?+(?=[ \t]*(?:$|[\n;,)\]]|[ \t]))(?!\s*{_SIZE}\b)", re.IGNORECASE
)
# a form's empty field: nothing comes behind it, or the next heading does
LEFT_OPEN = re.compile(r"[ \t]*:[ \t]*(?=$|\n[ \t]*(?:$|\n|[^\n:]{2,60}:))")

_BOX = r"(?P<{0}>[\[(]\s?[xX✓✔*+−-]?\s?[\])]|[☐☑☒✓✔✗✘])"
CHOICE = re.compile(
    rf"[ \t]*[:=?|]?[ \t]*(?P<a>{_BOX.format('m')}[ \t]*(?P<w>yes|no|y|n|present|absent"
    r"|possible|pos|neg|positive|negative)\b)"
    rf"[ \t,/|]*{_BOX.format('m2')}[ \t]*(?P<w2>yes|no|y|n|present|absent|possible|pos|neg"
    r"|positive|negative)\b",
    re.IGNORECASE,
)
_SIDE = r"(?:on the )?(?:right|left|rt|lt|r|l|bilateral(?:ly)?)(?: side)?"
SIDED = re.compile(
    rf"[ \t]*[:=-][ \t]*(?:{_SIDE}[ \t]*[:=–-]?[ \t]*[\[(]?(?:{_NO}|{_YES}|{_MAYBE})[\])]?"
    rf"[ \t,;/]*(?:and )?){{2}}{_END}",
    re.IGNORECASE,
)
PART_OF_SIDED = re.compile(
    rf"{_SIDE}[ \t]*[:=–-]?[ \t]*[\[(]?(?:(?P<maybe>{_MAYBE})|(?P<no>{_NO})|(?P<yes>{_YES}))"
    r"(?![A-Za-z])",
    re.IGNORECASE,
)
# a box's sign is group 1, a sign alone group 2, a word in brackets group 3
TICKED = re.compile(
    r"[\[(]\s?([xX✓✔*+−-]|)\s?[\])]|([☐☑☒✓✔✗✘])|[\[(]\s?(yes|no|y|n|\?|[+-]ve|pos|positive|neg"
    r"|negative|present|absent|none|possible|possibly|probable|maybe|equivocal)\s?[\])]",
    re.IGNORECASE,
)
SIGNED = re.compile(r"[ \t]*([+-])[ \t]*(?=[a-z])", re.IGNORECASE)
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
