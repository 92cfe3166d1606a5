"""How the packages of dive/ stand to each other: `python tools/layout.py`.

Prints what is seen from the top of dive/, the layers that the imports make, circles, and imports
that go up or sideways against the order of [tool.importlinter] in pyproject.toml. Imports inside
functions count; those under TYPE_CHECKING do not. Names taken from `dive` itself count as imports
of the package that has them.

`python tools/layout.py --words`: the words of tools/words.py, and how often each is used in its one
meaning and in another, before they were sorted out and now.
"""

import ast
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grimp
import networkx as nx

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # as a script

from tools.words import print_words  # noqa: E402


@dataclass
class Layout:
    """What was read off the imports; packages are named without "dive." before them."""

    top: list[str] = field(default_factory=list)
    packages: nx.DiGraph = field(default_factory=nx.DiGraph)
    modules: nx.DiGraph = field(default_factory=nx.DiGraph)
    lines: int = 0

    @property
    def layers(self) -> list[list[str]]:
        """Packages by how far they stand above the lowest, the lowest last; a circle is one."""
        whole = nx.condensation(self.packages)
        height: dict[int, int] = {}
        for one in reversed(list(nx.topological_sort(whole))):
            height[one] = 1 + max((height[below] for below in whole.successors(one)), default=0)
        found: list[list[str]] = [[] for _ in range(max(height.values(), default=0))]
        for one, level in height.items():
            found[-level] += whole.nodes[one]["members"]
        return [sorted(layer) for layer in found]

    @property
    def circles(self) -> list[list[str]]:
        """Packages, and modules, that reach themselves again."""
        graphs = (self.packages, self.modules)
        found = [sorted(one) for g in graphs for one in nx.strongly_connected_components(g)]
        return [one for one in found if len(one) > 1]

    def against(self, order: list[list[str]]) -> list[str]:
        """Imports from a package to one that does not stand below it."""
        place = {name: level for level, layer in enumerate(order) for name in layer}
        wrong = [(a, b) for a, b in self.packages.edges if place[a] >= place[b]]
        return sorted(
            f"{a} -> {b} ({', '.join(sorted(self.packages.edges[a, b]['by']))})" for a, b in wrong
        )


def order() -> list[list[str]]:
    """Layers from the top as pyproject.toml states them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["type"] == "layers"]
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def read(root: Path = ROOT) -> Layout:
    """The layout of a checkout, put together as a wheel has it: kernels/ in dive/kernels."""
    found = Layout()
    found.top = sorted(
        path.stem
        for path in (root / "dive").iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    )
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "dive"
        unwanted = shutil.ignore_patterns("*.so", "__pycache__", "backbone/*.safetensors")
        shutil.copytree(root / "dive", package, ignore=unwanted)
        shutil.copytree(root / "kernels", package / "kernels", ignore=unwanted, dirs_exist_ok=True)
        sys.path.insert(0, folder)
        loaded = sys.modules.pop("dive", None)  # one that is imported would be looked at instead
        try:
            graph = grimp.build_graph("dive", exclude_type_checking_imports=True, cache_dir=None)
        finally:
            sys.path.remove(folder)
            if loaded is not None:
                sys.modules["dive"] = loaded
        public = _public(package / "__init__.py")
        for path in package.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            found.lines += text.count("\n")
            importer = ".".join(path.relative_to(folder).with_suffix("").parts)
            importer = importer.removesuffix(".__init__")
            if importer in ("dive", "dive.__main__"):
                continue
            targets = graph.find_modules_directly_imported_by(importer) - {"dive", importer}
            taken = {public[name] for name in _from_the_top(text) if name in public}
            _add(found, importer, targets | {f"dive.{name}" for name in taken})
    return found


def _add(found: Layout, importer: str, targets: Iterable[str]) -> None:
    source = importer.split(".")[1]
    found.packages.add_node(source)
    found.modules.add_node(importer)
    for target in targets:
        package = target.split(".")[1]
        found.modules.add_edge(importer, target)
        if package != source:
            found.packages.add_edge(source, package)
            found.packages.edges[source, package].setdefault("by", set()).add(importer)


def _public(path: Path) -> Mapping[str, str]:
    """Public names of dive/__init__.py and the packages that have them."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_EXPORTS":
            homes: dict[str, str] = ast.literal_eval(node.value)
            return {name: home.split(".")[1] for name, home in homes.items()}
    raise AssertionError(f"{path} has no _EXPORTS")


def _from_the_top(text: str) -> set[str]:
    """What a module takes from `dive` itself: from dive import x, dive.x."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "dive":
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names |= {node.attr} if node.value.id == "dive" else set()
    return names


def main() -> int:
    if sys.argv[1:] == ["--words"]:
        return print_words()
    layout, wanted = read(), order()
    layers, circles, against = layout.layers, layout.circles, layout.against(wanted)
    print(f"{len(layout.top)} modules and folders at the top of dive/, {layout.lines} lines")
    print(f"{layout.packages.number_of_edges()} imports between packages, {len(layers)} layers:")
    for layer in layers:
        print("   ", ", ".join(layer))
    print(f"{len(circles)} circles", *(" -> ".join(one) for one in circles), sep="\n    ")
    print(f"{len(against)} imports against the order", *against, sep="\n    ")
    return 1 if circles or against else 0


if __name__ == "__main__":
    sys.exit(main())
