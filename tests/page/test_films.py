"""Films of the page: scaled, embedded or beside it, and those that are gone."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dive.data import Study
from dive.data.images.load import load_rgb
from dive.errors import DiveError
from dive.page.films import FilmOptions, films_of


def film(path, size=(300, 400), noise=True, mode="L"):
    values = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(values if noise else values * 0 + 90).convert(mode)
    image.save(path)
    return path


def decoded(src):
    head, _, data = src.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_film_is_scaled_to_its_longer_edge_and_a_small_one_is_kept(tmp_path):
    large, small = film(tmp_path / "a.png", (300, 400)), film(tmp_path / "b.png", (20, 10))
    study = Study("s", (large, small), views=("PA",))
    (films,) = films_of([study], FilmOptions(edge=100)).by_study
    assert [(one["width"], one["height"], one["view"]) for one in films] == [
        (75, 100, "PA"), (20, 10, None),
    ]  # fmt: skip
    shown = decoded(films[0]["src"])
    assert (shown.size, shown.mode) == ((75, 100), "L")


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path):
    x, y = np.meshgrid(np.linspace(0, 6, 1200), np.linspace(0, 9, 1600))
    smooth = (127 + 60 * np.sin(x) + 60 * np.cos(y)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(smooth).save(tmp_path / "a.png")
    assert load_rgb(tmp_path / "a.jpg", edge=300).size == (300, 400)
    assert load_rgb(tmp_path / "a.jpg", edge=700).size == (1200, 1600)
    assert load_rgb(tmp_path / "a.jpg").size == (1200, 1600)
    study = Study("s", (tmp_path / "a.jpg", tmp_path / "a.png"))
    (films,) = films_of([study], FilmOptions(edge=200)).by_study
    one, other = (np.asarray(decoded(film["src"]), dtype=float) for film in films)
    assert one.shape == other.shape == (200, 150)
    assert abs(one - other).mean() < 1.5


def test_a_coloured_picture_keeps_its_colours(tmp_path):
    study = Study("s", (film(tmp_path / "a.png", mode="RGB"),))
    ((one,),) = films_of([study], FilmOptions()).by_study
    assert decoded(one["src"]).mode == "RGB"


def test_films_that_are_gone_or_damaged_are_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    whole = film(tmp_path / "a.png")
    studies = [
        Study("one", (whole,)),
        Study("two", (tmp_path / "gone.png", whole, tmp_path / "gone.png")),
        Study("three", (tmp_path / "bad.png",)),
        Study("four", ()),
    ]
    found = films_of(studies, FilmOptions())
    assert found.missing == ["two", "three"]
    assert [[one["src"] is None for one in own] for own in found.by_study] == [
        [False], [True, False, True], [True], [],
    ]  # fmt: skip


def test_all_films_together_stay_within_the_budget(tmp_path):
    studies = [Study(str(n), (film(tmp_path / f"{n}.png", (512, 512)),)) for n in range(6)]
    whole = films_of(studies, FilmOptions())
    assert whole.scaled_to is None
    most = 60_000
    found = films_of(studies, FilmOptions(budget=most))
    sizes = [len(base64.b64decode(one["src"].partition(",")[2])) for (one,) in found.by_study]
    assert sum(sizes) <= most
    assert found.scaled_to == min(one["width"] for (one,) in found.by_study) < 512


def test_films_beside_the_page(tmp_path):
    study = Study("../<b>&", (film(tmp_path / "a.png", (300, 400)),))
    folder = tmp_path / "page #1-films"
    beside = FilmOptions("beside", 100, folder=folder)
    ((one,),) = films_of([study], beside).by_study
    assert one["src"] == "page%20%231-films/000000.jpg"
    assert Image.open(folder / "000000.jpg").size == (75, 100)
    # an earlier page's films go, anything else in the folder stops it
    (folder / "000007.jpg").write_bytes(b"old")
    films_of([study], beside)
    assert [path.name for path in folder.iterdir()] == ["000000.jpg"]
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(DiveError, match="holds other files than a page's films"):
        films_of([study], beside)
    assert (folder / "mine.txt").read_text() == "mine"


def test_none_reads_nothing(tmp_path):
    study = Study("s", (tmp_path / "gone.png",))
    found = films_of([study], FilmOptions("none"))
    assert (found.by_study, found.missing) == ([[]], [])


@pytest.mark.parametrize(
    "values, message",
    [
        (("inside",), "images is 'inside', want one of embed, beside, none"),
        (("embed", 15), "image_size is 15, want a number of pixels, 16 or more"),
        (("embed", True), "image_size is True"),
        (("beside",), "folder is None, want one for the films beside the page"),
        (("embed", 100, 1, Path("x")), "folder is x, want none for images 'embed'"),
    ],
)
def test_options_out_of_range(values, message):
    with pytest.raises(DiveError, match=message):
        FilmOptions(*values)
