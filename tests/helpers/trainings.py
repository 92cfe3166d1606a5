"""Short trainings, ones that note what they do, and ones that are killed."""

import torch
from transformers import TrainerCallback

import dive
from dive.training.checkpoints import checkpoints_in
from dive.training.trainer import DistillTrainer


def short(**more):
    return dive.DistillConfig(**{"rank": 2, "steps": 3, "batch_size": 3, "warmup": 0.0} | more)


def bare(**more):
    """Without a teacher, and quick."""
    return short(preset="dive-ce", **more)


def equal(one, other):
    return one.state_dict().keys() == other.state_dict().keys() and all(
        torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items()
    )


CONFIG = bare(steps=7, batch_size=2, save_steps=2, logging_steps=3)


def names(folder):
    return [path.name for path in checkpoints_in(folder)]


class Recorder(DistillTrainer):
    """Keeps the losses of every forward and the gradients of every step."""

    made: list["Recorder"]

    def __init__(self, *args):
        super().__init__(*args)
        self.losses, self.gradients = [], []
        recorder = self

        class Look(TrainerCallback):
            def on_pre_optimizer_step(self, *_args, **_more):
                named = recorder.model.named_parameters()
                recorder.gradients.append(
                    {n: p.grad.clone() for n, p in named if p.grad is not None}
                )

        self.add_callback(Look())
        Recorder.made.append(self)

    def compute_loss(self, *args, **more):
        loss = super().compute_loss(*args, **more)
        self.losses.append(loss.item())
        return loss


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **more):
        if state.global_step == self.step:
            raise KeyboardInterrupt


# The opening of a rank's script, a template: a backbone, and trainings that record their steps.
RANK = """
import sys, torch, dive
sys.path.insert(0, {helpers!r})
from dive.training import loop
from dive.data import Skipped, read_studies
from trainings import Recorder, short
Recorder.made = []
loop.DistillTrainer = Recorder
torch.set_num_threads(1)
backbone = dive.load_backbone({backbone!r}, device="cpu")
"""
