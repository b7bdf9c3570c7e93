"""Pictures of every sort become uint8 of one size; half a picture is an error."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vlds.data.decode import PictureCache, decode_image
from vlds.schema import ImageSpec, SkipSample

SPEC = ImageSpec(height=10, width=14)


def encoded(image: Image.Image, extension: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, extension)
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


def test_pixels_are_pillows_bicubic_squash() -> None:
    image = noise("RGB")
    expected = np.asarray(image.resize((14, 10), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), SPEC, "x"), expected)


def test_a_picture_of_the_size_passes_untouched() -> None:
    image = noise("RGB", (14, 10))
    expected = np.asarray(image).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), SPEC, "x"), expected)


def test_sixteen_bit_gray_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 140).astype(np.uint16).reshape(10, 14)
    picture = decode_image(encoded(Image.fromarray(ramp), "PNG"), SPEC, "x")
    np.testing.assert_array_equal(picture[0], ramp >> 8)


@pytest.mark.parametrize("extension", ["JPEG", "PNG"])
def test_half_a_picture_is_an_error_with_its_name(extension: str) -> None:
    data = encoded(noise("RGB", (200, 200)), extension)
    with pytest.raises(SkipSample, match="picture 1 of sample 7: truncated or damaged"):
        decode_image(data[: len(data) // 2], SPEC, "1 of sample 7")


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>"])
def test_what_is_no_picture_is_an_error(data: bytes) -> None:
    with pytest.raises(SkipSample, match="picture x"):
        decode_image(data, SPEC, "x")


def test_cache_keeps_the_last_used_within_its_bytes() -> None:
    cache = PictureCache(max_bytes=250)
    pictures = [(np.full((100,), n, np.uint8),) for n in range(3)]
    cache.put("a", pictures[0])
    cache.put("b", pictures[1])
    assert cache.get("a") is pictures[0]
    cache.put("c", pictures[2])
    assert cache.get("b") is None
    assert cache.get("a") is pictures[0]
    assert cache.get("c") is pictures[2]
