"""Our shards in the hands of others: tar, webdataset, Megatron-Energon; and theirs in ours."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from data_prep.cli import main
from tests.toys.pictures import noise
from tests.toys.streams import all_ids
from vlds.data.shards.store import open_dataset


def test_tar_lists_and_unpacks_them(folders: dict[str, Path], tmp_path: Path) -> None:
    shard = folders["big"] / "big-train-00000.tar"
    listed = subprocess.run(["tar", "-tf", shard], check=True, capture_output=True, text=True)
    assert listed.stderr == ""
    assert listed.stdout.splitlines()[:3] == ["000000000.json", "000000000.png", "000000001.json"]
    subprocess.run(["tar", "-xf", shard, "-C", tmp_path], check=True)
    assert (tmp_path / "000000003.png").read_bytes() == open_dataset(folders["big"]).read(3).images[
        0
    ]


def test_webdataset_reads_them(folders: dict[str, Path]) -> None:
    urls = f"{folders['big']}/big-train-{{00000..00005}}.tar"
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    dataset = open_dataset(folders["big"])
    assert [sample["__key__"] for sample in samples] == [dataset.read(n).key for n in range(60)]
    assert {sample["png"].size for sample in samples} == {(16, 16)}
    ids = [annotation["id"] for sample in samples for annotation in sample["json"]["annotations"]]
    assert ids == all_ids(dataset)


def prepare(folder: Path, *words: str) -> None:
    """Energon's own command, which is not asked anything."""
    command = [Path(sys.executable).parent / "energon", "prepare", folder, "--non-interactive",
               "--split-ratio", "0,1,0", *words]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def energon() -> Any:
    return pytest.importorskip("megatron.energon", reason="megatron-energon is not installed")


@pytest.mark.slow
def test_energon_prepares_and_reads_them(
    energon: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    """It makes the very .idx that is ours."""
    folder = Path(shutil.copytree(folders["big"], tmp_path / "big"))
    ours = {path.name: path.read_bytes() for path in folder.glob("*.idx")}
    for path in [*folder.glob("*.idx"), *folder.glob("*.cnt")]:
        path.unlink()
    prepare(folder, "--sample-type", "CrudeWebdataset")
    assert {path.name: path.read_bytes() for path in folder.glob("*.idx")} == ours

    @energon.stateless
    def cook(sample: dict[str, Any]) -> Any:
        about = sample["json"]
        about = about if isinstance(about, dict) else json.loads(about)
        ids = [annotation["id"] for annotation in about["annotations"]]
        return energon.TextSample(**energon.basic_sample_keys(sample), text=" ".join(ids))

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc, name-defined]
        cookers = [energon.Cooker(cook)]  # noqa: RUF012

    alone = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    data = energon.get_val_dataset(
        folder, worker_config=alone, batch_size=1, task_encoder=Encoder()
    )
    texts = [text for batch in energon.get_loader(data) for text in batch.text]
    assert sorted(" ".join(texts).split()) == sorted(all_ids(open_dataset(folder)))


@pytest.mark.slow
def test_an_energon_data_set_gets_our_index(energon: Any, tmp_path: Path) -> None:
    """Foreign shards with .nv-meta: what Energon wrote stays as it is."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"cc-{shard}.tar", "w") as tar:
            for number in range(4):
                for extension, data in (
                    ("png", noise(number)),
                    ("txt", f"text {number}".encode()),
                ):
                    member = tarfile.TarInfo(f"{shard}{number}.{extension}")
                    member.size, member.mtime = len(data), 1_700_000_000.5  # type: ignore[assignment]
                    tar.addfile(member, io.BytesIO(data))
    prepare(
        tmp_path, "--sample-type", "CaptioningSample", "--field-map",
        '{"image": "png", "caption": "txt"}',
    )  # fmt: skip
    theirs = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = ["--name", "cc", "--kind", "caption", "--split", "train", "--fields", "caption=txt"]
    assert main(["index", str(tmp_path), *words]) == 0
    assert all(path.read_bytes() == data for path, data in theirs.items())
    dataset = open_dataset(tmp_path)
    assert [dataset.read(n).annotations[0]["caption"] for n in range(8)] == [
        f"text {n % 4}" for n in range(8)
    ]
    assert main(["verify", str(tmp_path)]) == 0
