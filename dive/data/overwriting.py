"""Checks that no output replaces a file that the same command reads."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dive.errors import DiveError, checks

# names of outputs that may lie in the folder of a dataset; no dataset has such files
_OWN = (".jsonl", ".skipped", ".safetensors", "adapter_config.json")


def check_not_read(written: Mapping[Path, str], read: Iterable[Any]) -> None:
    """Raise DiveError where a file to be written or removed is one of the files that are read.

    Files are compared by identity, so symbolic and hard links are found. The check costs one stat
    per file that is read, and nothing where no output exists yet.

    Args:
        written: output -> the option that names it.
        read: files, folders whose files are read (two levels), films of studies; anything that
            names no file (an image in memory, a name on the hub, None) is ignored.
    """
    there = {_identity(path): path for path in written}
    there.pop(None, None)
    if not there:
        return
    for one in _files(read):
        key = _identity(one)
        if key in there:
            raise _refused(written[there[key]], there[key])


def check_not_in_dataset(written: Mapping[Path, str], roots: Iterable[Any]) -> None:
    """Raise DiveError where an existing output is in the folder of a dataset.

    Its tables, reports and films all may be read. JSON lines and adapters may be replaced, because
    no dataset has such files.
    """
    for root in roots:
        if root is None or not os.path.isdir(root):
            continue
        inside = os.path.realpath(root) + os.sep
        for path, option in written.items():
            real = os.path.realpath(path)
            if real.startswith(inside) and os.path.isfile(real) and not real.endswith(_OWN):
                raise DiveError(
                    f"{option} {path}: exists among the files of the dataset, which all may be "
                    "read; name another"
                )


def check_not_of_spec(
    written: Mapping[Path, str], spec: str | None, *roots: str | os.PathLike[str] | None
) -> None:
    """Both checks, for studies as the command line names them and further roots."""
    if spec is None:
        return
    from dive.data.open import parse_spec

    kind, path = parse_spec(spec)
    check_not_read(written, [path] if kind in ("jsonl", "r2gen") else [])
    check_not_in_dataset(written, [*([] if kind == "jsonl" else [path]), *roots])


def films(studies: Iterable[Any] | None) -> Iterator[Any]:
    """The images of all studies."""
    for study in studies or ():
        yield from study.images


def _refused(option: str, path: Path) -> DiveError:
    return DiveError(f"{option} {path}: is one of the files to read; name another")


def _identity(path: Any) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _files(read: Iterable[Any]) -> Iterator[Path]:
    for one in read:
        if not checks.names_a_path(one):
            continue
        try:
            path = checks.path("the file", one)
        except DiveError:
            continue  # the error about the name comes when the file is read
        if path.is_dir():
            yield from path.glob("*")
            yield from path.glob("*/*")
        else:
            yield path
