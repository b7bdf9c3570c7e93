"""Causal models under ZeRO-3: loaded in parts, and ranks with unlike rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.causal import batch, build, kind_in, rows, save_model
from tests.toys.engines import start_deepspeed, whole_state
from tests.toys.rank_pool import RankPool
from vlds.models.kinds.causal import Causal, CausalModel
from vlds.models.methods import Adapter, LoRA, Method
from vlds.models.partitioned import partitioned_loading
from vlds.schema import Batch

METHODS: dict[str, Method] = {
    "adapter": Adapter(sharing="multiple", reduction=4),
    "lora": LoRA(rank=2, roles=["attn_q"], dropout=0.0, train_biases=False),
}
"""On all layers, so that every layer's backward pass is needed."""
STEPS = 4


def config(stage: int) -> dict[str, Any]:
    """DeepSpeed's config; even the smallest weights are partitioned."""
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    return {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
    }


def engine_of(model: CausalModel, stage: int) -> Any:
    """DeepSpeed's engine around a model."""
    import deepspeed

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-2)
    return deepspeed.initialize(
        model=model, model_parameters=trained, optimizer=optimizer, config=config(stage)
    )[0]


def own_rows(kind: Causal, rank: int, step: int) -> Batch:
    """Two rows: on the first rank without pictures, on the second with some, in the first step;
    later the other way round, or with some on both."""
    plain, seeing = [(), ()], [(0,), (0, 2)]
    pictures = (seeing if (rank + step) % 2 else plain) if step < 3 else seeing
    made = batch(kind, rows([*pictures, *pictures])[2 * rank : 2 * rank + 2])
    if pictures is plain:
        made.images = None
    return made


def train(kind: Causal, stage: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Each step's sums of nll on this rank, and the weights at the end."""
    start_deepspeed()
    with partitioned_loading(config(stage)):
        model = build(kind, METHODS)
    engine = engine_of(model, stage)
    sums = []
    for step in range(STEPS):
        mine = own_rows(kind, torch.distributed.get_rank(), step)
        output = engine(mine, torch.full((2,), 0.1))
        engine.backward(output.loss)
        engine.step()
        sums.append(output.token_nll_sum)
    state = whole_state(model)
    engine.destroy()
    return sums, state


def train_plainly(kind: Causal) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same on one process, in plain torch."""
    model = build(kind, METHODS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    sums = []
    for step in range(STEPS):
        optimizer.zero_grad()
        outputs = [model(own_rows(kind, rank, step), torch.full((2,), 0.1)) for rank in (0, 1)]
        (torch.stack([output.loss for output in outputs]).sum() / 2).backward()
        optimizer.step()
        sums.append(torch.cat([output.token_nll_sum for output in outputs]))
    return sums, {name: tensor.detach() for name, tensor in model.unique_state()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("stage", [2, 3])
def test_ranks_without_pictures(stage: int, kind: str, ranks2: RankPool, tmp_path: Path) -> None:
    save_model(tmp_path / kind, kind)
    chosen = kind_in(tmp_path / kind)
    expected_sums, expected = train_plainly(chosen)
    (first, state), (second, _) = ranks2.run(train, chosen, stage, timeout=60)
    for one, other, wanted in zip(first, second, expected_sums, strict=True):
        assert torch.allclose(torch.cat([one, other]), wanted, rtol=1e-4)
    for name, tensor in expected.items():
        assert torch.allclose(state[name], tensor, rtol=1e-3, atol=1e-5), name
