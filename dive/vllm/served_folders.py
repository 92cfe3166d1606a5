"""The exported folders behind a server's adapters, and whether they still are what was loaded.

vLLM reads a folder when its adapter is loaded, and again after the adapter had to leave memory for
others. Its prefix cache knows the adapter by name and path alone. So what is in a folder must never
change under a server.
"""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dive.errors import DiveError
from dive.vllm.exported import CARD_TENSOR, CONFIG_FILE, WEIGHTS_FILE, exported_sha256
from dive.vllm.packing import unpack_card

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Contents:
    """What a folder held when its adapter was loaded.

    sha256: of the adapter's own adapter.safetensors. digest: of both files here. stamp: their
    sizes, inodes and times of change.
    """

    sha256: str
    digest: str
    stamp: _Stamp


def contents_of(path: str) -> Contents:
    """Reads an exported folder, as vLLM finds it by `path`.

    Raises:
        DiveError: no such folder, or it was not written by dive export-vllm.
    """
    folder = _folder(path)
    none = f"{path} holds no adapter of dive's, want a folder of dive export-vllm"
    if exported_sha256(folder) is None or not (folder / WEIGHTS_FILE).is_file():
        raise DiveError(none)
    try:
        stamp = _stamp(folder)  # before the bytes: a change in between shows at the next look
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            if CARD_TENSOR not in file.keys():  # noqa: SIM118, it is no dict
                raise DiveError(none)
            card = unpack_card(file.get_tensor(CARD_TENSOR))
        return Contents(str(card["sha256"]), _digest(folder), stamp)
    except OSError as error:
        raise DiveError(f"{path} cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise DiveError(f"{none} ({error})") from error


def check_unchanged(path: str, loaded: Contents) -> Contents:
    """Returns the contents with the stamp of now, read again only where that differs.

    A client may read the message, so no path is in it.

    Raises:
        DiveError: the folder is gone, or holds something else than was loaded from it.
    """
    try:
        if _stamp(_folder(path)) == loaded.stamp:
            return loaded
    except OSError:
        raise DiveError(
            "the folder from which it was loaded is gone: vLLM reads it again after others took "
            "its memory, want it back as it was"
        ) from None
    with contextlib.suppress(DiveError):  # whatever it holds instead
        now = contents_of(path)
        if now.digest == loaded.digest:
            return now
    raise DiveError(
        "its folder holds other contents than those that were loaded, and vLLM would go on with "
        "cached states of the old ones, want a new folder, loaded under a new name or after the "
        "old one was unloaded"
    )


def _folder(path: str) -> Path:
    return Path(path).expanduser()


def _stamp(folder: Path) -> _Stamp:
    found = [os.stat(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return tuple((one.st_size, one.st_ino, one.st_mtime_ns) for one in found)


def _digest(folder: Path) -> str:
    made = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with open(folder / name, "rb") as file:
            made.update(hashlib.file_digest(file, "sha256").digest())
    return made.hexdigest()
