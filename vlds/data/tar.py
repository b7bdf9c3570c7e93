"""Members of a tar, read without tarfile.

Python's tarfile takes a smashed header for the end of the archive and ends in silence, and costs
three times as much. This reader verifies each header's checksum and raises. It knows plain ustar
and the extension headers of PAX and GNU (long names), which other writers of shards emit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import NamedTuple
from zlib import adler32

from vlds.data.errors import ShardError

BLOCK = 512
ZEROS = bytes(BLOCK)
HEADER = Struct("100s 24x 12s 12x 8s c 100x 6s 82x 155s 12x")
"""Name, size, checksum, type, magic, prefix."""
ADLER = 65521
"""What Adler's sums are modulo of: more than that comes of no name."""
SPACES = 8 * ord(" ")
"""What the checksum's own field counts as."""
LINKS_AND_DEVICES = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
"""Types of headers that no data follows, whatever size they state."""
EXTENSIONS = frozenset((b"x", b"L", b"K"))
"""Types of headers that say more about the next one."""
FILES = frozenset((b"0", b"\0"))
Reader = Callable[[int, int], bytes | memoryview]
"""(offset, size) -> bytes; fewer at the end of the file."""


class Member(NamedTuple):
    """One file in a tar."""

    name: str
    header: int
    """Offset of its first header, extension headers included."""
    start: int
    """Offset of its data."""
    size: int

    @property
    def end(self) -> int:
        """Offset after its data and padding."""
        return self.start + -(-self.size // BLOCK) * BLOCK


def members(read: Reader, begin: int, end: int | None) -> Iterator[Member]:
    """Files between two offsets; `end` None reads to the two zero blocks that close an archive.

    Errors: ShardError on a wrong checksum or bytes that end too early; the caller adds the names.
    """
    offset = first = begin
    extension: dict[str, str] = {}
    while end is None or offset < end:
        header = read(offset, BLOCK)
        if len(header) < BLOCK:
            raise ShardError(f"the file ends at byte {offset + len(header)}, inside a header")
        if end is None and header == ZEROS:
            return
        name, size, kind = parse_header(header, offset)
        start = offset + BLOCK
        if extension:
            name, size = extension.get("path") or name, int(extension.get("size", size))
        offset = start if kind in LINKS_AND_DEVICES else start + -(-size // BLOCK) * BLOCK
        if kind in EXTENSIONS:
            if kind != b"K":  # the long name of a link's target says nothing of ours
                extension |= _extension(kind, bytes(read(start, size)))
            continue
        if kind in FILES:
            yield Member(name, first, start, size)
        extension = {}
        first = offset


def parse_header(header: bytes | memoryview, offset: int) -> tuple[str, int, bytes]:
    """Name, size and type from the header at an offset of the file.

    Errors: ShardError where its checksum is wrong.
    """
    name, size_field, checksum, kind, magic, prefix = HEADER.unpack(header)
    try:
        stated = int(checksum.strip(b" \0") or b"0", 8)
        size = _number(size_field)
    except ValueError:
        stated, size = -1, 0
    # Adler's checksum has the sum of the bytes, plus one, in its lower half: C is faster at that.
    summed = (adler32(header) & 0xFFFF) - 1 - sum(checksum) + SPACES
    if stated < 0 or (summed - stated) % ADLER:
        raise ShardError(f"the tar header at byte {offset} is damaged (wrong checksum)")
    name = name.split(b"\0", 1)[0]
    if prefix[0] and magic == b"ustar\0":
        name = prefix.split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape"), size, kind


def _number(field: bytes) -> int:
    """Octal, or base 256 for files above 8 GiB."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _extension(kind: bytes, data: bytes) -> dict[str, str]:
    """Fields of a PAX header ("25 path=...\\n" lines), or the long name of a GNU one."""
    if kind == b"L":
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or int(length) > len(data) or int(length) <= len(length):
            raise ShardError("a PAX header is damaged")
        name, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        found[name.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return {key: value for key, value in found.items() if key in ("path", "size")}


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's convention: key and extension part at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()
