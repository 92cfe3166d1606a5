"""Studies with fields of wrong types: one error that names the study, or one skipped entry."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import dive
from dive.data import Skipped
from dive.data.images.load import LazyImage
from dive.errors import DiveError

STEP = {"preset": "dive-ce", "steps": 1, "batch_size": 2, "rank": 2, "warmup": 0.0}
LONG = "x" * 5000


@pytest.fixture(scope="module")
def llava(tiny_llava):
    return dive.load_backbone(tiny_llava)


def raising():
    raise KeyError("k")


ODD_STUDIES = {
    "array": ({"images": (np.zeros((9, 9)),)}, "'images' holds a ndarray, want a path, a PIL"),
    "none": ({"images": (None,)}, "'images' holds a NoneType, want a path"),
    "tensor": ({"images": (torch.zeros(3, 9, 9),)}, "'images' holds a Tensor, want a path"),
    "no images": ({"images": None}, "'images' is a NoneType, want a sequence"),
    "one path": ({"images": "film.png"}, "'images' is a str, want a sequence"),
    "nul": ({"images": ("a\0b",)}, "a path that no file can be called"),
    "long": ({"images": (LONG,)}, "too long for a file's name"),
    "empty": ({"images": ("",)}, "a path that is empty"),
    "findings": ({"findings": 3}, "'findings' is a int, want a string"),
    "indication": ({"indication": 3}, "'indication' is a int, want a string"),
    "impression": ({"impression": ["Clear."]}, "'impression' is a list, want a string"),
    "patient": ({"patient": ["p"]}, "'patient' is a list, want a string"),
    "id": ({"id": None}, "'id' is a NoneType, want a string"),
    "raises": ({"images": (LazyImage("row 3", raising),)},
               "the image .1 of 1. cannot be fetched: KeyError: 'k'"),
    "gives none": ({"images": (LazyImage("row 3", lambda: None),)},
                   "the image .1 of 1. is fetched as a NoneType, want a path"),
    "gives a name": ({"images": (LazyImage("row 3", lambda: "a\0b"),)}, "no file can be called"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_STUDIES)
def test_a_study_of_other_kinds_is_one_error_or_one_skip(name, llava, studies):
    change, said = ODD_STUDIES[name]
    odd = replace(studies[5], **{"id": "odd", "findings": "Clear.", **change})
    with pytest.raises(DiveError, match=f"study ('odd'|None): .*{said}"):
        dive.distill(llava, [*studies[:4], odd], config=STEP)
    skipped = Skipped()
    dive.distill(llava, [*studies[:4], odd], config=STEP, on_error="skip", skipped=skipped)
    assert [entry["id"] for entry in skipped] == [None if name == "id" else "odd"]
    if name in ("findings", "impression", "id"):
        return  # generate reads no report
    with pytest.raises(DiveError, match=said):
        dive.generate(llava, odd, max_new_tokens=2)
    skipped = Skipped()
    told = dive.generate(
        llava, [odd, studies[0]], max_new_tokens=2, on_error="skip", skipped=skipped
    )
    assert [report.id for report in told] == [studies[0].id]
    assert [entry["id"] for entry in skipped] == ["odd"]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_lazy_image_that_fails_in_its_turn(failing, cache, llava, studies):
    """Its header could be read in the survey, and what is behind it later not."""
    calls = iter(range(1, 99))
    path = studies[5].images[0]

    def fetch():
        if next(calls) >= failing:
            raise ConnectionError("gone")
        return path

    odd = replace(studies[5], id="odd", images=(LazyImage("row 5", fetch),))
    skipped = Skipped()
    config = {**STEP, "steps": 3, "cache_images": cache}
    dive.distill(llava, [*studies[:4], odd], config=config, on_error="skip", skipped=skipped)
    assert [entry["id"] for entry in skipped] == ["odd"]
    assert "(1 of 1) cannot be fetched: ConnectionError: gone" in skipped.entries[0]["reason"]


def test_two_studies_of_one_id_are_refused_as_in_a_file(llava, studies):
    twin = replace(studies[1], id=studies[0].id)
    with pytest.raises(DiveError, match="item 2 of studies has the id of item 0"):
        dive.distill(llava, [studies[0], studies[1], twin], config=STEP)
    skipped = Skipped()
    told = dive.distill(llava, [*studies[:2], twin], config=STEP, on_error="skip", skipped=skipped)
    assert told.metadata["distillation"]["studies"] == 2
    assert [entry["id"] for entry in skipped] == [studies[0].id]
    for name in ("demonstrations", "validation"):
        config = {**STEP, "preset": "dive"}
        with pytest.raises(DiveError, match=f"item 1 of {name} has the id of item 0"):
            dive.distill(llava, studies[2:], config=config, **{name: [studies[0], studies[0]]})


def test_a_seed_is_one_that_every_generator_takes(llava, studies):
    for bad in (2**70, 2**32, -1, 1.5):
        with pytest.raises(DiveError, match="seed is .*, want a whole number"):
            dive.distill(llava, studies, config={**STEP, "seed": bad})
    dive.distill(llava, studies, config={**STEP, "seed": 2**32 - 1})
