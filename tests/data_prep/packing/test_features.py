"""Features in all usual forms, instead of pictures."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

import data_prep.packing.source
from data_prep.cli import main
from data_prep.packing.file_check import DetectorFile, locate_boxes
from data_prep.packing.pack import shard_order
from data_prep.packing.source import BadFeatures, fit
from tests.toys.files import write
from tests.toys.own_rows import pack_rows
from tests.toys.pictures import encoded, rotated_jpeg
from tests.toys.shards import packed
from vlds.data.shards.pictures import decode_image
from vlds.models.vision import Timm
from vlds.models.vision.base import GridEncoder
from vlds.schema import Encoded, ImageSpec

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


# A detector's boxes and names in .npz files, and what is wrong with bad ones.


def detected(folder: Path, **changed: Any) -> DetectorFile:
    """Four boxes of picture `a`, and a vocabulary."""
    write(folder / "objects_vocab.txt", "Cat,kitty\ntree\n")
    write(folder / "attributes_vocab.txt", "red\ngrey,gray\n")
    arrays = {
        "features": np.full((4, 3), 0.5, np.float32),
        "boxes": np.array([[10, 40, 30, 90], [-5, 0, 120, 200]] * 2, np.float32),
        "img_w": np.array(100),
        "img_h": np.array(200),
        "obj_id": np.array([0, 1, 1, 0]),
        "attr_id": np.array([1, 0, 1, 0]),
    }
    np.savez(folder / "a.npz", **(arrays | changed))
    return locate_boxes(folder, "a", folder)


def test_boxes_are_shares_of_the_picture(tmp_path: Path) -> None:
    stored = detected(tmp_path).read()
    assert (stored.dtype, stored.shape) == (np.float16, (4, 7))
    assert (stored[:, :3] == 0.5).all()
    assert stored[0, 3:].tolist() == pytest.approx([0.1, 0.3, 0.2, 0.45], abs=1e-3)
    assert stored[1, 3:].tolist() == [0, 1, 0, 1]  # clamped, as in VL-T5


def test_boxes_have_names(tmp_path: Path) -> None:
    annotation = detected(tmp_path).annotated({"id": "r"})
    names = ["grey cat", "red tree", "grey tree", "red cat"]
    assert annotation == {"id": "r", "regions": names}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"obj_id": np.array([0, 1, 2, 0])}, "obj_id has numbers outside of objects_vocab.txt"),
        ({"obj_id": np.array([0.0])}, r"obj_id is float64 \(1,\)"),
        ({"attr_id": np.array([0, 1])}, "4 objects, 2 attributes"),
        ({"boxes": np.zeros((3, 4), np.float32)}, r"boxes of shape \(3, 4\) for 4 features"),
        ({"img_w": np.array(0)}, "no width and height of the picture"),
        ({"img_w": np.array(np.inf)}, "no width and height of the picture"),
        ({"boxes": np.full((4, 4), np.nan)}, "boxes are not finite"),
    ],
)
def test_bad_boxes(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    file = detected(tmp_path, **changed)
    with pytest.raises(BadFeatures, match=f"^{reason}$"):
        file.annotated({"n": len(file.read())})


def test_every_command_stores_boxes(tmp_path: Path, refused: Any) -> None:
    detected(tmp_path)
    rows = write(tmp_path / "rows.json", [{"image": "a.jpg", "question": "?", "answer": "b"}])
    out = tmp_path / "out"
    assert pack_rows(rows, tmp_path, out, "--features", str(tmp_path), "--boxes") == 0
    (stored,) = packed(out)["a.jpg"].features
    assert stored.shape == (4, 7)
    code = pack_rows(rows, tmp_path, tmp_path / "other", "--boxes")
    refused(code, "--boxes reads those of --features")


# A frozen encoder sees the same in packed pictures as in the original files.

SIDE = 64
SPEC = ImageSpec(SIDE, SIDE)


def photograph(seed: int) -> bytes:
    """A JPEG with edges, fine grain and strong hues, 4:2:0 as cameras write it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    large = coarse.resize((320, 240), Image.Resampling.NEAREST)
    grain = np.asarray(large).astype(int) + rng.integers(-20, 21, (240, 320, 3))
    buffer = io.BytesIO()
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@pytest.fixture
def originals(tmp_path: Path) -> dict[str, bytes]:
    """Files of several formats, one of them turned by its tag."""
    found = {f"{n}.jpg": photograph(n) for n in range(6)}
    found |= {"turned.jpg": rotated_jpeg(), "alpha.png": encoded("PNG", "RGBA", 200, 150)}
    for name, data in found.items():
        write(tmp_path / "images" / name, data)
    return found


def pack(folder: Path, names: Sequence[str], *options: str) -> Path:
    """A captioned data set of the pictures in `folder`/images."""
    rows = write(folder / "rows.json", [{"image": name, "caption": name} for name in names])
    out = folder / "-".join(["out", *options])
    assert pack_rows(rows, folder / "images", out, *options, task="caption") == 0
    return out


def seen(encoder: GridEncoder, pictures: Sequence[Encoded], spec: ImageSpec) -> torch.Tensor:
    """(pictures, cells * channels) what an encoder makes of encoded pictures."""
    pixels = np.stack([decode_image(data, spec) for data in pictures])
    with torch.no_grad():
        return encoder(torch.from_numpy(pixels)).flatten(1)


def change(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean relative distance."""
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).mean())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("more", [(), ("--image-size", "64", "--square")])
def test_packing_changes_nothing_that_an_encoder_sees(
    tmp_path: Path, originals: dict[str, bytes], more: tuple[str, ...]
) -> None:
    samples = packed(pack(tmp_path, list(originals), *more))
    torch.manual_seed(0)
    encoder = Timm(model="resnet18", image_size=SIDE).build(torch.float32).eval()
    found = seen(encoder, [samples[name].images[0] for name in originals], SPEC)
    expected = seen(encoder, list(originals.values()), SPEC)
    assert change(found, expected) == 0
    assert change(expected.roll(1, 0), expected) > 0.2  # other pictures are told apart
    if not more:
        assert [samples[name].images[0] for name in originals] == list(originals.values())


def test_jpeg_is_smaller_and_near(tmp_path: Path, originals: dict[str, bytes]) -> None:
    size = ["--image-size", "64", "--square"]
    exact, small = (
        packed(pack(tmp_path, list(originals), *size, *more))
        for more in ((), ("--image-format", "jpeg"))
    )
    torch.manual_seed(0)
    encoder = Timm(model="resnet18", image_size=SIDE).build(torch.float32).eval()
    features = [
        seen(encoder, [samples[name].images[0] for name in originals], SPEC)
        for samples in (exact, small)
    ]
    assert 0 < change(features[1], features[0]) < 0.1
    sizes = [sum(len(s.images[0]) for s in samples.values()) for samples in (exact, small)]
    assert sizes[1] < sizes[0]


def test_resized_shards_are_verified_shown_and_read_by_others(
    tmp_path: Path, originals: dict[str, bytes]
) -> None:
    out = pack(tmp_path, list(originals), "--image-size", "64")
    assert main(["verify", str(out)]) == 0
    page = tmp_path / "page.html"
    assert main(["preview", str(out), "--out", str(page), "--samples", "8"]) == 0
    assert "cannot be decoded" not in page.read_text("utf-8")
    (shard,) = out.glob("*.tar")
    theirs = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode("pilrgb"))
    kept = [sample for sample in theirs if "jpg" in sample]  # too small to be made smaller
    assert [sample["json"]["id"] for sample in kept] == ["turned.jpg"]
    resized = [sample for sample in theirs if "webp" in sample]
    assert len(resized) == 7
    assert all(sample["json"]["images"] == ["webp"] for sample in resized)
    assert {sample["webp"].size for sample in resized} == {(85, 64)}
    assert all(sample["json"]["size"] == [[85, 64]] for sample in resized)
