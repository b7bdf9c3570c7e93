"""From the bytes of a picture to pixels the right way up: uint8 (3, height, width).

This is the one way in which vlds opens pictures.

Pillow knows some fifty formats, among them EPS, which starts Ghostscript, and a header may promise
any number of pixels, or hide them behind comments without end. So the formats are a fixed list,
whatever a file is called, pixels and scans are counted before anything is decoded, and Pillow may
ask for bytes a limited number of times.

Cameras store a picture as it lay on the sensor and note the turn in a tag, in EXIF or XMP metadata.
Orientation 1 is upright. The other seven are the rotations and reflections of a rectangle; 5 to 8
swap width and height (EXIF 2.32, section 4.6.4). A tag that cannot be read, or that has another
value, means upright, as it does to browsers.
"""

from __future__ import annotations

import base64
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (  # noqa: F401 (each makes its format known)
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from vlds.schema import Encoded, ImageSpec, PictureSpec, Sample, SkipSample

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
"""Formats that data sets may hold. Pillow opens MPO, a JPEG with more pictures behind it, as
JPEG."""
MAX_PIXELS = 89_478_485
"""Pillow's own number: 256 MiB of RGB."""
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
"""Loader workers decode side by side already."""
JPEG = b"\xff\xd8\xff"
SCAN = 0xDA
"""JPEG marker of a scan. Within a scan, 0xFF is never followed by it."""
END = 0xD9
SEGMENT = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
"""A JPEG marker that a length follows, or that of the end. As in libjpeg, filling, stray bytes and
markers that stand alone are passed over."""
MOST_SCANS = 100
MOST_SCANNED = 20 * MAX_PIXELS
"""Most pixels of all scans: each scan of a progressive JPEG goes through the whole picture, and
encoders write about ten."""
OPENING_READS = 10_000
"""Most times that Pillow asks for bytes until it knows size and mode. Photos take below a hundred;
bytes of filling and comments of a GIF take one each, and time that grows with their square."""
BYTES_OF_READ = 64
"""Fewest bytes of a file, in the mean, for each time that Pillow asks for its pixels."""
TOO_LARGE = "too many pixels, scans or chunks"
AVIF = (b"avif", b"avis")
CONTAINERS = (b"mif1", b"msf1")
"""Brands of files that hold AVIF or HEIC; the compatible brands say which."""
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
TO_JPEG = "convert it to JPEG"
UNREAD: tuple[tuple[bytes, str], ...] = (
    (b"\xff\x0a", f"JPEG XL, which is not read; {TO_JPEG}"),
    (b"\x00\x00\x00\x0cJXL ", f"JPEG XL, which is not read; {TO_JPEG}"),
    (b"\x00\x00\x00\x0cjP  ", f"JPEG 2000, which is not read; {TO_JPEG}"),
    (b"\xff\x4f\xff\x51", f"JPEG 2000, which is not read; {TO_JPEG}"),
    (b"8BPS", f"Photoshop, which is not read; {TO_JPEG}"),
    (b"%PDF", f"PDF, which is not read; {TO_JPEG}"),
    (b"<svg", f"SVG, which is not read; {TO_JPEG}"),
    (b"<?xml", f"XML or SVG, which is not read; {TO_JPEG}"),
    (b"<!doctype html", "a web page instead of a picture; download it again"),
    (b"<html", "a web page instead of a picture; download it again"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file with git lfs pull"),
)
"""First bytes (markup in lower case) -> what a file is, and the cure."""
ORIENTATION = 0x0112
UPRIGHT = 1
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation -> what makes the picture upright."""
SIDEWAYS = (5, 6, 7, 8)
METADATA = 0xE1
"""JPEG marker of a segment with EXIF or XMP."""


class TooLarge(ValueError):
    """A picture that would take too much memory or time."""

    def __init__(self) -> None:
        super().__init__(TOO_LARGE)


class UnreadFormat(ValueError):
    """Not a file of FORMATS; the message says what it is, and the cure, where they are known."""


def is_avif(data: Encoded) -> bool:
    """True if the first bytes say AVIF."""
    # A box of ISO media: its size, "ftyp", the major brand, a version, the compatible brands.
    begin = bytes(data[:64])
    if begin[4:8] != b"ftyp":
        return False
    return begin[8:12] in AVIF or (begin[8:12] in CONTAINERS and any(b in begin for b in AVIF))


def unread_format(data: Encoded) -> str:
    """What an unreadable file is, and the cure; "" for pictures and unknown bytes."""
    begin = bytes(data[:64])
    if is_avif(data):
        supported = AvifImagePlugin.SUPPORTED
        return "" if supported else "AVIF, which this Pillow cannot read; pip install -U pillow"
    if begin[4:8] == b"ftyp" and begin[8:12] in (*HEIC, *CONTAINERS):
        return f"HEIC, which is not read; {TO_JPEG}"
    # Markup may begin with a byte order mark and white space.
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next(
        (what for magic, what in UNREAD if begin.startswith(magic) or text.startswith(magic)), ""
    )


def open_picture(data: Encoded) -> Image.Image:
    """A picture whose pixels are not decoded yet.

    Errors: TooLarge; UnreadFormat; whatever Pillow raises for bytes that are not a picture.
    """
    if fault := unread_format(data):
        raise UnreadFormat(fault)
    # Pillow raises at twice MAX_PIXELS and only warns below: `check_size` has the lower limit.
    file = CountedReads(data)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise TooLarge from None
    except UnidentifiedImageError:  # its message names an object in memory
        raise UnreadFormat("truncated or damaged, or not a picture" if data else "empty") from None
    check_size(data, *image.size)
    file.left = OPENING_READS + len(data) // BYTES_OF_READ
    return image


class CountedReads(BytesIO):
    """The bytes of a picture, for which a decoder may ask a limited number of times."""

    left = OPENING_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Errors: TooLarge."""
        self.left -= 1
        if self.left < 0:
            raise TooLarge
        return super().read(size)


def check_size(data: Encoded, width: int, height: int) -> None:
    """Errors: TooLarge."""
    if width * height > MAX_PIXELS:
        raise TooLarge
    if data[:3] != JPEG:
        return
    # Counting scans takes a tenth of the time of decoding, and most JPEGs have only one: that
    # whose first scan holds all components of a sequential frame.
    components = 0
    for marker, begin, end in jpeg_segments(data):
        # Frame headers of pixels that come in one pass (SOF0, SOF1, SOF9). They hold precision
        # (1 byte), height and width (2 each), then the number of components.
        if marker in (0xC0, 0xC1, 0xC9) and end - begin > 5:
            components = data[begin + 5]
        elif marker == SCAN and 0 < components <= data[begin]:
            return
    if bytes(data).count(bytes((0xFF, SCAN))) > min(MOST_SCANS, MOST_SCANNED // (width * height)):
        raise TooLarge


def jpeg_segments(data: Encoded) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment of a JPEG, up to the header of its first scan."""
    offset = 2  # behind the marker of the beginning, which has no length
    while found := SEGMENT.search(data, offset, len(data) - 2):
        marker, begin = found[1][0], found.end() + 2
        # A segment's length counts its own two bytes, but not those of the marker.
        end = max(begin, found.end() + int.from_bytes(data[begin - 2 : begin], "big"))
        yield marker, begin, min(end, len(data))
        if marker in (SCAN, END):
            return
        offset = end


def orientation_of(image: Image.Image) -> int:
    """Orientation of an open picture, 1 to 8."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except SyntaxError:  # damaged EXIF: Pillow reports it for a WebP and overlooks it for a JPEG
        return UPRIGHT
    return orientation if orientation in TRANSPOSES else UPRIGHT


def upright(image: Image.Image) -> Image.Image:
    """A picture the right way up, with its pixels loaded."""
    image.load()  # Pillow turns a TIFF while it loads, and forgets its tag
    method = TRANSPOSES.get(orientation_of(image))
    return image if method is None else image.transpose(method)


def upright_size(data: Encoded) -> tuple[int, int]:
    """Width and height of an encoded picture the right way up.

    Errors: ValueError for bytes that are not a picture.
    """
    try:
        with open_picture(data) as image:
            # Pillow turns a TIFF as it loads, and forgets the tag: only then the size is final.
            if image.format == "TIFF":
                image.load()
            width, height = image.size
            return (height, width) if orientation_of(image) in SIDEWAYS else (width, height)
    except Exception as error:  # damaged bytes make decoders raise anything
        raise ValueError(f"not a picture ({error})") from error


Picture = NDArray[np.uint8]
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
REVERSED_ROWS, REVERSED_COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)
"""Orientations of the stored picture, after rows and columns of a sideways one are swapped."""


def decode_image(data: Encoded, spec: PictureSpec, name: str = "") -> Picture:
    """Decode, and squash or scale down to the size of `spec`. Errors call the picture `name`.

    simplejpeg decodes JPEGs strictly: what other decoders fill with grey is an error. Pillow
    decodes all other pictures. `exact` takes every pixel of the file. Squashed by torch it differs
    from Pillow, the reference, by less than 0.1 of 255 levels in the mean; on the sharpest edges of
    radiographs by up to six. `fast` decodes at a fraction of the size if that is still large
    enough; its pixels differ enough to change answers, so a run must keep one setting. EXIF
    orientation is applied.

    Errors: SkipSample for bytes that are not a whole picture.
    """
    # `NaturalSize` has no choice of the method.
    mode = spec.resize if isinstance(spec, ImageSpec) else "bicubic"
    # Here, because packing and reports open pictures without it, and need not wait for it.
    from torch.nn.functional import interpolate

    try:
        if (pixels := _decode_jpeg(data, spec)) is not None:
            size = target_size(spec, *pixels.shape[1:])
            if tuple(pixels.shape[1:]) != size:
                pixels = interpolate(pixels[None], list(size), mode=mode, antialias=True)[0]
            return np.ascontiguousarray(pixels.numpy())
        with open_picture(data) as image:
            rgb = to_rgb(upright(image))
        height, width = target_size(spec, rgb.height, rgb.width)
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), RESAMPLING[mode])
    except (TooLarge, UnreadFormat) as error:
        raise SkipSample(f"picture {name}: {error}") from None
    except Exception as error:  # decoders raise anything on damaged bytes
        raise SkipSample(f"picture {name}: truncated or damaged ({error})") from None
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def decode_pictures(sample: Sample, spec: PictureSpec) -> tuple[Picture, ...]:
    """All pictures of a sample.

    Errors: SkipSample if one of them is not a whole picture.
    """
    return tuple(
        decode_image(data, spec, f"{number} of sample {sample.key}")
        for number, data in enumerate(sample.images, 1)
    )


def _decode_jpeg(data: Encoded, spec: PictureSpec) -> Tensor | None:
    """(3, h, w) uint8, upright; not smaller than `spec`, unless the file is. None for what Pillow
    decodes: other formats, and JPEGs with rare colour layouts.

    Errors: TooLarge; ValueError for a damaged file.
    """
    if data[:3] != JPEG:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        # A rare layout of the colours, not damage.
        if "subsampling" in str(error):
            return None
        raise
    check_size(data, width, height)
    import torch

    # The colour spaces on which simplejpeg and Pillow agree.
    if colors not in ("YCbCr", "Gray", "RGB"):
        return None
    # Pillow reads the tag only where one may be: most JPEGs have none, and reading it costs a tenth
    # of a millisecond.
    metadata = (bytes(data[a:b]) for marker, a, b in jpeg_segments(data) if marker == METADATA)
    orientation = UPRIGHT
    if any(b"Exif" in segment or b"Orientation" in segment for segment in metadata):
        with open_picture(data) as image:
            orientation = orientation_of(image)
    options: dict[str, Any] = {}
    if spec.decode == "fast" and isinstance(spec, ImageSpec):
        height, width = spec.height, spec.width
        # The decoder's limits are those of the stored picture, which lies on its side.
        if orientation in SIDEWAYS:
            height, width = width, height
        options = {"min_height": height, "min_width": width}
        options |= {"fastdct": True, "fastupsample": True}
    pixels = torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB", **options)).permute(2, 0, 1)
    if orientation == UPRIGHT:
        return pixels
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 2)
    flips = [d for d, group in ((1, REVERSED_ROWS), (2, REVERSED_COLUMNS)) if orientation in group]
    # The colours of a pixel stay side by side in memory, as the decoder leaves them.
    return pixels.flip(flips).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def target_size(spec: PictureSpec, height: int, width: int) -> tuple[int, int]:
    """Height and width of a decoded picture, from those of the file."""
    if isinstance(spec, ImageSpec):
        return spec.height, spec.width
    # Both sides by one factor, so its square is the ratio of the areas.
    area = height * width
    if area < spec.min_pixels:
        scale = (spec.min_pixels / area) ** 0.5
        return ceil(height * scale), ceil(width * scale)
    scale = min(1.0, (spec.max_pixels / area) ** 0.5)
    return max(1, int(height * scale)), max(1, int(width * scale))


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode, as the decoder sees it."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16-bit gray: Pillow's conversion would clip everything above 255 to white.
        gray = np.asarray(image) >> 8
        return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct conversion
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours; Pillow warns of the direct conversion
    return image.convert("RGB")


class PictureCache:
    """Decoded pictures of recently used samples, up to a number of bytes; one in each process."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Picture, ...]] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], tuple[Picture, ...]]) -> tuple[Picture, ...]:
        """The pictures of a sample; `decode` makes them if they are not kept."""
        if (pictures := self._kept.pop(key, None)) is None:
            pictures = decode()
            self._bytes += sum(picture.nbytes for picture in pictures)
        self._kept[key] = pictures  # the most recently used are last
        # Pictures larger than the limit go at once: the caller holds them as long as it needs.
        while self._bytes > self.max_bytes:
            self._bytes -= sum(picture.nbytes for picture in self._kept.popitem(last=False)[1])
        return pictures


THUMBNAIL_SIZE = 320
"""Longest side in pixels."""
SMALL_PICTURE = 128
"""Smaller pictures are kept as they are, and shown enlarged with hard edges."""
JPEG_QUALITY = 85


def thumbnail(data: Encoded, longest: int = THUMBNAIL_SIZE) -> bytes | None:
    """A small upright copy, PNG or JPEG, with at most `longest` pixels on a side; None where the
    picture cannot be decoded."""
    try:
        with open_picture(data) as image:
            # Large JPEGs are decoded at a fraction of their size, which takes a third of the time.
            image.draft(None, (2 * longest, 2 * longest))
            small = to_rgb(upright(image))
        small.thumbnail((longest, longest))
    except Exception:  # decoders raise whatever damaged bytes lead them to
        return None
    encoded = BytesIO()
    # Photos as PNG would make a page of many megabytes.
    if max(small.size) < SMALL_PICTURE:
        small.save(encoded, "PNG")
    else:
        small.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()


class PagePicture(NamedTuple):
    """A picture inside a page."""

    url: str
    """A data: URL."""
    width: int
    height: int

    @property
    def tiny(self) -> bool:
        """True for pictures that are shown enlarged, with hard edges."""
        return max(self.width, self.height) < SMALL_PICTURE


def page_picture(data: bytes) -> PagePicture | None:
    """An encoded picture, ready for a page; None for bytes that are not a picture."""
    try:
        with open_picture(data) as image:
            kind, size = Image.MIME[image.format or "PNG"], image.size
    except Exception:  # a run's folder may come from anybody
        return None
    return PagePicture(f"data:{kind};base64,{base64.b64encode(data).decode()}", *size)
