"""Converting in strips gives the same bits as the whole film in float64, with less memory."""

import numpy as np
import pytest
from image_files import write_png16, write_tiff
from PIL import Image

from dive.data.images import deep_colour, deep_grey, levels
from dive.data.images.deep_colour import depth_of
from dive.data.images.load import load_rgb
from dive.errors import DiveError

RNG = np.random.default_rng(5)


def slow(values: np.ndarray, white_is_zero: bool = False, key: int | None = None) -> np.ndarray:
    """Of the whole film at once."""
    if values.dtype.kind == "f":
        grey = values.astype(np.float64)
        unit = (grey - grey.min()) / (grey.max() - grey.min())
        return np.rint((1.0 - unit if white_is_zero else unit) * 255).astype(np.uint8)
    wide = values.astype(np.int64)
    top = 2 ** depth_of(int(wide.max())) - 1
    shown = np.rint((top - wide if white_is_zero else wide) * (255.0 / top)).astype(np.uint8)
    shown[wide == (-1 if key is None else key)] = 0
    return shown


@pytest.fixture(params=[1, 7, 100, 1 << 20])
def strip(request, monkeypatch):
    monkeypatch.setattr(deep_grey, "_STRIP", request.param)


@pytest.mark.parametrize("top", [200, 4095, 4096, 65535])
@pytest.mark.parametrize("white", [False, True])
def test_integers_of_16_bits(tmp_path, strip, top, white):
    values = RNG.integers(0, top + 1, (37, 29)).astype(np.uint16)
    values[0, 0] = top
    path = write_tiff(tmp_path / "a.tif", values, 0 if white else 1, packed=True)
    assert np.array_equal(np.asarray(load_rgb(path))[..., 1], slow(values, white))
    key = int(values[3, 3])
    path = write_png16(tmp_path / "a.png", values[..., None], (key,))
    assert np.array_equal(np.asarray(load_rgb(path))[..., 2], slow(values, key=key))


def test_every_value_of_16_bits():
    values = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(np.asarray(load_rgb(Image.fromarray(values)))[..., 0], slow(values))


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("kind", [np.uint32, np.float32])
def test_32_bits(tmp_path, strip, kind, white):
    values = (RNG.random((23, 31)) * 3e9 - (1e9 if kind is np.float32 else 0)).astype(kind)
    path = write_tiff(tmp_path / "a.tif", values, 0 if white else 1)
    assert np.array_equal(np.asarray(load_rgb(path))[..., 0], slow(values, white))


def test_what_no_film_has_is_found_in_any_strip(strip):
    values = np.ones((20, 20), np.float32)
    values[19, 19] = np.nan
    with pytest.raises(DiveError, match="not finite"):
        load_rgb(Image.fromarray(values))
    with pytest.raises(DiveError, match="negative pixel values"):
        load_rgb(Image.fromarray(np.where(np.isnan(values), -1, 5).astype(np.int32)))


def test_a_turned_film_of_16_bits_is_turned_and_left_as_it_was(tmp_path, strip):
    values = RNG.integers(0, 4096, (8, 12)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    wanted = np.rot90(slow(values), -1)
    assert np.array_equal(np.asarray(load_rgb(tmp_path / "a.png"))[..., 0], wanted)
    with Image.open(tmp_path / "a.png") as given:
        for _ in range(2):
            assert np.array_equal(np.asarray(load_rgb(given))[..., 0], wanted)
        assert np.array_equal(np.asarray(given), values)


def test_a_large_film_is_never_whole_in_wide_numbers(tmp_path):
    """Numpy's own arrays at their most: the film of 8 bits, and a strip of 32."""
    import tracemalloc

    image = Image.fromarray(np.tile(np.arange(4096, dtype=np.uint16), (2048, 1)))
    tracemalloc.start()
    try:
        deep_grey.narrowed(image, False, False, "a film")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4 * image.width * image.height  # eight bytes a pixel and more, before


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.uint32])
@pytest.mark.parametrize("padded", [False, True])
def test_levels_are_each_value_once(monkeypatch, kind, padded):
    monkeypatch.setattr(levels, "_STRIP", 50)
    stored = (RNG.integers(0, 200, (31, 17)) * (60_000 if kind is np.uint32 else 1)).astype(kind)
    stored = stored - 100 if kind is np.int16 else stored
    padding = RNG.random(stored.shape) < 0.3 if padded else None
    found = levels.Levels(stored, padding)
    values, counts = np.unique(stored if padding is None else stored[~padding], return_counts=True)
    assert np.array_equal(found.values, np.unique(stored))
    assert np.array_equal(found.values[found.counts > 0], values)
    assert np.array_equal(found.counts[found.counts > 0], counts)
    assert np.array_equal(found.spread(found.values * 2.5), stored * 2.5)
    low = stored.astype(np.int64) % 256
    assert np.array_equal(levels.counted(low, 256), np.bincount(low.ravel(), minlength=256))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits_in_strips(tmp_path, monkeypatch, channels):
    values = RNG.integers(0, 4096, (13, 11, channels)).astype(np.uint16)
    path = write_png16(tmp_path / "a.png", values)
    whole = np.asarray(load_rgb(path))
    for strip in (1, 30):
        monkeypatch.setattr(deep_colour, "_STRIP", strip)
        assert np.array_equal(np.asarray(load_rgb(path)), whole)
