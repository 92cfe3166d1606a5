"""Chat templates that print the date or use random choices: the same text at every rendering.

Templates read the clock through `strftime_now(format)`, a function of transformers, and draw
through Jinja's own `random` and `lipsum`. transformers passes plain data to a template, and no
functions, so a date is fixed in the template's text: a macro of the same name stands before it.
"""

import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import date, datetime, time
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from dive.errors import DiveError

_CLOCK = "strftime_now"
_CHANCE = re.compile(r"\b(random|lipsum)\b")
_DIRECTIVES = "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZf"
_FLAGS = ("", "-", "_", "0", "^", "#")


class AssumedDay(str):
    """A default date: an adapter's own takes precedence."""


def reads_clock(source: str) -> bool:
    """Return whether a template's text reads the clock."""
    return _CLOCK in source


def today() -> str:
    """Today's date as templates see it, "2024-07-26"."""
    source = "{{ " + _CLOCK + "('%Y-%m-%d') }}"
    one: Any = [[{"role": "user", "content": ""}]]
    return render_jinja_template(conversations=one, chat_template=source)[0][0]


def as_date(day: Any) -> str:
    """A text or `datetime.date` as "2024-07-26"; DiveError for anything else."""
    if isinstance(day, datetime):
        return day.date().isoformat()
    if isinstance(day, date):
        return day.isoformat()
    try:
        return date.fromisoformat(day).isoformat()
    except (TypeError, ValueError):
        raise DiveError(f"template_date is {day!r}, want a date as 2024-07-26") from None


def at(source: str, day: str) -> str:
    """The template with its clock fixed at midnight of `day`."""
    moment = datetime.combine(date.fromisoformat(day), time())
    shown = {f"%{flag}{letter}": "" for letter in _DIRECTIVES for flag in _FLAGS}
    for directive in shown:
        try:
            shown[directive] = moment.strftime(directive)
        except ValueError:
            shown[directive] = directive  # unknown to this system's C library
    known = ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in shown.items() if k != v)
    # the line break is the macro's own (trim_blocks): the template still begins at a line's start
    return (
        f"{{% macro {_CLOCK}(format) %}}"
        "{% set text = namespace(value=format.replace('%%', '\\x00')) %}"
        f"{{% for directive, shown in {{{known}}}.items() %}}"
        "{% set text.value = text.value.replace(directive, shown) %}{% endfor %}"
        "{{ text.value.replace('\\x00', '%') }}{% endmacro %}\n" + source
    )


def drawing(source: str) -> Any:
    """A context in which the template makes the same random choices every time.

    The state of Python's own generator is restored afterwards.
    """
    return _drawing() if _CHANCE.search(source) else nullcontext()


@contextmanager
def _drawing() -> Iterator[None]:
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)
