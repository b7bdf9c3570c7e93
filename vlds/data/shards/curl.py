"""A file of a web server as a stream, by curl in a process of its own, as webdataset does it."""

from __future__ import annotations

import os
from typing import IO, cast

from webdataset.gopen import Pipe

from vlds.data.shards.address import split_login
from vlds.data.shards.download import CONNECT_S, MOST_REDIRECTS, PATIENCE_S, SLOWEST

WEB = "=http,https"
REASONS = {
    1: "it leads to an address that is not of the web",
    6: "no such host",
    7: "no connection to the host",
    18: "the connection broke off",
    22: "the server has no such file, or refuses it",
    28: "the server does not answer, or sends next to nothing",
    47: f"it is redirected more than {MOST_REDIRECTS} times",
}
"""What curl's exit status says."""


def open_web(url: str) -> IO[bytes]:
    """The bytes of a web address. URL and login go through a pipe: everybody sees command lines."""
    plain, login = split_login(url)
    lines = [f"url = {_quoted(plain)}"]
    if login is not None:
        lines.append(f"user = {_quoted(':'.join(login))}")
    config, end = os.pipe()
    with os.fdopen(end, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
    try:
        return cast(IO[bytes], Pipe(_command(), mode="rb", stdin=config))
    finally:
        os.close(config)


def _command() -> list[str]:
    patience = max(1, round(PATIENCE_S))
    return [
        "curl", "--disable", "--config", "-", "--fail", "--silent", "--location", "--globoff",
        "--proto", WEB, "--proto-redir", WEB, "--max-redirs", str(MOST_REDIRECTS),
        "--connect-timeout", f"{CONNECT_S:g}",
        "--speed-limit", str(SLOWEST), "--speed-time", str(patience),
        # Only what fails at once is tried again: a stream that has begun would begin a second time.
        "--retry", "30", "--retry-delay", "2", "--retry-max-time", str(max(1, patience - 10)),
    ]  # fmt: skip


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "") + '"'
