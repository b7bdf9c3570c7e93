"""Secrets in URLs work, and are neither stored nor shown."""

from __future__ import annotations

import base64
import json
import time
from itertools import islice
from pathlib import Path

import pytest

import vlds.data.shards.download
from tests.toys.streams import COLLATOR, SPEC, ToyTask
from tests.toys.web import Web
from vlds.data.config import DataConfig
from vlds.data.errors import ErrorPolicy, ShardError
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.info import DATASET_FILE
from vlds.data.shards.store import open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.sequential import SequentialStream, StreamedSource
from vlds.data.streams.sequential import open_streamed as open_shards
from vlds.runtime.terminal import Away, without_credentials

SECRET = "hunter2"
SIGNED = f"X-Amz-Expires=60&X-Amz-Signature={SECRET}"
SHARD = "small-train-00000.tar"


@pytest.fixture(autouse=True)
def no_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of logins, which is not there yet."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def with_login(url: str, login: str = f"user:{SECRET}") -> str:
    return url.replace("://", f"://{login}@")


def everything_in(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tar"]
    return "\n".join(map(str, files)) + "".join(p.read_text(errors="replace") for p in files)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:pw@host/x", "https://host/x"),
        ("https://ghp_1234@host/x", "https://host/x"),
        ("https://user:p@ss@host:8/x?a=1", "https://host:8/x?a=1"),
        ("https://h/x?a=1&X-Amz-Signature=ab&b=2", "https://h/x?a=1&X-Amz-Signature=...&b=2"),
        ("https://h/x?sv=2&sig=a%2Fb", "https://h/x?sv=2&sig=..."),
        ("https://h/x?access_t%6Fken=ab#key=c", "https://h/x?access_t%6Fken=...#key=..."),
        ("https://h/x?design=1", "https://h/x?design=..."),
        ("https://h/x?page=2&size=8", "https://h/x?page=2&size=8"),
        ("sftp://user:pw@host/x", "sftp://user@host/x"),
        ("abfs://box@account.dfs.core.windows.net/x", "abfs://box@account.dfs.core.windows.net/x"),
        ("github://org:repo@main/x", "github://org:repo@main/x"),
        ("pipe:curl -s 'https://u:p@h/x-{000..009}.tar'", "pipe:curl -s 'https://h/x-{000..009}.tar'"),
        ("Error(url='https://h/x?token=ab')", "Error(url='https://h/x?token=...')"),
        ("https://user:p/w@host/x", "https://host/x"),
        ("https://user:p'w@host/x", "https://host/x"),
        ("https://host:80/a@b", "https://host:80/a@b"),
        ("https://[::1]/a@b", "https://[::1]/a@b"),
        ("https://h/x?a=1;token=b;c&d=2", "https://h/x?a=1;token=...&d=2"),
        ("https://h/x?to=https%3A%2F%2Fu%3Ap%40g", "https://h/x?to=..."),
        ("https://h/x?pw=a&ticket=b&md5=c", "https://h/x?pw=...&ticket=...&md5=..."),
        ("mail me@host about a?token=b", "mail me@host about a?token=b"),
    ],
)  # fmt: skip
def test_what_is_left_of_a_url(text: str, expected: str) -> None:
    assert without_credentials(text) == expected
    assert without_credentials(expected) == expected


@pytest.mark.parametrize(
    "text", ["a" * 100_000 + "://", "https://" + "a:" * 50_000, "https://x" + "?" * 60_000]
)
def test_a_long_text_takes_no_long_time(text: str) -> None:
    start = time.perf_counter()
    assert without_credentials(text) == text
    assert time.perf_counter() - start < 5


def test_a_login_in_the_address_works_and_is_not_kept(web: Web, cache: ShardCache) -> None:
    web.login = f"user:{SECRET}"
    dataset = open_dataset(with_login(web.url("small")), cache)
    assert dataset.read(0).id == "small-0"
    assert dataset.folder == web.url("small")
    assert SECRET not in everything_in(cache.folder)
    web.login = ""
    again = open_dataset(web.url("small"), cache)
    assert again.read(0).id == "small-0"
    assert web.requests[SHARD] == 1  # found under the name without login


def test_a_login_of_netrc_works(web: Web, cache: ShardCache, no_netrc: Path) -> None:
    web.login = f"user:{SECRET}"
    with pytest.raises(ShardError, match=r"access is refused .* for a web server in ~/\.netrc"):
        open_dataset(web.url("small"), cache)
    no_netrc.write_text(f"machine 127.0.0.1 login user password {SECRET}\n")
    assert open_dataset(web.url("small"), cache).read(0).id == "small-0"
    no_netrc.write_text(f"machine 127.0.0.1 logging user {SECRET}\n")
    with pytest.raises(ShardError, match=r"netrc, line 1: not a line of netrc") as error:
        open_dataset(web.url("small"), ShardCache(no_netrc.parent / "other"))
    assert SECRET not in str(error.value)


def test_a_signed_address_works_and_is_not_kept(web: Web, cache: ShardCache) -> None:
    web.query = SIGNED
    url = f"{web.url('small')}?{SIGNED}"
    dataset = open_dataset(url, cache)
    assert dataset.read(0).id == "small-0"
    assert SECRET not in f"{dataset.folder}{everything_in(cache.folder)}"
    web.query = "X-Amz-Expires=61&X-Amz-Signature=other"
    again = open_dataset(f"{web.url('small')}?{web.query}", cache)
    assert again.read(0).id == "small-0"
    assert web.requests[SHARD] == 1  # whoever has signed it
    with pytest.raises(ShardError, match="secrets of this URL are not stored with a run; give the"):
        open_dataset(without_credentials(url), cache)


@pytest.mark.parametrize("status", [403, 404, 400, 503, 200])
def test_errors_do_not_show_them(
    web: Web, cache: ShardCache, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Also aiohttp's of a download that breaks, which hold the headers that were sent."""
    monkeypatch.setattr(vlds.data.shards.download, "AWAY_S", 0.0)
    web.login, web.status[DATASET_FILE] = f"user:{SECRET}", status
    web.query = SIGNED if status != 200 else "other"
    with pytest.raises(Away if status == 503 else ShardError) as error:
        open_dataset(f"{with_login(web.url('small'))}?{SIGNED}", cache)
    assert error.value.__cause__ is None
    assert SECRET not in str(error.value)
    assert base64.b64encode(web.login.encode()).decode() not in str(error.value)
    assert "X-Amz-Signature=..." in str(error.value)


def test_streamed_shards_do_not_show_them(web: Web, tmp_path: Path) -> None:
    web.login, web.query = f"user:{SECRET}", SIGNED
    place = f"{with_login(web.url('small'))}/{SHARD}?{SIGNED}"
    good = open_shards(place, ("vqa",), None)
    assert len(list(good.read(good.urls[0]))) == 4
    policy = ErrorPolicy(max_bad_fraction=1.0, max_in_a_row=1, on_bad_shard="substitute")
    source = StreamedSource("red", ToyTask(), [good])  # type: ignore[arg-type]
    config = DataConfig(reader="sequential", global_batch_size=2, shuffle_buffer=1, errors=policy)
    setup = StreamSetup(collator=COLLATOR, image=SPEC, seed=0, ledger=tmp_path / "bad.jsonl")
    stream = SequentialStream([source], config, setup)
    assert SECRET not in f"{good.label}{json.dumps(stream.state())}"
    web.query = "other"
    for read in (lambda: list(good.read(good.urls[0])), lambda: next(islice(stream, 1))):
        with pytest.raises(ValueError, match="0 samples: access is refused") as error:
            read()
        assert SECRET not in str(error.value)
    assert SECRET not in everything_in(tmp_path)
