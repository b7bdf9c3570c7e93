"""DeepSpeed's engine on a simulated accelerator: the CPU's losses and norms, and a host that waits
for the device twice a step: for the gradient's norm, and for all that is reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.toys import accelerator as simulated
from tests.toys import engines
from tests.toys.engines import Case, global_batch, make_case, own_micro_batches
from tests.toys.rank_pool import RankPool
from vlds.models.methods import Adapter, Mixture
from vlds.runtime.ranks import Ranks

OURS = {2: ["gradients.py", "loss.py"], 3: ["loss.py"]}
"""Stage -> files of vlds/training that wait. In stage 3, DeepSpeed computes the norm."""
LIBRARY = {2: 0, 3: 3}
"""Stage -> waits of DeepSpeed."""
STEPS = 3
Steps = list[tuple[list[float], float]]
"""The tasks' losses and the gradient's norm of each step."""


def steps_of(case: Case) -> Steps:
    """What an engine of this process reports."""
    engine, cut = engines.start_engine(case)
    found = []
    for number in range(STEPS):
        report = engine.step(own_micro_batches(global_batch(number), engine, cut))
        found.append((report.task_losses.tolist(), report.gradient_norm))
    engine.close()
    return found


def steps_there(case: Case) -> tuple[Steps, list[str], list[str]]:
    """The same on the device; and the waits of the last step, ours and DeepSpeed's."""
    from deepspeed.accelerator import get_accelerator, set_accelerator

    device = simulated.register()
    base: Any = type(get_accelerator())

    class There(base):  # type: ignore[misc]
        def device_name(self, index: int | None = None) -> str:
            return simulated.NAME if index is None else f"{simulated.NAME}:{index}"

        def current_device_name(self) -> str:
            return str(device)

        def device(self, index: int | None = None) -> torch.device:
            return device

        def on_accelerator(self, tensor: torch.Tensor) -> bool:
            return tensor.device.type == simulated.NAME

    if base.__name__ != There.__name__:
        set_accelerator(There())
    start, make = engines.start_ranks, engines.recipe_model

    def ranks_there(timeout: float) -> Ranks:
        return replace(start(timeout), device=device)

    def model_there(*arguments: Any) -> Any:
        model = make(*arguments)
        buffers = [(m, n, b) for m in model.modules() for n, b in m.named_buffers(recurse=False)]
        simulated.move(model)
        # The engine must move these: DeepSpeed does not where loading has partitioned weights.
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        return model

    with (
        simulated.accelerator() as running,
        mock.patch.object(engines, "start_ranks", ranks_there),
        mock.patch.object(engines, "recipe_model", model_there),
    ):
        engine, cut = engines.start_engine(case)
        found = []
        for number in range(STEPS):
            running.waits.clear()
            report = engine.step(own_micro_batches(global_batch(number), engine, cut))
            found.append((report.task_losses.tolist(), report.gradient_norm))
        waits = [(wait, f"{wait.what} at {wait.place}") for wait in running.waits.elements()]
        engine.close()
    return (
        found,
        [line for wait, line in waits if wait.is_ours],
        [line for wait, line in waits if "calls deepspeed" in wait.place],
    )


@pytest.fixture(scope="module")
def there() -> Iterator[RankPool]:
    """One process, in which torch and DeepSpeed know the simulated device."""
    pool = RankPool(1)
    yield pool
    pool.close()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    "fields",
    [
        {"clip_norm": 0.1, "micro_batch_size": 4},
        {"method": Mixture(of=Adapter(reduction=4, sharing="half_shared_up"), consistency=1.0)},
        {"parts": 3, "precision": "bf16"},
    ],
    ids=["micro-batches", "a method's own loss", "parts in bf16"],
)
def test_steps_on_an_accelerator(
    stage: int, fields: dict[str, Any], ranks1: RankPool, there: RankPool, tmp_path: Path
) -> None:
    case = make_case(tmp_path, stage=stage, **fields)
    (expected,) = ranks1.run(steps_of, case)
    ((found, ours, theirs),) = there.run(steps_there, case)
    tolerance = 1e-5 if case.precision == "fp32" else 1e-2
    for (losses, norm), (other_losses, other_norm) in zip(found, expected, strict=True):
        assert losses == pytest.approx(other_losses, rel=tolerance)
        assert norm == pytest.approx(other_norm, rel=tolerance)
    assert [line.split(":")[0] for line in ours] == [
        f"copy to the host at vlds/training/{file}" for file in OURS[stage]
    ]
    assert len(theirs) <= LIBRARY[stage], theirs
