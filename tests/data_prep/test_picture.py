"""Pictures on their way into a shard: untouched where possible, upright and whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.picture import BadPicture, PictureRule, prepare_picture
from tests.data_prep.pictures import jpeg, png, rotated_jpeg

AS_THEY_ARE = PictureRule()


@pytest.mark.parametrize(
    ("data", "extension"),
    [
        (jpeg(), "jpg"),
        (jpeg("L"), "jpg"),
        (jpeg("CMYK"), "jpg"),
        (jpeg(progressive=True), "jpg"),
        (png(), "png"),
        (png("P"), "png"),
        (png("LA"), "png"),
    ],
    ids=["rgb", "gray", "cmyk", "progressive", "png", "palette", "alpha"],
)
def test_good_bytes_pass_through_untouched(data: bytes, extension: str) -> None:
    picture = prepare_picture(data, AS_THEY_ARE)
    assert picture.data == data
    assert (picture.extension, picture.width, picture.height) == (extension, 40, 24)


def test_rotation_is_baked_in_and_the_tag_is_gone() -> None:
    picture = prepare_picture(rotated_jpeg(), AS_THEY_ARE)
    image = Image.open(io.BytesIO(picture.data))
    assert (picture.width, picture.height) == image.size == (24, 40)
    assert not image.getexif()
    bottom_red, top_red = image.getpixel((12, 38))[0], image.getpixel((12, 1))[0]
    assert bottom_red > top_red + 150  # what grew to the right grows downwards


@pytest.mark.parametrize(
    ("rule", "size"),
    [
        (PictureRule(12), (20, 12)),
        (PictureRule(16, square=True), (16, 16)),
        (PictureRule(100), (40, 24)),
        (PictureRule(48, square=True), (48, 48)),
    ],
    ids=["short side", "square", "never enlarged", "square is exact"],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_size(rule: PictureRule, size: tuple[int, int], mode: str) -> None:
    picture = prepare_picture(jpeg(mode), rule)
    assert (picture.width, picture.height) == size
    assert Image.open(io.BytesIO(picture.data)).convert("RGB").size == size


def test_palette_and_alpha_survive_resizing() -> None:
    for mode in ("P", "RGBA", "LA", "1"):
        picture = prepare_picture(png(mode), PictureRule(12))
        assert picture.extension == "png"
        assert Image.open(io.BytesIO(picture.data)).convert("RGB").size == (20, 12)


def test_sixteen_bit_gray_is_not_made_white() -> None:
    """Pillow's own conversion clips everything above 255; a radiograph would be blank."""
    deep = np.linspace(0, 65535, 40 * 24).astype(np.uint16).reshape(24, 40)
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG")
    assert prepare_picture(buffer.getvalue(), AS_THEY_ARE).data == buffer.getvalue()
    small = Image.open(io.BytesIO(prepare_picture(buffer.getvalue(), PictureRule(12)).data))
    pixels = np.asarray(small.convert("RGB"))
    assert pixels[0].max() < 30
    assert 120 < pixels.mean() < 136
    assert pixels[-1].min() > 225


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (jpeg(width=200, height=200)[:-400], "truncated"),
        (png(width=200, height=200)[:-400], "truncated"),
        (jpeg()[:30], "truncated"),
        (b"<html>404</html>", "not a picture"),
        (b"", "empty file"),
    ],
)
def test_bad_bytes_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        prepare_picture(data, AS_THEY_ARE)


def test_rules_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="--square needs --image-size"):
        PictureRule(square=True)
    with pytest.raises(ValueError, match="--image-size 0"):
        PictureRule(0)


def test_two_hundred_zeros_inside_a_jpeg() -> None:
    """Pillow takes it for a good picture."""
    data = bytearray(jpeg(width=200, height=150, optimize=True))
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    Image.open(io.BytesIO(data)).load()
    with pytest.raises(BadPicture, match="truncated or damaged"):
        prepare_picture(bytes(data), PictureRule())
