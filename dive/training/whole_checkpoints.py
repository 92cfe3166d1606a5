"""A `transformers.Trainer` whose checkpoints appear whole or not at all."""

import os
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dive.errors import DiveError
from dive.files.atomic import write_all
from dive.files.disk import free_bytes, reason
from dive.training.checkpoints import ASIDE, aside_of, publish

KEPT = 2  # checkpoints, while training


class WholeCheckpoints(Trainer):
    """Trainer itself writes a checkpoint under its name, file by file, and may be ended meanwhile.

    Here all ranks write aside, and when the last of them has done so the first one gives the
    checkpoint its name; it also takes the older ones away, in place of `save_total_limit`.
    """

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        try:
            if self.args.should_save:
                aside_of(folder)
            self.accelerator.wait_for_everyone()  # before any rank writes into it
            self.args.output_dir = str(folder / ASIDE)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(folder)
            self.accelerator.wait_for_everyone()  # every rank's random state is there
            if self.args.should_save:
                publish(folder / ASIDE / f"{PREFIX_CHECKPOINT_DIR}-{step}", folder, KEPT)
        except (OSError, RuntimeError, DiveError) as error:
            # torch.save tells of a full disk by the second
            if isinstance(error, RuntimeError) and not _of_writing(error):
                raise
            told = str(error) if isinstance(error, DiveError) else _why(error, folder)
            if self.args.should_save:  # what was begun takes the room of what comes after it
                shutil.rmtree(folder / ASIDE, ignore_errors=True)
            raise DiveError(
                f"the checkpoint of step {step} cannot be written into {folder}: {told}"
            ) from error


def _why(error: Exception, folder: Path) -> str:
    """The system's reason. torch does not hand it on, so it is asked for once more."""
    if isinstance(error, OSError):
        return reason(error, folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            write_all(file.fileno(), bytes(1 << 20))
            os.fsync(file.fileno())
    except OSError as again:
        return reason(again, folder)
    return f"{str(error).splitlines()[0]} ({free_bytes(folder) or 0:,} bytes are left on the disk)"


def _of_writing(error: RuntimeError) -> bool:
    """Whether torch.save raised it: its words are those of C++, of many kinds."""
    frames = traceback.walk_tb(error.__traceback__)
    files = [Path(frame.f_code.co_filename).parts[-2:] for frame, _ in frames]
    return ("torch", "serialization.py") in files or "PytorchStreamWriter" in str(error)
