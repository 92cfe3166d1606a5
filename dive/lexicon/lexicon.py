"""The lexicon and its entries: read from YAML, extended by the user's own files."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from dive import __version__
from dive.errors import DiveError, checks
from dive.lexicon.terms import Automaton, expand

CHEXPERT_CLASSES = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
OTHER = "Other"
_FILES = ("observations.yaml", "thorax.yaml", "wall.yaml")
_KEYS = {"name", "class", "mesh", "normal", "uncertain", "ignore", "terms"}
_HERE = resources.files("dive.lexicon")
# a gap in a term ("heart ... enlarged") does not cross these
_GAP_STOPS = (
    "but", "with", "without", "normal", "unremarkable", "clear", "which", "while", "there",
    "however", "otherwise",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One finding: `cls` is a CheXpert observation or "Other", `mesh` its headings.

    `normal`: the words themselves state normality; `uncertain`: they are a hedge; `ignore`: they
    are no finding though a part of them looks like one.
    """

    name: str
    cls: str
    mesh: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    normal: bool = False
    uncertain: bool = False
    ignore: bool = False


@dataclass
class Lexicon:
    """A set of entries, compiled for matching. Iterate over it to see them.

    `misspelt` are words that are recognised with one misspelt letter.
    """

    entries: dict[str, Entry]
    misspelt: tuple[str, ...] = ()
    automaton: Automaton = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.automaton = Automaton(
            ((term, entry) for entry in self.entries.values() for term in entry.terms),
            gap_stops=_GAP_STOPS,
            misspelt=self.misspelt,
        )

    def __iter__(self):
        return iter(self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> Entry:
        if name not in self.entries:
            raise DiveError(f"the lexicon has no entry {name!r}")
        return self.entries[name]


def _kind(entry: Entry) -> tuple[str, bool, bool, bool]:
    return entry.cls, entry.normal, entry.uncertain, entry.ignore


def load_lexicon(*files: str | Path, default: bool = True) -> Lexicon:
    """The built-in lexicon with the user's files added (`default=False`: only the files).

    A file's entry of a known name adds its terms and headings to that entry; others are new.

    Raises:
        DiveError: anything malformed, with file and entry.
    """
    entries: dict[str, Entry] = {}
    sources: list[Any] = [_HERE / name for name in _FILES] if default else []
    sources += [checks.path("files", f) for f in files]
    if not sources:
        raise DiveError("load_lexicon(default=False) needs at least one file")
    misspelt: list[str] = []
    for source in sources:
        table = _yaml(source)
        misspelt += _misspelt(source, table)
        for entry in _read_entries(source, table):
            known = entries.get(entry.name)
            if known is not None:
                if _kind(known) != _kind(entry):
                    raise DiveError(
                        f"{source}: entry {entry.name!r} is of class {entry.cls!r} here and of "
                        f"class {known.cls!r} before; one name has one class"
                    )
                entry = replace(
                    known,
                    mesh=tuple(dict.fromkeys(known.mesh + entry.mesh)),
                    terms=tuple(dict.fromkeys(entry.terms + known.terms)),
                )
            entries[entry.name] = entry
    return Lexicon(entries, tuple(misspelt))


@lru_cache(maxsize=1)
def default_lexicon() -> Lexicon:
    """The built-in lexicon, read once."""
    return load_lexicon()


@lru_cache(maxsize=1)
def lexicon_version() -> str:
    """The version of the built-in lexicon and cues, for results of them ("0.1.0 1f2e3d4c").

    Computed of the files' bytes, comments too: after any change unfinished runs cannot be resumed.
    """
    digest = hashlib.sha256()
    for source in sorted(_HERE.iterdir(), key=lambda file: file.name):
        if source.name.endswith(".yaml"):
            digest.update(source.read_bytes())
    return f"{__version__} {digest.hexdigest()[:8]}"


@lru_cache(maxsize=1)
def default_cues() -> Automaton:
    """The built-in polarity cues; values are their kinds ("negative_before", ...)."""
    table = _yaml(_HERE / "cues.yaml")
    return Automaton((term, kind) for kind, terms in table.items() for term in terms)


def _yaml(source: Any) -> Any:
    try:
        return yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise DiveError(f"{source}: cannot read the lexicon: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DiveError(f"{source}: not a readable YAML file: {error}") from error


def _misspelt(source: Any, table: Any) -> list[str]:
    words = table.get("misspelt", []) if isinstance(table, dict) else []
    if not isinstance(words, list) or not all(
        isinstance(w, str) and re.fullmatch(r"[a-z]{7,}\*|[a-z]{8,}", w) for w in words
    ):
        raise DiveError(
            f"{source}: `misspelt` is {words!r}, want a list of lower-case words of eight letters "
            "or more (stems with a star: seven)"
        )
    return words


def _read_entries(source: Any, table: Any) -> Iterable[Entry]:
    if not isinstance(table, dict) or not isinstance(table.get("entries"), list):
        raise DiveError(f"{source}: a lexicon is a YAML mapping with a list named `entries`")
    if unknown := sorted(set(map(str, table)) - {"entries", "misspelt"}):
        raise DiveError(f"{source}: unknown key {unknown[0]!r}, want `entries` and `misspelt`")
    for number, record in enumerate(table["entries"], 1):
        where = f"{source}: entry {number}"
        if not isinstance(record, dict):
            raise DiveError(f"{where} is {record!r}, want a mapping with {sorted(_KEYS)}")
        if unknown := sorted(set(map(str, record)) - _KEYS):
            raise DiveError(f"{where}: unknown key {unknown[0]!r}, want some of {sorted(_KEYS)}")
        name, cls = record.get("name"), record.get("class", OTHER)
        if not isinstance(name, str) or not name.strip():
            raise DiveError(f"{where}: `name` is missing")
        where = f"{where} ({name})"
        if cls != OTHER and cls not in CHEXPERT_CLASSES:
            raise DiveError(
                f"{where}: class is {cls!r}, want {OTHER!r} or one of {list(CHEXPERT_CLASSES)}"
            )
        terms, mesh = record.get("terms"), record.get("mesh") or []
        if not _strings(terms) or not terms:
            raise DiveError(f"{where}: `terms` is {terms!r}, want a list of texts (quote them)")
        if not _strings(mesh):
            raise DiveError(f"{where}: `mesh` is {mesh!r}, want a list of texts")
        for term in terms:
            try:
                expand(term)
            except DiveError as error:
                raise DiveError(f"{where}: {error}") from error
        flags = [record.get(name, False) for name in ("normal", "uncertain", "ignore")]
        if not all(isinstance(flag, bool) for flag in flags):
            raise DiveError(
                f"{where}: `normal`, `uncertain` and `ignore` are {flags!r}, want true or false"
            )
        yield Entry(name.strip(), cls, tuple(mesh), tuple(terms), *flags)


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v.strip() for v in value)
