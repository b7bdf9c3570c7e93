"""Picture files: the bytes that a shard stores, the files that rows name, and those that are alike.

Bytes are stored unchanged unless a resize makes the picture smaller: a run's decoder reads every
format that is accepted here, applies the EXIF orientation and takes the first frame of an
animation. A resize uses that same decoder and is stored without loss by default: a run whose
encoder wants this size sees exactly the pixels of the original file. JPEG is smaller, but changes
the picture: at quality 95 it moves the features of a frozen encoder by a sixth
(benchmarks/pictures.md).

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
noticed. Only the first frame of an animation is checked, because a run reads no other.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import numpy as np
import simplejpeg
from PIL import Image

from vlds.data.shards.pictures import (
    TOO_LARGE,
    decode_image,
    is_avif,
    open_picture,
    to_rgb,
    unread_format,
    upright,
    upright_size,
)
from vlds.runtime.files import open_file, read_file
from vlds.runtime.json_files import sha256
from vlds.runtime.terminal import tell
from vlds.schema import Group, ImageSpec, SkipSample

from .source import SHOWN, SourceSet, first_few

MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)
"""First bytes of a file -> its true extension, whatever its name says."""
JPEGS = ("JPEG", "MPO")
"""Pillow's formats that begin with a JPEG."""
ImageFormat = Literal["webp", "jpeg"]
"""How a resized picture is stored: WebP without loss, or JPEG."""
FIRST_ALONE = "the first frame or page alone of a picture that has more"
ALMOST_BLACK = (
    "a picture that is almost black, because its grey values fill a small part of their 16 bits, "
    "or are fractions; write them as 8 bits, or spread them over all 16"
)
DARK = 32
"""Of 255: the brightest pixel of a picture that is almost black."""
LONGEST_WEBP = 16383
"""Most pixels of a side."""
EXTENSIONS: Mapping[ImageFormat, str] = {"webp": "webp", "jpeg": "jpg"}
ENCODINGS: Mapping[ImageFormat, Mapping[str, Any]] = {
    # In lossless WebP, `method` and `quality` mean effort. More effort saves 3 to 4 % of the bytes
    # in up to six times the time; with method 0, radiographs need 1.5 times the bytes.
    "webp": {"lossless": True, "method": 2, "quality": 20},
    # Full color resolution: the usual 4:2:0 moves features 1.5 times as far.
    "jpeg": {"quality": 95, "subsampling": "4:4:4"},
}


class BadPicture(Exception):
    """An unusable picture; the message is the reason that the summary counts."""


@dataclass(frozen=True)
class FrameRule:
    """How many frames of a clip are stored."""

    num: int = 8
    fps: float | None = None
    """Instead of `num`: frames for each second, as near as whole numbers come."""
    most: int = 64
    """Of a longer clip, `fps` gives this many, evenly spread."""

    def count(self, seconds: float) -> int:
        """The frames of a clip that is so long; at least one."""
        if self.fps is None:
            return self.num
        return max(1, min(self.most, round(min(seconds * self.fps, self.most))))

    @property
    def most_of_a_clip(self) -> int:
        return self.num if self.fps is None else self.most

    def record(self) -> dict[str, Any]:
        """The rule as dataset.json records it."""
        return {"num": self.num} if self.fps is None else {"fps": self.fps, "most": self.most}


@dataclass(frozen=True)
class PictureRule:
    """How pictures are resized and stored."""

    size: int | None = None
    """Pixels of the shorter side; None keeps the size. Small pictures are never enlarged."""
    square: bool = False
    """Scale both sides to `size`, as VL-Adapter does, instead of keeping the proportions."""
    format: ImageFormat = "webp"
    """How a resized picture is stored."""
    frames: FrameRule = FrameRule()
    """Which frames of a clip are stored."""

    def __post_init__(self) -> None:
        if self.square and self.size is None:
            raise ValueError("--square needs --image-size, the side of the square in pixels")

    def record(self) -> dict[str, Any]:
        """The rule as dataset.json records it."""
        form = None if self.size is None else self.format
        return {"size": self.size, "square": self.square, "format": form}

    def target(self, width: int, height: int) -> tuple[int, int]:
        """The new size of a picture."""
        if self.size is None:
            return width, height
        if self.square:
            return self.size, self.size
        # 640 x 480 with size 240 -> 320 x 240.
        ratio = self.size / min(width, height)
        if ratio >= 1:
            return width, height
        return max(1, round(width * ratio)), max(1, round(height * ratio))


@dataclass(frozen=True)
class Picture:
    """A picture ready for a shard."""

    data: bytes
    extension: str
    width: int
    """Width and height are those of the upright picture."""
    height: int
    remarks: tuple[str, ...] = ()
    """What a reader of the data must know: FIRST_ALONE, ALMOST_BLACK."""


def true_extension(data: bytes) -> str:
    """The extension by the first bytes: NLVR2 has JPEGs in files named .png."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for start, extension in MAGIC:
        if data.startswith(start):
            return extension
    if fault := unread_format(data):
        raise BadPicture(fault)
    if is_avif(data):
        return "avif"
    raise BadPicture("not a picture" if data else "empty file")


def picture_fault(data: bytes) -> str | None:
    """What is wrong with the bytes of a picture; None if all of it decodes."""
    if not data:
        return "empty"
    try:
        with open_picture(data) as image:
            form = image.format
            if form not in JPEGS:
                to_rgb(upright(image))
            else:
                try:  # every code; grey at an eighth of the size is faster
                    simplejpeg.decode_jpeg(
                        data, colorspace="GRAY", min_height=1, min_width=1, strict=True
                    )
                except ValueError as error:
                    if "subsampling" not in str(error):
                        raise
                    to_rgb(image)  # rare color layouts are not damage: Pillow reads them
        if form == "PNG":  # decoding skips the checksums; verify() skips the pixels
            with open_picture(data) as image:
                image.verify()
    except Exception as error:  # damaged bytes make decoders raise anything
        return str(error) or type(error).__name__
    return None


def remarks_on(data: bytes) -> tuple[str, ...]:
    """What there is to say of a file whose first frame is whole."""
    with open_picture(data) as image:
        if image.format in JPEGS:  # phones put a thumbnail behind the picture
            return ()
        is_dark = False
        if image.mode == "F" or image.mode.startswith("I"):
            grey = np.asarray(image)
            grey = grey[np.isfinite(grey)]
            # `to_rgb` keeps the upper 8 of 16 bits, and the whole part of a fraction.
            brightest = grey.max(initial=0) / (1 if image.mode == "F" else 256)
            is_dark = bool(brightest < DARK) and len(np.unique(grey)) > 1
        try:
            has_more = getattr(image, "n_frames", 1) > 1
        except Exception:  # damage behind the first makes decoders raise anything
            has_more = True
    return (FIRST_ALONE,) * has_more + (ALMOST_BLACK,) * is_dark


def prepare_picture(data: bytes, rule: PictureRule) -> Picture:
    """Check that the whole picture decodes, and resize it if the rule says so.

    Errors: BadPicture.
    """
    extension = true_extension(data)
    # Decoders have many words for damage, and reasons are counted: one for all of it.
    if fault := picture_fault(data):
        raise BadPicture(fault if fault == TOO_LARGE else "truncated or damaged")
    try:
        size = upright_size(data)
    except ValueError as error:
        raise BadPicture("truncated or damaged") from error
    remarks = remarks_on(data)
    if (target := rule.target(*size)) == size:
        return Picture(data, extension, *size, remarks)
    # Encode it as a run sees it at this size.
    form = rule.format
    if form == "webp" and max(target) > LONGEST_WEBP:
        raise BadPicture(f"longer than the {LONGEST_WEBP:,} pixels of WebP")
    width, height = target
    try:
        pixels = decode_image(data, ImageSpec(height, width))
    except SkipSample as error:
        raise BadPicture("truncated or damaged") from error
    # Decoded as (3, h, w), encoded as (h, w, 3).
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, form, **ENCODINGS[form])
    return Picture(buffer.getvalue(), EXTENSIONS[form], width, height, remarks)


ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")
CLIP_ENDINGS = ("", *(f".{e}" for e in ("mp4", "webm", "mkv", "avi", "mov", "gif", "MP4", "MOV")))
"""A row may leave out the ending."""
MOST_FILES = 500_000
"""Files below the folder of pictures that are searched for similar names."""


@dataclass(frozen=True)
class NamedPicture:
    """A file that rows name; it need not exist."""

    id: str
    """Its path below the folder of pictures; of several, the first by the alphabet."""
    path: Path


def find_pictures(
    folder: Path, names: Iterable[str], endings: Sequence[str] = ENDINGS
) -> dict[str, NamedPicture]:
    """Each name -> its picture; all names of a file get the same picture.

    `a.jpg`, `./a.jpg`, `x/../a.jpg`, `a` and a link to it are the same file; so is `A.JPG`, unless
    a file has this very name. Counted as several pictures, they could be in train and in test.
    """
    groups: dict[Hashable, list[tuple[str, Path, str]]] = {}
    root = Path(os.path.realpath(folder))
    found = {name: _find(folder, name, endings) for name in dict.fromkeys(names)}
    if missing := [name for name, (_, file) in found.items() if file is None]:
        found |= _found_in_other_spelling(folder, missing, endings)
    for name, (path, file) in found.items():
        picture_id = _path_below(path, folder, root)
        # A missing picture may have features, which are found by the name without ending.
        stem, ending = os.path.splitext(picture_id)
        key = file or (stem if ending in endings else picture_id)
        groups.setdefault(key, []).append((picture_id, path, name))
    pictures = {}
    for spellings in groups.values():
        # The alphabet decides, not the order of the rows: splits by name must not depend on it.
        picture_id, path, _ = min(spellings)
        for *_, name in spellings:
            pictures[name] = NamedPicture(picture_id, path)
    return pictures


def _find(folder: Path, name: str, endings: Sequence[str]) -> tuple[Path, Hashable]:
    """The path and identity of a file; the identity is None if it does not exist."""
    spellings = dict.fromkeys((name, name.replace("\\", "/")))  # Windows writes backslashes
    # The name as it is comes first ("" among the endings), so that no other file can replace it.
    for spelling in spellings:
        for ending in endings:
            path = folder / f"{spelling}{ending}"
            if file := _file_identity(path):
                return path, file
    return folder / name, None


def _found_in_other_spelling(
    folder: Path, names: Sequence[str], endings: Sequence[str]
) -> dict[str, tuple[Path, Hashable]]:
    """Those of the names that one file has but for case, or for the form of its accents: rows from
    Windows and Macs, where both are the same file, name them so. It is told."""
    files: dict[str, list[Path]] = {}
    below = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    for path in islice(below, MOST_FILES):
        files.setdefault(folded(path.relative_to(folder).as_posix()), []).append(path)
    found: dict[str, tuple[Path, Hashable]] = {}
    for name in names:
        wanted = folded(os.path.normpath(name.replace("\\", "/")))
        alike = (files.get(f"{wanted}{ending.lower()}", []) for ending in endings)
        paths = next(filter(None, alike), [])
        # Two files that differ in case alone: the row may mean either.
        if len(paths) == 1 and (file := _file_identity(paths[0])):
            found[name] = paths[0], file
    if found:
        name, (path, _) = next(iter(found.items()))
        tell(
            "names that differ from one file's in case alone, or in the form of accents, are taken "
            f"for it: {len(found):,}, as {name} for {path.relative_to(folder)}"
        )
    return found


def folded(name: str) -> str:
    """Without case, and with accents in one of the two ways in which disks write them."""
    return normalize("NFC", name).casefold()


def is_there(path: Path) -> bool:
    """True if a path leads to a regular file.

    Errors: PermissionError if a folder on the way is not readable.
    """
    return _file_identity(path) is not None


def _file_identity(path: Path) -> Hashable:
    """Device and inode of a regular file, links followed; None if there is none."""
    try:
        status = os.stat(path)
    except PermissionError:
        raise
    except (OSError, ValueError):  # missing, or a name that is too long or contains a zero byte
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    # Some network disks have no inode numbers.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _path_below(path: Path, folder: Path, root: Path) -> str:
    """The path relative to the folder; the whole path if it leads out of it."""
    named = path.relative_to(folder) if path.is_relative_to(folder) else path
    if ".." in named.parts:
        path = Path(os.path.realpath(path.parent)) / path.name
    # `folder` may lead through links, and the path may be given by its real place.
    for base in (folder, root):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return str(path)


MOST_BITS = 4
"""Of 64: pictures whose hashes differ in no more look much alike."""
TAIL = 4096
"""Bytes: the ends of compressed pictures differ, and their beginnings are much alike."""
READERS = 16
"""Threads: a network disk answers many requests at once."""


def find_copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Each group of two or more files with the same bytes, in the given order.

    Size and last bytes tell nearly all pictures apart; only the rest is read as a whole.
    """
    # Cheap keys first: the size needs no reading, the tail one block.
    groups = _divide([list(dict.fromkeys(paths))], _size)
    return _divide(_divide(groups, _tail), sha256)


def _divide(groups: Sequence[Sequence[Path]], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Divide groups by a key; drop single files and those whose key is None."""
    # The group is part of the key, so that all groups share one pool of threads.
    numbered = [(number, path) for number, group in enumerate(groups) for path in group]
    with ThreadPool(READERS) as pool:
        keys = pool.map(key, [path for _, path in numbered])
    divided: dict[Hashable, list[Path]] = {}
    for (number, path), value in zip(numbered, keys, strict=True):
        if value is not None:
            divided.setdefault((number, value), []).append(path)
    return [alike for alike in divided.values() if len(alike) > 1]


def _size(path: Path) -> int | None:
    """Bytes of a file; None for a missing one."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # a name that is too long, or contains a zero byte
        return None


def _tail(path: Path) -> bytes:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - TAIL))
        return blake2b(file.read(), digest_size=16).digest()


def tell_repeats(datasets: Sequence[SourceSet], noun: str | None) -> None:
    """Print which rows repeat another one; `noun` is what ids are called, None for places."""
    for dataset in datasets:
        repeats: list[tuple[str, str]] = []
        for sample in dataset.samples:
            first_ids: dict[str, str] = {}
            for annotation in sample.annotations:
                # Without the id, and without "source", which often holds more ids.
                own = {k: value for k, value in annotation.items() if k not in ("id", "source")}
                content, name = json.dumps(own, sort_keys=True), str(annotation["id"])
                if content in first_ids:
                    repeats.append((name, first_ids[content]))
                first_ids.setdefault(content, name)
        if not repeats:
            continue
        named = noun or next((s.place for s in dataset.samples if s.place), "id").split()[0]
        pairs = first_few([f"{named} {later} repeats {first}" for later, first in repeats])
        rows = "row repeats" if len(repeats) == 1 else "rows repeat"
        tell(
            f"{dataset.name} {dataset.split}: {len(repeats):,} {rows} the picture and words of an "
            f"earlier row; they stay in: {pairs}"
        )


def tell_copies(datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]) -> None:
    """Print which pictures have the bytes of another one."""
    if not copies:
        return
    ids = {path: s.id for dataset in datasets for s in dataset.samples for path in s.images}
    groups = []
    for group in copies:
        more = f" and {len(group) - SHOWN:,} more" if len(group) > SHOWN else ""
        groups.append(" = ".join(ids[path] for path in group[:SHOWN]) + more)
    count = sum(len(group) - 1 for group in copies)
    pictures = "picture has" if count == 1 else "pictures have"
    tell(f"{count:,} {pictures} the bytes of another one: {first_few(groups)}")


def tell_near_copies(datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]) -> None:
    """Print which pictures of one split look much like one of another: the same scene scaled, saved
    or cropped again. Files with the same bytes are told elsewhere.

    Errors: ValueError if the package imagehash is missing.
    """
    try:
        import imagehash
    except ImportError:
        raise ValueError(
            "--near-copies needs the package imagehash: pip install 'vlds[near]'"
        ) from None
    first_of = {path: group[0] for group in copies for path in group}

    def hash_of(path: Path) -> np.ndarray | None:
        """64 bits, by whether each of 8 x 8 places is brighter than the one on its left. None for
        a picture without any difference, which is like any other of them."""
        try:
            with open_picture(read_file(path)) as image:
                bits = imagehash.dhash(to_rgb(upright(image))).hash
            return np.packbits(bits) if bits.any() else None
        except Exception:  # decoders raise anything; packing drops what cannot be read
            return None

    splits: list[tuple[str, list[tuple[str, Path]], np.ndarray]] = []
    with ThreadPool(READERS) as pool:
        for dataset in datasets:
            shown = list(
                {
                    path: (s.id, path)
                    for s in dataset.samples
                    for number, path in enumerate(s.images)
                    if number not in s.clips
                }.values()
            )
            hashes = pool.map(hash_of, [path for _, path in shown])
            known = [
                (entry, bits) for entry, bits in zip(shown, hashes, strict=True) if bits is not None
            ]
            table = np.array([bits for _, bits in known], np.uint8).reshape(-1, 8)
            splits.append((dataset.split, [entry for entry, _ in known], table))
    pairs = []
    for number, (split, shown, table) in enumerate(splits):
        for other, others, other_table in splits[:number]:
            for (sample, path), bits in zip(shown, table, strict=True):
                distances = np.bitwise_count(other_table ^ bits).sum(1)
                for index in np.flatnonzero(distances <= MOST_BITS):
                    near, near_path = others[index]
                    if first_of.get(path, path) != first_of.get(near_path, near_path):
                        pairs.append(f"{near} ({other}) and {sample} ({split})")
    if pairs:
        verb = "pair of pictures looks" if len(pairs) == 1 else "pairs of pictures look"
        tell(
            f"warning: {len(pairs):,} {verb} much alike in two splits: {first_few(pairs)}; look at "
            "them, and keep what is one scene in one split by --group-field",
            error=True,
        )
    else:
        tell("no picture looks much like one of another split")


def warn_of_leaks(
    datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]], cure: str
) -> None:
    """Warn of pictures that are in several splits: a test on them tells little."""
    # Copies count as one picture, by the path of the first.
    one_name = {path: group[0] for group in copies for path in group}
    splits: dict[Path | Group, dict[str, str]] = {}
    for dataset in datasets:
        for sample in dataset.samples:
            keys: list[Path | Group] = [one_name.get(path, path) for path in sample.images]
            for key in [*keys, *sample.groups]:
                splits.setdefault(key, {}).setdefault(dataset.split, sample.id)
    leaks = [
        (f"{key.field} {key.name}: " if isinstance(key, Group) else "")
        + " and ".join(f"{sample} ({split})" for split, sample in where.items())
        for key, where in splits.items()
        if len(where) > 1
    ]
    if leaks:
        pictures = "picture or group is" if len(leaks) == 1 else "pictures or groups are"
        tell(
            f"warning: {len(leaks):,} {pictures} in more than one split: {first_few(leaks)}; "
            f"scores on them say little about new pictures. {cure}",
            error=True,
        )
