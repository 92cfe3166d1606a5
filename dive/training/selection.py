"""The studies of a training: to learn from, for validation, and shown to the teacher."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from dive.data.study import Study
from dive.errors import DiveError
from dive.errors.counting import counted
from dive.prompting.demonstrations import Demonstrations, case_names
from dive.training.config import DistillConfig

DEFAULT_SHOTS = 4


@dataclass(frozen=True)
class Selection:
    """The studies of a training; no patient is both learnt from and held out.

    demonstrations: None where no teacher is run.
    """

    studies: list[Study]
    validation: list[Study]
    demonstrations: Demonstrations | None


def select(
    studies: Sequence[Study],
    validation: float | Sequence[Study] | None,
    demonstrations: int | Sequence[Study] | None,
    config: DistillConfig,
) -> Selection:
    """Split the studies, and check that there are demonstrations for every one of them.

    Raises:
        DiveError: nothing is left to learn from, a patient would be in both parts, or a study has
            fewer studies of other patients than demonstrations are to be drawn.
    """
    train, held_out = split(studies, validation, config.seed)
    shown = demonstrations_from(train, demonstrations, config)
    if shown is not None and shown.count is not None:
        for study in train:
            shown.of(study)
    return Selection(train, held_out, shown)


def demonstrations_from(
    studies: Sequence[Study], given: int | Sequence[Study] | None, config: DistillConfig
) -> Demonstrations | None:
    """The demonstrations that are given, or drawn from `studies` where a number is given."""
    if not config.needs_teacher:
        return None
    if given is None:
        given = DEFAULT_SHOTS
    if isinstance(given, int):
        redraw = config.redraw_demonstrations
        return Demonstrations(studies, given, seed=config.seed, redraw=redraw)
    return Demonstrations(given)


def split(
    studies: Sequence[Study], validation: float | Sequence[Study] | None, seed: int
) -> tuple[list[Study], list[Study]]:
    """The training and the validation studies. A share holds out whole patients, in a seeded
    order."""
    studies = list(studies)
    if not studies:
        raise DiveError("distill: there is no study to learn from")
    if validation is None:
        return studies, []
    if not isinstance(validation, (int, float)):
        held_out = list(validation)
        owners = {name: study for study in reversed(studies) for name in case_names(study)}
        for one in held_out:
            twin = next((owners[name] for name in case_names(one) if name in owners), None)
            if twin is not None:
                raise DiveError(
                    f"{one.where}: is for validation, and {twin.where}, of the same patient, is "
                    "for training; a patient belongs to one of the two"
                )
        return studies, held_out
    if not 0 < validation < 1:
        raise DiveError(f"distill: validation is {validation!r}, want a share between 0 and 1")

    def order(study: Study) -> bytes:
        name = study.patient if study.patient is not None else f"study {study.id}"
        return hashlib.sha256(f"{seed}/{name}".encode()).digest()

    groups: dict[bytes, list[Study]] = {}
    for study in studies:
        groups.setdefault(order(study), []).append(study)
    wanted = max(1, round(validation * len(studies)))
    kept: set[str] = set()
    for key in sorted(groups):
        if len(kept) >= wanted:
            break
        kept |= {study.id for study in groups[key]}
    train = [study for study in studies if study.id not in kept]
    if not train:
        raise DiveError(
            f"distill: to keep {100 * validation:g}% apart for validation leaves nothing to learn "
            f"from, of {counted(len(studies), 'study')} of {counted(len(groups), 'patient')}"
        )
    return train, [study for study in studies if study.id in kept]
