"""Images of other depths and kinds than 8-bit RGB: their grey values, or the error."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from image_files import write_png16, write_tiff
from PIL import Image

from dive.data import Study
from dive.data.images.load import LazyImage, image_size, load_rgb
from dive.errors import DiveError

RGB = np.random.default_rng(0).integers(0, 4096, (6, 7, 3)).astype(np.uint16)
RGB[0, 0] = 4095
ALPHA = np.random.default_rng(1).integers(1, 65535, (6, 7, 1)).astype(np.uint16)
ALPHA[0, 0] = 65535


def pixels(image) -> np.ndarray:
    film = load_rgb(image)
    assert film.mode == "RGB"
    assert image_size(image) == film.size
    return np.asarray(film)


def shown(unit: np.ndarray) -> np.ndarray:
    unit = unit[..., None] if unit.ndim == 2 else unit
    return np.repeat(np.rint(255 * unit), 4 - unit.shape[2] if unit.shape[2] == 1 else 1, axis=-1)


# 16 bits a channel


@pytest.mark.parametrize("factor", [1, 16, 0.25])
def test_a_16_bit_png_is_read_whole_whatever_its_depth(tmp_path: Path, factor: float) -> None:
    """12-bit values in 16 bits are no black film, and 16-bit ones keep what the low byte adds."""
    values = (RGB * factor).astype(np.uint16)
    top = {1: 4095, 16: 65535, 0.25: 1023}[factor]
    colour = write_png16(tmp_path / "rgb.png", values)
    assert np.array_equal(pixels(colour), shown(values / top))
    with Image.open(colour) as opened:
        assert opened.mode == "RGB"  # what Pillow makes of it
        assert np.asarray(opened).max() == values.max() >> 8
    seen = ALPHA / 65535
    with_alpha = write_png16(tmp_path / "rgba.png", np.concatenate([values, ALPHA], -1))
    assert np.array_equal(pixels(with_alpha), shown(values / top * seen))
    grey = write_png16(tmp_path / "la.png", np.concatenate([values[..., :1], ALPHA], -1))
    deepest = 2 ** next(b for b in (8, 10, 12, 14, 16) if values[..., 0].max() < 2**b) - 1
    assert np.array_equal(pixels(grey), shown(values[..., :1] / deepest * seen))


def test_a_16_bit_png_in_other_hands(tmp_path: Path) -> None:
    path = write_png16(tmp_path / "rgb.png", RGB)
    wanted = shown(RGB / 4095)
    assert np.array_equal(pixels(LazyImage("row", lambda: path.read_bytes())), wanted)
    with Image.open(path) as opened:
        assert np.array_equal(pixels(opened), wanted)
        assert np.asarray(opened).shape == RGB.shape  # still the caller's to load
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DiveError, match=r"cannot read the image .*rgb\.png"):
        load_rgb(path)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_an_image_that_was_loaded_before(tmp_path: Path, kind: str, alpha: bool) -> None:
    """Pillow has kept the high byte of it by then."""
    values = np.concatenate([RGB, ALPHA], -1) if alpha else RGB
    path = tmp_path / f"film.{kind}"
    if kind == "png":
        write_png16(path, values)
    else:
        write_tiff(path, values, 2, **({"alpha": 2} if alpha else {}))
    wanted = pixels(path)
    image = Image.open(path)
    image.load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels(image), wanted)
    changed = Image.open(path)
    changed.putpixel((0, 0), (0,) * values.shape[2])
    with pytest.warns(
        UserWarning, match=rf"film\.{kind}\) was loaded before with 8 of 16 bits .*cha"
    ):
        load_rgb(changed)
    path.unlink()
    with pytest.warns(UserWarning, match=rf"film\.{kind}\) was loaded before.*no longer exists"):
        load_rgb(image)


def test_other_formats_of_which_pillow_keeps_8_bits(tmp_path: Path) -> None:
    path = tmp_path / "film.sgi"
    for bytes_each in (1, 2):
        two()[0].save(path, bpc=bytes_each)
        image = Image.open(path)
        image.load()
        if bytes_each == 1:
            assert np.array_equal(pixels(path)[..., 0], np.asarray(two()[0]))
            continue
        for given in (path, image, LazyImage("film.sgi", path.read_bytes)):
            with pytest.raises(
                DiveError, match=r"film\.sgi.? is a SGI file of 16 bits per channel, of"
            ):
                load_rgb(given)


def test_avif_of_more_than_8_bits_in_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow writes 8 bits alone, and reads no file whose header lies: the header is changed where
    it is looked at."""
    Image.init()  # its plugin is not among those that Pillow knows from the start
    if "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / "film.avif"
    Image.merge("RGB", [two()[0]] * 3).save(path)
    data = bytearray(path.read_bytes())
    assert pixels(path).shape == (24, 40, 3)
    for flags, bits in ((0x40, 10), (0x60, 12)):
        data[data.find(b"av1C") + 6] |= flags
        monkeypatch.setattr("dive.data.images.deep_colour._data", lambda image: bytes(data))
        with pytest.raises(
            DiveError, match=rf"film\.avif is a AVIF file of {bits} bits per channel in col"
        ):
            load_rgb(path)


def test_the_orientation_of_a_16_bit_png_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif = exif.tobytes().removeprefix(b"Exif\0\0")
    path = write_png16(tmp_path / "turned.png", RGB, exif=exif)
    assert np.array_equal(pixels(path), np.rot90(shown(RGB / 4095), -1))


def test_the_colour_that_a_16_bit_png_calls_transparent(tmp_path: Path) -> None:
    key = tuple(int(one) for one in RGB[2, 3])
    wanted = shown(RGB / 4095)
    wanted[2, 3] = 0
    assert np.array_equal(pixels(write_png16(tmp_path / "rgb.png", RGB, key)), wanted)
    grey = RGB[..., :1].copy()
    grey[1, 1] = 77
    wanted = shown(grey / 4095)
    wanted[grey[..., 0] == 77] = 0
    assert np.array_equal(pixels(write_png16(tmp_path / "grey.png", grey, (77,))), wanted)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_tiff_of_16_and_32_bits(tmp_path: Path, order: str, packed: bool) -> None:
    options = {"order": order, "packed": packed}
    path = tmp_path / "film.tif"

    def read(values: np.ndarray, photometric: int, **more) -> np.ndarray:
        return pixels(write_tiff(path, values, photometric, **options, **more))

    grey, unit = RGB[..., 0], RGB[..., 0] / 4095
    assert np.array_equal(read(grey, 1), shown(unit))
    assert np.array_equal(read(RGB, 2), shown(RGB / 4095))
    four = np.concatenate([RGB, ALPHA], -1)
    assert np.array_equal(read(four, 2, alpha=2), shown(RGB / 4095 * (ALPHA / 65535)))
    assert np.array_equal(read(four, 5), shown((1 - RGB / 65535) * (1 - ALPHA / 65535)))
    assert np.array_equal(read(grey.astype(np.int32), 1), shown(unit))
    assert np.array_equal(read(grey.astype(np.int16), 1), shown(unit))
    spread = grey - float(grey.min())
    assert np.array_equal(read(grey.astype(np.float32) - 9, 1), shown(spread / spread.max()))
    with pytest.raises(DiveError, match="film.tif has negative pixel values"):
        read(grey.astype(np.int32) - 4000, 1)
    wide = grey.astype(np.uint32) * 1_048_832
    assert wide.max() > 2**31
    assert np.array_equal(read(wide, 1), shown(unit))
    assert np.array_equal(read(grey.astype(np.float32), 0), shown(1 - spread / spread.max()))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_tiff_whose_white_is_zero(tmp_path: Path, order: str, packed: bool) -> None:
    """Of many kinds Pillow says that it cannot identify them."""
    grey = np.linspace(0, 4095, 48).astype(np.uint16).reshape(6, 8)
    path, options = tmp_path / "film.tif", {"order": order, "packed": packed}
    wanted = shown(1 - grey / 4095)
    for kind in (np.uint16, np.int16, np.uint32, np.int32, np.float32):
        write_tiff(path, grey.astype(kind), 0, **options)
        assert np.abs(pixels(path) - wanted).max() <= 1, kind
    wide = grey.astype(np.uint32) * 1_048_832
    assert np.abs(pixels(write_tiff(path, wide, 0, **options)) - wanted).max() <= 1
    assert np.array_equal(pixels(write_tiff(path, grey, 0, bits=12, **options)), wanted)
    dark = write_tiff(path, grey, 1, bits=12, **options)
    assert np.array_equal(pixels(dark), shown(grey / 4095))
    eight = (grey >> 4).astype(np.uint8)
    assert np.array_equal(pixels(write_tiff(path, eight, 0, **options)), shown(1 - eight / 255))
    data = write_tiff(path, grey, 0, **options).read_bytes()
    assert np.array_equal(pixels(LazyImage("row", lambda: data)), wanted)


def test_tiff_that_cannot_be_read_is_named_by_its_tags(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "film.tif", RGB[..., 0].astype(np.float64), 1, order=">")
    with pytest.raises(DiveError, match=r"film.tif is a TIFF file of 64 bits, big-endian, Photo"):
        load_rgb(path)
    two_bands = np.stack([RGB[..., 0] >> 4, RGB[..., 1] >> 4], -1).astype(np.uint8)
    write_tiff(path, two_bands, 0, alpha=2)
    with pytest.raises(DiveError, match="of 8/8 bits, little-endian, PhotometricInterpretation 0"):
        load_rgb(path)
    path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(DiveError, match="film.tif"):
        load_rgb(path)


def test_integers_of_more_than_16_bits_are_scaled_by_what_they_have() -> None:
    values = np.array([[0, 50_000], [100_000, 131_071]], np.int32)
    assert pixels(Image.fromarray(values))[..., 0].tolist() == [[0, 97], [195, 255]]
    big_endian = Image.fromarray(RGB[..., 0].astype(">u2"))
    assert big_endian.mode == "I;16B"
    assert np.array_equal(pixels(big_endian), shown(RGB[..., 0] / 4095))


def test_deep_colour_that_cannot_be_read_whole_is_refused_by_name(tmp_path: Path) -> None:
    planes = write_tiff(tmp_path / "planes.tif", RGB, 2, planar=True)
    ppm = tmp_path / "film.ppm"
    ppm.write_bytes(b"P6 7 6 4095\n" + RGB.astype(">u2").tobytes())
    for path in (planes, ppm):
        with pytest.raises(DiveError, match="image 1 of 1 is a .* file of 16 bits per channel"):
            Study("x", (path,), source="t:1").load_images()
    ppm.write_bytes(b"P5 7 6 4095\n" + RGB[..., 0].astype(">u2").tobytes())
    assert np.abs(pixels(ppm).astype(int) - shown(RGB[..., 0] / 4095)).max() <= 1


def test_cmyk_and_1_bit(tmp_path: Path) -> None:
    ink = Image.merge("CMYK", [Image.new("L", (8, 8), one) for one in (0, 0, 0, 255)])
    ink.paste((0, 0, 0, 55), (0, 0, 4, 8))
    ink.save(tmp_path / "ink.jpg", quality=100)
    found = pixels(tmp_path / "ink.jpg").astype(int)
    assert abs(found[4, 1] - 200).max() <= 3 and found[4, 6].max() <= 3
    bits = Image.fromarray(np.eye(8, dtype=bool))
    bits.save(tmp_path / "bits.png")
    assert np.array_equal(pixels(tmp_path / "bits.png")[..., 1], 255 * np.eye(8))


# several pictures in a file


def two(size: tuple[int, int] = (40, 24)) -> list[Image.Image]:
    ramp = np.tile(np.linspace(0, 250, size[0]).astype(np.uint8), (size[1], 1))
    return [Image.fromarray(ramp), Image.fromarray(250 - ramp)]


def test_of_a_phones_jpeg_the_first_picture_is_read(tmp_path: Path) -> None:
    first, second = (one.convert("RGB") for one in two())
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(tmp_path / "phone.jpg") as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    found = pixels(tmp_path / "phone.jpg").astype(int)
    assert np.abs(found - np.asarray(first)).max() < 12
    data = (tmp_path / "phone.jpg").read_bytes()
    assert np.array_equal(pixels(LazyImage("row", lambda: data)), found)


@pytest.mark.parametrize("kind", ["tif", "gif", "webp", "png"])
def test_what_holds_several_images_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    first, second = two()
    path = tmp_path / f"two.{kind}"
    first.save(path, save_all=True, append_images=[second])
    for read in (load_rgb, image_size):
        with pytest.raises(DiveError, match=rf"two\.{kind} holds 2 frames, want a file with one"):
            read(path)


def test_formats_that_pillow_does_not_read_are_named(tmp_path: Path) -> None:
    heic = tmp_path / "IMG_1.jpg"
    heic.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200)
    with pytest.raises(DiveError, match=r"IMG_1\.jpg: is HEIC, for which Pillow needs a plugin"):
        load_rgb(heic)
    film = tmp_path / "film.png"
    film.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 99)
    with pytest.raises(DiveError, match=r"film\.png: is DICOM under the name of another format"):
        load_rgb(film)


# nothing to see


def test_a_film_of_one_value_is_warned_of_by_name(tmp_path: Path) -> None:
    for name, film in {
        "black.png": Image.new("L", (9, 9)),
        "white.jpg": Image.new("RGB", (9, 9), "white"),
        "deep.png": Image.fromarray(np.full((9, 9), 3000, np.uint16)),
        "noise.png": Image.fromarray((np.eye(9) * 2 + 100).astype(np.uint8)),
    }.items():
        film.save(tmp_path / name)
        with pytest.warns(UserWarning, match=r"t:1: study 'x': the image \(1 of 1\) has no contr"):
            assert Study("x", (tmp_path / name,), source="t:1").load_images()[0].size == (9, 9)
    with pytest.warns(UserWarning, match="an image in memory has no contrast"):
        load_rgb(Image.new("L", (9, 9), 7))


def film_of(unit: float = 1.0, size: int = 64) -> np.ndarray:
    """12-bit values on a tenth of the pixels, in a black frame."""
    values = np.zeros((size, size))
    inner = size // 3
    values[inner : 2 * inner, inner : 2 * inner] = np.linspace(0, 4095, inner**2).reshape(inner, -1)
    return values * unit


def test_a_marker_does_not_make_a_blank_film_a_film(tmp_path: Path) -> None:
    blank = np.full((64, 64), 40, np.uint8)
    blank[2:5, 2:5] = 255
    clear = np.zeros((64, 64, 4), np.uint8)
    clear[..., :3], clear[9, 9] = 200, 255
    squeezed = (film_of() / 300).astype(np.uint8)
    squeezed[2:5, 2:5] = 255
    for name, values, said in (
        ("blank.png", blank, "has no contrast: 96% of its pixels are one colour"),
        ("clear.png", clear, "has hardly any contrast: 99.98% of its pixels are transparent"),
        ("dark.png", squeezed, "has hardly any contrast: 96% of its pixels lie between 0 and 1"),
    ):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.warns(UserWarning, match=f"{name} {said}") as caught:
            load_rgb(tmp_path / name, "t:1")
        assert len(caught) == 1
    with pytest.warns(UserWarning, match="hardly any contrast"):
        load_rgb(Image.fromarray(clear))


def test_dark_films_in_a_black_frame_are_warned_of_nothing(tmp_path: Path) -> None:
    for unit in (1, 0.3):
        film = (film_of(unit) / 16).astype(np.uint8)
        Image.fromarray(film).save(tmp_path / "film.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_rgb(tmp_path / "film.png")
            load_rgb(Image.fromarray(255 - film))


def test_a_file_that_is_read_again_is_warned_of_once(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "black.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for where in ("", "t:1", "t:2"):
            load_rgb(tmp_path / "black.png", where)
    assert len(caught) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # which may be two images
            load_rgb(Image.new("L", (9, 9)))
    assert len(caught) == 2


def test_what_is_transparent_everywhere_is_refused(tmp_path: Path) -> None:
    hidden = two()[0].convert("RGBA")
    hidden.putalpha(0)
    hidden.save(tmp_path / "hidden.png")
    deep = write_png16(tmp_path / "deep.png", np.concatenate([RGB, ALPHA * 0], -1))
    grey = write_png16(tmp_path / "la.png", np.concatenate([RGB[..., :1], ALPHA * 0], -1))
    for image in (tmp_path / "hidden.png", deep, grey, hidden):
        with pytest.raises(DiveError, match="is transparent everywhere"):
            load_rgb(image)
    hidden.putalpha(128)
    wanted = np.asarray(two()[0]).astype(float)[..., None] * 128 / 255
    assert np.abs(pixels(hidden) - wanted).max() <= 1


def test_a_reduced_copy_before_the_image_is_not_taken_for_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    two()[0].save(buffer, "TIFF", tiffinfo={254: 1})
    with pytest.raises(DiveError, match="whose first image is a reduced copy"):
        load_rgb(LazyImage("row", buffer.getvalue))
