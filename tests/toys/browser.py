"""Headless Chromium, driven over its DevTools protocol: what a page logs, fetches and measures."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome")
     if (path := shutil.which(name))), None,
)  # fmt: skip
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
SECONDS = 60


@dataclass
class Seen:
    """What a browser saw of a page."""

    logged: list[str] = field(default_factory=list)
    """Errors and messages of the console."""
    requested: list[str] = field(default_factory=list)
    """Addresses that were fetched, without `data:` URLs; the first is the page's."""
    values: list[Any] = field(default_factory=list)
    """Values of the expressions, in order."""


@dataclass(frozen=True)
class Setting:
    """How the browser shows a page."""

    width: int = 1280
    dark: bool = False


def visit(address: str, *expressions: str, **setting: Any) -> Seen:
    """Open a page in a `Setting`; evaluate expressions once it has loaded, and await promises."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [PROGRAM, *SWITCHES, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            talk = converse(Path(profile), address, expressions, Setting(**setting))
            return asyncio.run(asyncio.wait_for(talk, SECONDS))
        finally:
            browser.terminate()
            browser.wait(timeout=SECONDS)


async def converse(
    profile: Path, address: str, expressions: tuple[str, ...], setting: Setting
) -> Seen:
    """Drive the browser that has this profile."""
    port_file = profile / "DevToolsActivePort"
    while not port_file.is_file() or "\n" not in port_file.read_text():
        await asyncio.sleep(0.05)
    port = int(port_file.read_text().split()[0])
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [page for page in await answer.json() if page["type"] == "page"]
        async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            return await look_at(Tab(socket), address, expressions, setting)


async def look_at(tab: Tab, address: str, expressions: tuple[str, ...], setting: Setting) -> Seen:
    """Load the page and evaluate the expressions."""
    for domain in ("Page", "Network", "Runtime", "Log"):
        await tab.call(f"{domain}.enable")
    size = {"width": setting.width, "height": 844, "deviceScaleFactor": 1}
    await tab.call("Emulation.setDeviceMetricsOverride", **size, mobile=setting.width < 600)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if setting.dark else "light"}]
    await tab.call("Emulation.setEmulatedMedia", features=scheme)
    await tab.call("Page.navigate", url=address)
    while "Page.loadEventFired" not in tab.events:
        await tab.receive()
    for expression in expressions:
        result = await tab.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        tab.seen.values.append(result["result"].get("value"))
    return tab.seen


class Tab:
    """One tab: calls and their answers, and the events between them."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.last_id = 0
        self.events: set[str] = set()
        self.seen = Seen()

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; its result."""
        self.last_id += 1
        await self.socket.send_json({"id": self.last_id, "method": method, "params": parameters})
        while True:
            message = await self.receive()
            if message.get("id") == self.last_id:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    async def receive(self) -> dict[str, Any]:
        """Receive the next message, and record it if it is an event."""
        message: dict[str, Any] = await self.socket.receive_json()
        method, parameters = message.get("method", ""), message.get("params", {})
        self.events.add(method)
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.seen.logged.append(str(parameters))
        if method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith("data:"):
                self.seen.requested.append(url)
        return message
