"""ZeRO-3 loads the backbone in parts, and ranks on different tasks run the same modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.toys.device_cases import GREEDY, dual_case, encoder_case
from tests.toys.dual import save_clip
from tests.toys.engines import start_deepspeed, whole_state
from tests.toys.image_text import PARAMETERS
from tests.toys.image_text.claims import IN_ZERO3
from tests.toys.models import batch, build, save_own_head, saved_backbone
from tests.toys.rank_pool import RankPool
from tests.toys.wide_models import CAUSAL, opened, wide
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.generation.answer_list import Answer
from vlds.models.kernels.fused import TORCH_LINEAR
from vlds.models.methods import Adapter, BitFit, LoRA, Method
from vlds.models.methods.host import is_plain
from vlds.models.model import Model
from vlds.models.partitioned import (
    fits_whole,
    layer_by_layer,
    layers_of,
    partitioned_loading,
    partitioned_reading,
)
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch, Decoding

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


# Ranks that hold a part each of a model's weights answer as those that hold all of them.


def fits(free: list[int]) -> bool:
    """Whether a model of a thousand bytes fits, by the bytes that are free on the ranks."""
    ranks = start_ranks(60)
    model = nn.Linear(10, 25, bias=False)
    with mock.patch("vlds.runtime.ranks.free_memory", return_value=free[ranks.global_rank]):
        return fits_whole(model, ranks)


def test_whole_weights_need_twice_their_memory_on_each_rank(ranks2: RankPool) -> None:
    """Two ranks share the machine's."""
    assert ranks2.run(fits, [4000, 4000]) == [True, True]
    assert ranks2.run(fits, [4000, 3999]) == [False, False]


LEAST = 500
DECODINGS = [
    Decoding(max_new_tokens=4),
    Decoding(max_new_tokens=6, num_beams=3),
    Decoding(choices=("red", "blue")),
    Decoding(answers=("red", "it is blue", "yes")),
]


Both = tuple[list[Answer], list[Answer], list[int]]
"""Answers of whole weights and of parts; elements of each layer's weights that stay whole."""


def both_ways(
    models: Iterable[Model], questions: Sequence[tuple[Batch, Decoding]], ranks: Ranks, least: int
) -> Both:
    """What two models answer, each rank at its own pace; the second one's weights are cut."""
    answers: list[list[Answer]] = []
    for model in models:
        model.eval()
        answers.append([])
        with (
            torch.no_grad(),
            layer_by_layer(model, ranks, least),
            model.at_own_pace() as begin_batch,
        ):
            of_layers = [weights for _, weights in layers_of(model, least)[1]]
            for batch, decoding in questions:
                begin_batch()
                answers[-1] += model.answer(batch, decoding)
    # What vlds builds beside Hugging Face's model is not partitioned by loading it.
    cut = [[p for p in weights if hasattr(p, "ds_tensor")] for weights in of_layers]
    return answers[0], answers[1], [sum(p.numel() for p in weights) for weights in cut if weights]


def assert_alike(both: Both) -> None:
    whole, parts, held = both
    assert [answer.text for answer in parts] == [answer.text for answer in whole]
    # Gathered weights begin at other addresses, for which kernels sum in another order.
    for part, one in zip(parts, whole, strict=True):
        assert part.confidence == pytest.approx(one.confidence, rel=1e-5)
    assert set(held) == {0}
    assert len(held) > 4


def answer_both_ways(model_type: str, kind: Any) -> Both:
    """On one rank to other rows, more often and at more length than on the other."""
    ranks = start_ranks(60)
    source = opened(model_type, kind, kind.load_processor())
    methods = {"method": LoRA(rank=2)}
    models = [source.build(methods)]
    with partitioned_reading(torch.float32, ranks.world_size):
        models.append(source.build(methods))
    assert F.linear is TORCH_LINEAR, "whatever runs later in this process"
    rows = source.rows()
    # The first rank's row has no picture.
    batch = source.batch(rows[:2] if ranks.global_rank else rows[2:], evaluation=True)
    decodings = DECODINGS[: 2 + 2 * ranks.global_rank]
    return both_ways(models, [(batch, decoding) for decoding in decodings], ranks, LEAST)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "model_type", [*CAUSAL, *(p for p in PARAMETERS if p.values[0] in IN_ZERO3)]
)
def test_language_models(model_type: str, ranks2: RankPool) -> None:
    kind = wide(model_type).kind
    for both in ranks2.run(answer_both_ways, model_type, kind, timeout=240):
        assert_alike(both)
        assert len(both[0]) in (2, 8)


FEW = 50
"""These models are smaller."""


def classify_both_ways(kind: str, clip: Path) -> Both:
    """With a head of classes. An engine cuts all weights, and so does this: none of these models is
    loaded in parts."""
    ranks = start_ranks(60)
    case = dual_case(LoRA(rank=2), clip) if kind == "DualEncoder" else encoder_case(kind)
    models = [case.make(), case.make()]
    deepspeed.zero.Init(module=models[1], dtype=torch.float32)
    questions = [(case.batch, GREEDY)] * (1 + 2 * ranks.global_rank)
    return both_ways(models, questions, ranks, FEW)


@pytest.mark.parametrize("kind", ["CrossModal", "JointEncoder", "DualEncoder"])
def test_models_that_classify(kind: str, ranks2: RankPool, tmp_path: Path) -> None:
    clip = save_clip(tmp_path)  # only a first rank writes what transformers saves
    results = ranks2.run(classify_both_ways, kind, clip, timeout=240)
    for rank, both in enumerate(results):
        assert_alike(both)
        assert len(both[0]) == len(results[0][0]) * (1 + 2 * rank)
