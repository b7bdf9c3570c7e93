"""Members of a tar, read without tarfile.

Python's tarfile takes a damaged header for the end of the archive, stops silently, and takes three
times as long. This reader verifies each header's checksum and size, looks for the real end of the
archive, and raises. It knows plain ustar and the extension headers of PAX and GNU (long names) that
other writers of shards emit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import NamedTuple
from zlib import adler32

from vlds.data.errors import ShardError

BLOCK = 512
HEADER = Struct("100s 24x 12s 12x 8s c 100x 6s 82x 155s 12x")
"""Name, size, checksum, type, magic, prefix."""
LINKS_AND_DEVICES = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
"""Types of headers without data, whatever size they state."""
EXTENSIONS = frozenset((b"x", b"L", b"K"))
"""Types of headers that extend the next one."""
FILES = frozenset((b"0", b"\0", b"7"))
WITHOUT_DATA = frozenset((b"5", b"g", b"V"))
"""Types that are not members of a sample: folders, global headers, the archive's label."""
KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse file"}
STORE_WHOLE = "pack files whole, with GNU tar as `tar --dereference --hard-dereference -cf`"
SPARSE = "GNU.sparse."
"""Prefix of a sparse file's fields in a PAX header."""
LONGEST_NAME = 4096
"""Characters, as of a path in Linux."""
LARGEST_MEMBER = 1 << 33
"""Most bytes of a file: what octal digits can hold."""
LENGTH_DIGITS = 9
"""Most digits of a field's length in a PAX header, which has at most a MiB."""
AT_ONCE = 1 << 16
"""Bytes that are read at once behind the end of an archive."""
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
    """Files between two offsets; `end` None reads to the zero blocks that close an archive, and
    checks that only zeros follow.

    Errors: ShardError for a wrong checksum or size, a cut file, data behind the end of the archive,
    and members whose data do not follow their header, such as links; the caller adds the names.
    """
    offset = first = begin
    extension: dict[str, str] = {}
    while end is None or offset < end:
        header = read(offset, BLOCK)
        # A file that is cut between two members fails here too: its closing zeros are missing.
        if len(header) < BLOCK:
            raise ShardError(f"the file ends at byte {offset + len(header)}, inside a header")
        if end is None and header == bytes(BLOCK):
            if first != offset:
                raise ShardError(f"the archive ends behind the long name at byte {first}")
            check_end(read, offset)
            return
        name, size, kind = parse_header(header, offset)
        header_at, start = offset, offset + BLOCK
        if extension:
            name = extension.get("path") or name
            if len(name) > LONGEST_NAME:
                raise ShardError(
                    f"the tar header at byte {header_at} states a name of {len(name):,} characters"
                )
            if (text := extension.get("size")) is not None:
                # int() would take digits of all scripts, and any number of them.
                is_size = text.isascii() and text.isdecimal() and len(text) < 12
                if not is_size or int(text) > LARGEST_MEMBER:
                    raise ShardError(
                        f"the tar header at byte {header_at} has a PAX size of {text[:20]!r}"
                    )
                size = int(text)
        # Data are padded to whole blocks.
        offset = start if kind in LINKS_AND_DEVICES else start + -(-size // BLOCK) * BLOCK
        # What an extension header says holds for the next one. Names are far shorter than a MiB.
        if kind in EXTENSIONS:
            if size > 1 << 20:
                raise ShardError(
                    f"the tar header at byte {header_at} states a name of {size} bytes"
                )
            if kind != b"K":  # the long name of a link's target
                extension |= _extension(kind, bytes(read(start, size)))
            continue
        if kind in FILES:
            yield Member(name, first, start, size)
        elif kind not in WITHOUT_DATA:
            what = KINDS.get(kind, f"of type {kind.decode('latin-1')!r}, not a regular file,")
            raise ShardError(f"{name} is {what} in the archive; {STORE_WHOLE}")
        # `first` is where the next member's headers begin, long names included: indexes cut there.
        extension = {}
        first = offset


def parse_header(header: bytes | memoryview, offset: int) -> tuple[str, int, bytes]:
    """Name, size and type from the header at an offset of the file.

    Errors: ShardError for a wrong checksum, or a size that is not a number.
    """
    name, size_field, checksum, kind, magic, prefix = HEADER.unpack(header)
    stated = _octal(checksum)
    # The lower half of Adler's checksum is the sum of the bytes, plus one; zlib is fast at it. The
    # checksum's own eight bytes count as spaces. Adler's sums are modulo 65521, and the bytes of a
    # header may sum to more, so the comparison is modulo it too.
    summed = (adler32(header) & 0xFFFF) - 1 - sum(checksum) + 8 * ord(" ")
    if stated is None or (summed - stated) % 65521:
        raise ShardError(f"the tar header at byte {offset} is damaged (wrong checksum)")
    size = _octal(size_field)
    if size is None:
        # In base 256, which writers use above 8 GiB; 0xff at the beginning is a negative number.
        if size_field[0] == 0x80:
            size = int.from_bytes(size_field[1:], "big")
        if size is None or size > LARGEST_MEMBER:
            raise ShardError(f"the tar header at byte {offset} states the size {size_field!r}")
    name = name.split(b"\0", 1)[0]
    # GNU's own format ("ustar  ") keeps times in the place of the prefix.
    if prefix[0] and magic == b"ustar\0":
        name = prefix.split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "backslashreplace"), size, kind


def _octal(field: bytes) -> int | None:
    """The number of a header's field; None if it has anything but octal digits. int() would also
    take signs, and a negative size leads backwards."""
    digits = field.strip(b" \0")
    if not digits:
        return 0
    return int(digits, 8) if not digits.translate(None, b"01234567") else None


def check_end(read: Reader, offset: int) -> None:
    """Check that only zeros follow the offset at which an archive seems to end.

    Headers overwritten by zeros and joined archives look like an end, too.
    Errors: ShardError for other data, or if the second of the two closing blocks is missing.
    """
    at = offset + BLOCK
    while data := read(at, AT_ONCE):
        if bytes(data).strip(b"\0"):
            raise ShardError(
                f"zeros at byte {offset} look like the end of the archive, but data follow: a "
                "header is overwritten, or several archives are joined in one file"
            )
        at += len(data)
    if at - offset < 2 * BLOCK:
        raise ShardError(f"the file ends at byte {at}, inside the end of the archive")


def _extension(kind: bytes, data: bytes) -> dict[str, str]:
    """Fields of a PAX header ("25 path=...\\n" lines), or the long name of a GNU one."""
    if kind == b"L":
        return {"path": data.rstrip(b"\0").decode("utf-8", "backslashreplace")}
    fields = {}
    # A field may hold line breaks, so lengths lead from one to the next, not lines.
    at = 0
    while at < len(data):
        length = data[at : at + LENGTH_DIGITS].partition(b" ")[0]
        if not length.isdigit() or not len(length) < int(length) <= len(data) - at:
            raise ShardError("a PAX header is damaged")
        # "25 path=x\n": the length counts its own digits, the blank and the line break.
        end = at + int(length)
        name, _, value = (
            part.decode("utf-8", "backslashreplace")
            for part in data[at + len(length) + 1 : end - 1].partition(b"=")
        )
        fields[name] = value
        at = end
    if any(key.startswith(SPARSE) for key in fields):
        member = fields.get(f"{SPARSE}name") or fields.get("path", "a member")
        raise ShardError(f"{member} is {KINDS[b'S']} in the archive; {STORE_WHOLE}")
    return {key: value for key, value in fields.items() if key in ("path", "size")}


def split_name(name: str) -> tuple[str, str]:
    """Key and extension, split at the first dot of the base name: WebDataset's convention."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


def read_members(data: memoryview, begin: int) -> tuple[str, dict[str, memoryview]]:
    """Key and members (extension -> bytes) of the sample that starts at byte `begin` of a shard.

    Errors: ShardError if `data` is not exactly one sample.
    """
    end = begin + len(data)
    key, content = None, {}
    # Offsets count in the shard; `data` begins at `begin`.
    for name, _, start, size in members(lambda o, n: data[o - begin : o - begin + n], begin, end):
        member_key, extension = split_name(name)
        key = key or member_key
        if member_key != key or start + size > end:
            raise ShardError(f"its members ({key}, {member_key}) are not where the index says")
        content[extension] = data[start - begin : start - begin + size]
    if key is None:
        raise ShardError("no member where the index says")
    return key, content
