"""Markup that an export leaves in a report's text: written-out line breaks, HTML, HL7's escapes.

As many blanks replace it, ended by a line break or a tab where it stands for one, so that every
other character keeps its position.
"""

import html
import re
from collections.abc import Callable

_BLOCK = r"br|p|div|li|ul|ol|tr|table|tbody|thead|h[1-6]|section|pre|body|html|head|title|hr"
_BREAKS = re.compile(
    rf"</?(?:{_BLOCK})(?:\s[^<>]{{0,200}})?/?>"  # HTML that ends a line
    r"|(?:\\{1,2}r)?\\{1,2}n|\\{1,2}r(?![a-z])"  # "\n", written out
    r"|\\\.(?:br|sp|in)[+-]?\d{0,3}\\|\\X0[AD]\\(?:\\X0[AD]\\)?"  # HL7
    r"|_x000[dD]_|(?<=[\w.)])~(?=[A-Za-z])|[\u2028\u2029\x0b\x0c\x85]",
    re.IGNORECASE,
)
# <finding name="Pneumothorax">absent</finding>
_NAMED = re.compile(
    r"<(?P<tag>[a-z][\w.-]{0,30})(?:\s[^<>]{0,200}?)?\s(?:name|label|title|question|finding)\s*=\s*"
    r"[\"'](?P<name>[^<>\"']{1,80})[\"'][^<>]{0,200}>(?P<text>[^<>]{0,2000})</(?P=tag)\s*>",
    re.IGNORECASE,
)
_TABS = re.compile(r"</?t[dh](?:\s[^<>]{0,200})?/?>|\\{1,2}t(?![a-z])", re.IGNORECASE)
_TAGS = re.compile(r"</?[a-z][a-z0-9]{0,15}(?:\s[^<>]{0,200})?/?>|<!--.{0,200}?-->", re.IGNORECASE)
_ENTITIES = re.compile(r"&(?:#\d{1,6}|#x[0-9a-f]{1,5}|[a-z]{2,8}\d?);", re.IGNORECASE)
_SIGNS = ("\\", "~", "_x000", "\x0c")  # signs of markup that may be written in plain letters
_SPACES = re.compile(r"[\xa0\u2000-\u200b\u202f\u3000\ufeff]")


def without_markup(text: str) -> str:
    """The text with blanks for its markup, and every other character in its position."""
    if "\r" in text:
        text = text.replace("\r\n", " \n").replace("\r", "\n")
    tagged = "<" in text
    if tagged:
        text = _NAMED.sub(_named, text)
    if tagged or not text.isascii() or any(sign in text for sign in _SIGNS):
        text = _BREAKS.sub(_blank("\n"), text)
        text = _TABS.sub(_blank("\t"), text)
        text = _SPACES.sub(" ", text).replace("∅", "Ø")
    if tagged:
        text = _TAGS.sub(_blank(" "), text)
    if "&" in text:
        text = _ENTITIES.sub(_entity, text)
    return text


def _blank(last: str) -> Callable[[re.Match[str]], str]:
    return lambda match: " " * (len(match.group()) - 1) + last


def _named(match: re.Match[str]) -> str:
    at = {name: match.start(name) - match.start() for name in ("name", "text")}
    ends = at["name"] + len(match["name"]), at["text"] + len(match["text"])
    gap = ":".ljust(at["text"] - ends[0])
    tail = "\n".rjust(len(match.group()) - ends[1])
    return " " * at["name"] + match["name"] + gap + match["text"] + tail


def _entity(match: re.Match[str]) -> str:
    meant = html.unescape(match.group())
    if len(meant) != 1 or meant == match.group():
        return match.group()
    return (meant if not meant.isspace() else " ").ljust(len(match.group()))
