"""Members of a tar, read without tarfile.

Python's tarfile takes a smashed header for the end of the archive and ends in silence, and costs
three times as much. This reader verifies each header's checksum and raises. It knows plain ustar
and the extension headers of PAX and GNU (long names), which other writers of shards emit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from vlds.data.errors import ShardError

BLOCK = 512
ZEROS = bytes(BLOCK)
LINKS_AND_DEVICES = b"123456"
"""Types of headers that no data follows, whatever size they state."""
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
        header = bytes(read(offset, BLOCK))
        if len(header) < BLOCK:
            raise ShardError(f"the file ends at byte {offset + len(header)}, inside a header")
        if end is None and header == ZEROS:
            return
        kind, size = _verified(header, offset)
        size = int(extension.get("size", size))
        start = offset + BLOCK
        member = Member(extension.get("path") or _name(header), first, start, size)
        offset = start if kind in LINKS_AND_DEVICES else member.end
        if kind in b"xLK":
            if kind != ord("K"):  # the long name of a link's target says nothing of ours
                extension |= _extension(kind, bytes(read(start, size)))
            continue
        if kind in b"0\0":
            yield member
        extension = {}
        first = offset


def _verified(header: bytes, offset: int) -> tuple[int, int]:
    """Type and size of a header whose checksum is right."""
    try:
        stated = int(header[148:156].strip(b" \0") or b"0", 8)
        size = _number(header[124:136])
    except ValueError:
        stated, size = -1, 0
    if stated != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise ShardError(f"the tar header at byte {offset} is damaged (wrong checksum)")
    return header[156], size


def _number(field: bytes) -> int:
    """Octal, or base 256 for files above 8 GiB."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _extension(kind: int, data: bytes) -> dict[str, str]:
    """Fields of a PAX header ("25 path=...\\n" lines), or the long name of a GNU one."""
    if kind == ord("L"):
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
