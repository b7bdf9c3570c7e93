"""ZeRO-3 loads the backbone in parts, and ranks on different tasks run the same modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.engines import start_deepspeed, whole_state
from tests.toys.models import batch, build, save_own_head, saved_backbone
from tests.toys.rank_pool import RankPool
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.methods import Adapter, BitFit, Method
from vlds.models.methods.host import is_plain
from vlds.models.partitioned import partitioned_loading

CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
METHODS: dict[str, Method] = {
    "adapter": Adapter(sharing="multiple", reduction=4),
    "biases": BitFit(add_biases=True, add_norm_and_head_biases=True),
}
"""Methods behind linear layers, norms and the head, which take sizes from partitioned weights."""


def engine_of(model: torch.nn.Module) -> Any:
    """DeepSpeed's engine around a model."""
    import deepspeed

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    return deepspeed.initialize(
        model=model, model_parameters=trained, optimizer=optimizer, config=CONFIG
    )[0]


def load_and_run(source: Backbone) -> dict[str, Any]:
    """Load in parts, then the losses of a batch."""
    start_deepspeed()
    with partitioned_loading(CONFIG):
        model = build(source, METHODS, seed=3)
        partitioned = [
            hasattr(p, "ds_tensor") for n, p in model.backbone.named_parameters() if "layer" in n
        ]
        plain = all(is_plain(parameter) for parameter in model.parameters())
        engine = engine_of(model)
        model.eval()
        with torch.no_grad():
            output = engine(batch(), torch.ones(4))
    held = sum(p.ds_tensor.numel() for p in model.parameters())
    whole = sum(p.ds_numel for p in model.parameters())
    state = whole_state(model)
    engine.destroy()
    return {
        "state": state,
        "loss": output.token_nll_sum,
        "partitioned": any(partitioned),
        "plain": plain,
        "share": held / whole,
        "sources": model.sources,
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("family", "own_head"), [(T5, False), (T5, True), (Bart, False)])
def test_loading_in_parts(
    family: type[Backbone], own_head: bool, ranks2: RankPool, tmp_path: Path
) -> None:
    source = saved_backbone(family, tmp_path)
    if own_head:
        save_own_head(family, tmp_path)
    whole = build(source, METHODS).eval()
    sources, loaded = whole.sources, {n: t.clone() for n, t in whole.unique_state()}
    results = ranks2.run(load_and_run, source, timeout=60)
    for result in results:
        assert result["partitioned"]
        assert result["plain"]
        assert 0.5 <= result["share"] < 0.55
        assert result["sources"] == sources
        for name in sources.names:
            assert torch.equal(result["state"][name], loaded[name]), name
        for name, rows in sources.rows.items():
            assert torch.equal(result["state"][name][:rows], loaded[name][:rows]), name
            new = result["state"][name][rows:]
            if name.endswith("lm_head.weight"):
                assert torch.equal(new, loaded[name][rows:])
            else:
                assert new.std() > 0.5 * source.new_row_std
        with torch.no_grad():
            for name, tensor in whole.unique_state():
                tensor.copy_(result["state"][name])
            expected = whole(batch(), torch.ones(4)).token_nll_sum
        assert torch.allclose(result["loss"], expected, rtol=1e-5)
    assert ("backbone.lm_head.weight" in sources.rows) is own_head
