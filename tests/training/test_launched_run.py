"""Real runs through the launcher: interrupted, killed and resumed, they end as if they were not."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.files import BLOCK, ROOT
from tests.toys.launched_run import Launch, last_step
from tests.toys.official import write_vqav2
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.store import s3_server, use_store
from tests.toys.world import world_recipe
from vlds.cli.main import run_command
from vlds.recipe.config import Recipe, save_recipe
from vlds.runtime.json_files import damage, read_metric_lines
from vlds.training.states import newest

pytestmark = pytest.mark.launcher


@pytest.fixture(scope="module")
def whole(world: Path, ranks2: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run of two ranks that nobody interrupted."""
    recipe = long_recipe(world, tmp_path_factory.mktemp("whole"))
    ranks2.run(run_recipe, recipe, False, timeout=120)
    return recipe


def assert_same_weights(found: Recipe, expected: Recipe) -> None:
    assert damage(Path(found.output) / "artifact") is None
    for name in ("artifact/weights.safetensors", "state/step-00000020/state.safetensors"):
        files = [Path(recipe.output) / name for recipe in (found, expected)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def stopped(
    recipe: Recipe, folder: Path, number: signal.Signals, torchrun: bool = False
) -> tuple[int, str, int]:
    """Exit code and output of a run that a signal has stopped, and the step whose state it has."""
    launch = Launch(recipe, folder / "recipe.yaml", torchrun=torchrun)
    launch.wait_for_step(3)
    launch.process.send_signal(number)
    code, output = launch.end()
    step = last_step(launch.run)
    state = launch.run / "state"
    assert newest(state) == (state / f"step-{step:08d}", []), output
    return code, output, step


def test_a_stopped_run_saves_and_goes_on(whole: Recipe, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = replace(whole, output=str(tmp_path / "run"))
    code, output, step = stopped(recipe, tmp_path, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, output
    cure = f"--resume continues from step {step}"
    assert output.splitlines()[-1].endswith(f"stopped by SIGTERM after step {step}; {cure}")
    assert output.count("--resume") == 1

    ranks2.run(run_recipe, recipe, True, timeout=120)
    assert_same_weights(recipe, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_under_torchrun(number: signal.Signals, whole: Recipe, tmp_path: Path) -> None:
    """Stopped and resumed, it ends like a run of DeepSpeed's launcher that nobody interrupted."""
    data = replace(whole.data, num_workers=1)
    recipe = replace(whole, output=str(tmp_path / "run"), data=data)
    code, output, step = stopped(recipe, tmp_path, number, torchrun=True)
    assert code == 1, output
    assert f"stopped by {number.name} after step {step}; --resume continues" in output

    code, output = Launch(recipe, tmp_path / "recipe.yaml", "--resume", torchrun=True).end()
    assert code == 0, output
    assert_same_weights(recipe, whole)
    losses = [
        {line["step"]: line["loss"] for _, line in lines if "loss" in line}
        for run in (recipe, whole)
        if (lines := read_metric_lines(Path(run.output) / "metrics.jsonl").lines)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 20


def long_recipe(world: Path, output: Path) -> Recipe:
    """Twenty steps, a state after each fifth."""
    recipe = world_recipe(world, output)
    return replace(recipe, training=replace(recipe.training, steps=20, save_every=5))


@pytest.mark.slow
def test_from_a_bucket_to_an_artifact(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The walk of docs/cluster.md: a real S3 server, a tiny model."""
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
