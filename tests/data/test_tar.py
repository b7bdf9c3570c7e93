"""The tar reader agrees with tarfile, and speaks up where tarfile is silent."""

from __future__ import annotations

import io
import tarfile

import pytest

from vlds.data.errors import ShardError
from vlds.data.tar import Member, members, split_name

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
@pytest.mark.parametrize("mtime", [0.0, 1.5])  # 1.5 gives every PAX member a header of its own
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


def test_other_types_are_passed_over() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "l" * 200
        for info in (folder, link, tarfile.TarInfo("0.json")):
            tar.addfile(info)
    assert [m.name for m in read_all(buffer.getvalue())] == ["0.json"]


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
