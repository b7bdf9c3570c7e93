"""What a browser's form and `curl -F` send: multipart/form-data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from vlds.schema import LONGEST_TEXT

MOST_PARTS = 32
LONGEST_HEAD = 4096
"""Bytes of a part's headers, of which browsers and curl send about 200; characters that are read of
the Content-Type, which may hold megabytes."""
LONGEST_BOUNDARY = 70
"""Characters, as RFC 2046 has it."""
# The email package is not safe here: its time grows with the square of a header's length, and many
# open brackets exceed Python's recursion limit.
PARAMETER = re.compile(r';\s*([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]+))', re.ASCII)
DISPOSITION = re.compile(r"^Content-Disposition:(.*)$", re.ASCII | re.IGNORECASE | re.MULTILINE)


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
    boundary = parameters(content_type[:LONGEST_HEAD]).get("boundary", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data" or not boundary:
        raise NotAForm("send multipart/form-data, as `curl -F` does")
    if len(boundary) > LONGEST_BOUNDARY:
        raise NotAForm(
            f"the form's boundary has {len(boundary):,} characters, at most {LONGEST_BOUNDARY}"
        )
    separator = b"\r\n--" + boundary.encode("latin-1", "replace")
    first, *pieces = (b"\r\n" + body).split(separator, MOST_PARTS + 1)
    if first or not pieces or not pieces[-1].startswith(b"--") or len(pieces) > MOST_PARTS:
        raise NotAForm(f"the form is cut, or has more than {MOST_PARTS} parts; send it again")
    for piece in pieces[:-1]:
        head, blank, content = piece.lstrip(b" \t").partition(b"\r\n\r\n")
        if len(head) > LONGEST_HEAD:
            raise NotAForm(
                f"a part of the form has {len(head):,} bytes of headers, at most {LONGEST_HEAD:,}"
            )
        name = field_name(head.decode("utf-8", "replace"))
        if not blank or not name:
            raise NotAForm("a part of the form has no name; send it as `curl -F` does")
        yield name, content


def field_name(head: str) -> str:
    """The name that a part's headers give it, or ""."""
    unfolded = re.sub(r"\r\n[ \t]+", " ", head).replace("\r\n", "\n")
    disposition = DISPOSITION.search(unfolded)
    return parameters(disposition[1]).get("name", "") if disposition else ""


def parameters(header: str) -> dict[str, str]:
    """The `; name=value` pairs of a header's value by lower-case name; the first of a name counts.

    The time is linear in the header's length.
    """
    pairs: dict[str, str] = {}
    for name, quoted, token in PARAMETER.findall(header):
        pairs.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) or token)
    return pairs
