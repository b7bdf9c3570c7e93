"""The command line in front of a run: who starts ranks, how many, and with what."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from unittest import mock

import pytest
import yaml

from tests.toys.world import world_recipe
from vlds.cli.main import main
from vlds.cli.rank import without_local_rank
from vlds.cli.start import launch_command
from vlds.cli.words import Words, split_words
from vlds.recipe.config import save_recipe
from vlds.runtime.devices import device_of
from vlds.runtime.process import python


def test_ranks_option_before_and_after_the_command() -> None:
    rest = ("train", "--config", "a.yaml")
    assert split_words(["--ranks", "2", *rest]) == Words(rest, ranks=2)
    assert split_words(["--ranks=2", *rest]) == Words(rest, ranks=2)
    assert split_words([*rest, "--ranks", "3"]) == Words(rest, ranks=3)
    assert split_words(["train", "--ranks=3", *rest[1:]]) == Words(rest, ranks=3)
    assert split_words(rest) == Words(rest)
    assert split_words([]) == Words(())


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        *(("--ranks", value, "give the number") for value in ("0", "two", "")),
        *(("VLDS_RANKS", value, "give the number") for value in ("-1", "two")),
        *(("VLDS_GRACE_S", value, "give a number of seconds") for value in ("soon", "nan", "-5")),
    ],
)
def test_a_bad_number_is_named(
    name: str,
    value: str,
    cure: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not name.startswith("-"):
        monkeypatch.setenv(name, value)
    assert main(["train", *([name, value] if name.startswith("-") else [])]) == 2
    assert f"{name} is '{value}'; {cure}" in capsys.readouterr().err


def test_the_launchers_own_argument_is_dropped() -> None:
    assert without_local_rank(["--local_rank=1", "train", "x"]) == ["train", "x"]
    assert without_local_rank(["train", "--local_rank=1"]) == ["train", "--local_rank=1"]


def test_command_without_gpu() -> None:
    command, env = launch_command(["p.py", "a b"], 2, [], {"CUDA_VISIBLE_DEVICES": "3"}, 0)
    assert command[:5] == python("-m", "vlds.cli.local", "2")
    assert int(command[5]) > 0
    assert command[6:] == python("-u", "p.py", "a b")
    assert env["DS_ACCELERATOR"] == "cpu"
    with pytest.raises(ValueError, match=r"^--ranks: 10,000 processes on this machine, which has"):
        launch_command(["p.py"], 10_000, [], {}, 0)
    gone = mock.patch("torch.cuda.is_available", return_value=False)
    with gone, mock.patch.dict(os.environ, DS_ACCELERATOR="gpu"):
        env = launch_command(["p.py"], 2, [], os.environ, 0)[1]
        assert env["DS_ACCELERATOR"] == "gpu"
        with pytest.raises(ValueError, match=r"^DS_ACCELERATOR is 'gpu', but this machine has no"):
            device_of()
    assert "CUDA_VISIBLE_DEVICES" not in env
    assert int(env["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert launch_command(["p.py"], None, [], {}, 0)[0][4] == "1"


def test_command_with_gpus() -> None:
    command, env = launch_command(["p.py"], 2, [], {"CUDA_VISIBLE_DEVICES": "4,5,6"}, 3)
    assert command[4] == "2"
    assert env["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert "DS_ACCELERATOR" not in env
    assert launch_command(["p.py"], None, [], {}, 3)[0][4] == "3"
    with pytest.raises(ValueError, match="4 ranks asked for, but this machine has 3"):
        launch_command(["p.py"], 4, [], {}, 3)


def test_deepspeeds_own_runner_gets_the_users_arguments() -> None:
    asked = ["--bind_cores_to_rank"]
    command, _ = launch_command(["-m", "vlds", "train"], 2, asked, {}, 0)
    assert command[:4] == python("-m", "deepspeed.launcher.runner")
    assert command[command.index("--num_gpus") + 1] == "2"
    assert int(command[command.index("--master_port") + 1]) > 0
    assert command[-4:] == [*asked, "--module", "vlds", "train"]
    visible = {"CUDA_VISIBLE_DEVICES": "4,5,6"}
    command, env = launch_command(["p.py"], 2, asked, visible, 3)
    assert "--num_gpus" not in command
    assert env["CUDA_VISIBLE_DEVICES"] == "4,5"


def test_several_hosts_are_left_to_the_user() -> None:
    asked = ["--hostfile", "hosts", "--no_ssh", "--node_rank", "1", "--master_addr", "a"]
    command, env = launch_command(["p.py"], None, asked, {"OMP_NUM_THREADS": "5"}, 0)
    # Variables for ranks come from the home alone: a stranger's folder may hold such a file.
    assert Path(env["DS_ENV_FILE"]).is_absolute()
    assert command[-len(asked) - 1 :] == [*asked, "p.py"]
    assert "--master_port" not in command
    assert "--num_gpus" not in command
    assert env["OMP_NUM_THREADS"] == "5"


def _launch_sh(folder: Path, *arguments: str, **environment: str) -> tuple[int, list[str], str]:
    result = subprocess.run(
        [str(folder / "launch.sh"), *arguments],
        env={**{k: v for k, v in os.environ.items() if k != "VENV"}, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout.splitlines(), result.stderr


def _copy_with_venv(root: Path, checkout: Path, venv: Path) -> None:
    """A checkout whose environment is up to date and has a Python that prints its arguments."""
    checkout.mkdir()
    for name in ("launch.sh", "Makefile", "pyproject.toml", "setup.py"):
        shutil.copy2(root / name, checkout)
    python = venv / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\nexit 5\n')
    python.chmod(0o755)
    (venv / ".installed").touch()


def test_launch_sh_hands_over(root: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "a folder"
    _copy_with_venv(root, checkout, checkout / ".venv")
    words = ["train", "--config", "a b.yaml", "it's $HOME", ""]
    assert _launch_sh(checkout) == (5, ["-P", "-m", "vlds", "demo"], "")
    assert _launch_sh(checkout, *words) == (5, ["-P", "-m", "vlds", *words], "")


# No process of vlds imports from the working directory, where a stranger's files may lie.

SPY = "import os, sys; os.write(2, f'{__name__} ran in {sys.orig_argv}'.encode()); os._exit(66)"
MODULES = [*sys.stdlib_module_names, *packages_distributions(), "vlds"]
TRAIN = "train run.yaml --training.steps 1 --training.save_every 1"
THERE = {
    "sweep": ("sweep sweep.yaml --ranks 1 --at-once 2", ""),
    "ranks that start again": (f"{TRAIN} --ranks 2 --training.reproducible true", ""),
    "DeepSpeed's launcher": (TRAIN, "--log_level critical"),
    "proof": (f"{TRAIN} --prove", ""),
    "runs of a proof": ("prove run.yaml --only leaves-right", ""),
    "pool": ("data demo --out drawn --scenes 512", ""),
}


@pytest.mark.slow
@pytest.mark.launcher
@pytest.mark.parametrize("name", THERE)
def test_what_lies_there_does_not_run(name: str, world: Path, tmp_path: Path) -> None:
    for module in filter(str.isidentifier, MODULES):
        (tmp_path / f"{module}.py").write_text(SPY)
    save_recipe(world_recipe(world, tmp_path / "run"), tmp_path / "run.yaml")
    sweep = {"output": "table", "recipes": {"a": {"base": "run.yaml", "training": {"steps": 1}}}}
    sweep |= {"seeds": [1], "scores": {"vqa": "soft_score"}}
    sweep |= {"prepare": {"made": "python -c \"import csv; open('made', 'x')\""}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    words, launcher = THERE[name]
    # As installed: `python -m vlds` would have the folder on its path at first.
    program = [sys.executable, str(Path(sys.executable).with_name("vlds")), *words.split()]
    ended = subprocess.run(
        program, cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env=os.environ | {"VLDS_LAUNCHER_ARGS": launcher, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (ended.returncode, " ran in " in ended.stderr) == (0, False), ended.stderr + ended.stdout
