"""A state that is not what was written is never loaded: it is passed over, or refused, with a
message.

VLDS_FAULT_SEED draws other damage; its value is in each test's name.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlds.runtime.artifact_files import Best
from vlds.runtime.disk import CannotWrite
from vlds.runtime.json_files import MANIFEST
from vlds.training import checkpoint
from vlds.training.states import PROGRESS, TENSORS, Progress, newest

SEED = int(os.environ.get("VLDS_FAULT_SEED", "20261"))
FILES = (TENSORS, PROGRESS, MANIFEST)
OLD, NEW = "step-00000005", "step-00000010"


def write_states(folder: Path) -> None:
    """Two states of one run."""
    for step in (5, 10):
        torch.manual_seed(step)
        tensors = {key: torch.randn(3, 4) for key in ("fp32", "exp_avg", "exp_avg_sq")}
        progress = Progress(step, {"consumed": 8 * step}, best=Best(5, "vqa/accuracy", 0.5))
        checkpoint.save(folder, {"a.weight": tensors}, progress, keep=2)


def flip(state: Path, draw: random.Random) -> str:
    file = state / draw.choice(FILES)
    content = bytearray(file.read_bytes())
    places = draw.sample(range(len(content)), draw.randint(1, 4))
    for place in places:
        content[place] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return f"bits of bytes {places} of {file.name} flipped"


def truncate(state: Path, draw: random.Random) -> str:
    file = state / draw.choice(FILES)
    size = draw.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f"{file.name} cut to {size} bytes"


def extend(state: Path, draw: random.Random) -> str:
    file = state / draw.choice((TENSORS, PROGRESS))
    with file.open("ab") as end:
        end.write(draw.randbytes(draw.randint(1, 100)))
    return f"{file.name} is longer"


def lose(state: Path, draw: random.Random) -> str:
    lost = draw.sample(FILES, draw.randint(1, 3))
    for name in lost:
        (state / name).unlink()
    return f"{lost} lost"


def swap(state: Path, draw: random.Random) -> str:
    """Files of the other state take the place of this one's."""
    swapped = draw.sample(FILES, draw.randint(1, 3))
    for name in swapped:
        shutil.copy2(state.with_name(OLD) / name, state / name)
    return f"{swapped} of the state before"


def forget(state: Path, draw: random.Random) -> str:
    """The manifest does not list a file that is not what was written."""
    file = state / draw.choice((TENSORS, PROGRESS))
    entries = json.loads((state / MANIFEST).read_text())
    del entries[file.name]
    (state / MANIFEST).write_text(json.dumps(entries))
    return f"{file.name} not in the manifest"


DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (
    flip, flip, flip, truncate, truncate, extend, lose, swap, swap, forget,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_states(folder)
    return folder


@pytest.mark.parametrize("both", [False, True], ids=["newest", "all"])
@pytest.mark.parametrize("number", [pytest.param(n, id=f"seed{SEED}-{n}") for n in range(100)])
def test_no_damaged_state_is_loaded(number: int, both: bool, whole: Path, tmp_path: Path) -> None:
    draw = random.Random(f"{SEED}-{number}-{both}")
    folder = Path(shutil.copytree(whole, tmp_path / "state"))
    damage = draw.choice(DAMAGES)
    if both and damage is swap:
        damage = flip
    what = damage(folder / NEW, draw)
    if both:
        damage(folder / OLD, draw)
    print(f"VLDS_FAULT_SEED={SEED}: {what}")
    found, complaints = newest(folder)
    assert found == (None if both else folder / OLD)
    assert len(complaints) == 1 + both
    assert complaints[0].startswith(f"{folder / NEW}: ")
    assert len(complaints[0]) > len(f"{folder / NEW}: ") + 10
    with pytest.raises(ValueError, match=NEW):
        checkpoint.load(folder / NEW)


def test_the_best_state_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        best = Best(2, "vqa/accuracy", 0.5) if step > 2 else None
        tensors = {"a": {"fp32": torch.ones(1)}}
        checkpoint.save(tmp_path, tensors, Progress(step, {}, best=best), keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    assert checkpoint.load(tmp_path / "step-00000004")[1].best == Best(2, "vqa/accuracy", 0.5)


def test_what_is_not_a_state_stays(tmp_path: Path) -> None:
    """A copy next to the states, or a state on another disk."""
    write_states(tmp_path)
    shutil.copytree(tmp_path / NEW, tmp_path / f"{NEW}-mine")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    (tmp_path / OLD).rename(elsewhere)
    (tmp_path / OLD).symlink_to(elsewhere)
    assert newest(tmp_path) == (tmp_path / NEW, [])
    checkpoint.save(tmp_path, {"a": {"fp32": torch.ones(1)}}, Progress(11, {}), keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{NEW}-mine", "step-00000011"]
    assert (elsewhere / TENSORS).exists()


def test_a_state_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    write_states(tmp_path)
    tensors = {"a": {"fp32": torch.ones(1)}}
    (tmp_path / "step-00000012").write_text("in the way, and no folder")
    checkpoint.save(tmp_path, tensors, Progress(12, {}), keep=2)
    with pytest.raises(CannotWrite, match="File exists; name another place"):
        checkpoint.save(tmp_path / "step-00000012" / TENSORS, tensors, Progress(13, {}), keep=2)
    assert newest(tmp_path) == (tmp_path / "step-00000012", [])
    assert sorted(p.name for p in tmp_path.iterdir()) == [NEW, "step-00000012"]
