"""A run state is whole or is passed over, and comes back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vlds.runtime.json_files import write_manifest
from vlds.training import checkpoint
from vlds.training.engine import State
from vlds.training.states import Progress, check_output, newest


def state(seed: int) -> State:
    torch.manual_seed(seed)
    return {"a.weight": {key: torch.randn(3, 4) for key in ("fp32", "exp_avg", "exp_avg_sq")}}


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(0), Progress(5, {"consumed": 320}), keep=2)
    found, complaints = newest(tmp_path)
    assert found is not None
    assert not complaints
    loaded, progress = checkpoint.load(found)
    assert progress == Progress(5, {"consumed": 320})
    for key, tensor in state(0)["a.weight"].items():
        assert torch.equal(loaded["a.weight"][key], tensor)


def test_a_state_of_an_older_format_is_not_read(tmp_path: Path) -> None:
    file = checkpoint.save(tmp_path, state(0), Progress(5, {}), keep=2) / "state.json"
    content = json.loads(file.read_text())
    del content["task_updates"]
    file.write_text(json.dumps(content | {"format": 1}))
    file.with_name("manifest.json").unlink()
    write_manifest(file.parent)
    found, (complaint,) = newest(tmp_path)
    assert found is None
    assert "format is 1, 2 expected" in complaint


def test_tensors_that_a_right_manifest_names_may_be_none(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(0), Progress(5, {}), keep=2)
    assert checkpoint.saved_shapes(folder) == {"a.weight": torch.Size((3, 4))}
    (folder / "state.safetensors").write_bytes(b"no tensors" * 9)
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    assert newest(tmp_path)[0] == folder
    for read in (checkpoint.load, checkpoint.saved_shapes):
        with pytest.raises(ValueError, match=r"step-00000005: state\.safetensors cannot be read"):
            read(folder)


def test_an_input_or_output_that_is_a_link_to_itself(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    check_output(str(tmp_path / "run"), False, [str(loop)])  # whoever reads it refuses it
    with pytest.raises(ValueError, match="output: "):
        check_output(str(loop), False, [str(tmp_path)])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, state(step), Progress(step, {}), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_states_that_were_passed_over_do_not_push_out_whole_ones(tmp_path: Path) -> None:
    for step in (5, 10):
        checkpoint.save(tmp_path, state(step), Progress(step, {}), keep=2)
    (tmp_path / "step-00000010" / "manifest.json").unlink()
    (tmp_path / ".step-00000011@elsewhere-7-0.partial").mkdir()
    assert newest(tmp_path)[0] == tmp_path / "step-00000005"
    checkpoint.save(tmp_path, state(6), Progress(6, {}), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "no manifest"])
def test_a_damaged_state_is_passed_over_with_a_reason(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step), Progress(step, {}), keep=2)
    file = tmp_path / "step-00000002" / "state.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-8])
    else:
        (file if damage == "remove" else file.with_name("manifest.json")).unlink()
    found, complaints = newest(tmp_path)
    assert found == tmp_path / "step-00000001"
    assert len(complaints) == 1
    assert "step-00000002" in complaints[0]


def test_an_unfinished_write_is_not_a_state(tmp_path: Path) -> None:
    (tmp_path / ".step-00000004@elsewhere-7-0.partial").mkdir(parents=True)
    assert newest(tmp_path) == (None, [])
