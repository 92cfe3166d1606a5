"""What the commands print, in narrow terminals, pipes and ASCII: folded or escaped, never cut."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from dive.bench.results import Record
from dive.bench.table import _tables as bench_tables
from dive.bench.timing import Interval
from dive.cli import options, tables
from dive.cli.evaluate_tables import print_scores
from dive.errors import DiveError, checks

PATH = "/root/.cache/radgraph/VERSION/radgraph-xl/[bold]/a file"
WORDS = ["metric", "RadGraph weights", "StanfordAIMI/RRG_scorers", "tokenizer_config.json"]


def told(width, say):
    stream = io.StringIO()
    say(Console(file=stream, force_terminal=True, width=width, color_system=None))
    return stream.getvalue()


def letters(text):
    return sorted("".join(text.split()))


@pytest.mark.parametrize("width", [20, 40, 80, 500])
def test_a_table_loses_no_letter(width):
    table = tables.table("metric", "where")
    tables.add_row(table, WORDS[1], PATH)
    tables.add_row(table, WORDS[2], WORDS[3])
    shown = told(width, lambda to: to.print(table))
    assert letters(shown) == letters("".join(["metric", "where", *WORDS[1:], PATH]))
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("width", [40, 80])
def test_the_table_of_scores_loses_no_letter(width):
    found = {
        "variants": {"findings_macro_f1": "lexicon of dive, macro over 14 findings"},
        "findings_macro_f1": 0.5,
        "intervals": {"findings_macro_f1": [0.25, 0.75]},
        "bootstrap": {
            "confidence": 0.995,
            "samples": 9,
            "unit": "report",
            "units": 1,
            "patients_unknown": 1,
        },
        "scored": 1,
        "reports": 1,
        "empty_predictions": 0,
        "empty_references": 0,
    }
    shown, whole = (
        told(width, lambda to: print_scores(found, {"[a]/p.jsonl": 2}, {}, to))
        for width in (width, 500)
    )
    # in a narrow terminal the variant stands below, beside the name of its metric once more
    assert not Counter(letters(whole)) - Counter(letters(shown)) and "0.2500 to 0.7500" in whole
    assert "99.5% interval" in whole  # and not 100%
    assert max(map(len, shown.splitlines())) <= width
    assert "2 without a prediction ([a]/p.jsonl)" in whole


def test_p_values_of_several_metrics_are_said_to_be_uncorrected():
    names = ["bleu4", "rougeL", "finding_f1"]
    one = {"difference": 0.1, "interval": [0.0, 0.2], "p": 0.04}
    found = {
        "variants": dict.fromkeys(names, "a variant"),
        **dict.fromkeys(names, 0.5),
        "intervals": {},
        "baseline": dict.fromkeys(names, 0.4),
        "differences": dict.fromkeys(names, one),
        "scored": 1, "reports": 1, "empty_predictions": 0, "empty_references": 0,
    }  # fmt: skip
    said = "each p is of one metric alone: it is not corrected for 3 being compared"
    assert said in told(200, lambda to: print_scores(found, {}, {}, to))
    found["differences"] = {"bleu4": one}
    assert "corrected" not in told(200, lambda to: print_scores(found, {}, {}, to))
    found["differences"] = {name: {"difference": 0.1} for name in names}
    assert "corrected" not in told(200, lambda to: print_scores(found, {}, {}, to))


@pytest.mark.parametrize("width", [30, 40, 80, 100, 130])
def test_the_table_of_bench_loses_no_letter(width):
    taken = Interval(1234.5, 1200.0, 1250.0)
    ways = [("torch core, none, chunked on live rows", "torch 2.13.0+cpu", "dive"),
            ("session, steered", "transformers for 6 of 9 tokens", "session, steered")]  # fmt: skip
    rows = [Record("cross-entropy", "288 tokens", "forward", way, ran, taken, 3, beside, taken, 1.5,
                "GFLOP/s", 0.5) for way, ran, beside in ways]  # fmt: skip

    def print_at(width):
        made = [table for _, table in bench_tables(rows, width)]
        return told(width, lambda to: to.print(*made))

    shown, whole = print_at(width), print_at(500)
    assert letters(shown) == letters(whole) and "1,234 (1,200 to 1,250)" in whole


def run(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-c", "from dive.cli import main; main()", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, **env},
    )  # fmt: skip


@pytest.mark.parametrize("env", [{"COLUMNS": "40"}, {"PYTHONIOENCODING": "ascii", "TERM": "dumb"}])
def test_a_pipe_has_every_word_whole(env, tmp_path):
    done = run("doctor", **env)
    assert "Traceback" not in done.stderr
    for words in ("StanfordAIMI/RRG_scorers", "/.cache/radgraph/VERSION/radgraph-xl",
                  "Triton, decisive_cross_entropy", "nltk.downloader wordnet"):  # fmt: skip
        assert words in done.stdout
    text = "Small pleural effusion \u2026 no pneumothorax, caf\u00e9 \U0001f642."
    report = tmp_path / "report.txt"
    report.write_text(text, encoding="utf-8")
    shown = run("inspect", "tokens", report, **env)
    assert shown.returncode == 0 and "pleural effusion" in shown.stdout
    told = run("inspect", "tokens", report, "--json", **env)
    assert told.returncode == 0 and json.loads(told.stdout)["mentions"]
    if "PYTHONIOENCODING" in env:
        assert r"caf\u00e9 \ud83d\ude42" in shown.stdout


def test_what_is_escaped_is_json():
    text = "\u2026 \u00e9 \U0001f642"
    error = UnicodeEncodeError("ascii", text, 0, len(text), "")
    escaped, end = tables._escaped(error)
    assert end == len(text) and json.loads(f'"{escaped}"') == text and escaped.isascii()


def test_values_are_looked_at_without_the_libraries():
    assert checks.ENGINES == ("auto", "dive._C", "transformers")
    for engine in checks.ENGINES:
        options.check_values(engine=engine)
    for dtype in ("auto", "bfloat16", "float16", "float32", "float64", "half", "float8_e4m3fn"):
        options.check_values(dtype=dtype)
    for wrong in ({"dtype": "fp16"}, {"dtype": "int8"}, {"engine": "gpu"}, {"target": "x"},
                  {"on_error": "stop"}, {"max_image_tokens": "0"}):  # fmt: skip
        with pytest.raises(DiveError):
            options.check_values(**wrong)


@pytest.mark.parametrize(
    "arguments",
    [("generate", "--engine", "gpu"), ("generate", "--batch-size", "0"),
     ("generate", "--max-image-tokens", "few"), ("distill", "--dtype", "fp8"),
     ("distill", "--target", "all"), ("distill", "--on-error", "stop")],
)  # fmt: skip
def test_a_slip_of_the_pen_costs_no_import(arguments, tmp_path):
    code = "import sys\nfrom dive.cli import main\n" \
           "try: main()\nexcept SystemExit as end: assert end.code == 1\n" \
           "assert 'torch' not in sys.modules, 'torch was imported'"  # fmt: skip
    given = ["--backbone", "x", "--studies", "y", "--out", tmp_path / "not" / "there"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, [*arguments, *given])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr.startswith("error: "), done.stderr
    assert list(Path(tmp_path).iterdir()) == []
