"""What a browser's form and `curl -F` send: multipart/form-data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.policy import HTTP

from vlds.schema import LONGEST_TEXT

MOST_PARTS = 32


class NotAForm(ValueError):
    """A body that is not multipart/form-data."""


@dataclass(frozen=True)
class Form:
    """What was filled in."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


def parse_form(content_type: str, body: bytes, file_fields: tuple[str, ...]) -> Form:
    """The fields of a form; those of `file_fields` are bytes, and left out where they are empty.

    Errors: NotAForm; ValueError for a text that is too long or is not UTF-8.
    """
    form = Form()
    for name, content in parts(content_type, body):
        if name in file_fields:
            if content:
                form.files.setdefault(name, []).append(content)
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{name[:80]}: is not UTF-8; send it as UTF-8") from None
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"{name[:80]}: has {len(text):,} characters, at most {LONGEST_TEXT:,}")
        form.texts[name] = text
    return form


def parts(content_type: str, body: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each part.

    Errors: NotAForm.
    """
    head = EmailMessage(HTTP)
    head["Content-Type"] = " ".join(content_type.split())
    boundary = head.get_boundary()
    if head.get_content_type() != "multipart/form-data" or not boundary:
        raise NotAForm("send multipart/form-data, as `curl -F` does")
    first, *pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))
    if first or not pieces or not pieces[-1].startswith(b"--") or len(pieces) > MOST_PARTS:
        raise NotAForm(f"the form is cut, or has more than {MOST_PARTS} parts; send it again")
    for piece in pieces[:-1]:
        lines, blank, content = piece.lstrip(b" \t").partition(b"\r\n\r\n")
        headers = BytesHeaderParser(policy=HTTP).parsebytes(lines.removeprefix(b"\r\n"))
        name = headers["Content-Disposition"] and headers["Content-Disposition"].params.get("name")
        if not blank or not name:
            raise NotAForm("a part of the form has no name; send it as `curl -F` does")
        yield name, content
