"""Pictures that a tag turns: every decoder path gives them upright, and says their upright size."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlds.data.shards.pictures import decode_image, upright_size
from vlds.schema import ImageSpec

TAG = 0x0112
WIDTH, HEIGHT = 37, 23
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def noise(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    coarse = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(coarse)


def tagged(image: Image.Image, form: str, orientation: Any, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[TAG] = orientation
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


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
    plain, data = (tagged(noise(), form, n, **LOSSLESS.get(form, {})) for n in (1, orientation))
    expected = shown(as_stored(plain), orientation)
    height, width = expected.shape[1:]
    assert (height > width) == (orientation >= 5)
    assert upright_size(data) == (width, height)
    np.testing.assert_array_equal(decode_image(data, ImageSpec(height, width)), expected)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_jpeg_is_squashed_like_the_upright_one(orientation: int) -> None:
    """Its rows have another layout in memory, which must not change a pixel."""
    image = noise(48, 40).resize((480, 400), Image.Resampling.BICUBIC)
    stored = as_stored(tagged(image, "JPEG", 1))
    upright = np.ascontiguousarray(shown(stored, orientation).transpose(1, 2, 0))
    data = tagged(image, "JPEG", orientation)
    decoded = decode_image(data, ImageSpec(64, 64)).astype(int)
    expected = np.asarray(Image.fromarray(upright).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(decoded.transpose(1, 2, 0) - expected).max() <= 1


def test_a_sideways_jpeg_is_decoded_fast_at_the_side_that_is_wanted() -> None:
    image = noise(40, 30).resize((640, 480), Image.Resampling.BICUBIC)
    data = tagged(image, "JPEG", 6)
    exact, fast = (
        decode_image(data, ImageSpec(300, 100, decode=decode)).astype(int)
        for decode in ("exact", "fast")
    )
    assert exact.shape == (3, 300, 100)
    assert 0 < np.abs(exact - fast).mean() < 3


@pytest.mark.parametrize("value", [0, 9])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_tag_without_sense_turns_nothing(form: str, value: int) -> None:
    plain, data = (tagged(noise(), form, n) for n in (1, value))
    assert upright_size(data) == (WIDTH, HEIGHT)
    spec = ImageSpec(HEIGHT, WIDTH)
    np.testing.assert_array_equal(decode_image(data, spec), decode_image(plain, spec))


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_damaged_metadata_do_not_cost_the_picture(form: str) -> None:
    options = LOSSLESS.get(form, {})
    plain, data = (tagged(noise(), form, n, **options) for n in (1, 6))
    damaged = data.replace(b"MM\0*", b"\xff" * 4)
    assert damaged != data
    assert upright_size(damaged) == (WIDTH, HEIGHT)
    spec = ImageSpec(HEIGHT, WIDTH)
    np.testing.assert_array_equal(decode_image(damaged, spec), decode_image(plain, spec))
