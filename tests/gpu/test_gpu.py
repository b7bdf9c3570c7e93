"""A GPU computes what the CPU does: `make test-gpu`, ten minutes.

On a machine without a GPU the CPU takes its place, which shows that these tests themselves work. It
says so in its first line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from tests.toys.device_cases import DeviceCase, dual_case, encoder_case, joint_case, wide_case
from tests.toys.files import ROOT
from tests.toys.image_text import PARAMETERS
from tests.toys.kinds import kind_recipe
from tests.toys.launched_run import Launch
from tests.toys.method_cases import PAIRS
from tests.toys.resumed_runs import half_a_run, losses
from tests.toys.wide_models import CAUSAL
from vlds.evaluation.prediction_files import read_pairs
from vlds.models.backbones import Backbone
from vlds.models.methods import Adapter, APoLLo, Full, LoRA, Method, SimNL, TipAdapter
from vlds.models.model import Model
from vlds.recipe.config import Recipe, save_recipe
from vlds.runtime.devices import count_gpus, device_of, uses_gpu
from vlds.training.states import newest

pytestmark = pytest.mark.gpu
DEVICE = device_of()
ON_CPU = {"DS_ACCELERATOR": "cpu"}
FILES = ["zero2", "zero3", "zero2_offload", "zero3_offload"]
NUM_RANKS = [1, 2]
HALF = {("bf16", torch.bfloat16): 1.0, ("fp16", torch.float16): 1024.0}
"""Name and type -> what the loss is multiplied by."""


def loss_and_gradients(
    model: Model, case: DeviceCase, device: torch.device, loss_scale: float = 1.0
) -> list[Tensor]:
    """On the CPU, in fp32; zeros for a weight without a gradient."""
    scale = torch.linspace(0.5, 1, len(case.batch)).to(device)
    loss = model(case.batch.to(device), scale).loss
    (loss_scale * loss).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    scaled = [gradient.float().cpu() / loss_scale for gradient in gradients]
    return [loss.detach().float().cpu(), *scaled]


def differences(case: DeviceCase) -> list[str]:
    """What is not the same in fp32 of loss, gradients and answers, or in half precision is further
    away than by its rounding."""
    here, there = (case.make().eval() for _ in range(2))
    there.to(DEVICE)
    found = []
    loss, *expected = loss_and_gradients(here, case, torch.device("cpu"))
    there_loss, *gradients = loss_and_gradients(there, case, DEVICE)
    if not torch.allclose(there_loss, loss, rtol=1e-4):
        found.append(f"loss: {there_loss}, not {loss}")
    largest = max(float(gradient.abs().max()) for gradient in expected)
    trained = [name for name, p in here.named_parameters() if p.requires_grad]
    for name, one, other in zip(trained, gradients, expected, strict=True):
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * largest):
            found.append(f"gradient of {name}")
    for (name, dtype), loss_scale in HALF.items():
        half = case.make().eval().to(DEVICE, dtype)
        half_loss, *halved = loss_and_gradients(half, case, DEVICE, loss_scale)
        if not torch.allclose(half_loss, loss, rtol=6 * torch.finfo(dtype).eps):
            found.append(f"loss in {name}: {half_loss}, not {loss}")
        flat, wanted = (torch.cat([g.flatten() for g in each]) for each in (halved, expected))
        if (cosine := torch.cosine_similarity(flat, wanted, dim=0)) < 0.95:
            found.append(f"gradients in {name}: their cosine is {cosine}")
    asked = case.questions or case.batch
    for decoding in case.decodings:
        answers = [answer.text for answer in here.answer(asked, decoding)]
        if [a.text for a in there.answer(asked.to(DEVICE), decoding)] != answers:
            found.append(f"answers by {decoding}")
    return found


@PAIRS
def test_methods(name: str, family: type[Backbone]) -> None:
    assert differences(joint_case(family.__name__, name)) == []


@pytest.mark.parametrize("model_type", [*CAUSAL, *PARAMETERS])
@pytest.mark.parametrize("method", [LoRA(rank=2), Adapter(reduction=4, sharing="multiple")])
def test_language_models(model_type: str, method: Method) -> None:
    assert differences(wide_case(model_type, method)) == []


@pytest.mark.parametrize("kind", ["CrossModal", "JointEncoder"])
def test_encoders(kind: str) -> None:
    assert differences(encoder_case(kind)) == []


@pytest.mark.parametrize(
    "method", [Full(), LoRA(rank=2), APoLLo(depth=1, heads=4), SimNL(), TipAdapter()]
)
def test_dual_encoders(method: Method) -> None:
    assert differences(dual_case(method)) == []


def run(recipe: Recipe, folder: Path, *words: str, env: dict[str, str] | None = None) -> Path:
    """The folder of a run by `vlds train`, which must end well."""
    file = folder / f"{Path(recipe.output).name}.yaml"
    save_recipe(recipe, file)
    command = [sys.executable, "-m", "vlds", "train", "--config", str(file), *words]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | (env or {}), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Path(recipe.output)


def enough(num_ranks: int) -> None:
    """Skip what needs more GPUs than there are."""
    if uses_gpu() and count_gpus() < num_ranks:
        pytest.skip(f"needs {num_ranks} GPUs")


def assert_alike(found: Path, expected: Path) -> None:
    """The same losses within what ten steps make of rounding, and almost the same answers."""
    for (step, loss, norm), (other, wanted, of_norm) in zip(
        losses(found), losses(expected), strict=True
    ):
        assert step == other
        assert loss == pytest.approx(wanted, rel=1e-2)
        assert norm == pytest.approx(of_norm, rel=5e-2)
    pairs, others = (
        dict(read_pairs(each / "predictions/step-00000010/vqa.jsonl")) for each in (found, expected)
    )
    same = sum(others[key] == text for key, text in pairs.items())
    assert same >= 0.9 * len(others)


@pytest.fixture(scope="module")
def on_cpu(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind on the CPU, without dropout, whose draws differ on a GPU."""
    folder = tmp_path_factory.mktemp("cpu")
    kinds = ("joint", "causal", "image_text")
    return {
        kind: run(recipe_of(kind, world, folder / kind), folder, "--ranks", "1", env=ON_CPU)
        for kind in kinds
    }


def recipe_of(kind: str, world: Path, output: Path, file: str = "zero2") -> Recipe:
    recipe = kind_recipe(kind, world, output)
    if kind == "joint":
        backbone = replace(recipe.model.backbone, dropout=0.0)  # type: ignore[attr-defined]
        recipe = replace(recipe, model=replace(recipe.model, backbone=backbone))  # type: ignore[call-arg]
    training = replace(recipe.training, deepspeed=f"ds_configs/{file}.json")
    return replace(recipe, training=training)


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ["joint", "causal", "image_text"])
def test_runs(
    kind: str, file: str, num_ranks: int, on_cpu: dict[str, Path], world: Path, tmp_path: Path
) -> None:
    """Training, evaluation and state under each of DeepSpeed's files."""
    enough(num_ranks)
    recipe = recipe_of(kind, world, tmp_path / "run", file)
    assert_alike(run(recipe, tmp_path, "--ranks", str(num_ranks)), on_cpu[kind])


@pytest.mark.parametrize("there", [True, False])
def test_a_run_goes_on_elsewhere(
    there: bool, on_cpu: dict[str, Path], world: Path, tmp_path: Path
) -> None:
    """Five steps on one device and five on the other."""
    whole = on_cpu["joint"]
    recipe = recipe_of("joint", world, tmp_path / "half")
    if not there:
        whole = run(replace(recipe, output=str(tmp_path / "whole")), tmp_path, "--ranks", "1")
    half_a_run(whole, tmp_path / "half")
    env = {} if there else ON_CPU
    assert_alike(run(recipe, tmp_path, "--resume", "--ranks", "1", env=env), on_cpu["joint"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_ranks_end_with_one_that_is_gone(
    number: signal.Signals, world: Path, tmp_path: Path
) -> None:
    """A rank that waits in NCCL hears no signal: it is killed, or NCCL aborts it when the time is
    over. The run goes on from its newest whole state."""
    enough(2)
    recipe = recipe_of("joint", world, tmp_path / "run")
    training = replace(recipe.training, steps=400, save_every=20, collective_timeout=15.0)
    recipe = replace(recipe, training=training)
    launch = Launch(recipe, tmp_path / "run.yaml", on_cpu=False)
    launch.wait_for_step(30)
    _, victim = launch.ranks()
    victim.send_signal(number)
    began = time.monotonic()
    code, output = launch.end()
    assert time.monotonic() - began < 60, output
    if number == signal.SIGKILL:
        assert code == 137, output
    else:
        assert code in (1, 128 + signal.SIGABRT), output
        assert "training.collective_timeout seconds" in output
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    saved, complaints = newest(launch.run / "state")
    assert saved is not None, output
    assert complaints == []
    assert f"--resume continues from {saved}" in output
    step = int(saved.name.removeprefix("step-"))
    shorter = replace(recipe, training=replace(training, steps=step + 5))
    run(shorter, tmp_path, "--resume", "--ranks", "2")
    assert losses(launch.run)[-1][0] == step + 5
