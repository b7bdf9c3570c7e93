"""Folders of this machine and of object stores, as commands use them that write and inspect data
sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from vlds.data.errors import FetchError
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.download import below, download, is_web, open_address, read_bytes, retried
from vlds.data.shards.info import DATASET_FILE, DatasetInfo
from vlds.data.shards.store import Dataset, LocalFiles
from vlds.runtime.disk import make_folder, writable
from vlds.runtime.files import half_made, read_file, write_whole
from vlds.runtime.terminal import without_credentials

WITH_BUCKETS = ("s3://", "s3a://", "gs://", "gcs://")
NO_BUCKET = "there is no such bucket; make it, or correct the address"


@dataclass(frozen=True, order=True)
class RemoteFolder:
    """A folder at a URL. A file is there whole or not at all; a folder exists while it has files.

    All methods try again what broke. Errors: FetchError.
    """

    url: str

    def __post_init__(self) -> None:
        if is_web(self.url):
            raise ValueError(
                f"{without_credentials(self.url)}: a web server's folder cannot be listed or "
                "written; give a folder of this machine or of an object store, such as "
                "s3://bucket/folder"
            )
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url}/{name}")

    def __str__(self) -> str:
        return without_credentials(self.url)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file in and below the folder, by its path from here.

        Errors: ValueError if there is no such bucket.
        """
        files, root = open_address(self.url)
        start = root.rstrip("/") + "/"

        def listed() -> dict[str, int] | None:
            files.invalidate_cache()
            try:
                found = files.find(root, detail=True)
            except FileNotFoundError:
                has_bucket = self.url.startswith(WITH_BUCKETS)
                return None if has_bucket and not files.exists(root.partition("/")[0]) else {}
            # Some stores keep an empty file as the sign of a folder.
            return {
                path.removeprefix(start): about["size"]
                for path, about in found.items()
                if path.startswith(start) and path != start
            }

        if (sizes := retried(listed, str(self), "check the address", Path())) is None:
            raise ValueError(f"{self}: {NO_BUCKET}")
        return sizes

    def read(self, name: str) -> bytes | None:
        """A small file; None if there is none."""
        return read_bytes(self.url, name)

    def get(self, name: str, path: Path) -> bool:
        """Write a file of any size to a path of this machine; False if there is none."""
        files, root = open_address(self.url)
        source = below(root, name)

        def written() -> bool:
            try:
                size = files.info(source)["size"]
            except FileNotFoundError:
                # What was listed before may be old. The hub counts how often it is asked.
                files.invalidate_cache()
                try:
                    size = files.info(source)["size"]
                except FileNotFoundError:
                    return False
            download(files, source, path, size)
            return True

        cure = "check the connection and start again"
        return retried(written, below(str(self), name), cure, path)

    def put(self, path: Path) -> None:
        """Store a file of this machine under its name, in place of an older one."""
        files, root = open_address(self.url)
        target, size = below(root, path.name), path.stat().st_size

        def stored() -> None:
            try:
                files.put_file(str(path), target)
            except FileNotFoundError:
                raise FetchError(f"{self}: {NO_BUCKET}") from None
            files.invalidate_cache()
            if (actual := files.info(target)["size"]) != size:
                raise OSError(f"{actual} of {size} bytes were stored")

        if not files.async_impl:  # of a local path or memory, whose folders must exist
            files.makedirs(root, exist_ok=True)
        cure = "check the connection and the rights to write there"
        retried(stored, below(str(self), path.name), cure, path)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        files, root = open_address(self.url)

        def removed() -> None:
            with suppress(FileNotFoundError):
                files.rm_file(below(root, name))

        retried(removed, below(str(self), name), "check the rights to write there", Path())

    @property
    def workplace(self) -> Path:
        """The folder of this machine in which files are made before they are stored. It is the same
        for every command that writes to this URL, and so holds their lock."""
        return ShardCache().path(f"{self.url}/written").with_suffix(".written")


Folder: TypeAlias = Path | RemoteFolder


def folder_at(text: str) -> Folder:
    """The folder that a command line names.

    Errors: ValueError for a web server's.
    """
    return RemoteFolder(text) if "://" in text else Path(text)


def lock_place(folder: Folder) -> Path:
    """The folder of this machine whose lock the writer of a folder holds."""
    return folder if isinstance(folder, Path) else folder.workplace


def address(folder: Folder) -> str | Path:
    """The folder as `open_dataset` takes it."""
    return folder if isinstance(folder, Path) else folder.url


def write_into(folder: Folder, name: str, content: str | bytes) -> None:
    """Write a small file."""
    if isinstance(folder, Path):
        write_whole(folder / name, content)
        return
    folder.workplace.mkdir(parents=True, exist_ok=True)
    path = folder.workplace / name
    write_whole(path, content)
    folder.put(path)
    path.unlink()


def remove_from(folder: Folder, name: str) -> None:
    """Remove a file if it is there."""
    if isinstance(folder, Path):
        (folder / name).unlink(missing_ok=True)
    elif name in folder.sizes():
        folder.remove(name)


def read_from(folder: Folder, name: str) -> bytes | None:
    """A small file; None if there is none."""
    if isinstance(folder, RemoteFolder):
        return folder.read(name)
    return read_file(folder / name) if (folder / name).exists() else None


def files_in(folder: Folder, suffix: str) -> list[str]:
    """The paths from here of all files in and below a folder whose names end so, sorted."""
    if isinstance(folder, RemoteFolder):
        return sorted(name for name in folder.sizes() if name.endswith(suffix))
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"*{suffix}"))


def load_info(folder: Folder) -> DatasetInfo:
    """dataset.json of a data set.

    Errors: ValueError that names the file and the field.
    """
    if isinstance(folder, Path):
        return DatasetInfo.load(folder)
    if (data := folder.read(DATASET_FILE)) is None:
        raise ValueError(f"data set {folder}: no {DATASET_FILE} in this folder; check the address")
    return DatasetInfo.parse(data, f"{folder}/{DATASET_FILE}")


@contextmanager
def fetched(folder: Folder, *names: str) -> Iterator[Path]:
    """A folder of this machine that holds these files of a folder, if they exist. Those of a store
    are copies, which are removed afterwards: a command that reads every shard once needs room for
    one. Errors inside name the store's files."""
    if isinstance(folder, Path):
        yield folder
        return
    place = ShardCache().folder
    with writable(place):
        make_folder(place)
    with half_made(place / "fetched") as partial:
        partial.mkdir()
        for name in names:
            folder.get(name, partial / name)
        try:
            yield partial
        except ValueError as error:
            raise ValueError(str(error).replace(str(partial), str(folder))) from None


class Part(NamedTuple):
    """A shard of a data set."""

    folder: Folder
    info: DatasetInfo
    """With this shard alone: workers get a part each, and a data set may have a million shards."""


def parts_of(folder: Folder, info: DatasetInfo) -> list[Part]:
    """The shards of a data set."""
    return [
        Part(
            folder,
            replace(info, shards=(shard,), samples=shard.samples, annotations=shard.annotations),
        )
        for shard in info.shards
    ]


@contextmanager
def open_part(part: Part) -> Iterator[Dataset]:
    """One shard as a data set.

    Errors: ValueError that names the folder or shard.
    """
    with fetched(part.folder, *part.info.shards[0].files) as place:
        yield Dataset(LocalFiles(place, part.info))
