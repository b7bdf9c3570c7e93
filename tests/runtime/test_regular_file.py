"""Where a file is expected, what is none is named and not opened: a pipe would wait for ever."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.cli import main
from data_prep.packing.writer import write_dataset
from tests.toys.pictures import noise
from tests.toys.streams import records
from vlds.data.shards.shard_stream import read_shard, shard_urls
from vlds.data.shards.store import open_dataset
from vlds.evaluation.inference import predict_one
from vlds.models.backbones import T5
from vlds.models.generation.answer_list import read_answers
from vlds.recipe.config import load_recipe
from vlds.runtime.files import NotAFile, check_file, open_file
from vlds.runtime.json_files import MANIFEST, damage
from vlds.tasks.gqa import load_choices


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


KINDS = {"a named pipe": pipe, "a socket": unix_socket, "a device": device, "a folder": folder}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_named(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / "x")
    with pytest.raises(NotAFile, match=rf"/x is {kind}, not a regular file; name a file"):
        open_file(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "y")


def test_what_the_system_refuses_is_a_mistake_with_its_place(tmp_path: Path) -> None:
    """Commands say a ValueError in a line."""
    (tmp_path / "x").symlink_to("x")
    for open_it in (open_file, check_file):
        with pytest.raises(ValueError, match=r"/x: Too many levels of symbolic links; look at"):
            open_it(tmp_path / "x")


def config_of(path: Path) -> Any:
    with torch.device("meta"):
        return T5(config=str(path), tokenizer="x").read_config()


@pytest.mark.parametrize(
    "read",
    [
        load_recipe,
        load_choices,
        config_of,
        lambda path: read_answers(str(path)),
        lambda path: list(read_shard(str(path))),
        lambda path: predict_one(path.parent, [path], "what?", None),
    ],
)
def test_files_that_users_name(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    pipe(path)
    with pytest.raises(ValueError, match="not a regular file"):
        read(path)


def data_with_a_pipe(folder: Path, name: str) -> Path:
    """A data set of which one file is a pipe."""
    place = folder / "toy"
    write_dataset(place, name="toy", kind="vqa", split="train", records=records("toy", 3))
    (place / name).unlink(missing_ok=True)
    pipe(place / name)
    return place


@pytest.mark.parametrize("name", ["dataset.json", "toy-train-00000.tar.idx", "quarantine.jsonl"])
def test_files_of_a_data_set(name: str, tmp_path: Path) -> None:
    place = data_with_a_pipe(tmp_path, name)
    if name == "quarantine.jsonl":  # only a file is one
        assert open_dataset(place).num_samples == 3
        return
    with pytest.raises(ValueError, match=f"{name} is a named pipe, not a regular file"):
        open_dataset(place)


def test_files_of_a_run(tmp_path: Path) -> None:
    pipe(tmp_path / MANIFEST)
    assert damage(tmp_path) == f"{MANIFEST} cannot be read"


def test_commands_of_data_prep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(noise(0))
    pipe(tmp_path / "rows.jsonl")
    shards = tmp_path / "shards"
    shards.mkdir()
    pipe(shards / "a.tar")
    rows, images, out = (str(tmp_path / name) for name in ("rows.jsonl", "images", "out"))
    for command in (
        f"jsonl --task vqa --annotations {rows} --images {images} --out {out}",
        f"index {shards} --name x --kind vqa --split train",
        f"coco-karpathy --src {tmp_path} --split val --out {out} --annotations {rows}",
    ):
        assert main(command.split()) == 2
        assert "not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["toy-train-00000.tar.idx", "dataset.json", ".vlds.lock"])
def test_files_that_an_index_would_replace(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = data_with_a_pipe(tmp_path, name)
    assert main(f"index {place} --name toy --kind vqa --split train".split()) == 2
    assert f"/{name} is a named pipe, not a regular file; name a file\n" in capsys.readouterr().err


def test_a_folder_of_shards_that_are_none(tmp_path: Path) -> None:
    pipe(tmp_path / "a.tar")
    (url,) = shard_urls(str(tmp_path))
    with pytest.raises(ValueError, match=r"a\.tar, after 0 samples: a named pipe, not a regular"):
        list(read_shard(url))
