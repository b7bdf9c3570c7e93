"""The walk of docs/cluster.md from a bucket to an artifact: a real S3 server, a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.files import BLOCK, ROOT
from tests.toys.official import write_vqav2
from tests.toys.store import s3_server, use_store
from tests.toys.world import world_recipe
from vlds.cli.main import run_command
from vlds.recipe.config import save_recipe

pytestmark = [pytest.mark.slow, pytest.mark.launcher]


def test_from_a_bucket_to_an_artifact(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    section = text.split("## From a bucket to an artifact\n")[1].split("\n## ")[0]
    found = dict(BLOCK.findall(section))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # The page's keys, with a folder of the test for the copies.
    cache = str(tmp_path / "scratch")
    Path("bucket.yaml").write_text(found["yaml"].replace("/tmp/vlds", cache), encoding="utf-8")
    recipe = world_recipe(world, Path("runs/vqa"))
    tasks = {"vqa": recipe.tasks["vqa"]}
    training = replace(recipe.training, steps=2, save_every=2)
    data = replace(recipe.data, global_batch_size=16)  # an example for each rank of the plan
    recipe = replace(recipe, tasks=tasks, training=training, data=data)
    save_recipe(recipe, Path("vqa.yaml"))
    write_vqav2(Path("VQAV2"))
    with s3_server() as port:
        use_store(monkeypatch, port).mkdir("bucket")
        for line in found["sh"].splitlines():
            # The toy has one split, and smaller pictures.
            words = line.replace("--split train", "--split val").replace("224", "16").split()
            code = run_command(words[1:])
            assert code == 0, (line, capsys.readouterr())
            print(line, "->", code)
    assert "all is well" in capsys.readouterr().out
    assert Path("runs/vqa/artifact/recipe.yaml").is_file()
    assert Path("models/vqa/config.json").is_file()
    assert list(Path(cache).rglob("*.tar"))
