"""The command: options that do not go together, outputs that exist, --verify, and what is left when
something goes wrong."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.toys.files import ROOT
from tests.toys.trained_runs import convert, convert_code, recipe_with, write_run
from vlds.artifact import load_run
from vlds.convert.output import new_output


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with LoRA."""
    return write_run(recipe_with("T5", "LoRA", world, tmp_path_factory.mktemp("run")), seed=1)


@pytest.fixture(scope="module")
def adapter_run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with Adapter."""
    return write_run(recipe_with("T5", "Adapter", world, tmp_path_factory.mktemp("adapter")))


"""Of a layout that is not a run's."""


def test_help_does_not_wait_for_torch() -> None:
    """Nor does the supervisor, which looks for run states."""
    code = "import sys, vlds.convert.command, vlds.training.states; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["peft"], "name --run, what to write, or --from, what to read"),
        (["peft", "--run", "RUN", "--config", "x.yaml"], "--config: goes with --from"),
        (["peft", "--from", "RUN", "--run", "RUN", "--config", "x"], "give one of --config and"),
        (["reference", "--from", "nowhere.pth", "--run", "RUN"], "--from: no such file or folder"),
        (["hf", "--run", "RUN", "--tolerance", "1"], "--tolerance: goes with --verify"),
        (["hf", "--run", "nowhere"], "--run: no such folder: nowhere"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run) if word == "RUN" else word for word in words]
    assert convert_code(*words, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("vlds convert: ")
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_checkpoint_of_the_original(adapter_run: Path, tmp_path: Path) -> None:
    words = ["--from", adapter_run, "--run", adapter_run, "--out", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"is a folder, not a regular file; name a file"):
        convert("reference", *words)


@pytest.mark.parametrize("layout", ["hf", "merge", "reference", "peft"])
def test_nothing_is_overwritten(
    layout: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even by way of a link that leads nowhere."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "folder", "link"):
        assert convert_code(layout, "--run", run, "--out", tmp_path / name) == 2
        assert re.search(r"--out: .* exists; name a new", capsys.readouterr().err)
    assert convert_code(layout, "--run", run, "--out", tmp_path / "file" / "below") == 2
    assert "is not a folder; name a new" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_verify_on_pictures_and_made_ones(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        Image.new("RGB", (30, 20), (80 * number, 9, 90)).save(tmp_path / f"{number}.png")
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    convert("merge", "--run", run, "--out", tmp_path / "out", "--verify", *pictures)
    said = capsys.readouterr().out
    found = re.search(r"largest difference of logits on 3 pictures: (\S+), or (\S+) of", said)
    assert found
    assert 0 < float(found[2]) < 1e-6
    assert load_run(tmp_path / "out").recipe.methods == {}


@pytest.mark.slow
def test_too_large_a_difference_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folding rounds, and here nothing at all is tolerated."""
    words = ["merge", "--run", run, "--out", tmp_path / "out", "--verify", "--tolerance", "1e-15"]
    assert convert_code(*words) == 2
    assert "tolerance 1e-15): too much, so nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Inside, no file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("layout", ["hf", "merge", "peft", "adapters", "reference"])
def test_a_disk_that_takes_no_more(
    layout: str, run: Path, adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = adapter_run if layout in ("adapters", "reference") else run
    with small_disk(5000):
        assert convert_code(layout, "--run", source, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--out: cannot write {tmp_path / 'out'}: File too large; make room there, or" in said
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_not_said_to_be_unwritable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_output(tmp_path / "out", "folder"):
        (tmp_path / "other").read_text()


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is not ignored: some, who start the tests in the background, have it so."""
    wanted: signal.Signals = request.param
    default = signal.default_int_handler if wanted == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(wanted, default)
    yield wanted
    signal.signal(wanted, before)


def test_a_signal_leaves_nothing(
    number: signal.Signals,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes as soon as something half made is there, before anybody knows that it is."""
    before = signal.getsignal(number)
    mkdir = Path.mkdir

    def interrupted(path: Path, *words: Any, **options: Any) -> None:
        mkdir(path, *words, **options)
        if path.name.endswith(".partial"):
            signal.raise_signal(number)

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(SystemExit) as end:
        convert_code("hf", "--run", run, "--out", tmp_path / "out")
    assert end.value.code == 128 + number
    assert "vlds convert: stopped; --out is there whole or not" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == before


def make_folder(out: Path, error: BaseException) -> None:
    with new_output(out, "folder") as partial:
        (partial / "half").write_text("made")
        assert not out.exists()
        raise error


def make_file(out: Path, error: BaseException) -> None:
    with new_output(out, "file") as partial:
        partial.write_text("half")
        raise error


def make_what_comes_first_elsewhere(out: Path) -> None:
    with new_output(out, "folder") as partial:
        assert str(os.getpid()) in partial.name
        out.mkdir()
        (out / "theirs").write_text("theirs")


@pytest.mark.parametrize("make", [make_folder, make_file])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_half_made_outputs_vanish(make: Any, error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error, match="stop"):
        make(tmp_path / "out", error("stop"))
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    """What another program has put there in the meantime stays."""
    with pytest.raises(ValueError, match=r"--out: .* exists by now: another program has"):
        make_what_comes_first_elsewhere(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "theirs"]
