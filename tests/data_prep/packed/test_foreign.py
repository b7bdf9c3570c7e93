"""Tars that others have written: webdataset's own writer, and img2dataset's layout."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from data_prep.cli import main
from data_prep.packing.source import Dropped
from data_prep.packing.writer import write_dataset
from tests.toys.files import write
from tests.toys.pictures import jpeg
from tests.toys.shards import record, write_shards
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.store import open_dataset
from vlds.tasks import VQA, Caption


def add(tar: tarfile.TarFile, name: str, data: bytes, time: float = 0) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(data), time
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def img2dataset(tmp_path: Path) -> Path:
    """PAX headers with times, a .txt and a .json for each picture, no annotations."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for number in range(3):
                key = f"{shard:05d}{number:04d}"
                about = {"caption": f"picture {key}", "url": "x", "key": key, "status": "success"}
                members = {"jpg": jpeg(), "txt": f" picture {key}\n".encode(),
                           "json": json.dumps(about).encode()}  # fmt: skip
                for extension, data in members.items():
                    add(tar, f"{key}.{extension}", data, time=1_700_000_000.25)
    return tmp_path


@pytest.mark.parametrize("place", ["txt", "json:caption"])
def test_captions_of_img2dataset(img2dataset: Path, place: str) -> None:
    given = ["--name", "laion", "--kind", "caption", "--split", "train"]
    assert main(["index", str(img2dataset), *given, "--fields", f"caption={place}"]) == 0
    dataset = open_dataset(img2dataset)
    assert (dataset.num_samples, dataset.num_annotations) == (6, 6)
    sample = dataset.read(4)
    assert (sample.id, sample.images) == ("000010001", (jpeg(),))
    example = Caption().example("c", sample, 0, np.random.default_rng(0))
    assert example.target == "picture 000010001"
    for command in ("preview", "verify", "stats"):
        assert main([command, str(img2dataset)]) == 0, command
    for path in img2dataset.glob("*.cnt"):
        path.unlink()
    assert open_dataset(img2dataset).num_annotations == 6


def test_questions_of_webdatasets_writer(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for number, answer in enumerate(["Yes ", ["two", "2"]]):
            asked = {"question": "how many?", "answer": answer}
            sink.write({"__key__": f"k{number}", "png": np.zeros((4, 4, 3)), "json": asked})
    given = ["--name", "own", "--kind", "vqa", "--split", "train"]
    fields = ["--fields", "question=json:question", "answer=json:answer"]
    assert main(["index", str(tmp_path), *given, *fields]) == 0
    dataset = open_dataset(tmp_path)
    example = VQA().example("v", dataset.read(0), 0, np.random.default_rng(0))
    assert (example.prompt, example.target) == ("vqa: how many?", "yes")
    assert dataset.read(1).annotations[0]["label"] == {"two": 1.0, "2": 1.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "caption"], "see `vlds data index --fields`"),
        (["--kind", "caption", "--fields", "text=txt"], "caption takes caption, as in caption=txt"),
        (["--kind", "gqa", "--fields", "question=txt"],
         "kind: got gqa; shards of others can hold caption, pair_text, vqa"),
        (["--kind", "caption", "--fields", "caption=cap"], "no member 'cap'; it has jpg, txt"),
    ],
)  # fmt: skip
def test_what_does_not_fit(img2dataset: Path, words: list[str], message: str, refused: Any) -> None:
    for path in img2dataset.glob("*.tar"):
        with tarfile.open(path) as tar:
            names = [name for name in tar.getnames() if not name.endswith("json")]
            parts = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
        with tarfile.open(path, "w") as tar:
            for name, data in parts.items():
                add(tar, name, data)
    refused(main(["index", str(img2dataset), "--name", "n", "--split", "train", *words]), message)


def test_keys_with_dots_are_explained(tmp_path: Path, refused: Any) -> None:
    """webdataset takes what follows the first dot for the extension: the samples fall together."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("img.v1.jpg", "img.v1.txt", "img.v2.jpg", "img.v2.txt"):
            add(tar, name, jpeg())
    words = ["--name", "n", "--kind", "caption", "--split", "train", "--fields", "caption=txt"]
    code = main(["index", str(tmp_path), *words])
    refused(
        code, "it has v1.jpg, v1.txt, v2.jpg, v2.txt (a name's extension begins at its first dot"
    )
    assert not (tmp_path / "dataset.json").exists()


def test_an_index_written_anew_keeps_the_record(tmp_path: Path) -> None:
    """Where the sidecars are gone or false, only dataset.json knows what became of the source."""
    out = tmp_path / "out"
    source = [write(tmp_path / "a.json", "[]")]
    records = [record(1), Dropped("image2", "no annotation")]
    before = write_dataset(
        out, name="own", kind="vqa", split="train", records=records, source=source
    )
    (out / "dataset.json").write_text(
        (out / "dataset.json").read_text().replace('"samples": 1,\n ', '"samples": 7,\n ')
    )
    given = ["--name", before.name, "--kind", before.kind, "--split", before.split]
    assert main(["index", str(out), *given]) == 0
    assert DatasetInfo.load(out) == before
    assert before.source
    assert before.dropped


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--kind": "caption"}, "kind caption: {folder}/dataset.json says vqa; give that, or"),
        ({"--name": "x"}, "name x: {folder}/dataset.json says vqav2; give that, or remove"),
        ({"--fields": "question=txt"}, "no member 'txt'"),
    ],
)
def test_a_data_set_is_not_spoilt(
    tmp_path: Path, change: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path, [record(1)])
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    given = {"--name": "vqav2", "--kind": "vqa", "--split": "train"} | change
    assert main(["index", str(tmp_path), *(word for pair in given.items() for word in pair)]) == 2
    assert message.format(folder=tmp_path) in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
