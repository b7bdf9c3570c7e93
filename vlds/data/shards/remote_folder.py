"""A folder in an object store to which data sets are written, and whose files commands inspect."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from vlds.data.errors import FetchError
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.download import below, is_web, open_address, read_bytes, retried
from vlds.runtime.files import write_whole
from vlds.runtime.terminal import without_credentials


class RemoteFolder:
    """A folder at a URL. A file is there whole or not at all; a folder exists while it has files.

    All methods try again what broke. Errors: FetchError.
    """

    def __init__(self, url: str) -> None:
        if is_web(url):
            raise ValueError(
                f"{without_credentials(url)}: a web server's folder cannot be listed or written; "
                "give a folder of this machine or of an object store, such as s3://bucket/folder"
            )
        self.url = url.rstrip("/")

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url}/{name}")

    def __str__(self) -> str:
        return without_credentials(self.url)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file in and below the folder, by its path from here."""
        files, root = open_address(self.url)
        start = root.rstrip("/") + "/"

        def listed() -> dict[str, int]:
            files.invalidate_cache()
            found: dict[str, int] = {}
            with suppress(FileNotFoundError):
                for path, about in files.find(root, detail=True).items():
                    # Some stores keep an empty file as the sign of a folder.
                    if path.startswith(start) and path != start:
                        found[path.removeprefix(start)] = about["size"]
            return found

        return retried(listed, str(self), "check the address", Path())

    def read(self, name: str) -> bytes | None:
        """A small file; None if there is none."""
        return read_bytes(self.url, name)

    def put(self, path: Path) -> None:
        """Store a file of this machine under its name, in place of an older one."""
        files, root = open_address(self.url)
        target, size = below(root, path.name), path.stat().st_size

        def stored() -> None:
            try:
                files.put_file(str(path), target)
            except FileNotFoundError:
                raise FetchError(
                    f"{self}: there is no such bucket; make it, or correct the address"
                ) from None
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


def write_into(folder: Folder, name: str, text: str) -> None:
    """Write a small file."""
    if isinstance(folder, Path):
        write_whole(folder / name, text)
        return
    folder.workplace.mkdir(parents=True, exist_ok=True)
    path = folder.workplace / name
    write_whole(path, text)
    folder.put(path)
    path.unlink()
