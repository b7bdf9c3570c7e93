"""Files that are no rows of one's own: what they are, and which command takes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from vlds.runtime.regular_file import open_file

BINARY: tuple[tuple[bytes, str], ...] = (
    (
        b"PAR1",
        "is Parquet; write its pictures as files and its rows as JSON lines first "
        '("Parquet" in docs/own_data.md has the lines that do it)',
    ),
    (b"ARROW1", "is Arrow; write its pictures as files and its rows as JSON lines first"),
    (b"PK\x03\x04", "is an Excel workbook or a ZIP archive; save it as CSV (UTF-8), or unpack it"),
    (b"\xd0\xcf\x11\xe0", "is an Excel workbook; save it as CSV (UTF-8)"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard; unpack it with unzstd"),
    (b"SQLite format 3", "is an SQLite data base; export the table as CSV"),
    (b"\xff\xfe", "is UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16; save it as UTF-8"),
)
"""How a file begins -> what it is, and the cure."""
PUBLISHED: tuple[tuple[Collection[str], str, str], ...] = (
    (("conversations",), "LLaVA's conversations", "jsonl --task vqa"),
    (("messages",), "ShareGPT's conversations", "jsonl --task vqa"),
    (("images", "annotations"), "COCO's", "coco-captions --annotations FILE"),
    (("images", "dataset"), "Karpathy's split of COCO", "coco-karpathy --annotations FILE"),
    (("questions", "data_subtype"), "the questions of VQA v2", "vqav2 --questions FILE"),
    (("questions", "task_type"), "the questions of VQA v2", "vqav2 --questions FILE"),
    (("question_id", "img_id", "sent"), "LXMERT's questions", "vqav2 --questions FILE"),
    (("img0", "img1", "sent"), "LXMERT's NLVR2", "nlvr2 --annotations FILE"),
    (("identifier", "sentence"), "NLVR2", "nlvr2 --annotations FILE"),
    (("pairID", "gold_label", "sentence2"), "SNLI-VE", "snli-ve --annotations FILE"),
    (("id", "qas"), "the questions of Visual Genome", "vg --what questions"),
    (("id", "regions"), "the regions of Visual Genome", "vg --what regions"),
)
"""Fields that tell a publisher's file, what it is, and the command that takes it."""


def refuse_binary(path: Path) -> None:
    """Errors: ValueError for a file that is no text, or a folder."""
    if path.is_dir():
        raise ValueError(f"--annotations {path} is a folder; give the file of rows in it")
    with open_file(path) as file:
        begin = file.read(16)
    for magic, fault in BINARY:
        if begin.startswith(magic):
            raise ValueError(f"--annotations {path} {fault}")


def published_as(fields: Mapping[str, object]) -> str:
    """What the fields of a row or an object speak of, and the command; "" where nothing known."""
    if fields and all(isinstance(v, dict) and "imageId" in v for v in list(fields.values())[:3]):
        return "it looks like the questions of GQA, which `gqa --src` takes"
    for wanted, what, command in PUBLISHED:
        if all(name in fields for name in wanted):
            return f"it looks like {what}, which `{command}` takes"
    return ""
