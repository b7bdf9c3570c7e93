"""Pictures of every sort become uint8 of one size, upright; half a picture is an error."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlds.data.shards.pictures import decode_image, upright_size
from vlds.schema import ImageSpec, SkipSample

SPEC = ImageSpec(height=10, width=14)


def encoded(image: Image.Image, extension: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, extension, **options)
    return buffer.getvalue()


def noise(mode: str, size: tuple[int, int] = (33, 21)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    ("mode", "extension"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("P", "GIF"),
     ("1", "PNG"), ("RGB", "WEBP")],
)  # fmt: skip
def test_every_mode_becomes_rgb_of_the_size(mode: str, extension: str) -> None:
    picture = decode_image(encoded(noise(mode), extension), SPEC, "x")
    assert picture.shape == (3, 10, 14)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert picture.std() > 5


@pytest.mark.parametrize("size", [(33, 21), (14, 10)], ids=["squashed", "untouched"])
def test_pixels_are_pillows_bicubic_squash(size: tuple[int, int]) -> None:
    image = noise("RGB", size)
    expected = np.asarray(image.resize((14, 10), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), SPEC, "x"), expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("resize", ["bicubic", "bilinear"])
def test_exact_jpegs_are_pillows_within_a_level(mode: str, resize: Any) -> None:
    image = noise(mode, (200, 130)).resize((400, 260), Image.Resampling.BILINEAR)
    data = encoded(image, "JPEG")
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB").resize((64, 48), filters[resize]))
    decoded = decode_image(data, ImageSpec(48, 64, resize)).transpose(1, 2, 0)
    difference = np.abs(decoded.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.05


@pytest.mark.parametrize(("orientation", "size"), [(1, (100, 100)), (6, (300, 100))])
def test_fast_is_near_and_not_the_same(orientation: int, size: tuple[int, int]) -> None:
    """Also of a sideways picture, whose other side decides."""
    image = noise("RGB", (40, 30)).resize((640, 480), Image.Resampling.BICUBIC)
    data = tagged(image, "JPEG", orientation)
    exact, fast = (
        decode_image(data, ImageSpec(*size, decode=decode)).astype(int)
        for decode in ("exact", "fast")
    )
    assert exact.shape == (3, *size)
    assert 0 < np.abs(exact - fast).mean() < 3
    small = encoded(noise("RGB", (20, 20)), "JPEG")
    assert decode_image(small, ImageSpec(*size, decode="fast")).shape == (3, *size)


def zeroed(data: bytes, start: int) -> bytes:
    return data[:start] + bytes(200) + data[start + 200 :]


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize(
    ("form", "damage"),
    [
        ("JPEG", lambda data: zeroed(data, 30)),
        # Pillow takes it for a good picture.
        ("JPEG", lambda data: zeroed(data, len(data) // 2)),
        ("JPEG", lambda data: data[: len(data) // 2]),
        ("PNG", lambda data: data[: len(data) // 2]),
        ("PNG", lambda data: b""),
    ],
)
def test_damage_is_an_error_with_the_pictures_name(
    form: str, damage: Callable[[bytes], bytes], decode: Any
) -> None:
    data = damage(encoded(noise("RGB", (200, 200)), form))
    with pytest.raises(SkipSample, match=r"picture 1 of sample 7: (truncated or damaged|empty)"):
        decode_image(data, ImageSpec(10, 10, decode=decode), "1 of sample 7")


def test_sixteen_bit_gray_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 140).astype(np.uint16).reshape(10, 14)
    picture = decode_image(encoded(Image.fromarray(ramp), "PNG"), SPEC, "x")
    np.testing.assert_array_equal(picture[0], ramp >> 8)


LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def tagged(image: Image.Image, form: str, orientation: Any, **options: Any) -> bytes:
    """A picture with a tag that turns it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, form, exif=exif, **options)


def as_stored(data: bytes) -> Image.Image:
    """The pixels of a picture without a tag, by our decoder."""
    with Image.open(io.BytesIO(data)) as image:
        spec = ImageSpec(image.height, image.width)
    return Image.fromarray(decode_image(data, spec).transpose(1, 2, 0))


def shown(image: Image.Image, orientation: int) -> NDArray[np.uint8]:
    """What Pillow makes of these pixels with that tag: (3, h, w)."""
    with Image.open(io.BytesIO(tagged(image, "PNG", orientation))) as opened:
        return np.asarray(ImageOps.exif_transpose(opened)).transpose(2, 0, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", *LOSSLESS])
def test_every_turn_is_pillows(form: str, orientation: int) -> None:
    plain, data = (
        tagged(noise("RGB"), form, n, **LOSSLESS.get(form, {})) for n in (1, orientation)
    )
    expected = shown(as_stored(plain), orientation)
    height, width = expected.shape[1:]
    assert (height > width) == (orientation >= 5)
    assert upright_size(data) == (width, height)
    np.testing.assert_array_equal(decode_image(data, ImageSpec(height, width)), expected)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_jpeg_is_squashed_like_the_upright_one(orientation: int) -> None:
    """Its rows have another layout in memory, which must not change a pixel."""
    image = noise("RGB", (48, 40)).resize((480, 400), Image.Resampling.BICUBIC)
    stored = as_stored(tagged(image, "JPEG", 1))
    upright = np.ascontiguousarray(shown(stored, orientation).transpose(1, 2, 0))
    data = tagged(image, "JPEG", orientation)
    decoded = decode_image(data, ImageSpec(64, 64)).astype(int)
    expected = np.asarray(Image.fromarray(upright).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(decoded.transpose(1, 2, 0) - expected).max() <= 1


@pytest.mark.parametrize(
    ("form", "value", "mark"),
    [("JPEG", 0, b""), ("PNG", 9, b""), ("JPEG", 6, b"MM\0*"), ("WEBP", 6, b"MM\0*")],
)
def test_metadata_without_sense_turn_nothing(form: str, value: int, mark: bytes) -> None:
    options = LOSSLESS.get(form, {})
    plain, tags = (tagged(noise("RGB"), form, n, **options) for n in (1, value))
    data = tags.replace(mark, b"\xff" * 4) if mark else tags
    assert data != plain
    assert upright_size(data) == (33, 21)
    spec = ImageSpec(21, 33)
    np.testing.assert_array_equal(decode_image(data, spec), decode_image(plain, spec))
