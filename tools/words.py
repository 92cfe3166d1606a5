"""The words of the code and what each means: `python tools/layout.py --words`.

A word of WORDS is looked for in the names of the code (functions, classes, arguments, variables;
neither comments nor strings), whose parts are compared: `row` is in `row_tile` and in `ImageRow`.
It may stand in its homes, where it has the one meaning that is stated; a use anywhere else is a
second meaning. tests/package/test_words.py holds that there is none.
"""

import io
import re
import subprocess
import tarfile
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# the last commit in which these words had several meanings
BEFORE = "89df6c0"
LOOKED_AT = ("dive", "kernels", "csrc")
_COMMENTS = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S)
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


class Word(NamedTuple):
    """A word, the one thing that it means, and the files whose names may use it."""

    word: str
    meaning: str
    homes: tuple[str, ...] = ()
    whole: bool = False  # a name as a whole, and not a part of one


class Count(NamedTuple):
    """How often a word stands in names: in its homes, and elsewhere by file."""

    at_home: int
    elsewhere: Counter[str]


WORDS = (
    Word(
        "row",
        "a row of a matrix, of a batch or of the loss",
        (
            "csrc/*",
            "kernels/*",
            "dive/ops/*",
            "dive/reference.py",
            "dive/bench/*",
            "dive/training/student.py",
            "dive/training/loss_watch.py",
            "dive/training/trainer.py",
            "dive/decode/*",
            "dive/prompting/batch.py",
            "dive/prompting/tokenizer.py",
            "dive/prompting/image_tokens.py",
            "dive/page/schema.py",  # of a heat map
            "dive/adapter/numbers.py",
            "dive/backbone/*",
            "dive/metrics/*",
            "dive/data/images/*",
            "dive/data/sections.py",  # an edit distance's matrix
            "dive/data/reading_summary.py",  # `records` by its old name
        ),
    ),
    Word(
        "slot",
        "a sequence's place in the engine's KV cache",
        ("csrc/*", "dive/_C.pyi", "dive/decode/*", "dive/generation/report_writer.py"),
    ),
    Word(
        "plan",
        "TilePlan, how a GPU's tiles are divided; engine_choice by its old name, for one release",
        (
            "csrc/decoder.h",
            "csrc/cuda/*",
            "csrc/python/decoder_reader.cpp",
            "dive/decode/session.py",
        ),
    ),
    Word(
        "place",
        "to_device and index by their old names, for one release",
        ("dive/prompting/prompter.py", "dive/decode/continuous.py"),
    ),
    Word("Report", "a generated report", ("dive/*",), whole=True),
    Word("Run", "", whole=True),
    Word("BatchRun", "", whole=True),
    Word("describe", ""),
    Word("told", ""),
    Word("tell", ""),
    Word("gain", ""),
    Word("few", "a launch of few tokens", ("kernels/steer*.py",)),
    Word("mark", "a punctuation mark", ("dive/lexicon/words.py", "dive/metrics/normalization.py")),
    Word("heated", ""),
    Word("hang", ""),
    Word("trouble", ""),
    Word("sweep", ""),
    Word("seat", ""),
    Word("wish", ""),
)
# Names that are a library's, or an expression of the field or of the language.
_OTHERS = {
    "add_row",  # rich.table
    "mark_non_differentiable",  # torch.autograd
    "tell",  # a file's
    "in_place",
    "FEW_SHOT",
}


def count(names: Iterable[tuple[str, str]]) -> dict[Word, Count]:
    """The uses of every word among (file, name) pairs."""
    found = {word: Count(0, Counter()) for word in WORDS}
    for path, name in names:
        parts = {part.lower() for part in _PARTS.findall(name)}
        for word in WORDS:
            uses = name == word.word if word.whole else {word.word, f"{word.word}s"} & parts
            if not uses or name in _OTHERS:
                continue
            have = found[word]
            if any(fnmatch(path, home) for home in word.homes):
                found[word] = have._replace(at_home=have.at_home + 1)
            else:
                have.elsewhere[path] += 1
    return found


def names_now(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Every name of the work tree's code and its file."""
    for folder in LOOKED_AT:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file():
                yield from _names(path.relative_to(root).as_posix(), path.read_bytes())


def names_at(revision: str, root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Every name of the code at a commit and its file; CalledProcessError without that commit."""
    command = ["git", "archive", revision, *LOOKED_AT]
    packed = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                yield from _names(member.name, file.read())


def _names(path: str, content: bytes) -> Iterator[tuple[str, str]]:
    if "/tests/" in path or "/shim/" in path:
        return
    if path.endswith((".py", ".pyi")):
        for token in tokenize.tokenize(io.BytesIO(content).readline):
            if token.string == "slots" and "@dataclass" in token.line:
                continue  # Python's own argument
            if token.type == tokenize.NAME:
                yield path, token.string
    elif path.endswith((".h", ".cpp", ".cu", ".cuh")):
        for name in re.findall(r"\b[A-Za-z_]\w*", _COMMENTS.sub(" ", content.decode())):
            yield path, name


def print_words() -> int:
    """Prints the uses of every word before and now; 1 where one has a second meaning."""
    now = count(names_now())
    try:
        before = count(names_at(BEFORE))
    except subprocess.CalledProcessError:
        print(f"commit {BEFORE} is not in this clone: counts of now alone")
        before = {}
    print(f"{'':12s} {'uses':>13s} {'elsewhere':>13s}  meaning")
    for word, found in now.items():
        then = before.get(word)
        uses, elsewhere = str(found.at_home), str(found.elsewhere.total())
        if then is not None:
            uses = f"{then.at_home} -> {uses}"
            elsewhere = f"{then.elsewhere.total()} -> {elsewhere}"
        print(f"{word.word:12s} {uses:>13s} {elsewhere:>13s}  {word.meaning or '(not used)'}")
        for path, times in found.elsewhere.most_common():
            print(f"{'':40s}  {path}: {times}")
    return 1 if any(found.elsewhere for found in now.values()) else 0
