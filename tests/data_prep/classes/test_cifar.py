"""CIFAR's binary batches; the Python version, which consists of pickles, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.toys.class_folders import cifar10, classes, labels, pack_folders
from tests.toys.files import write
from tests.toys.shards import Check, packed
from vlds.data.shards.pictures import decode_image
from vlds.schema import ImageSpec

NAMES = ("airplane", "automobile", "bird")


def test_cifar_10(tmp_path: Path, check: Check) -> None:
    root = tmp_path / "cifar-10-batches-bin"
    batches = {"data_batch_1.bin": [0, 2, 1], "data_batch_2.bin": [2], "test_batch.bin": [1, 0, 2]}
    pixels = cifar10(root, NAMES, batches)
    assert pack_folders(root, tmp_path / "out", "--name", "cifar10") == 0
    assert classes(tmp_path / "out/train") == NAMES
    wanted = ("airplane", "bird", "automobile", "bird")
    assert labels(tmp_path / "out/train") == {f"train-{n:05d}": w for n, w in enumerate(wanted)}
    assert labels(tmp_path / "out/test")["test-00001"] == "airplane"
    stored = packed(tmp_path / "out/train")["train-00003"].images[0]
    assert bytes(stored[:4]) == b"\x89PNG"
    assert np.array_equal(decode_image(stored, ImageSpec(32, 32)), pixels[3])
    assert check(tmp_path / "out") == (0, {})


def test_cifar_100(tmp_path: Path) -> None:
    """Each picture has a superclass, which stays on record, and a class."""
    root = tmp_path / "cifar-100-binary"
    write(root / "fine_label_names.txt", "apple\nbear\n")
    write(root / "coarse_label_names.txt", "fruit\ncarnivores\n")
    for name in ("train.bin", "test.bin"):
        write(root / name, bytes([0, 0]) + bytes(3072) + bytes([1, 1]) + bytes([9] * 3072))
    assert pack_folders(root, tmp_path / "out") == 0
    assert labels(tmp_path / "out/test") == {"test-00000": "apple", "test-00001": "bear"}
    sample = packed(tmp_path / "out/train")["train-00001"]
    assert sample.extra["source"] == {"superclass": "carnivores"}


def test_damaged_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Any) -> None:
    root = tmp_path / "in"
    cifar10(root, NAMES, {"data_batch_1.bin": [0, 3]})
    assert pack_folders(root, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "data_batch_1.bin, picture 1: no class has the number 3, the names are 3" in said
    for size in (0, 3072, 3074):
        write(root / "data_batch_1.bin", bytes(size))
        code = pack_folders(root, tmp_path / "out")
        refused(code, f"{size:,} bytes, a multiple of 3,073 expected")
    (root / "data_batch_1.bin").unlink()
    code = pack_folders(root, tmp_path / "out")
    refused(code, "batches.meta.txt and no *.bin; copy the batches there")
    assert not (tmp_path / "out").exists()


def test_pickles_are_not_opened(tmp_path: Path, refused: Any) -> None:
    for name in ("batches.meta", "data_batch_1", "test_batch"):
        write(tmp_path / "in" / name, b"cos\nsystem\n(S'touch opened'\ntR.")
    code = pack_folders(tmp_path / "in", tmp_path / "out")
    refused(code, "is CIFAR's Python version, whose pickles can run any program")
    assert not (tmp_path / "out").exists()
