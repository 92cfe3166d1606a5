"""Functions of dive/ are at most 80 lines, signature and docstring included, but for stated ones.

Their complexity is ruff's C901, held by pyproject.toml.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST = 80
# What their signature or docstring alone takes; the body keeps to the limit.
STATED = {
    "dive/cli/distill.py distill": "one option per line, each with its help text",
    "dive/cli/evaluate.py evaluate": "one option per line, each with its help text",
    "dive/cli/generate.py generate": "one option per line, each with its help text",
    "dive/cli/report.py report": "one option per line, each with its help text",
    "dive/metrics/evaluation.py evaluate": "an argument per metric and choice, each explained",
    "dive/ops/cross_entropy.py decisive_cross_entropy": "seventeen arguments, each explained",
    "dive/reference.py decisive_cross_entropy": "the same arguments",
    "dive/training/distillation.py distill": "sixteen arguments, each explained",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    for path in sorted((ROOT / "dive").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT).as_posix()} {node.name}", node


def lines(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def lines_of_body(node: Function) -> int:
    first = node.body[ast.get_docstring(node) is not None :][0]
    assert node.end_lineno is not None
    return node.end_lineno - first.lineno + 1


def test_no_function_is_long() -> None:
    long = {name: lines(node) for name, node in functions() if lines(node) > MOST}
    assert long.keys() == STATED.keys(), long


def test_the_bodies_of_stated_ones_are_short() -> None:
    bodies = {name: lines_of_body(node) for name, node in functions() if name in STATED}
    assert bodies.keys() == STATED.keys()
    assert max(bodies.values()) <= MOST, bodies
