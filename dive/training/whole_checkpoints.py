"""A `transformers.Trainer` whose checkpoints appear complete or not at all."""

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
    """A Trainer whose ranks write a checkpoint in a folder aside.

    Trainer itself writes it under its name, file by file, and may be killed in the middle. Here the
    first rank gives the checkpoint its name when the last rank has written its part. It also
    removes the older ones, in place of `save_total_limit`.
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
            # torch.save reports a full disk as a RuntimeError
            if isinstance(error, RuntimeError) and not _of_writing(error):
                raise
            cause = str(error) if isinstance(error, DiveError) else _why(error, folder)
            if self.args.should_save:  # the part that was written takes space on the disk
                shutil.rmtree(folder / ASIDE, ignore_errors=True)
            raise DiveError(
                f"the checkpoint of step {step} cannot be written into {folder}: {cause}"
            ) from error


def _why(error: Exception, folder: Path) -> str:
    """The system's reason. torch does not pass it on, so a write is tried once more."""
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
    """Whether torch.save raised it; its messages are those of C++, of many kinds."""
    frames = traceback.walk_tb(error.__traceback__)
    files = [Path(frame.f_code.co_filename).parts[-2:] for frame, _ in frames]
    return ("torch", "serialization.py") in files or "PytorchStreamWriter" in str(error)
