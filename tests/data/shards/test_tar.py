"""The tar reader agrees with tarfile, and speaks up where tarfile is silent."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import pytest
import webdataset

from tests.toys.streams import all_ids
from vlds.data.errors import ShardError
from vlds.data.shards.store import open_dataset
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


def with_header(data: bytes, place: int, **fields: bytes) -> bytes:
    """The archive with other fields in the header at a place, and the checksum that fits them."""
    header = bytearray(data[place : place + 512])
    if "size" in fields:
        header[124:136] = fields["size"].ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header) + data[place + 512 :]


def with_pax(name: str, **headers: str) -> bytes:
    """An archive of an empty member with these PAX headers."""
    info = tarfile.TarInfo(name)
    info.pax_headers = headers
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


THREE = tar_of(["0.json", "1.json", "2.json"], tarfile.USTAR_FORMAT)
SECOND, END = read_all(THREE)[1].header, read_all(THREE)[-1].end
AFTER_LONG = tar_of(["0.json", LONG], tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # A picture that is a link would be missing from its sample, or the sample from the shard.
        *((of_types(kind), r"1\.jpg is .* in the archive; pack files whole")
          for kind in (b"1", b"2", b"3", b"6", b"M", b"X", b"q")),
        (of_types(b"S"), r"1\.jpg is a sparse file in the archive"),
        (with_pax("x/0.jpg", **{"GNU.sparse.major": "1", "GNU.sparse.name": "0.jpg"}),
         r"0\.jpg is a sparse file in the archive"),
        (tar_of(["x" * 500_000 + ".json"], tarfile.PAX_FORMAT), "a name of 500,005 characters"),
        (AFTER_LONG[: read_all(AFTER_LONG)[1].start - 512] + bytes(2048),
         f"ends behind the long name at byte {read_all(AFTER_LONG)[1].header}"),
        (THREE[: SECOND + 200], f"ends at byte {SECOND + 200}"),
        *((with_pax("0.json", size=size), "has a PAX size of")
          for size in ("-1536", "1_0", "", "9" * 30, "\u0663")),
        # A negative size once led back to the same header for ever.
        *((with_header(THREE, SECOND, size=size), f"header at byte {SECOND} states the size")
          for size in (
              b"-0000001000", b"+0000001000", b"0o000001000", b"00000_01000", b"00000008000",
              b"0x10", b"\xff" * 12, b"\xff" * 11 + b"\x00", b"\x80" + b"\xff" * 11,
              b"\x90" + b"\0" * 11,
          )),
        (THREE[: END + 512], "inside the end of the archive"),
    ],
)  # fmt: skip
def test_what_is_no_whole_archive_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(ShardError, match=message) as error:
        read_all(data)
    assert len(str(error.value)) < 400


FOLLOW = "look like the end of the archive, but data follow"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (THREE[: SECOND + 10] + b"\xff" + THREE[SECOND + 11 :],
         f"header at byte {SECOND} is damaged"),
        (THREE[:SECOND] + bytes(512) + THREE[SECOND + 512 :], FOLLOW),
        (THREE + THREE, FOLLOW),
        (THREE + b"x", FOLLOW),
    ],
)  # fmt: skip
def test_it_is_an_error_where_tarfile_loses_samples_in_silence(data: bytes, message: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert len(tar.getnames()) in (1, 3)
    with pytest.raises(ShardError, match=message):
        read_all(data)


def test_the_end_may_be_followed_by_zeros() -> None:
    assert len(read_all(THREE[: END + 1024])) == len(read_all(THREE + bytes(1 << 20))) == 3


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


# Our shards in the hands of others: tar, webdataset, Megatron-Energon; and theirs in ours.


def test_webdataset_reads_them(folders: dict[str, Path]) -> None:
    urls = f"{folders['big']}/big-train-{{00000..00005}}.tar"
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    dataset = open_dataset(folders["big"])
    assert [sample["__key__"] for sample in samples] == [dataset.read(n).key for n in range(60)]
    assert {sample["png"].size for sample in samples} == {(16, 16)}
    ids = [annotation["id"] for sample in samples for annotation in sample["json"]["annotations"]]
    assert ids == all_ids(dataset)
