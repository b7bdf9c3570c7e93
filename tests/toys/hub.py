"""A stand-in of the Hugging Face hub: a web server on loopback that keeps what arrives, and gives
folders away."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_token_of_the_test"
OWNER = "me"
COMMIT = "c" * 40
"""Of all published repositories."""
LARGE = 2000
"""Bytes from which a file goes the way of large files."""


class Hub(ThreadingHTTPServer):
    """Takes uploads of one owner, and lets anyone download the folders in `published`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, Any]] = {}
        """Name -> what was asked for when it was created."""
        self.files: dict[str, dict[str, bytes]] = {}
        """Name -> path -> content."""
        self.large: dict[str, bytes] = {}
        """sha256 -> content of large files."""
        self.published: dict[str, Path] = {}
        """Name -> folder of a repository to download."""
        self.requests: list[str] = []
        """Method and path of each request."""
        self.status: dict[str, int] = {}
        """Last word of a path -> status to answer instead."""
        self.role = "write"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        """What makes the hub's library use this one, logged in."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub while the block runs."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        hub.shutdown()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if (name := self.published_name()) is not None:
            self.server.requests.append(f"{self.command} {self.path}")
            self.give(name)
            return
        if self.refused():
            return
        name = self.path.removeprefix("/api/models/")
        if self.path == "/api/whoami-v2":
            token = {"role": self.server.role, "displayName": "test"}
            self.answer({"type": "user", "name": OWNER, "auth": {"accessToken": token}})
        elif name in self.server.repos:
            is_private = self.server.repos[name].get("visibility") == "private"
            self.answer({"id": name, "private": is_private, "tags": [], "siblings": []})
        else:
            self.answer({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def published_name(self) -> str | None:
        """The published repository that a path asks about."""
        path = self.path.removeprefix("/api").removeprefix("/models").strip("/")
        return next((n for n in self.server.published if f"{path}/".startswith(f"{n}/")), None)

    def give(self, name: str) -> None:
        """What the hub knows of a published repository, or a file of it."""
        folder = self.server.published[name]
        if self.path.startswith("/api/"):
            files = sorted(f for f in folder.rglob("*") if f.is_file())
            tree = [
                {"type": "file", "path": f.relative_to(folder).as_posix(),
                 "size": f.stat().st_size, "oid": COMMIT}
                for f in files
            ]  # fmt: skip
            self.answer(tree if "/tree/" in self.path else {"id": name, "sha": COMMIT})
            return
        _, _, revision_and_path = self.path.partition("?")[0].partition("/resolve/")
        file = folder / unquote(revision_and_path).partition("/")[2]
        if not file.is_file():
            self.answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked:
            content = content[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206 if asked else 200)
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refused():
            return
        words = self.path.strip("/").split("/")
        if self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif words[-2:-1] == ["preupload"]:
            self.answer({"files": [upload_mode(file) for file in json.loads(body)["files"]]})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self.answer({"transfer": "basic", "objects": self.places(json.loads(body))})
        elif words[-2:-1] == ["commit"]:
            self.commit("/".join(words[2:4]), [json.loads(line) for line in body.splitlines()])
        else:
            self.answer({"error": f"the stand-in has no {self.path}"}, 404)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.refused(needs_login=False):
            assert hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
            self.server.large[self.path.rpartition("/")[2]] = body
            self.answer({})

    def refused(self, *, needs_login: bool = True) -> bool:
        """True if the request is answered by an error: one that the test wants, or for a wrong
        token."""
        self.server.requests.append(f"{self.command} {self.path}")
        words = self.path.partition("?")[0].strip("/").split("/")
        status = next((s for word, s in self.server.status.items() if word in words), None)
        if needs_login and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 401
        if status is not None:
            self.answer({"error": "an error of the test"}, status)
        return status is not None

    def create(self, wanted: Mapping[str, Any]) -> None:
        owner = wanted["organization"]
        name = f"{owner}/{wanted['name']}"
        if owner != OWNER:
            self.answer({"error": "You don't have the rights"}, 403)
        elif name in self.server.repos:
            self.answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
        else:
            self.server.repos[name] = dict(wanted)
            self.server.files[name] = {}
            self.answer({"url": f"{self.server.url}/{name}", "name": name})

    def places(self, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Where large files go."""
        return [
            {
                **entry,
                "actions": {"upload": {"href": f"{self.server.url}/large/{entry['oid']}"}},
            }
            for entry in asked["objects"]
        ]

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                assert len(content) < LARGE
                self.keep(name, value["path"], content)
            elif line["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
                assert len(content) == value["size"]
                self.keep(name, value["path"], content)
        url = f"{self.server.url}/{name}/commit/{'0' * 40}"
        self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": url})

    def keep(self, name: str, path: str, content: bytes) -> None:
        """Store a file, of a published data set in its folder."""
        if (folder := self.server.published.get(f"datasets/{name}")) is not None:
            (folder / path).write_bytes(content)
        else:
            self.server.files[name][path] = content

    def answer(
        self,
        tree: Mapping[str, Any] | list[dict[str, Any]],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def upload_mode(file: Mapping[str, Any]) -> dict[str, Any]:
    """How a file shall come."""
    mode = "lfs" if file["size"] >= LARGE else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
