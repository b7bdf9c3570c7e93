"""Features in all usual forms, instead of pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import data_prep.packing.source
from data_prep.cli import main
from data_prep.packing.pack import shard_order
from data_prep.packing.source import fit
from tests.toys.files import write
from tests.toys.official import write_nlvr2
from tests.toys.own_rows import pack_rows
from tests.toys.shards import packed
from vlds.data.shards.store import open_dataset

NAMES = ("a", "b", "c")
TOKENS, DIM = 4, 3
LAST = Path(shard_order(f"{name}.jpg" for name in NAMES)[-1]).stem


def array(seed: int, shape: tuple[int, ...] = (TOKENS, DIM)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_hdf5_each(folder: Path) -> Path:
    folder.mkdir()
    for number, name in enumerate(NAMES):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file[f"{name}/features"] = array(number)
    return folder


def one_hdf5_for_all(folder: Path) -> Path:
    """As VL-T5 has them, with fields of no use here."""
    folder.mkdir()
    with h5py.File(folder / "all_obj36.h5", "w") as file:
        for number, name in enumerate(NAMES):
            file[f"{name}/features"], file[f"{name}/img_w"] = array(number), 640
    return folder / "all_obj36.h5"


def npz_of_a_grid(folder: Path) -> Path:
    folder.mkdir()
    for number, name in enumerate(NAMES):
        grid = np.asfortranarray(array(number).reshape(2, 2, DIM))
        np.savez(folder / f"{name}.npz", feat=grid)
    return folder


def npy(folder: Path) -> Path:
    folder.mkdir()
    for number, name in enumerate(NAMES):
        np.save(folder / f"{name}.npy", array(number).astype(np.float16))
    return folder


def prepare(tmp_path: Path, place: Path, *more: str) -> int:
    """Three rows about pictures that are not there: their features are enough."""
    rows = write(tmp_path / "rows.json", [
        {"image": f"{name}.jpg", "question": "what?", "answer": name} for name in NAMES
    ])  # fmt: skip
    features = ["--features", str(place), "--encoder", "net"]
    return pack_rows(rows, tmp_path / "none", tmp_path / "out", *features, *more)


@pytest.mark.parametrize("make", [one_hdf5_each, one_hdf5_for_all, npz_of_a_grid, npy])
def test_every_form_is_stored_as_float16(make: Any, tmp_path: Path) -> None:
    assert prepare(tmp_path, make(tmp_path / "features")) == 0
    samples = packed(tmp_path / "out")
    for number, name in enumerate(NAMES):
        (stored,) = samples[f"{name}.jpg"].features
        assert stored.dtype == np.float16
        np.testing.assert_array_equal(stored, array(number).astype(np.float16))
        assert samples[f"{name}.jpg"].images == ()
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["features"] == {"tokens": TOKENS, "dim": DIM, "encoder": "net"}
    assert info["image"] is None


def test_pairs_have_two(tmp_path: Path) -> None:
    src = write_nlvr2(tmp_path / "nlvr2")
    (tmp_path / "features").mkdir()
    for number, path in enumerate(sorted(src.rglob("*-img?.png"))):
        np.save(tmp_path / "features" / f"{path.stem}.npy", array(number))
        path.unlink()
    given = ["--src", str(src), "--split", "dev", "--features", str(tmp_path / "features")]
    assert main(["nlvr2", *given, "--out", str(tmp_path / "out")]) == 0
    dataset = open_dataset(tmp_path / "out")
    assert all(len(dataset.read(n).features) == 2 for n in range(dataset.num_samples))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (array(0, (TOKENS + 1, DIM)), "features: 5 x 3, the first have (4, 3)"),
        (array(0) * np.nan, "features: not finite in float16"),
        (array(0) * 1e6, "features: not finite in float16"),
        (np.zeros(3, np.float32), "features: not a matrix of numbers: float32 (3,)"),
        (np.zeros((TOKENS, DIM), np.int64), "features: not a matrix of numbers: int64 (4, 3)"),
        (b"no array", "features: missing or damaged"),
    ],
    ids=["shape", "nan", "large", "vector", "integers", "damaged"],
)
def test_what_cannot_be_used_is_dropped_with_its_reason(
    bad: Any, reason: str, tmp_path: Path, output: Any
) -> None:
    folder = npy(tmp_path / "features")
    if isinstance(bad, bytes):
        (folder / f"{LAST}.npy").write_bytes(bad)
    else:
        np.save(folder / f"{LAST}.npy", bad)
    assert prepare(tmp_path, folder) == 0
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["dropped"] == [{"id": f"{LAST}.jpg", "reason": reason}]
    assert "2 written + 1 dropped" in output()


def link(file: h5py.File, secret: Path) -> None:
    file[LAST] = h5py.ExternalLink(secret, LAST)


def external_values(file: h5py.File, secret: Path) -> None:
    bytes_of = [(secret, 0, TOKENS * DIM * 2)]
    file.create_dataset(f"{LAST}/features", (TOKENS, DIM), "f2", external=bytes_of)


def virtual_values(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((TOKENS, DIM), "f4")
    layout[:] = h5py.VirtualSource(secret, f"{LAST}/features", (TOKENS, DIM))
    file.create_group(LAST).create_virtual_dataset("features", layout)


@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("lead", [link, external_values, virtual_values])
def test_hdf5_does_not_lead_to_other_files(
    lead: Any, pipe: bool, tmp_path: Path, output: Any
) -> None:
    folder, secret = one_hdf5_each(tmp_path / "features"), tmp_path / "secret.h5"
    if pipe:
        os.mkfifo(secret)  # one that is opened waits for ever
    else:
        (folder / f"{LAST}.h5").rename(secret)
    with h5py.File(folder / f"{LAST}.h5", "w") as file:
        lead(file, secret)
    assert prepare(tmp_path, folder) == 0
    told = output()
    assert "dropped: features: a link, or values of another file: 1" in told


def encrypted(archive: bytearray, entry: int) -> None:
    archive[6] = archive[entry + 8] = 1


def unknown_compression(archive: bytearray, entry: int) -> None:
    archive[8] = archive[entry + 10] = 97


def damaged_deflate(archive: bytearray, entry: int) -> None:
    archive[60:90] = b"\xff" * 30


@pytest.mark.parametrize("harm", [encrypted, unknown_compression, damaged_deflate])
def test_archives_that_zipfile_cannot_read(harm: Any, tmp_path: Path, output: Any) -> None:
    folder = npy(tmp_path / "features")
    (folder / f"{LAST}.npy").unlink()
    np.savez_compressed(folder / f"{LAST}.npz", features=array(0, (50, DIM)))
    archive = bytearray((folder / f"{LAST}.npz").read_bytes())
    harm(archive, archive.find(b"PK\1\2"))
    (folder / f"{LAST}.npz").write_bytes(archive)
    assert prepare(tmp_path, folder) == 0
    assert "dropped: features: missing or damaged: 1" in output()


def zeros_in_npz(folder: Path) -> None:
    np.savez_compressed(folder / f"{LAST}.npz", features=np.zeros((1 << 11, DIM), np.float32))


def zeros_in_hdf5(folder: Path) -> None:
    with h5py.File(folder / f"{LAST}.h5", "w") as file:
        file.create_dataset(f"{LAST}/features", (1 << 11, DIM), "f4", chunks=(1, DIM))


@pytest.mark.parametrize("make", [zeros_in_npz, zeros_in_hdf5])
def test_few_bytes_that_stand_for_many(
    make: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: Any,
) -> None:
    monkeypatch.setattr(data_prep.packing.source, "LARGEST_FILE", 1 << 14)
    folder = npy(tmp_path / "features")
    (folder / f"{LAST}.npy").unlink()
    make(folder)
    assert prepare(tmp_path, folder) == 0
    assert "dropped: features: more than 16,384 bytes: 1" in output()


@pytest.mark.parametrize("make", [one_hdf5_each, one_hdf5_for_all])
def test_what_is_missing_is_named_before_any_work(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    place = make(tmp_path / "features")
    if place.is_file():
        with h5py.File(place, "a") as file:
            del file["b"]
    else:
        (place / "b.h5").unlink()
    told = refused(prepare(tmp_path, place), "features ")
    assert "is missing; row 2 of rows.json names it. Check --features" in told
    assert not (tmp_path / "out").exists()
    assert prepare(tmp_path, place, "--skip-missing") == 0
    assert sorted(packed(tmp_path / "out")) == ["a.jpg", "c.jpg"]
    assert "dropped: features: missing or damaged: 1 (id b.jpg)" in capsys.readouterr().out
    code = prepare(tmp_path, tmp_path / "elsewhere")
    refused(code, "elsewhere does not exist; give a folder or an HDF5 file")


def test_a_file_that_is_no_hdf5(tmp_path: Path, refused: Any) -> None:
    junk = write(tmp_path / "junk.h5", b"junk")
    refused(prepare(tmp_path, junk), f"--features {junk} cannot be opened as HDF5")
    of_one = next(npy(tmp_path / "features").iterdir())
    refused(prepare(tmp_path, of_one), f"--features {of_one}: one file for all pictures must be")


def test_features_have_no_size(tmp_path: Path, refused: Any) -> None:
    code = prepare(tmp_path, npy(tmp_path / "features"), "--image-size", "8")
    refused(code, "--image-size and --square change pictures")


def test_frames_are_those_of_torch() -> None:
    import torch

    clip = array(1, (150, 5))
    pooled = torch.nn.functional.adaptive_max_pool1d(torch.tensor(clip.T), 64).numpy().T
    np.testing.assert_array_equal(fit(clip, 64), pooled)
    short = fit(clip[:10], 64)
    assert short.shape == (64, 5)
    np.testing.assert_array_equal(short[:10], clip[:10])
    assert not short[10:].any()
    assert fit(clip, None) is clip
