"""Forms are read whole, or refused."""

from __future__ import annotations

import pytest

from tests.serve.asked import BOUNDARY, FORM, form_of
from vlds.schema import LONGEST_TEXT
from vlds.serve.form import MOST_PARTS, NotAForm, parse_form

KIND = FORM["Content-Type"]
BYTES = bytes(range(256)) * 3 + b"\r\n\r\n--\r\n--=-=-bound\r\r\n\n"


def test_bytes_and_texts_come_as_they_were_sent() -> None:
    body = form_of(("image", BYTES), ("question", "was ist \u00fcber?".encode()), ("image", b"\r"))
    form = parse_form(KIND, body, ("image",))
    assert form.files == {"image": [BYTES, b"\r"]}
    assert form.texts == {"question": "was ist \u00fcber?"}


def test_an_empty_file_is_none() -> None:
    assert parse_form(KIND, form_of(("image", b"")), ("image",)).files == {}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("", form_of(("image", b"x"))),
        ("application/json", b"{}"),
        ("multipart/form-data", form_of(("image", b"x"))),
        ("multipart/mixed; boundary=x", b"--x--"),
        (KIND, b""),
        (KIND, form_of(("image", b"x"))[:-8]),
        (KIND, b"odd" + form_of(("image", b"x"))),
        (KIND, form_of(*[("image", b"x")] * (MOST_PARTS + 1))),
        (KIND, f"--{BOUNDARY}\r\n\r\nx\r\n--{BOUNDARY}--".encode()),
        (
            KIND,
            f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\n\r\n--{BOUNDARY}--".encode(),
        ),
        (KIND, f"--{BOUNDARY}\r\nname=x\r\n--{BOUNDARY}--".encode()),
    ],
)
def test_what_is_no_form_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(NotAForm):
        parse_form(kind, body, ("image",))


def test_texts_are_bounded_utf_8() -> None:
    with pytest.raises(ValueError, match="question: is not UTF-8"):
        parse_form(KIND, form_of(("question", b"\xff")), ())
    with pytest.raises(ValueError, match="question: has 100,001 characters, at most 100,000"):
        parse_form(KIND, form_of(("question", b"x" * (LONGEST_TEXT + 1))), ())
