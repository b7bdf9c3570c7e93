"""Forms are read whole, or refused."""

from __future__ import annotations

import time

import pytest

from tests.toys.http_requests import BOUNDARY, FORM, form_of
from vlds.evaluation.serve import LONGEST_HEAD, MOST_PARTS, NotAForm, parse_form
from vlds.schema import LONGEST_TEXT

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


@pytest.mark.parametrize(
    "disposition",
    [
        "Content-Disposition: form-data; name=question",
        'content-disposition:form-data;NAME="question"; filename="a;name=image.jpg"',
        'Content-Type: text/plain\r\nContent-Disposition: form-data; filename="\\"; name=x"; '
        'name="question"',
        'Content-Disposition: form-data;\r\n name="question"',
    ],
)
def test_spellings_of_a_name(disposition: str) -> None:
    body = f"--b(1)\r\n{disposition}\r\n\r\nwhat?\r\n--b(1)--".encode()
    form = parse_form('Multipart/Form-Data; charset=utf-8; boundary="b(1)"', body, ("image",))
    assert form.texts == {"question": "what?"}


@pytest.mark.parametrize("length", [1_000, 400_000])
@pytest.mark.parametrize("piece", ["(", ";", '"', "\\", " ", ';a="', ";a=b", '\\"', "\r\n ", "=;"])
def test_a_hostile_head_costs_no_time(piece: str, length: int) -> None:
    """Neither the header of the request nor that of a part."""
    long = piece * (length // len(piece))
    part = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=a{long}\r\n\r\nx\r\n"
    body = f"{part}--{BOUNDARY}--".encode()
    begin = time.process_time()
    for kind in (KIND, f"multipart/form-data; boundary=a{long[:65_000]}"):
        try:
            parse_form(kind, body, ("image",))
        except NotAForm:
            continue
        assert length < LONGEST_HEAD
    assert time.process_time() - begin < 1


def test_texts_are_bounded_utf_8() -> None:
    with pytest.raises(ValueError, match="question: is not UTF-8"):
        parse_form(KIND, form_of(("question", b"\xff")), ())
    with pytest.raises(ValueError, match="question: has 100,001 characters, at most 100,000"):
        parse_form(KIND, form_of(("question", b"x" * (LONGEST_TEXT + 1))), ())
