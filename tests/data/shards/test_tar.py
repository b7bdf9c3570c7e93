"""The tar reader agrees with tarfile, and speaks up where tarfile is silent."""

from __future__ import annotations

import io
import tarfile
import time

import pytest

from vlds.data.errors import ShardError
from vlds.data.shards.tar import Member, members, split_name

LONG = "folder/" * 20 + "x" * 90 + ".left.jpg"


def tar_of(names: list[str], tar_format: int, mtime: float = 0.0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 700 * number
            info.mtime = mtime  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    return buffer.getvalue()


def read_all(data: bytes, begin: int = 0, end: int | None = None) -> list[Member]:
    return list(members(lambda offset, size: data[offset : offset + size], begin, end))


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
)
@pytest.mark.parametrize("mtime", [0.0, 1.5])  # 1.5 gives every PAX member its own header
def test_same_members_as_tarfile(tar_format: int, mtime: float) -> None:
    names = ["0.jpg", "0.json", "1.json", *([LONG] if tar_format != tarfile.USTAR_FORMAT else [])]
    if tar_format == tarfile.USTAR_FORMAT:
        mtime = 0.0
        names.append("p" * 120 + "/" + "q" * 80 + ".json")  # name and prefix
    data = tar_of(names, tar_format, mtime)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in tar]
    assert [tuple(m) for m in read_all(data)] == expected
    assert [m.name for m in read_all(data)] == names


def of_types(*types: bytes) -> bytes:
    """A tar of three samples, the middle one of a member of each type."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("0.json"))
        for kind in types:
            info = tarfile.TarInfo("1.jpg")
            info.type, info.linkname = kind, "0.json"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("2.json"))
    return buffer.getvalue()


def test_folders_are_passed_over() -> None:
    assert [m.name for m in read_all(of_types(tarfile.DIRTYPE))] == ["0.json", "2.json"]
    assert len(read_all(of_types(tarfile.CONTTYPE))) == 3


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"6", b"M", b"X", b"q"])
def test_a_member_without_its_data_is_an_error(kind: bytes) -> None:
    """A picture that is a link would be missing from its sample, or the sample from the shard."""
    with pytest.raises(ShardError, match=r"1\.jpg is .* in the archive; pack files whole"):
        read_all(of_types(kind))


def test_sparse_files_are_an_error() -> None:
    info = tarfile.TarInfo("GNUSparseFile.1/0.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "0.jpg"}
    for kind, data in ((b"S", of_types(b"S")), (b"x", info.tobuf(tarfile.PAX_FORMAT))):
        with pytest.raises(ShardError, match=r"\.jpg is a sparse file in the archive"):
            read_all(data + bytes(1024) if kind == b"x" else data)


def test_a_name_longer_than_any_path_is_not_shown() -> None:
    with pytest.raises(ShardError, match="states a name of 500,005 characters") as error:
        read_all(tar_of(["x" * 500_000 + ".json"], tarfile.PAX_FORMAT))
    assert len(str(error.value)) < 200


def test_a_long_name_of_nothing_is_an_error() -> None:
    data = tar_of(["0.json", LONG], tarfile.PAX_FORMAT)
    _, last = read_all(data)
    with pytest.raises(ShardError, match=f"ends behind the long name at byte {last.header}"):
        read_all(data[: last.start - 512] + bytes(2048))


def test_smashed_header_is_an_error_where_tarfile_ends_in_silence() -> None:
    data = bytearray(tar_of(["0.json", "1.json", "2.json"], tarfile.USTAR_FORMAT))
    second = read_all(bytes(data))[1].header
    data[second + 10] ^= 1
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert len(tar.getnames()) == 1
    with pytest.raises(ShardError, match=f"header at byte {second} is damaged"):
        read_all(bytes(data))


def test_bytes_that_end_inside_a_header_are_an_error() -> None:
    data = tar_of(["0.json", "1.json"], tarfile.USTAR_FORMAT)[:700]
    with pytest.raises(ShardError, match="ends at byte 700"):
        read_all(data)


def with_header(data: bytes, place: int, **fields: bytes) -> bytes:
    """The archive with other fields in the header at a place, and the checksum that fits them."""
    header = bytearray(data[place : place + 512])
    if "size" in fields:
        header[124:136] = fields["size"].ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header) + data[place + 512 :]


@pytest.mark.parametrize(
    "size",
    [
        b"-0000001000", b"+0000001000", b"0o000001000", b"00000_01000", b"00000008000", b"0x10",
        b"\xff" * 12, b"\xff" * 11 + b"\x00", b"\x80" + b"\xff" * 11, b"\x90" + b"\0" * 11,
    ],
)  # fmt: skip
def test_a_size_that_is_none_is_an_error_whatever_its_checksum(size: bytes) -> None:
    """A negative one once led back to the same header for ever."""
    data = tar_of(["0.json", "1.json", "2.json"], tarfile.USTAR_FORMAT)
    second = read_all(data)[1].header
    with pytest.raises(ShardError, match=f"header at byte {second} states the size"):
        read_all(with_header(data, second, size=size))


@pytest.mark.parametrize("size", ["-1536", "1_0", "", "9" * 30, "\u0663"])
def test_a_pax_size_that_is_none_is_an_error(size: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0.json")
        info.pax_headers = {"size": size}
        tar.addfile(info)
    with pytest.raises(ShardError, match="has a PAX size of"):
        read_all(buffer.getvalue())


@pytest.mark.parametrize("field", [b"4 =\n", b"9 \xff\xfe=xyz\n"])
def test_a_pax_header_of_many_fields_is_read_in_time(field: bytes) -> None:
    """Copying what is left after each field takes minutes for a MiB."""
    fields = ((1 << 20) // len(field)) * field
    header = with_header(tar_of(["x"], tarfile.USTAR_FORMAT)[:512], 0, size=b"%o" % len(fields))
    header = with_header(header[:156] + b"x" + header[157:], 0)
    started = time.perf_counter()
    padded = fields.ljust(-(-len(fields) // 512) * 512, b"\0")
    (member,) = read_all(header + padded + tar_of(["0.json"], tarfile.USTAR_FORMAT))
    assert member.name == "0.json"
    assert time.perf_counter() - started < 5


def test_large_sizes_in_base_256_are_read() -> None:
    data = tar_of(["0.json", "1.json"], tarfile.USTAR_FORMAT)
    read = read_all(with_header(data, 0, size=b"\x80" + bytes(11)))
    assert [member.size for member in read] == [0, 700]


def test_the_end_is_looked_for() -> None:
    """Where tarfile, and a reader that takes zeros for the end, lose samples in silence."""
    names = ["0.json", "1.json", "2.json"]
    data = tar_of(names, tarfile.USTAR_FORMAT)
    second = read_all(data)[1].header
    zeroed = data[:second] + bytes(512) + data[second + 512 :]
    for joined in (zeroed, data + data, data + b"x"):
        with tarfile.open(fileobj=io.BytesIO(joined)) as tar:
            assert tar.getnames() in (names, names[:1])
        with pytest.raises(ShardError, match="look like the end of the archive, but data follow"):
            read_all(joined)
    end = read_all(data)[-1].end
    assert len(read_all(data[: end + 1024])) == len(read_all(data + bytes(1 << 20))) == 3
    with pytest.raises(ShardError, match="inside the end of the archive"):
        read_all(data[: end + 512])


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("0001.left.jpg", "0001", "left.jpg"),
        ("a.b/0001.JSON", "a.b/0001", "json"),
        ("./7.features.npy", "./7", "features.npy"),
    ],
)
def test_key_ends_at_the_first_dot_of_the_base_name(name: str, key: str, extension: str) -> None:
    assert split_name(name) == (key, extension)
