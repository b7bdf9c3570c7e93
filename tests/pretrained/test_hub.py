"""Names on the hub are requested once, and are not confused with missing folders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants

from vlds.models.backbones import T5
from vlds.models.loading import model_files as hub
from vlds.models.loading.model_files import check_source
from vlds.models.vision import ClipVision, Timm
from vlds.runtime.rank_environment import free_port


@pytest.fixture(autouse=True)
def no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, and no memory of earlier requests."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._check_name.cache_clear()
    yield
    hub._check_name.cache_clear()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")


@pytest.fixture(params=[401, 404])
def refusing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A hub that refuses every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(request.param)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, daemon=True).start()
        yield request.param
        server.shutdown()


def fetch_backbone() -> None:
    T5(path="someone/t5").read_config()


def fetch_clip() -> None:
    ClipVision(path="someone/clip").read_config()


def fetch_timm() -> None:
    Timm(model="resnet18", pretrained=True).build(torch.float32)


@pytest.mark.parametrize(
    ("fetch", "place"),
    [
        (fetch_backbone, "model.backbone.path"),
        (fetch_clip, "model.vision.path"),
        (fetch_timm, "model.vision.model"),
    ],
)
def test_without_a_network_it_is_said_at_once(
    fetch: Callable[[], None], place: str, no_network: None
) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"^{place}: no such folder: .*; name a ") as error:
        fetch()
    assert time.monotonic() - started < hub.TIMEOUT_S + 5
    assert str(error.value).endswith(
        "download it on a machine with a network and set HF_HUB_OFFLINE=1"
    )


def test_what_is_in_the_cache_does_without_a_network(no_network: None, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models--someone--t5"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    check_source("someone/t5", "model.backbone.path")
    assert constants.is_offline_mode()
    hub._check_name.cache_clear()
    check_source("someone/t5", "model.backbone.path")
    with pytest.raises(
        ValueError, match="someone/bart is not in Hugging Face's cache, and HF_HUB_"
    ):
        check_source("someone/bart", "model.backbone.path")


def test_a_name_that_the_hub_does_not_know(refusing: int) -> None:
    with pytest.raises(
        ValueError, match=rf"no such model on the .*: someone/t5 \(HTTP {refusing}\)"
    ):
        fetch_backbone()


@pytest.mark.parametrize("path", ["runs/demo/backbone", "/no/such/folder", "./x", "a b"])
def test_what_can_be_no_name_is_a_missing_folder(path: str, refusing: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^model\.backbone\.path: no such file or folder: {path};"
    ):
        T5(path=path).read_config()
