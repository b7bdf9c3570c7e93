"""Does a picture decode completely?

JPEG has no checksum: for unreadable data, libjpeg only warns and continues with grey or wrong
values. Pillow and torchvision swallow the warnings; simplejpeg (strict) makes them errors. Shares
of 3,600 damaged files (12 photographs, 6 encodings) that are noticed:

    what is wrong in the picture data   Pillow   torchvision   simplejpeg
    200 bytes are zero                    0 %        0 %          86 %
    4,096 bytes are zero                 13 %       17 %          98 %
    200 bytes are random                 45 %       46 %          97 %
    200 bytes are missing                 1 %        1 %          92 %
    16 bytes are random                   4 %        5 %          72 %
    one bit is flipped                    1 %        1 %          23 %
    the end is missing                  100 %      100 %         100 %

No decoder can notice the others: the damaged bits are valid codes, and only the picture is wrong.
That needs an earlier checksum, which dataset.json has for each shard; this check is for files that
were damaged before they were packed. PNG has checksums. WebP has none: a third of such damages is
noticed (benchmarks/pictures.md). Of an animation the first frame is checked, as a run reads no
other.
"""

from __future__ import annotations

import simplejpeg

from vlds.data.shards.decode import to_rgb
from vlds.data.shards.open_picture import open_picture, upright

JPEGS = ("JPEG", "MPO")
"""Pillow's formats that begin with a JPEG."""


def picture_fault(data: bytes) -> str | None:
    """What is wrong with the bytes of a picture; None if they are good."""
    if not data:
        return "empty"
    try:
        with open_picture(data) as image:
            form = image.format
            if form not in JPEGS:
                to_rgb(upright(image))
        if form == "PNG":  # decoding skips the checksums; verify() skips the pixels
            with open_picture(data) as image:
                image.verify()
    except Exception as error:  # damaged bytes make decoders raise anything
        return str(error) or type(error).__name__
    return _jpeg_fault(data) if form in JPEGS else None


def _jpeg_fault(data: bytes) -> str | None:
    """What is wrong with a JPEG. Every code is read; grey at an eighth of the size is faster."""
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, strict=True)
    except ValueError as error:
        # Rare color layouts are not damage: Pillow reads them, this decoder does not.
        return _pillow_fault(data) if "subsampling" in str(error) else str(error)
    return None


def _pillow_fault(data: bytes) -> str | None:
    try:
        with open_picture(data) as image:
            to_rgb(image)
    except Exception as error:  # as above
        return str(error) or type(error).__name__
    return None
