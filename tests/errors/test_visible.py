r"""What a terminal would obey is shown, and brackets are brackets, in all that is printed."""

import io
import json
import logging
import re
import subprocess
import sys
import warnings

import pytest
from rich.progress import Progress
from rich.text import Text
from tiny import draw_film
from typer.testing import CliRunner

from dive import cli
from dive.adapter.hub import _one_line
from dive.cli.inspect import _styled
from dive.cli.tables import add_row, stdout, table
from dive.errors import DiveError
from dive.errors.console import PlainConsole, column, styled
from dive.errors.visible import visible, visible_json, visible_offsets

ESCAPES = {
    "ESC, a colour": "\x1b[31mred",
    "OSC 0, a window's title": "\x1b]0;owned\x07",
    "OSC 8, a link": "\x1b]8;;http://a.example\x1b\\text\x1b]8;;\x1b\\",
    "OSC 52, the clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "CSI of C1": "\x9b2J",
    "OSC of C1": "\x9d0;owned\x9c",
    "DCS": "\x90q\x9c",
    "a bell": "a\x07b",
    "backspaces": "bad\b\b\bgood",
    "a return": "error: bad\rall is well",
    "form feeds": "a\x0b\x0cb",
    "NUL": "a\x00b",
    "DEL": "a\x7fb",
    "right to left": "\u202egnp.exe",
    "an isolate": "\u2066a\u2069",
    "other ends of lines": "a\u2028b\u2029c\x85d",
    "half a pair": "a\ud800b",
}
MARKUP = ["[bold]", "[/]", "[/bold]", "[link=http://a.example]x[/link]", "\\[bold]x", "a\\",
          "[red]\\[/red]", ":smile:", "[[x]]", "[@click=f]"]  # fmt: skip
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]"
)


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_that_a_terminal_obeys_is_left(name):
    text = ESCAPES[name]
    seen = visible(text)
    assert not OBEYED.search(seen) and visible(seen) == seen
    places = visible_offsets(text)
    assert places[-1] == len(seen)
    kept = [i for i, letter in enumerate(text) if not OBEYED.match(letter)]
    assert [seen[places[i]] for i in kept] == [text[i] for i in kept]
    line = visible_json({text: [text]})
    assert not OBEYED.search(line) and json.loads(line) == {text: [text]}
    assert not OBEYED.search(str(DiveError(f"study {text}: bad")))
    assert not OBEYED.search(_one_line(text))


def test_texts_of_people_stay_as_they_are():
    text = "Größe 3 × 4 cm\n\tµ \u00a0 ≥ 日本 नमस्ते 👩\u200d⚕️ می\u200cخواهم"
    assert visible(text) == text
    assert visible("\x1b[2J") == r"\x1b[2J" and visible("\u202e\x9b") == r"\u202e\x9b"


def printed(show, terminal):
    file = io.StringIO()
    console = PlainConsole(
        file=file, width=200, force_terminal=terminal, color_system=None if terminal else "auto"
    )
    show(console)
    return file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("text", [*ESCAPES.values(), *MARKUP], ids=ascii)
def test_a_console_prints_every_text_as_it_is(text, terminal):
    def in_table(console):
        made = table(text)
        add_row(made, text)
        console.print(made)

    def in_raw_table(console):
        from rich.table import Table

        made = Table(text)
        made.add_row(text)
        console.print(made)

    ways = [
        lambda console: console.print(text, soft_wrap=True),
        lambda console: console.print(styled(text, "bold")),
        lambda console: console.print(Text(text)),
        lambda console: console.out(text),
        lambda console: console.rule(text),
        in_table,
        in_raw_table,
    ]
    for number, show in enumerate(ways):
        found = printed(show, terminal)
        assert not OBEYED.search(found), number
        if number != 2:  # a Text that somebody else made has lost bells and returns already
            assert visible(text) in found, number


@pytest.mark.parametrize("text", [*ESCAPES.values(), *MARKUP], ids=ascii)
def test_words_beside_a_bar_are_no_markup(text):
    def show(console):
        with Progress(column("{task.description}"), console=console) as bar:
            bar.add_task(text)

    found = printed(show, False)
    assert not OBEYED.search(found) and visible(text) in found


def test_marks_stay_where_they_were():
    text = "a \x1b[31m mass"
    start = text.index("mass")
    made = _styled(text, [(start, start + 4)], [])
    assert [made.plain[span.start : span.end] for span in made.spans] == ["mass"]


@pytest.mark.parametrize("text", [*ESCAPES.values(), *MARKUP], ids=ascii)
def test_errors_warnings_and_logs_show(text, capsys, monkeypatch):
    def fail():
        logging.getLogger("dive.some").addHandler(handler)
        logging.getLogger("dive.some").warning("logged %s", text)
        cli._warn(UserWarning(f"warned {text}"))
        raise DiveError(f"failed {text}")

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(cli._Plainly("%(message)s"))
    # pytest keeps what is logged for its report, and half a pair of surrogates cannot be sent there
    monkeypatch.setattr(logging.getLogger("dive.some"), "propagate", False)
    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    try:
        with pytest.raises(SystemExit):
            cli.main()
    finally:
        logging.getLogger("dive.some").removeHandler(handler)
    said = capsys.readouterr().err
    assert not OBEYED.search(said)
    for start in ("logged ", "warning: warned ", "error: failed "):
        assert start + visible(text) in said


def test_a_bug_shows_too(capsys):
    try:
        raise RuntimeError("a bug \x1b]0;x\x07")
    except RuntimeError as error:
        cli._crash(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert r"RuntimeError: a bug \x1b]0;x\x07" in said and "Traceback" in said


def test_a_usage_error_shows_its_word():
    for words in (["--\x1b[31m"], ["distill", "--\x1b]0;x\x07", "1"], ["\x9b2J"],
                  ["inspect", "\x1bc"], ["generate", "--batch-size", "\x1b[2J", "--out", "o"],
                  ["generate", "--out", "\x1b[2J\ud800" + "a" * 5000]):  # fmt: skip
        result = CliRunner().invoke(cli.app, words, color=True)
        assert result.exit_code == 2
        assert not OBEYED.search(result.output), words


def test_commands_show_ids_and_paths(tmp_path, capsys, monkeypatch):
    """As a person would meet them: paths, ids and reports of somebody else."""
    evil = "\x1b[31m[/]\\[bold]\u202e"
    folder = tmp_path / f"a{evil.replace('/', '')}"
    folder.mkdir()
    rows = [{"id": f"x{evil}", "report": f"No effusion. {evil}", "finish_reason": "eos"},
            {"id": "odd", "report": "Clear."}]  # fmt: skip
    truth = [
        {"id": f"x{evil}", "findings": f"No effusion. {evil}"},
        {"id": "lost\x9b", "findings": "C."},
    ]
    predictions, references = folder / "p.jsonl", folder / "r.jsonl"
    for path, lines in ((predictions, rows), (references, truth)):
        path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    report = folder / "report.txt"
    report.write_text(f"Small left effusion. {evil}\x07\x9b No mass.\n")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    scores = ["evaluate", "--predictions", str(predictions), "--references", str(references)]
    said = ""
    for words in (scores, [*scores, "--allow-missing"], [*scores, "--allow-missing", "--json"],
                  ["inspect", "tokens", str(report)], ["inspect", "tokens", str(report), "--json"],
                  ["inspect", "tokens", str(folder / "none.txt")],
                  ["generate", "--backbone", "b", "--studies", str(folder / "n.jsonl"), "--out",
                   str(tmp_path / "o")]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["dive", *words])
        with pytest.raises(SystemExit):
            cli.main()
        found = capsys.readouterr()
        said += found.out + found.err
    assert not OBEYED.search(said)
    assert r"No effusion" not in said and r"Small left effusion" in said
    assert r"\x1b[31m[/]\[bold]\u202e\x07\x9b No mass." in said and r"a\x1b[31m[]\[bold]" in said
    assert r"\x07\x9b" in said and r"lost\x9b" in said


def test_a_look_at_a_dataset_shows_too(tmp_path):
    folder = tmp_path / "a\x1b[31m"
    folder.mkdir()
    draw_film(1).save(folder / "a.png")
    row = {"id": "x\x9b", "images": ["a.png"], "findings": "Clear."}
    (folder / "s.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    said = ""
    for words in ([str(folder / "s.jsonl")], [str(folder / "s.jsonl"), "--on-error", "skip"],
                  ["x", "--\x1b[31m"], [str(folder / "none.jsonl")]):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "dive", "inspect", "dataset", *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        said += done.stdout + done.stderr
    assert not OBEYED.search(said) and r"\x1b[31m" in said and r"x\x9b" in said


def test_what_goes_into_markdown_is_a_cell():
    assert _one_line("a | b\nc") == r"a \| b c"
    assert _one_line("a\\|b") == r"a\\\|b"
    assert _one_line("[x](javascript:f) `b` <script>") == r"\[x\](javascript:f) \`b\` &lt;script>"


def test_stdout_is_such_a_console():
    assert isinstance(stdout(), PlainConsole)
