"""Small copies of pictures, for people to look at."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from vlds.data.shards.decode import to_rgb
from vlds.data.shards.open_picture import open_picture, upright
from vlds.schema import Encoded

THUMBNAIL_SIZE = 320
"""Longest side in pixels."""
SMALL_PICTURE = 128
"""Smaller pictures are kept as they are, and shown enlarged with hard edges."""
JPEG_QUALITY = 85


def thumbnail(data: Encoded) -> bytes | None:
    """A small upright copy, PNG or JPEG; None where the picture cannot be decoded."""
    try:
        with open_picture(data) as image:
            small = to_rgb(upright(image))
        small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
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
