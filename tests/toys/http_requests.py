"""Requests as curl and browsers send them."""

from __future__ import annotations

import http.client
import json
from typing import Any, NamedTuple

from vlds.evaluation.serve import Server

BOUNDARY = "=-=-boundary"
FORM = {"Content-Type": f'multipart/form-data; boundary="{BOUNDARY}"'}


class Reply(NamedTuple):
    """An answer of the server."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> dict[str, Any]:
        """The answer, read from its JSON."""
        assert self.headers["Content-Type"] == "application/json; charset=utf-8"
        answer: dict[str, Any] = json.loads(self.text)
        return answer


def form_of(*fields: tuple[str, bytes]) -> bytes:
    """The body of a multipart/form-data request."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in fields
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def ask(
    server: Server,
    body: bytes | None = None,
    method: str = "POST",
    path: str = "/answer",
    **headers: str,
) -> Reply:
    """Send one request; names of headers have _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, (FORM if body else {}) | named)
    response = connection.getresponse()
    reply = Reply(response.status, response.headers, response.read().decode())
    connection.close()
    return reply
