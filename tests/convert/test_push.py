"""--push: what arrives at the hub is the folder, and errors leave the folder with a way on."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.toys.files import ROOT
from tests.toys.hub import TOKEN, Hub, running_hub
from tests.toys.trained_runs import convert, convert_code, recipe_with, write_run
from vlds.convert.hf import check_push, push

NAME = "me/colours"


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with LoRA."""
    return write_run(recipe_with("T5", "LoRA", world, tmp_path_factory.mktemp("run")), seed=1)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


def process(words: list[str], hub: Hub, home: Path) -> tuple[int, str, str]:
    """Run a command with this hub; its exit code, stdout and stderr."""
    done = subprocess.run(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def pushed(hub: Hub, tmp_path: Path, *words: str | Path) -> tuple[int, str, str]:
    """Run `vlds convert ... --out tmp_path/out`."""
    command = [sys.executable, "-m", "vlds", "convert", *map(str, words)]
    return process([*command, "--out", str(tmp_path / "out")], hub, tmp_path / "home")


def contents(folder: Path) -> dict[str, bytes]:
    """Path of each file below a folder -> its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["peft", "hf"])
def test_what_arrives_is_the_folder(layout: str, hub: Hub, run: Path, tmp_path: Path) -> None:
    code, out, err = pushed(hub, tmp_path, layout, "--run", run, "--push", NAME)
    assert code == 0, err
    assert out.splitlines()[-1] == f"pushed to {hub.url}/{NAME}"
    assert hub.files[NAME] == contents(tmp_path / "out")
    assert hub.large  # some went that way
    assert hub.repos[NAME].get("visibility") is None  # as the hub's settings say
    card = hub.files[NAME]["README.md"].decode()
    assert f'"{NAME}"' in card


@pytest.mark.slow
def test_private(hub: Hub, run: Path, tmp_path: Path) -> None:
    words = ["merge", "--run", run, "--push", NAME, "--private"]
    code, _, err = pushed(hub, tmp_path, *words)
    assert code == 0, err
    assert hub.repos[NAME]["visibility"] == "private"
    hub.repos[NAME]["visibility"] = "public"
    (tmp_path / "out").rename(tmp_path / "before")
    code, _, err = pushed(hub, tmp_path, *words)
    assert code == 2
    assert f"--private: {NAME} exists and is public" in err
    assert not (tmp_path / "out").exists()


def again(err: str) -> list[str]:
    """The command that an error tells."""
    return shlex.split(err.splitlines()[-1].rpartition("then `")[2].rstrip("`"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "status", "message"),
    [
        ("create", 500, "the hub answers HTTP 500; wait a little"),
        ("large", 403, "HTTP 403; the token may not write there"),
    ],
)
def test_a_folder_stays_and_can_be_pushed_again(
    where: str, status: int, message: str, hub: Hub, run: Path, tmp_path: Path
) -> None:
    hub.status[where] = status
    code, _, err = pushed(hub, tmp_path, "peft", "--run", run, "--push", NAME)
    assert code == 2
    folder = tmp_path / "out"
    line = err.splitlines()[-1]
    assert line.startswith(f"vlds convert: --push: {folder} is written, but not uploaded to {NAME}")
    assert message in line
    before = contents(folder)
    assert "adapter_model.safetensors" in before
    hub.status.clear()
    program, *rest = again(err)
    assert program == "hf"
    command = [str(Path(sys.executable).with_name("hf")), *rest]
    if not Path(command[0]).exists():
        from huggingface_hub.cli import hf

        command = [sys.executable, "-m", hf.__name__, *rest]
    code, _, err = process(command, hub, tmp_path / "home")
    assert code == 0, err
    assert hub.files[NAME] == before == contents(folder)


@pytest.fixture
def logged_in(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process uses the hub, as others do by their environment."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return monkeypatch


def test_a_hub_that_goes_away(
    hub: Hub, run: Path, tmp_path: Path, logged_in: pytest.MonkeyPatch
) -> None:
    """Between the check and the upload."""
    check_push(NAME, private=True)
    convert("peft", "--run", run, "--out", tmp_path / "out")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ValueError, match=r"not uploaded to me/colours: no answer from .*then `hf"):
        push(tmp_path / "out", NAME, private=True)


def test_mistakes_are_found_first(
    hub: Hub, run: Path, tmp_path: Path, logged_in: pytest.MonkeyPatch
) -> None:
    words = ["peft", "--run", run, "--out", tmp_path / "out", "--push", NAME]

    def complaint() -> str:
        said = StringIO()
        with redirect_stderr(said):
            assert convert_code(*words) == 2
        assert not (tmp_path / "out").exists()
        return said.getvalue()

    hub.role = "read"
    assert f"--push: {NAME}, but the token of me can only read; log in" in complaint()
    hub.role = "write"
    logged_in.setenv("HF_TOKEN", "another")
    assert "HTTP 401; the token is not valid: log in with `hf auth login`" in complaint()
    logged_in.delenv("HF_TOKEN")
    assert f"--push: {NAME} needs a login to the hub; log in with" in complaint()
    logged_in.setattr(constants, "HF_HUB_OFFLINE", True)
    assert f"--push: {NAME}, but HF_HUB_OFFLINE forbids it; unset it" in complaint()
    assert hub.files == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--push", "colours"], "--push: got 'colours'; give OWNER/NAME"),
        (["--private"], "--private: goes with --push"),
        (["--push", NAME, "--from", "RUN"], "--push: goes with a run that is written"),
    ],
)
def test_words_that_cannot_be(
    words: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [str(run) if word == "RUN" else word for word in words]
    assert convert_code("peft", "--run", run, "--out", tmp_path / "out", *named) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_runs_that_need_other_files_are_not_pushed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--how", "average", "--run", run, run, "--out", tmp_path / "out", "--push", NAME]
    assert convert_code("merge", *words) == 2
    assert "--push: average writes a run, which needs the files" in capsys.readouterr().err
