"""Every word of tools/words.py has one meaning in the names of the code."""

from collections import Counter

import pytest

from tools import words


def test_no_word_has_a_second_meaning() -> None:
    found = words.count(words.names_now())
    assert {word.word: dict(uses.elsewhere) for word, uses in found.items() if uses.elsewhere} == {}
    assert {word.word for word, uses in found.items() if word.meaning and not uses.at_home} == set()


@pytest.mark.parametrize(
    "name, word", [("ImageRow", "row"), ("live_rows", "row"), ("toldAll", "told")]
)
def test_parts_of_names_count(name: str, word: str) -> None:
    found = words.count([("dive/data/somewhere.py", name)])
    (used,) = [word.word for word, uses in found.items() if uses.elsewhere]
    assert used == word


@pytest.mark.parametrize("name", ["throw", "replace", "rowing", "add_row", "report", "hanging"])
def test_what_only_looks_like_a_word(name: str) -> None:
    assert not any(uses.elsewhere for uses in words.count([("dive/data/x.py", name)]).values())


def test_homes() -> None:
    found = words.count([("dive/decode/batch.py", "slots"), ("dive/data/batch.py", "slots")])
    (slot,) = [uses for word, uses in found.items() if word.word == "slot"]
    assert slot == words.Count(1, Counter({"dive/data/batch.py": 1}))


def test_comments_and_strings_do_not_count(tmp_path) -> None:
    for folder in words.LOOKED_AT:
        (tmp_path / folder).mkdir()
    (tmp_path / "dive/a.py").write_text('"""Told."""\nx = "told"  # told\ntold = 1\n')
    (tmp_path / "csrc/a.cpp").write_text('// told\nauto y = "told"; /* told */ int told_all;\n')
    assert [name for _, name in words.names_now(tmp_path) if "told" in name] == ["told", "told_all"]
