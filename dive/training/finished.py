"""The removal of a finished training's checkpoints."""

from pathlib import Path

from dive.adapter.config import CONFIG_FILE, WEIGHTS_FILE
from dive.files.atomic import remove_leftovers
from dive.training.checkpoints import ASIDE, checkpoints_in, is_the_end_of, remove_all
from dive.training.fingerprint import FINGERPRINT_FILE


def remove_checkpoints(folder: str | Path) -> None:
    """Remove the checkpoints of a training whose adapter is saved, and nothing else. The
    fingerprint goes first: without it no training goes on from what may be left."""
    (Path(folder) / FINGERPRINT_FILE).unlink(missing_ok=True)
    remove_all(Path(folder))


def clear_finished(out: Path) -> bool:
    """Remove what is left of a training that was ended after it had saved its adapter into `out`,
    while its checkpoints were being removed. Returns whether there was anything."""
    folder = out / "checkpoints"
    if not (out / CONFIG_FILE).is_file() or not folder.is_dir():
        return False
    if checkpoints_in(folder):
        left = is_the_end_of(folder, out / WEIGHTS_FILE)
    else:  # a training that is still to replace the adapter has its fingerprint there
        left = (folder / ASIDE).exists() and not (folder / FINGERPRINT_FILE).exists()
    if left:
        remove_checkpoints(folder)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            remove_leftovers(out / name)
    return left
