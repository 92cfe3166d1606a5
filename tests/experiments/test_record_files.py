"""Records are checked as they are read; a page holds what they give."""

import pytest

from dive.errors import DiveError
from experiments import demo_records
from experiments.pages import fill, items, marked, unmarked
from experiments.record_files import check_names, check_unique, read

LINE = '{"part": "main", "hospital": 1, "seed": 0, "method": "DIVE"}\n'


def test_records_have_their_line(tmp_path):
    path = tmp_path / "study.jsonl"
    assert read(path) == []
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert read(path) == [("study.jsonl:1", {"a": 1}), ("study.jsonl:2", {"b": 2})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"b": ', r"study\.jsonl:2: the last line is torn"),
        ('{"a": 1}\n{"b": 2}', r"study\.jsonl:2: the last line is torn"),
        ('{"a": \n{"b": 2}\n', r"study\.jsonl:1: the line is no JSON"),
        ("\n", r"study\.jsonl:1: the line is no JSON"),
        (b"\xff\n", r"study\.jsonl:1: the line is no JSON"),
        ("[1]\n", r"study\.jsonl:1: the record is a list, want an object"),
    ],
)
def test_a_line_that_is_no_record(tmp_path, text, message):
    path = tmp_path / "study.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DiveError, match=message):
        read(path)


def test_names_and_keys():
    check_names("f:1", {"arm": "U"}, {"arm": ("U", "P")})
    with pytest.raises(DiveError, match="f:1: arm is 'Q', want one of U, P"):
        check_names("f:1", {"arm": "Q"}, {"arm": ("U", "P")})
    with pytest.raises(DiveError, match="f:1: arm is \\['U'\\], want one of U, P"):
        check_names("f:1", {"arm": ["U"]}, {"arm": ("U", "P")})
    with pytest.raises(DiveError, match="f:1: seed is False, want one of 0"):
        check_names("f:1", {"seed": False}, {"seed": (0,)})
    with pytest.raises(DiveError, match="f:1: the record has no 'arm'"):
        check_names("f:1", {}, {"arm": ("U",)})
    check_unique([("f:1", {"a": 1}), ("f:2", {"a": 2})], ("a",))
    with pytest.raises(DiveError, match="f:3: a 1 is a second record of f:1, want one"):
        check_unique([("f:1", {"a": 1}), ("f:2", {"a": 2}), ("f:3", {"a": 1, "b": 0})], ("a",))


def test_two_records_of_one_run_of_the_demo_study(tmp_path):
    path = tmp_path / "demo-study.jsonl"
    path.write_text(LINE + LINE.replace("DIVE", "LIVE"))
    assert [one["method"] for one in demo_records.load(path)] == ["DIVE", "LIVE"]
    path.write_text(LINE + LINE)
    with pytest.raises(DiveError, match="demo-study.jsonl:2: part main, hospital 1"):
        demo_records.load(path)


def test_a_page_holds_what_is_made():
    page = "a\n<!-- experiment: one, x -->\nold\n<!-- end -->\nb\n"
    filled = fill(page, {"one, x": lambda: "new\ntext"})
    assert filled == "a\n<!-- experiment: one, x -->\nnew\ntext\n<!-- end -->\nb\n"
    assert fill(filled, {"one, x": lambda: "new\ntext"}) == filled
    assert marked(filled) == ["<!-- experiment: one, x -->\nnew\ntext\n<!-- end -->"]
    assert unmarked(filled) == "a\n\nb\n"
    # a backslash is text
    assert "\\1" in fill(page, {"one, x": lambda: "\\1"})
    with pytest.raises(DiveError, match="the page has no"):
        fill("nothing", {})
    with pytest.raises(DiveError, match="the page asks for 'one, x', want one of two, three"):
        fill(page, {"two": str, "three": str})


def test_items_are_wrapped_as_pages_are():
    made = items(["word " * 30 + "state-conditioned", "b"]).splitlines()
    assert all(len(line) <= 104 for line in made)
    assert [line[:2] for line in made] == ["- ", "  ", "- "]
