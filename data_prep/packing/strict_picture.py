"""Does a picture decode completely?

JPEG has no checksum: libjpeg fills what it cannot read with grey or goes on with wrong values, and
only warns. Pillow and torchvision swallow the warnings; simplejpeg (strict) makes them errors.
3,600 damages of 12 photographs in 6 encodings, share noticed:

    what is wrong in the picture data   Pillow   torchvision   simplejpeg
    200 bytes are zero                    0 %        0 %          86 %
    4,096 bytes are zero                 13 %       17 %          98 %
    200 bytes are random                 45 %       46 %          97 %
    200 bytes are missing                 1 %        1 %          92 %
    16 bytes are random                   4 %        5 %          72 %
    one bit is flipped                    1 %        1 %          23 %
    the end is missing                  100 %      100 %         100 %

What is left, no decoder can notice: the damaged bits are valid codes, and the picture is wrong from
there on. Only a checksum made before the damage tells. dataset.json has one of each shard, so this
is about files that were damaged before they were packed. PNG has checksums of its own. WebP has
none: a third of such damages is noticed (benchmarks/pictures.md). Of animations the first frame is
looked at, which is all that a run sees.
"""

from __future__ import annotations

import simplejpeg

from vlds.data.shards.decode import to_rgb
from vlds.data.shards.open_picture import open_picture, upright

JPEGS = ("JPEG", "MPO")
"""Formats whose first picture is a JPEG."""


def picture_fault(data: bytes) -> str | None:
    """What is wrong with the bytes of a picture; None for a good one."""
    if not data:
        return "empty"
    try:
        with open_picture(data) as image:
            form = image.format
            if form not in JPEGS:
                to_rgb(upright(image))
        if form == "PNG":  # decoding skips the checksums of the pixels, and verify() the pixels
            with open_picture(data) as image:
                image.verify()
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        return str(error) or type(error).__name__
    return jpeg_fault(data) if form in JPEGS else None


def jpeg_fault(data: bytes) -> str | None:
    """What is wrong with a JPEG. Every code is read; grey and at an eighth of the size, because
    nobody looks at it."""
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, strict=True)
    except ValueError as error:
        # Rare layouts of the colors, which Pillow knows and this decoder does not, are no damage.
        return _pillow_fault(data) if "subsampling" in str(error) else str(error)
    return None


def _pillow_fault(data: bytes) -> str | None:
    try:
        with open_picture(data) as image:
            to_rgb(image)
    except Exception as error:  # as above
        return str(error) or type(error).__name__
    return None
