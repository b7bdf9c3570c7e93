"""Conversations from files of every layout: kept as they are written, or dropped and counted."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import tarfile
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.cli import main
from data_prep.own_data import chat
from data_prep.own_data.conversations import conversation_of
from tests.toys.files import write
from tests.toys.own_rows import photos
from tests.toys.pictures import jpeg
from tests.toys.shards import packed
from vlds.data.shards.sample import groups_of
from vlds.data.shards.store import open_dataset
from vlds.tasks import Chat

Turns = Sequence[tuple[str, Sequence[str | None]]]
"""Who speaks, and what: texts, and None for each picture."""
TALK: Turns = [
    ("system", ["Answer in JSON."]),
    ("user", [None, "\nWho sells?  "]),
    ("assistant", ['{"Vendor": "ACME GmbH"}']),
    ("user", ["And ", None, None, "?"]),
    ("assistant", ["The Same."]),
]
LLAVA = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def parts(content: Sequence[str | None]) -> list[dict[str, Any]]:
    return [{"type": "image"} if p is None else {"type": "text", "text": p} for p in content]


def openai(talk: Turns, pictures: Sequence[Any]) -> dict[str, Any]:
    """Parts with their own pictures."""
    rest = iter(pictures)

    def part(piece: str | None) -> dict[str, Any]:
        if piece is None:
            return {"type": "image_url", "image_url": {"url": next(rest)}}
        return {"type": "text", "text": piece}

    return {"messages": [{"role": who, "content": [*map(part, said)]} for who, said in talk]}


def hugging_face(talk: Turns, pictures: Sequence[Any]) -> dict[str, Any]:
    """Parts that take the row's pictures in turn."""
    messages = [{"role": speaker, "content": parts(content)} for speaker, content in talk]
    return {"messages": messages, "images": list(pictures)}


def marked(talk: Turns, pictures: Sequence[Any]) -> dict[str, Any]:
    """ms-swift's and LLaMA-Factory's messages: marks in the texts."""
    messages = [
        {"role": speaker, "content": "".join("<image>" if p is None else p for p in content)}
        for speaker, content in talk
    ]
    return {"messages": messages, "images": list(pictures)}


def llava(talk: Turns, pictures: Sequence[Any]) -> dict[str, Any]:
    turns = [
        {"from": LLAVA[message["role"]], "value": message["content"]}
        for message in marked(talk, pictures)["messages"]
    ]
    picture = pictures[0] if len(pictures) == 1 else list(pictures)
    return {"conversations": turns} | ({"image": picture} if pictures else {})


def alpaca(talk: Turns, pictures: Sequence[Any]) -> dict[str, Any]:
    """LLaMA-Factory's instructions with their history; ms-swift's older form is alike."""
    messages = marked(talk, pictures)["messages"]
    texts = [m["content"] for m in messages if m["role"] != "system"]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    *history, (question, answer) = pairs
    row = {"instruction": question, "output": answer, "history": [list(pair) for pair in history]}
    system = [m["content"] for m in messages if m["role"] == "system"]
    return row | ({"system": system[0]} if system else {}) | {"images": list(pictures)}


LAYOUTS = {f.__name__: f for f in (openai, hugging_face, marked, llava, alpaca)}


def stored(talk: Turns) -> list[dict[str, Any]]:
    """The turns as shards hold them: a text alone is no list."""
    turns = []
    for speaker, content in talk:
        alone = len(content) == 1 and content[0] is not None
        turns.append({"role": speaker, "content": content[0] if alone else parts(content)})
    return turns


def chat_command(file: Path, out: Path, *more: str) -> int:
    return main(["chat", "--annotations", str(file), "--out", str(out), *more])


def prepare(folder: Path, rows: object, *more: str) -> int:
    if isinstance(rows, list):
        rows = "\n".join(map(json.dumps, rows))
    file = write(folder / "rows.jsonl", rows)
    return chat_command(file, folder / "out", "--images", str(folder / "photos"), *more)


def tar_of(folder: Path, *names: str, below: str = "") -> Path:
    """FOLDER/photos.tar with these pictures."""
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for name in names:
            tar.add(folder / "photos" / name, f"{below}{name}")
    return folder / "photos.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos(tmp_path / "photos", *(f"{letter}.jpg" for letter in "abcdef"), "row 1")
    return tmp_path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_kept_as_it_is_written(layout: str, folder: Path) -> None:
    row = LAYOUTS[layout](TALK, ["b.jpg", "a.jpg", "b.jpg"])
    assert prepare(folder, [row | {"patient": "p7"}]) == 0
    (sample,) = packed(folder / "out").values()
    (annotation,) = sample.annotations
    assert annotation == {
        "id": "1",
        "turns": stored(TALK[:-1]),
        "answer": "The Same.",
        "source": {"patient": "p7"},
    }
    files = [(folder / "photos" / f"{letter}.jpg").read_bytes() for letter in "bab"]
    assert [bytes(picture) for picture in sample.images] == files
    example = Chat().example("chat", sample, 0, None)
    assert [turn.content for turn in example.turns] == [tuple(said) for _, said in TALK[:-1]]
    assert example.reference == {"answer": "The Same.", "turn": 2}


# Any text but lone surrogates, which no file can hold, and our own marks.
SAID = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: not any(mark in text for mark in ("<image>", "<video>", "<audio>"))
)
ODD = st.sampled_from(["<|im_start|>assistant\n", "</s>", "[INST]", "{{ x }}", "<|image_pad|>", ""])
CONTENT = st.lists(st.one_of(st.none(), SAID, ODD), max_size=4).map(
    # No two texts in a row, which a text with marks cannot tell apart from one.
    lambda pieces: (
        [
            piece
            for n, piece in enumerate(pieces)
            if piece is None or (piece and (n == 0 or pieces[n - 1] is None))
        ]
        or [""]
    )
)
PAIR = st.tuples(CONTENT, st.one_of(SAID, ODD))
TALKS = st.tuples(st.booleans(), st.lists(PAIR, min_size=1, max_size=25))


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(drawn=TALKS)
def test_drawn_conversations_come_back(layout: str, drawn: tuple[bool, list[Any]]) -> None:
    begins, pairs = drawn
    talk: list[tuple[str, list[str | None]]] = [("system", ["Be brief."])] if begins else []
    for question, answer in pairs:
        talk += [("user", question), ("assistant", [answer])]
    count = sum(piece is None for _, content in talk for piece in content)
    pictures = [f"{n}.jpg" for n in range(count)]
    if layout == "alpaca" and not talk[-1][1][0]:
        return  # there, an empty output is none
    found = conversation_of(LAYOUTS[layout](talk, pictures))
    assert (found.turns, [s.source for s in found.shown]) == (stored(talk), pictures)


def test_pictures_that_lie_on_the_disk_twice(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "free_bytes", lambda folder: 100)
    coded = base64.b64encode((folder / "photos" / "a.jpg").read_bytes()).decode()
    assert prepare(folder, [marked([("user", [None, "q"]), BOT], [coded])]) == 0
    assert "GB of pictures and clips from rows or tar files lie in" in capsys.readouterr().out
    file, tar = write(folder / "r.json", [SHOWN]), tar_of(folder, "a.jpg")
    assert chat_command(file, folder / "tarred", "--images", str(tar)) != 0
    said = capsys.readouterr().err
    assert "are unpacked beside --out until the shards are written, and 1e-07 GB are free" in said
    assert not (folder / "tarred").exists()


USER, BOT = ("user", ["q"]), ("assistant", ["a"])
ANSWER = {"role": "assistant", "content": "a"}
TALKED = marked([USER, BOT], [])
SHOWN = marked([("user", [None]), BOT], ["a.jpg"])


def turn(**fields: Any) -> dict[str, Any]:
    """A question with these fields, and no more."""
    return {"messages": [{"role": "user"} | fields]}


def answered(**fields: Any) -> dict[str, Any]:
    """A question, and an answer with these fields."""
    return {"messages": [{"role": "user", "content": "q"}, ANSWER | fields]}


DROPPED: Sequence[tuple[dict[str, Any], str]] = (
    (marked([("user", [None, None]), BOT], ["a.jpg"]), "2 marks for 1 picture"),
    (marked([("user", [None]), BOT], ["a.jpg", "b.jpg"]), "1 mark for 2 pictures"),
    (openai([("user", [None]), BOT], ["https://x.org/a.jpg"]), "a picture on a server"),
    (marked([("user", ["<video>q"]), BOT], []), "1 mark for 0 clips"),
    (TALKED | {"videos": ["v.mp4"]}, "a clip by name, without --videos"),
    (TALKED | {"tools": "[{}]"}, "tools, which are not read"),
    (marked([USER, BOT, USER], []), "no answer to the last question"),
    (marked([BOT], []), "no question"),
    ({"messages": []}, "no question"),
    (marked([BOT, USER, BOT], []), "an answer before any question"),
    (marked([("system", ["s"]), BOT, USER, BOT], []), "an answer before any question"),
    (turn(role="narrator", content="x"), 'a turn of "narrator"'),
    ({"messages": [{"content": "x"}]}, "a turn without a speaker"),
    ({"text": "x"}, "no messages and no conversations"),
    (turn(content=3), "a turn whose content is 3"),
    (turn(), "a turn without content"),
    (answered(content={"Vendor": "ACME"}),
     "a turn whose content is an object; write JSON as a text"),
    (TALKED | {"conversations": []}, "both messages and"),
    (marked([("user", ["where <bbox>?"]), BOT], []) | {"objects": {"bbox": [[1, 2, 3, 4]]}},
     "objects with marks in the texts"),
    (turn(content=[{"type": "input_audio"}]), 'a part of type "input_audio"'),
    (turn(role="assistant", content="", tool_calls=[{}]), "a turn with tool_calls"),
    (openai([USER, ("assistant", [None])], ["a.jpg"]), "a picture in an answer"),
    (marked([USER, BOT, ("system", ["s"]), USER, BOT], []), "a system message behind"),
    (SHOWN | {"image": "b.jpg"}, "pictures in images"),
    (answered(weight=0.5), "a turn with a weight of 0.5"),
    ({"instruction": ["q"], "output": "o"}, "an instruction that is not text"),
    ({"instruction": "q", "output": "o", "history": 5}, "a history that is not pairs"),
    (openai([("user", [None]), BOT], ["data:,x"]), "a picture in an address"),
    (turn(content="q", images=["a.jpg"]), "a turn with images"),
    (marked([("user", ["<img>a.jpg</img>q"]), BOT], []), "a picture named between <img>"),
    (marked([("user", ["<audio>q"]), BOT], []), "sound, which is not read"),
    ({"instruction": "Look.", "question": "q", "answer": "a"},
     "both instruction and question; name one of them by --question-field"),
    ({"question": "q", "answer": "a", "output": "b", "response": ""},
     "both output and answer; name one of them by --answer-field"),
    (marked([("user", ["x" * 100_001]), BOT], []), "turns of more than 100,000"),
    (marked([("user", ["\ud800"]), BOT], []), "half of a character in a text"),
)  # fmt: skip


def test_what_cannot_be_kept_whole_is_dropped_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    rows = [TALKED, *(row for row, _ in DROPPED)]
    assert prepare(folder, rows) == 0
    told = capsys.readouterr().out
    for number, (_, reason) in enumerate(DROPPED, 2):
        line = next(line for line in told.splitlines() if f"dropped: {reason}" in line)
        assert str(number) in re.findall(r"\d+", line.partition("id")[2]), line
    assert len(packed(folder / "out")) == 1
    strict = ("--strict", "--out", str(folder / "strict"))
    refused(prepare(folder, rows, *strict), f"--strict: {len(DROPPED)} rows cannot be kept whole: ")
    write(folder / "photos/bad.png", b"\x89PNG\r\n\x1a\n nothing")
    code = prepare(folder, [SHOWN | {"images": ["bad.png"]}], *strict)
    refused(code, "picture: truncated or damaged: 1 (bad.png)")
    assert not (folder / "strict").exists()


def test_pictures_without_a_place_stand_before_the_first_question(
    folder: Path, output: Any
) -> None:
    assert prepare(folder, [marked([USER, BOT], ["a.jpg", "b.jpg"])]) == 0
    assert "1 rows do not say where their pictures or clips stand" in output()
    (annotation,) = find_all(folder / "out")
    assert annotation["turns"] == stored([("user", [None, None, "q"])])


def find_all(folder: Path) -> list[dict[str, Any]]:
    return [dict(a) for sample in packed(folder).values() for a in sample.annotations]


def test_turns_that_are_not_learned(folder: Path, output: Any) -> None:
    row = marked([USER, BOT, USER, BOT], [])
    row["messages"][1]["weight"], row["messages"][3]["loss"] = 0, False
    assert prepare(folder, [row, marked([USER, BOT, USER, BOT], [])]) == 0
    for sample in packed(folder / "out").values():
        for n in range(len(sample.annotations)):
            example = Chat().example("c", sample, n, None)
            learned = [turn.learned for turn in example.turns] + [example.learned]
            assert learned == ([False] * 4 if example.id == "1" else [False, True, False, True])
            last = Chat(learn="last").example("c", sample, n, None)
            assert not any(turn.learned for turn in last.turns)
    assert "\n1 of 2 conversations mark none of their answers" in "\n" + output()


def test_a_test_split_has_no_answers(folder: Path) -> None:
    rows = [marked([USER, BOT, USER], []), TALKED]
    assert prepare(folder, rows, "--no-answers", "--split", "test") == 0
    (annotation,) = find_all(folder / "out")
    assert annotation == {"id": "1", "turns": stored([USER, BOT, USER])}


def test_groups_stay_in_one_split(folder: Path, refused: Any) -> None:
    rows = [
        SHOWN | {"images": [f"{'abcdef'[n % 6]}.jpg"], "patient": f"p{n % 6 // 2}"}
        for n in range(18)
    ]
    words = ("--split-sizes", "val=0.3", "test=0.3", "--group-field", "patient", "--seed", "3")
    assert prepare(folder, rows, *words) == 0
    found = [
        group
        for split in ("train", "val", "test")
        for group in {g for s in packed(folder / "out" / split).values() for g in groups_of(s)}
    ]
    assert sorted(found) == [("patient", f"p{n}") for n in range(3)]
    refused(prepare(folder, rows, "--group-field", "doctor"), "doctor")


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    """As `save_to_disk` writes it."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path.parent / "state.json", json.dumps({"_data_files": [{"filename": path.name}]}))
    for name in (path.name, "cache-0123456789abcdef.arrow"):
        with pyarrow.ipc.new_stream(path.parent / name, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001-6cb9e3f5c8a8a1b3", "test-00000-of-00001-0123456789abcdef"),
        ("default/train/0000", "default/test/0000"),
    ],
)
def test_names_of_parquet_files_say_their_splits(
    names: tuple[str, str], folder: Path, refused: Any
) -> None:
    for name in names:
        parquet(folder / f"set/{name}.parquet", [TALKED | {"images": None}])
    assert chat_command(folder / "set", folder / "out") == 0
    assert {path.name for path in (folder / "out").iterdir()} == {"train", "test"}
    code = chat_command(folder / "set", folder / "out", "--split-sizes", "val=0.5")
    refused(code, "name their splits; give one of them")


def test_values_of_parquet_that_json_lacks(folder: Path) -> None:
    more = {"day": date(2020, 1, 2), "price": Decimal("1.50"), "mask": {"bytes": b"abc"},
            "share": math.nan, "list": [b"a"]}  # fmt: skip
    parquet(folder / "x.bin", [TALKED | {"images": None} | more])  # found by its content
    assert chat_command(folder / "x.bin", folder / "out") == 0
    (annotation,) = find_all(folder / "out")
    assert annotation["source"] == {
        "day": "2020-01-02", "price": "1.50", "mask": {"bytes": "3 bytes"}, "share": "nan",
        "list": ["1 bytes"],
    }  # fmt: skip


def test_answers_of_one_conversation_stay_together(folder: Path) -> None:
    rows = [marked([USER, BOT, ("user", [None, "0"]), BOT], ["a.jpg"])]
    rows += [marked([USER, BOT, ("user", [f"{n}"]), BOT], []) for n in range(20)]
    two = [USER, BOT, ("user", [None, None]), BOT]
    rows += [marked(two, ["b.jpg", f"{n}.jpg"]) for n in range(3)]
    photos(folder / "photos", "0.jpg", "1.jpg", "2.jpg")
    splits = []
    for each in ([], ["--each-turn"]):  # one trains, the other scores: their splits are the same
        assert prepare(folder, rows, *each, "--split-sizes", "val=0.4") == 0
        split_of = {
            split: {a["id"].partition("-")[0] for a in find_all(folder / "out" / split)}
            for split in ("train", "val")
        }
        assert not split_of["train"] & split_of["val"]
        assert len(split_of["train"] | split_of["val"]) == 24
        splits.append(split_of)
    assert splits[0] == splits[1]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_data_sets_of_hugging_face(form: str, folder: Path) -> None:
    pictures = [jpeg(width=40 + n) for n in range(5)]
    talks = [[("user", [None, "A?"]), ("assistant", [f"Yes {n}"])] for n in range(5)]
    rows = [
        hugging_face(talk, [{"bytes": data, "path": f"{n}.jpg"}])
        for n, (talk, data) in enumerate(zip(talks, pictures, strict=True))
    ]
    place = folder / "set"
    if form == "parquet":
        parquet(place / "data/train-00000-of-00001.parquet", rows[:3])
        parquet(place / "data/test-00000-of-00001.parquet", rows[3:])
    else:
        write(place / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
        arrow(place / "train/data-00000-of-00001.arrow", rows[:3])
        arrow(place / "test/data-00000-of-00001.arrow", rows[3:])
    assert chat_command(place, folder / "out") == 0
    for split, numbers in (("train", range(3)), ("test", range(3, 5))):
        samples = packed(folder / "out" / split).values()
        found = {s.annotations[0]["answer"]: bytes(s.images[0]) for s in samples}
        assert found == {f"Yes {n}": pictures[n] for n in numbers}
    assert chat_command(place, folder / "all", "--split", "all") == 0
    assert len(packed(folder / "all")) == 5


def test_what_shards_hold_is_shown(folder: Path, output: Any) -> None:
    assert prepare(folder, [marked(TALK, ["a.jpg", "b.jpg", "c.jpg"])]) == 0
    assert open_dataset(folder / "out").kind == "chat"
    for command in ("preview", "verify", "stats"):
        assert main([command, str(folder / "out")]) == 0
    told = output()
    for line in ("system: Answer in JSON.", "user: [picture]", "user: And [picture][picture]?",
                 "The Same.", "words a text"):  # fmt: skip
        assert line in told


@pytest.mark.parametrize(("name", "link"), [("../escaped.jpg", ""), ("a.jpg", "none.jpg")])
def test_a_tar_file_writes_nowhere_else(name: str, link: str, folder: Path, refused: Any) -> None:
    with tarfile.open(folder / "photos.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.linkname = 0 if link else 3, link
        member.type = tarfile.LNKTYPE if link else tarfile.REGTYPE
        tar.addfile(member, io.BytesIO(b"abc"))
    file = write(folder / "r.json", [SHOWN | {"images": [name]}])
    with TemporaryDirectory(dir=folder) as inner:
        images = ("--images", str(folder / "photos.tar"))
        code = chat_command(file, Path(inner, "out"), *images)
        refused(code, "photos.tar cannot be read as a tar file")
        assert not [path for path in folder.rglob("escaped.jpg")]


def test_what_else_rows_may_hold() -> None:
    """An answer in parts, null columns of merged tables, and fields of turns."""
    row = answered(content=parts(["one ", "two"]), mid="m2")
    talk = conversation_of(row | {"instruction": None, "output": None})
    assert talk.turns[1] == {"role": "assistant", "content": "one two", "source": {"mid": "m2"}}
    row = {"instruction": None, "query": "q2", "output": None, "response": "a2", "input": ""}
    assert conversation_of(row).turns == stored([("user", ["q2"]), ("assistant", ["a2"])])


def test_pictures_that_look_much_alike_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is another, smaller and saved again."""
    pytest.importorskip("imagehash")
    draw = np.random.default_rng(0)
    for name in ("x", "y"):
        pixels = draw.integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).resize((90, 80)).save(folder / f"photos/{name}.png")
    with Image.open(folder / "photos/x.png") as image:
        image.resize((60, 50)).save(folder / "photos/z.jpg", quality=60)
    rows = [
        marked([("user", [None]), BOT], [name]) | {"part": part}
        for name, part in (("x.png", "train"), ("y.png", "train"), ("z.jpg", "test"))
    ]
    assert prepare(folder, rows, "--split-field", "part", "--near-copies") == 0
    error = capsys.readouterr().err
    assert "1 pair of pictures looks much alike in two splits: z.jpg (test) and x.png (tr" in error
    apart = [rows[1], rows[2]]
    assert prepare(folder, apart, "--split-field", "part", "--near-copies") == 0
    assert "no picture looks much like one of another split" in capsys.readouterr().out
