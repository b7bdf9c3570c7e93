"""The samples of a shard that is read as a stream of bytes: from a command, a server, a file.

webdataset opens the stream and groups members into samples; vlds.data.shards.tar reads the headers,
because Python's tarfile takes a damaged one for the end of the archive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from vlds.data.errors import ShardError
from vlds.data.shards.download import BytesReader, Stream, check_scheme
from vlds.data.shards.tar import members
from vlds.runtime.files import open_file
from vlds.runtime.terminal import Away, without_credentials

BLOCK = 1 << 16
"""Most bytes that are skipped at once."""
AT_ONCE = 1 << 24
"""Most bytes that are asked for at once."""
PIPE = "pipe:"
META = re.compile(r"__[^/]*__($|/)")
"""Members that webdataset leaves out."""
CURE = "make or copy it again, or let data.errors.on_bad_shard substitute what is lost"


def is_pattern(location: str | Path) -> bool:
    """True if a location in a recipe names shards, not the folder of a data set."""
    text = str(location)
    return text.startswith(PIPE) or "{" in text or text.endswith(".tar")


def is_local(url: str) -> bool:
    """True if a shard is a file of this machine."""
    return "://" not in url and not url.startswith(PIPE)


def shard_urls(location: str) -> list[str]:
    """The shards of a pattern or a local folder.

    Errors: ValueError that names the pattern, or a missing file.
    """
    if is_local(location) and not is_pattern(location):
        urls = sorted(map(str, Path(location).expanduser().glob("*.tar")))
        if not urls:
            raise ValueError(
                f"{location}: no *.tar in this folder; give a folder that holds shards, or a "
                "pattern such as shards/x-{000..009}.tar"
            )
        return urls
    from webdataset.shardlists import expand_urls

    try:
        urls = expand_urls(location)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"{location}: {error}; give a pattern of shards such as shards/x-{{000..009}}.tar"
        ) from None
    for url in urls:
        if not is_local(url):
            check_scheme(url)
    # Before the run: a missing last shard would otherwise stop it after hours.
    urls = [str(Path(url).expanduser()) if is_local(url) else url for url in urls]
    missing = [url for url in urls if is_local(url) and not Path(url).is_file()]
    if missing:
        raise ValueError(
            f"{location}: {len(missing)} of {len(urls)} shards are missing, such as {missing[0]}; "
            "correct the range of the pattern, or make the shards"
        )
    return urls


def read_shard(url: str, num_samples: int | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Key and members (extension -> memoryview) of each sample. `num_samples`: the expected number,
    if known.

    Errors: ShardError for a shard that cannot be opened, is damaged, or is cut.
    """
    from webdataset.tariterators import group_by_keys

    num_read, shown = 0, without_credentials(url)
    try:
        with opened(url) as read:

            def files() -> Iterator[dict[str, Any]]:
                """Members as webdataset's reader gives them, for its `group_by_keys`."""
                for member in members(read, 0, None):
                    if META.match(member.name):
                        continue
                    data = read(member.start, member.size)
                    if len(data) < member.size:
                        end = member.start + len(data)
                        raise ShardError(f"it ends at byte {end}, inside {member.name}")
                    yield {"fname": member.name, "data": data, "__url__": url}

            for sample in group_by_keys(files()):
                content = {n: memoryview(d) for n, d in sample.items() if not n.startswith("__")}
                yield sample["__key__"], content
                num_read += 1
    except Away:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{shown}: ")
        if isinstance(error, OSError):
            # webdataset's message about a command would show its whole call.
            match = re.search(r"exit (-?\d+) \(read\)", reason)
            reason = error.strerror or reason
            reason = f"its command ended with exit status {match[1]}" if match else reason
        raise ShardError(f"shard {shown}, after {num_read} samples: {reason}; {CURE}") from None
    # A stream that ends between two members looks whole, if its writer closed the archive.
    if num_samples is not None and num_read != num_samples:
        raise ShardError(
            f"shard {shown}: {num_read} samples came, its dataset.json says {num_samples}; {CURE}"
        )


@contextmanager
def opened(url: str) -> Iterator[Callable[[int, int], bytes]]:
    """A function that reads bytes of a stream by offset; offsets may only grow."""
    if is_local(url):
        stream: BytesReader = open_file(url)
    elif url.startswith(PIPE):
        from webdataset.gopen import gopen

        check_scheme(url)
        stream = gopen(url)
    else:
        stream = Stream(url)
    at, too_short = 0, False

    def exactly(size: int) -> bytes:
        nonlocal too_short
        parts = []
        # A header may state any size: let memory grow only with the bytes that arrive.
        while size > 0 and (part := stream.read(min(size, AT_ONCE))):
            parts.append(part)
            size -= len(part)
        too_short = size > 0
        return b"".join(parts)

    def read(offset: int, size: int) -> bytes:
        nonlocal at
        # Skip padding, by small reads: a stream cannot seek.
        while at < offset and (passed := len(exactly(min(offset - at, BLOCK)))):
            at += passed
        data = exactly(size)
        at += len(data)
        # Only at the beginning, where a header should be: gzip's first bytes.
        if at < 1024 and data[:2] == b"\x1f\x8b":
            raise ValueError("it is compressed: give it as `pipe:gunzip -c < FILE`")
        return data

    try:
        yield read
    finally:
        # If bytes are missing, a command's exit status says why. A command that was not read to its
        # end has a bad status anyway.
        with nullcontext() if too_short else suppress(OSError):
            stream.close()
