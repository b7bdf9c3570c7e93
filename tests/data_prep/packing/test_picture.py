"""Pictures on their way into a shard: untouched where possible, upright and whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.packing.picture import (
    ALMOST_BLACK,
    FIRST_ALONE,
    BadPicture,
    ImageFormat,
    PictureRule,
    prepare_picture,
    true_extension,
)
from tests.toys.pictures import (
    TURNED_LEFT,
    animation,
    encoded,
    jpeg,
    orientation,
    png,
    rotated_jpeg,
)
from vlds.data.shards.pictures import decode_image, to_rgb
from vlds.schema import ImageSpec

AS_THEY_ARE = PictureRule()
KEPT = {
    "rgb": (jpeg(), "jpg"),
    "gray": (jpeg("L"), "jpg"),
    "cmyk": (jpeg("CMYK"), "jpg"),
    "progressive": (jpeg(progressive=True), "jpg"),
    "upright by its tag": (jpeg(exif=orientation(1)), "jpg"),
    "senseless tag": (jpeg(exif=orientation(0)), "jpg"),
    "png": (png(), "png"),
    "palette": (png("P"), "png"),
    "black and white": (png("1"), "png"),
    "gray and alpha": (png("LA"), "png"),
    "alpha": (png("RGBA"), "png"),
    "sixteen bits": (encoded("PNG", "I;16"), "png"),
    "gif": (encoded("GIF", "P"), "gif"),
    "animated gif": (animation("GIF"), "gif"),
    "webp": (encoded("WEBP"), "webp"),
    "webp and alpha": (encoded("WEBP", "RGBA"), "webp"),
    "animated webp": (animation("WEBP"), "webp"),
    "animated png": (animation("PNG"), "png"),
    "avif": (encoded("AVIF", quality=95), "avif"),
    "avif and alpha": (encoded("AVIF", "RGBA", quality=95), "avif"),
    "bmp": (encoded("BMP"), "bmp"),
    "tiff": (encoded("TIFF"), "tif"),
    "tiff in cmyk": (encoded("TIFF", "CMYK"), "tif"),
}


@pytest.mark.parametrize("name", KEPT)
def test_good_bytes_are_kept_and_a_run_reads_them(name: str) -> None:
    data, extension = KEPT[name]
    picture = prepare_picture(data, AS_THEY_ARE)
    assert picture.data == data
    assert (picture.extension, picture.width, picture.height) == (extension, 40, 24)
    remarks = (FIRST_ALONE,) * name.startswith("animated")
    if name == "sixteen bits":  # the toy's brightest grey is 255 of 65,535
        remarks = (ALMOST_BLACK,)
    assert picture.remarks == remarks
    seen = decode_image(picture.data, ImageSpec(24, 40)).astype(int)
    if name not in ("gray", "black and white", "gray and alpha", "sixteen bits"):
        assert seen[0, :, -4:].mean() > seen[0, :, :4].mean() + 150  # red grows to the right
    expected = np.asarray(to_rgb(Image.open(io.BytesIO(data)))).transpose(2, 0, 1)
    assert np.abs(seen - expected).max() <= 1


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_turned_picture_keeps_its_bytes_and_has_its_upright_size(form: str) -> None:
    data = encoded(form, exif=orientation(TURNED_LEFT))
    picture = prepare_picture(data, AS_THEY_ARE)
    assert picture.data == data
    assert (picture.width, picture.height) == (24, 40)
    seen = decode_image(picture.data, ImageSpec(40, 24)).astype(int)
    assert seen[0, -4:].mean() > seen[0, :4].mean() + 150  # what grew to the right grows downwards


def test_a_turned_picture_is_made_smaller_upright() -> None:
    picture = prepare_picture(rotated_jpeg(), PictureRule(12))
    image = Image.open(io.BytesIO(picture.data))
    assert (picture.width, picture.height) == image.size == (12, 20)
    assert not image.getexif()
    assert image.getpixel((6, 18))[0] > image.getpixel((6, 1))[0] + 120


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


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize(("form", "extension"), [("webp", "webp"), ("jpeg", "jpg")])
def test_everything_can_be_made_smaller(name: str, form: ImageFormat, extension: str) -> None:
    """Without loss the pixels are those that a run makes of the original."""
    data, _ = KEPT[name]
    picture = prepare_picture(data, PictureRule(12, format=form))
    assert (picture.extension, picture.width, picture.height) == (extension, 20, 12)
    assert true_extension(picture.data) == extension
    spec = ImageSpec(12, 20)
    seen, whole = (decode_image(d, spec).astype(int) for d in (picture.data, data))
    difference = np.abs(seen - whole)
    assert difference.max() == 0 if form == "webp" else difference.mean() < 4


def test_a_strip_that_webp_cannot_hold() -> None:
    data = png("L", width=40_000, height=2)
    with pytest.raises(BadPicture, match="longer than the 16,383 pixels of WebP"):
        prepare_picture(data, PictureRule(1))
    assert prepare_picture(data, AS_THEY_ARE).data == data


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
        (b"<html>404</html>", "a web page instead of a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which is not read; convert it to JPEG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "fetch the file with git lfs pull"),
        (encoded("AVIF")[:-40], "truncated"),
        (b"", "empty file"),
    ],
)
def test_bad_bytes_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        prepare_picture(data, AS_THEY_ARE)


def test_a_damaged_byte_of_a_png_is_found_by_its_checksum() -> None:
    """Pillow's decoder does not look at the checksums of the pixels, and `verify` does."""
    data = bytearray(png(width=200, height=200))
    begin = data.index(b"IDAT") + 4
    length = int.from_bytes(data[begin - 8 : begin - 4], "big")
    data[begin + length] ^= 1  # of the checksum itself: the pixels are whole
    Image.open(io.BytesIO(data)).load()
    with pytest.raises(BadPicture, match="truncated or damaged"):
        prepare_picture(bytes(data), AS_THEY_ARE)


def test_two_hundred_zeros_inside_a_jpeg() -> None:
    """Pillow takes it for a good picture."""
    data = bytearray(jpeg(width=200, height=150, optimize=True))
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    Image.open(io.BytesIO(data)).load()
    with pytest.raises(BadPicture, match="truncated or damaged"):
        prepare_picture(bytes(data), PictureRule())
