"""Pictures of every mode of Pillow as RGB of 8 bits that looks as the picture does.

Modes: https://pillow.readthedocs.io/en/stable/handbook/concepts.html#modes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported when used: names and help must not wait for it
    from PIL import Image

_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_SIGNED = 2
_SHADES = {"L;2": 85, "L;4": 17}  # of 8 bits, in one of a PNG of 2 or 4 bits
_DIRECT = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
_WITH_ALPHA = ("LA", "RGBA", "PA", "RGBa")


def to_rgb(picture: Image.Image) -> Image.Image:
    """The first frame as RGB of 8 bits, upright by its EXIF orientation, transparency over white.

    Grey of 16 bits is scaled from its range. Where a mode has no known range (32 bits, floats) or
    no conversion (LAB), a ValueError says so; Pillow raises its own on bytes it cannot decode.
    """
    from PIL import Image

    tiles = getattr(picture, "tile", ())  # none once it is decoded
    stored = str(tiles[0].args) if tiles else ""
    picture.load()
    if stored in _SHADES and "transparency" in picture.info:
        # Pillow scales the pixels, and not the transparent colour.
        picture.info["transparency"] *= _SHADES[stored]
    if stored == "RGB;16B" and "transparency" in picture.info:
        raise ValueError("its transparent colour has 16 bits: save it with an alpha channel")
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(picture.getexif().get(_ORIENTATION, 1))
    rgb = _converted(picture)
    return rgb if turn is None else rgb.transpose(turn)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height that `to_rgb` gives a picture, which need not be decoded for it."""
    width, height = picture.size
    turned = picture.getexif().get(_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def _converted(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode.startswith("I"):
        return _from_16_bits(picture)
    if _SIGNED in getattr(picture, "tag_v2", {}).get(_SAMPLE_FORMAT, ()):
        raise ValueError("its values have a sign, and so no known range: save it without")
    if picture.mode == "La":  # Pillow converts it to LA alone
        picture = picture.convert("LA")
    if picture.mode in _WITH_ALPHA or (picture.mode in _DIRECT and picture.has_transparency_data):
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    if picture.mode in _DIRECT:
        return picture.convert("RGB")
    raise ValueError(
        f"its mode is {picture.mode}, which has no known range in RGB: save it as grey or RGB of "
        "8 or 16 bits"
    )


def _from_16_bits(picture: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    # Older versions of Pillow open PNG and PGM of 16 bits as 32-bit integers.
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):
        raise ValueError("its mode is I (integers of 32 bits), whose range is not known")
    tags = getattr(picture, "tag_v2", {})
    values = np.asarray(picture).astype(np.int64)
    highest = 2 ** tags.get(_BITS, (16,))[0] - 1
    grey = (values * 255 + highest // 2) // highest
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow turns it around for 8 bits only
        grey = 255 - grey
    if (transparent := picture.info.get("transparency")) is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
