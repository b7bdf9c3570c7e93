"""Pictures from anybody: a fixed list of formats, a bound on pixels, and no exception but one."""

from __future__ import annotations

import contextlib
import random
import time
import zlib

import pytest
from PIL import Image

from data_prep.packing.picture import BadPicture, PictureRule, picture_fault, prepare_picture
from tests.toys.pictures import noise
from vlds.data.shards.pictures import FORMATS, decode_image, page_picture, thumbnail, upright_size
from vlds.schema import ImageSpec, SkipSample

SPEC = ImageSpec(height=8, width=8)
OTHERS = ("EPS", "DDS", "ICO", "PCX", "PPM", "SGI", "SPIDER", "TGA", "JPEG2000", "PDF")
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch ran) (w) file\n"
)


def encoded(form: str, mode: str = "RGB") -> bytes:
    """A picture of noise."""
    options = {"exif": exif()} if form in ("JPEG", "WEBP", "PNG") else {}
    return noise(1, (20, 24), form, mode, **options)


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags.tobytes()


@pytest.mark.parametrize("form", OTHERS)
def test_other_formats_are_refused_whatever_they_are_called(form: str) -> None:
    """EPS would start Ghostscript."""
    try:
        data = EPS if form == "EPS" else encoded(form, "F" if form == "SPIDER" else "RGB")
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {form}")
    with pytest.raises(SkipSample):
        decode_image(data, SPEC)
    assert picture_fault(data)


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A valid PNG of any size in a few hundred bytes, its pixels in one chunk or in those given."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    pixels = chunks or (zlib.compress(bytes(1 << 20), 9),)
    body = b"".join(chunk(b"IDAT", part) for part in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def spoilt(data: bytes, seed: int) -> bytes:
    """Damaged in the header or anywhere: other bytes, missing or more of them, cut, or twice."""
    draw, out = random.Random(seed), bytearray(data)
    start = draw.randrange(min(len(out), draw.choice((64, 600, len(out)))))
    match draw.randrange(6):
        case 0:
            out[start : start + 4] = draw.randbytes(draw.randint(1, 4))
        case 1:
            del out[start : start + draw.randint(1, 30)]
        case 2:
            out[start:start] = draw.randbytes(draw.randint(1, 12))
        case 3:
            out += out[start:]
        case 4:
            for _ in range(8):
                out[draw.randrange(len(out))] = draw.randrange(256)
        case _:
            del out[start:]
    return bytes(out)


@pytest.mark.parametrize("form", FORMATS)
def test_readers_of_headers_raise_nothing_else(form: str) -> None:
    """Those of AVIF raise RuntimeError while a file is opened."""
    whole = encoded(form)
    for seed in range(300):
        data = spoilt(whole, seed)
        with contextlib.suppress(ValueError):
            assert min(upright_size(data)) >= 0
        for page in (page_picture(data), page_picture(thumbnail(data) or b"")):
            assert page is None or page.url.startswith("data:image/")
        with contextlib.suppress(BadPicture):
            prepare_picture(data, PictureRule(8))


def stating(form: str, mark: bytes, skipped: int, size: bytes) -> bytes:
    """A small picture whose header states another size, some bytes after a mark."""
    data = bytearray(encoded(form))
    place = data.index(mark) + skipped
    data[place : place + len(size)] = size
    return bytes(data)


def progressive(mode: str, scans: int) -> bytes:
    """A JPEG whose last scan stands there again: a small file of a thousand takes minutes."""
    data = noise(1, (64, 64), "JPEG", mode, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + scans * data[last:-2] + data[-2:]


def gif_behind_comments(num: int) -> bytes:
    """Pillow joins each block of a comment to all before it."""
    data = noise(1, (64, 64), "GIF")
    frame = data.index(b"\x2c", 13)
    return data[:frame] + b"\x21\xfe" + num * (b"\xff" + bytes(255)) + b"\0" + data[frame:]


def hidden_scans() -> bytes:
    """To who takes the marker 0xffd0 for one that a length follows, a JPEG with one scan."""
    one_scan = b"\xff\xc0\0\x08\x08\0\x40\0\x40\x01" + b"\xff\xda\0\x03\x01"
    metadata = b"\xff\xe1\xff\xff".ljust(65505, b"\0") + one_scan
    return b"\xff\xd8\xff\xd0" + metadata.ljust(65537, b"\0") + progressive("RGB", 100)[2:]


@pytest.mark.parametrize(
    "data",
    [
        hidden_scans(),
        gif_behind_comments(20_000),
        png_of(512, 512, *[b"\0"] * 20_000),
        png_of(1, 170_000_000),
        png_of(100_000, 1_000),
        png_of(2**31 - 1, 2**31 - 1),
        stating("JPEG", b"\xff\xc0", 5, (60_000).to_bytes(2, "big") * 2),
        stating("AVIF", b"ispe", 8, (9_000).to_bytes(4, "big") + (10_000).to_bytes(4, "big")),
        *(progressive(mode, 100) for mode in ("RGB", "L", "CMYK")),
    ],
)
def test_pixels_and_scans_are_counted_before_they_are_decoded(data: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(SkipSample, match="too many pixels, scans or chunks"):
        decode_image(data, SPEC)
    assert picture_fault(data) == "too many pixels, scans or chunks"
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_progressive_jpegs_are_read(mode: str) -> None:
    assert picture_fault(progressive(mode, 0)) is None


def test_formats_that_are_not_read_are_named() -> None:
    for data, message in (
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "picture 3: HEIC, which is not read; convert it"),
        (b"<!DOCTYPE html><p>404", "picture 3: a web page instead of a picture"),
    ):
        with pytest.raises(SkipSample, match=message):
            decode_image(data, SPEC, "3")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
@pytest.mark.parametrize("rounds", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_damage_is_a_bad_sample_and_verify_knows_it(form: str, mode: str, rounds: int) -> None:
    try:
        whole = encoded(form, mode)
    except OSError:
        pytest.skip(f"{form} has no mode {mode}")
    assert picture_fault(whole) is None
    assert decode_image(whole, SPEC).shape == (3, 8, 8)
    for seed in range(rounds):
        data = spoilt(whole, seed)
        fault = picture_fault(data)
        try:
            decode_image(data, SPEC)
        except SkipSample:
            assert fault is not None, data
