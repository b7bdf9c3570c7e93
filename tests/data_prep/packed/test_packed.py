"""Data sets that are packed: others' tars, what a run would read, answers that occur often."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from transformers import AutoTokenizer, BertTokenizerFast

from data_prep.cli import main
from data_prep.official.vqav2 import read_vocabulary
from data_prep.packed.vocabularies import train_word_pieces
from data_prep.packing.source import Dropped
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.files import write
from tests.toys.official import write_vqav2
from tests.toys.pictures import jpeg
from tests.toys.shards import packed, record, write_shards
from tests.toys.streams import ToyTask, train_stream
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source
from vlds.tasks import VQA, Caption

# Tars that others have written: webdataset's own writer, and img2dataset's layout.


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


# What a run would read, said before it: the numbers of a real stream.


def asked(number: int) -> list[dict[str, str]]:
    return [{"id": f"{number}-{n}", "question": "?", "answer": "x"} for n in range(2)]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two data sets of 32 and 8 shards with four annotations each."""
    made = []
    for name, num_shards in (("many", 32), ("few", 8)):
        records = [
            SampleRecord(
                id=f"{name}-{n}", members=[("jpg", jpeg())], json={"annotations": asked(n)}
            )
            for n in range(2 * num_shards)
        ]
        write_dataset(tmp_path / name, name=name, kind="vqa", split="train", records=records,
                      shard_samples=2)  # fmt: skip
        made.append(tmp_path / name)
    return made


@pytest.fixture
def simulated(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[list[str]]]:
    """Run the command: the cells of each line."""

    def run(*words: object) -> list[list[str]]:
        capsys.readouterr()
        assert main(["simulate-order", *map(str, words)]) == 0
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= 80
        return [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines() if line.strip()]

    return run


def test_mixture_and_epochs(folders: list[Path], simulated: Any) -> None:
    rows = simulated(*folders, "--weights", 3, 1, "--global-batch-size", 8, "--steps", 16)
    assert ["many-train", "128", "75.00%", "96", "21.3"] in rows
    assert ["few-train", "32", "25.00%", "32", "16.0"] in rows
    (node,) = [row for row in rows if row[0] == "0"]
    assert re.fullmatch(r"\d+ of 40", node[1])


def test_batches_of_one_task(folders: list[Path], simulated: Any) -> None:
    """128 annotations in 16 batches of 8 and 32 in 16 of 2."""
    rows = simulated(*folders, "--unit", "global_batch", "--batch-sizes", 8, 2,
                     "--temperature", 1, "--nodes", 2, "--steps", 64)  # fmt: skip
    assert ["steps 0 to 64, 2 or 8 examples each, on 2 x 1 ranks"] in rows
    assert ["many-train", "128", "50.00%", "256", "32.0"] in rows
    assert ["few-train", "32", "50.00%", "64", "32.0"] in rows


def test_the_examples_are_those_of_a_stream(folders: list[Path], simulated: Any) -> None:
    given = ["--global-batch-size", 4, "--steps", 3, "--window", 2, "--from", 5]
    rows = simulated(folders[0], *given)
    source = Source("many-train", ToyTask(), [open_dataset(folders[0])])
    stream = train_stream([source], global_batch_size=4, window=2, seed=0)
    numbers = [id.split("-")[0] for batch in islice(stream, 5, 8) for id in batch.ids]
    shards = {int(number) // 2 for number in numbers}
    assert rows[-1][1] == f"{len(shards)} of 32"


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "1"], "--weights: 1 for 2 data sets"),
        (["--nodes", "128"], "--global-batch-size: 64 examples for 128 ranks; give at least one"),
        (["--batch-sizes", "8", "4"], "batches mix tasks; add --unit global_batch"),
        (["--lanes", "7"], "lanes: 7 do not divide global_batch_size 64"),
    ],
)
def test_impossible_plans(
    words: list[str], message: str, folders: list[Path], refused: Any
) -> None:
    refused(main(["simulate-order", *map(str, folders), *words]), message)


# Answers that occur often, and training on them alone.


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five times yes, three times no, once red."""
    answers = ["yes"] * 5 + ["no"] * 3 + ["Red"]
    rows = [{"image": "a.jpg", "question": "?", "answer": answer} for answer in answers]
    file = write(tmp_path / "rows.json", rows)
    write(tmp_path / "a.jpg", jpeg())
    given = ["--annotations", str(file), "--images", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["jsonl", "--task", "vqa", *given]) == 0
    return tmp_path / "out"


def test_the_most_frequent_come_first(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    out = tmp_path / "answers.json"
    assert main(["answers", str(shards), "--out", str(out), "--min-count", "3"]) == 0
    assert json.loads(out.read_text()) == ["yes", "no"]
    assert "2 of 3 answers, to 88.9% of the questions" in capsys.readouterr().out
    code = main(["answers", str(shards), "--out", str(out)])
    refused(code, "--min-count 9: none of 3 answers occurs so often")
    code = main(["answers", str(shards), "--out", str(out), "--min-count", "-1"])
    refused(code, "--min-count: got -1; give 1 or more")


def test_word_pieces(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    """A folder that transformers opens. Each word of the texts is one piece; of other words, those
    of one character are known."""
    words = ["tokenizer", str(shards), "--kind", "bert"]
    assert main([*words, "--out", str(tmp_path / "words"), "--vocab-size", "150"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "words")
    assert isinstance(tokenizer, BertTokenizerFast)
    assert tokenizer.tokenize("Yes no red?") == ["yes", "no", "red", "?"]
    assert tokenizer.tokenize("a word, 0-9") == ["a", tokenizer.unk_token, ",", "0", "-", "9"]
    assert tokenizer("yes ##e")["input_ids"].count(tokenizer.unk_token_id) == 2  # # is unknown
    capsys.readouterr()
    code = main([*words, "--out", str(tmp_path / "few"), "--vocab-size", "20"])
    refused(code, "--vocab-size 20: the characters alone are")
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize("size", [75, 400])
def test_the_same_texts_give_the_same_word_pieces(size: int) -> None:
    """With room for every word, and where many pieces are equally frequent and only some fit."""
    texts = ["what color is the circle?", "is there a red square?", "a blue circle, a cyan cross"]
    vocabularies = [train_word_pieces(order, size).get_vocab() for order in (texts, texts[::-1])]
    vocabularies += [train_word_pieces(texts, size).get_vocab() for _ in range(3)]
    assert vocabularies == vocabularies[:1] * 5
    assert (len(vocabularies[0]) == size) == (size == 75)


def test_questions_keep_the_scores_of_known_answers(tmp_path: Path) -> None:
    src = write_vqav2(tmp_path / "vqa")
    known = write(tmp_path / "known.json", {"yes": 0, "netting": 1})
    given = ["--src", str(src), "--split", "val", "--out", str(tmp_path / "out")]
    assert main(["vqav2", *given, "--vocabulary", str(known)]) == 0
    samples = packed(tmp_path / "out")
    labels = {a["id"]: a["label"] for sample in samples.values() for a in sample.annotations}
    assert labels["1000"] == {"yes": 1.0}
    assert labels["9000"] == {"netting": 0.9}
    assert labels["2000"] == {}
    example = VQA().example("vqa", samples["2"], 0, np.random.default_rng(0))
    assert (example.target, example.weight) == ("", 0.0)
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert "known.json" in [entry["file"] for entry in info["source"]]


def test_what_is_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a list of answers is needed"):
        read_vocabulary(write(tmp_path / "x.json", [1, 2]))
