"""Pictures as RGB: every mode keeps its meaning or is refused, upright, transparency over white."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, TiffImagePlugin

from pruneflow.workloads.pictures import to_rgb

GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
# Pillow's modes: https://pillow.readthedocs.io/en/stable/handbook/concepts.html#modes; for each,
# its darkest and its brightest colour.
MODES: dict[str, tuple[object, object]] = {
    "1": (0, 1),
    "L": (0, 255),
    "RGB": ((0, 0, 0), (255, 255, 255)),
    "RGBX": ((0, 0, 0, 0), (255, 255, 255, 0)),
    "CMYK": ((0, 0, 0, 255), (0, 0, 0, 0)),
    "YCbCr": ((0, 128, 128), (255, 128, 128)),
    "HSV": ((0, 0, 0), (0, 0, 255)),
    "LA": ((0, 255), (255, 255)),
    "La": ((0, 255), (255, 255)),
    "RGBA": ((0, 0, 0, 255), (255, 255, 255, 255)),
    "RGBa": ((0, 0, 0, 255), (255, 255, 255, 255)),
    **dict.fromkeys(GREY_16, (0, 65535)),
}
REFUSED = ("I", "F", "LAB")


def pixel(picture: Image.Image) -> list[int]:
    rgb = to_rgb(picture)
    assert rgb.mode == "RGB"
    colour: list[int] = np.asarray(rgb)[0, 0].tolist()
    return colour


@pytest.mark.parametrize("mode", MODES)
def test_the_range_of_a_mode_is_the_range_of_rgb(mode: str) -> None:
    dark, bright = MODES[mode]
    assert pixel(Image.new(mode, (2, 2), dark)) == [0, 0, 0]  # type: ignore[arg-type]
    assert pixel(Image.new(mode, (2, 2), bright)) == [255, 255, 255]  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", REFUSED)
def test_a_mode_without_a_known_range_is_refused_by_its_name(mode: str) -> None:
    with pytest.raises(ValueError, match=rf"its mode is {mode}\b"):
        to_rgb(Image.new(mode, (2, 2)))


def test_there_is_no_other_mode() -> None:
    known = {*MODES, *REFUSED, "P", "PA"}
    assert set(getattr(Image, "MODES", [])) <= known


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=8), st.sampled_from(GREY_16))
def test_grey_of_16_bits_is_scaled_to_the_nearest_of_8(values: list[int], mode: str) -> None:
    picture = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        picture.putpixel((x, 0), value)
    expected = np.rint(np.array(values) / 257).astype(int)
    assert np.asarray(to_rgb(picture))[0, :, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_read_from_files(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 257 * 10, 257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{ending}")
    with Image.open(tmp_path / f"x.{ending}") as picture:
        assert np.asarray(to_rgb(picture))[0, :, 0].tolist() == [0, 10, 200, 255]


def test_tiff_says_how_many_bits_grey_has_and_whether_white_is_zero(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as picture:
        picture.load()
        picture.tag_v2[258] = (12,)  # type: ignore[attr-defined]
        assert np.asarray(to_rgb(picture))[0, :, 0].tolist() == [0, 255]
        picture.tag_v2[262] = 0  # type: ignore[attr-defined]
        assert np.asarray(to_rgb(picture))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_its_exif_says(tmp_path: Path, orientation: int, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 5, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    picture = Image.fromarray(pixels).convert(mode)
    tags = picture.getexif()
    tags[0x0112] = orientation
    picture.save(tmp_path / "x.png", exif=tags)
    with Image.open(tmp_path / "x.png") as stored:
        upright = to_rgb(stored)
    with Image.open(tmp_path / "x.png") as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert upright.size == ((5, 3) if orientation < 5 else (3, 5))
    assert np.array_equal(np.asarray(upright), np.asarray(expected))


@given(st.tuples(*[st.integers(0, 255)] * 4), st.sampled_from(["RGBA", "LA"]))
def test_transparency_is_laid_over_white(colour: tuple[int, ...], mode: str) -> None:
    picture = Image.new(mode, (1, 1), colour if mode == "RGBA" else colour[2:])
    alpha = colour[3] / 255
    shown = colour[:3] if mode == "RGBA" else colour[2:3] * 3
    expected = [alpha * value + (1 - alpha) * 255 for value in shown]
    assert np.abs(np.array(pixel(picture)) - expected).max() <= 1


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (1, 2, 3)), ("I;16", 700), ("P", 1)])
def test_a_transparent_colour_is_white(tmp_path: Path, mode: str, key: object) -> None:
    picture = Image.new(mode, (2, 1), key)  # type: ignore[arg-type]
    if mode == "P":
        picture.putpalette([0, 0, 0, 9, 9, 9])
    picture.putpixel((1, 0), (0, 0, 0) if mode == "RGB" else 0)
    picture.save(tmp_path / "x.png", transparency=key)
    with Image.open(tmp_path / "x.png") as stored:
        assert np.asarray(to_rgb(stored))[0].tolist() == [[255] * 3, [0] * 3]


def png(bits: int, colours: int, row: bytes, transparent: bytes) -> io.BytesIO:
    """A PNG of one row: Pillow writes neither 2 or 4 bits of grey nor 16 of RGB."""
    header = struct.pack(">IIBBBBB", 4 if colours == 0 else 1, 1, bits, colours, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row))]
    stream = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    stream.seek(0, io.SEEK_END)
    for name, data in [*chunks, (b"IEND", b"")]:
        stream.write(struct.pack(">I", len(data)) + name + data)
        stream.write(struct.pack(">I", zlib.crc32(name + data)))
    return stream


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [0, 1])
def test_a_transparent_grey_is_white_whatever_its_bits(bits: int, transparent: int) -> None:
    values = [0, 1, 2**bits - 1, 0]
    row = sum(value << bits * (3 - place) for place, value in enumerate(values))
    row <<= -4 * bits % 8
    picture = png(bits, 0, row.to_bytes((4 * bits + 7) // 8, "big"), struct.pack(">H", transparent))
    shades = [255 if value == transparent else value * 255 // (2**bits - 1) for value in values]
    assert np.asarray(to_rgb(Image.open(picture)))[0, :, 0].tolist() == shades


@pytest.mark.parametrize("colour", [(0, 0, 0), (1, 2, 3), (300, 2, 3)])
def test_a_transparent_colour_of_16_bits_is_refused(colour: tuple[int, int, int]) -> None:
    stored = struct.pack(">3H", *colour)
    with pytest.raises(ValueError, match="transparent colour has 16 bits"):
        to_rgb(Image.open(png(16, 2, stored, stored)))


def test_values_with_a_sign_are_refused(tmp_path: Path) -> None:
    signed = TiffImagePlugin.ImageFileDirectory_v2()
    signed[339] = 2
    Image.new("L", (2, 2)).save(tmp_path / "x.tif", tiffinfo=signed)
    with Image.open(tmp_path / "x.tif") as picture, pytest.raises(ValueError, match="a sign"):
        to_rgb(picture)


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_palettes_are_looked_up(mode: str) -> None:
    picture = Image.new("P", (1, 1), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(picture.convert(mode)) == [10, 20, 30]
