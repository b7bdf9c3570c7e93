"""A weight's initial value depends only on the seed and its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toys.engines import start_deepspeed, whole_state
from tests.toys.models import (
    TASKS,
    backbone,
    build,
    hf_config,
    saved_backbone,
)
from tests.toys.rank_pool import RankPool
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.build import ModelSetup, attach_methods, build_model, build_parts
from vlds.models.kinds.joint import JointModel
from vlds.models.loading.drawn_weights import Tape
from vlds.models.methods import (
    IA3,
    Adapter,
    BitFit,
    Compacter,
    DecoderPromptTuning,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Method,
    PrefixTuning,
    PromptTuning,
)
from vlds.models.methods.host import Host, LinearExtension
from vlds.models.partitioned import partitioned_loading
from vlds.models.vision import ConvNet

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])

VISION = ConvNet(image_size=12, grid=3, widths=[4, 8])


@dataclass(frozen=True, kw_only=True)
class Noise(Method):
    """A user's method with its own kind of random values."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        trained: list[nn.Parameter] = []
        for linear in host.linears("attn_q").values():
            module = NoiseModule(linear)
            host.extend_linear(linear, module)
            trained += module.parameters()
        return trained


class NoiseModule(LinearExtension):
    """A table, a layer, and a fixed direction that is not a parameter."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        options: dict[str, Any] = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.table = nn.Parameter(0.3 * torch.randn(6, linear.out_features, **options) + 1)
        self.layer = nn.Linear(linear.in_features, linear.out_features, **options)
        square = nn.init.orthogonal_(torch.empty(linear.out_features, linear.in_features), gain=2.0)
        self.layer.weight.data.copy_(square)
        self.register_buffer("direction", torch.rand(linear.out_features, **options))
        self.start = nn.Parameter(self.table[0].detach().clone())

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return outputs + self.layer(inputs) * (self.table.mean(0) - self.start + self.direction)


def every_kind(family: type[Backbone]) -> dict[str, Method]:
    """A method of each kind."""
    methods: dict[str, Method] = {
        "adapter": Adapter(sharing="multiple", reduction=4, layer_norm_before=True),
        "identity": Adapter(reduction=2, init="identity"),
        "compacter": Compacter(reduction=4, rule="everywhere"),
        "low_rank": LowRankAdapter(reduction=4, sharing="half_shared_up"),
        "hyper": Hyperformer(reduction=4, task_dim=6, hidden_dim=5, projected_dim=4),
        "lora": LoRA(rank=2, sharing="multiple", train_biases=False),
        "ia3": IA3(sharing="multiple"),
        "bitfit": BitFit(add_biases=True),
        "prompts": PromptTuning(length=3, hidden_dim=5, sharing="multiple"),
        "prefixes": PrefixTuning(length=3, hidden_dim=5),
        "noise": Noise(),
    }
    if family is Bart:
        methods["decoder_prompts"] = DecoderPromptTuning(length=3, hidden_dim=5)
    return methods


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def sources(family: type[Backbone], folder: Path) -> dict[str, Backbone]:
    """Random weights, and a checkpoint with fewer words than the tokenizer."""
    saved = saved_backbone(family, folder / "saved")
    spread = {"embedding_std": 0.1} if family is T5 else {}
    return {"config": backbone(family, folder, **spread), "path": saved}


def model_of(source: Backbone, backwards: bool = False, **fields: Any) -> JointModel:
    """A model with all kinds of methods, in this order or reversed, and a random vision encoder."""
    methods = every_kind(type(source))
    if backwards:
        methods = dict(reversed(methods.items()))
    return build(source, methods, vision=VISION, **fields)


def built_on_a_rank(source: Backbone, stage: int) -> dict[str, Any]:
    """All tensors of a DeepSpeed model that is built after different random draws on each rank."""
    import deepspeed

    start_deepspeed()
    torch.manual_seed(torch.distributed.get_rank())
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    config = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": zero}
    with partitioned_loading(config):
        model = model_of(source, backwards=torch.distributed.get_world_size() == 2)
    trained = [p for p in model.parameters() if p.requires_grad]
    partitioned = sum(hasattr(p, "ds_tensor") for p in model.parameters())
    engine = deepspeed.initialize(
        model=model,
        model_parameters=trained,
        optimizer=torch.optim.AdamW(trained),
        config=config,
    )[0]
    state = whole_state(model)
    engine.destroy()
    return {"state": state, "partitioned": partitioned}


FAST = [("T5", "path", 3), ("Bart", "config", 2)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "kind", "stage"),
    [
        pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
        for case in product(("T5", "Bart"), ("config", "path"), (1, 2, 3))
    ],
)
def test_the_stage_and_the_ranks_change_nothing(
    name: str, kind: str, stage: int,
    ranks1: RankPool, ranks2: RankPool, ranks4: RankPool, tmp_path: Path,
) -> None:  # fmt: skip
    source = sources({"T5": T5, "Bart": Bart}[name], tmp_path)[kind]
    expected = dict(model_of(source).unique_state())
    pools = (ranks2,) if (name, kind, stage) in FAST else (ranks1, ranks2, ranks4)
    for pool in pools:
        for result in pool.run(built_on_a_rank, source, stage):
            assert (result["partitioned"] > 0) == (stage == 3 and kind == "path")
            assert result["state"].keys() == expected.keys()
            for key, tensor in expected.items():
                assert torch.equal(result["state"][key], tensor), key


def drawn_names(model: JointModel, other: JointModel) -> set[str]:
    """Tensors that differ between two models."""
    mine, others = everything(model), everything(other)
    assert mine.keys() == others.keys()
    return {name for name, tensor in mine.items() if not torch.equal(tensor, others[name])}


@pytest.mark.sampled(2)
@FAMILIES
def test_order_and_earlier_draws_change_nothing(family: type[Backbone], tmp_path: Path) -> None:
    for source in sources(family, tmp_path).values():
        first = model_of(source)
        torch.manual_seed(5)
        assert not drawn_names(first, model_of(source, backwards=True))
        alone = everything(build(source, {"lora": every_kind(family)["lora"]}, vision=VISION))
        others = everything(first)
        assert any("lora" in name for name in alone)
        for name, tensor in alone.items():
            assert torch.equal(tensor, others[name]), name


@FAMILIES
def test_another_seed_draws_every_random_tensor_otherwise(
    family: type[Backbone], tmp_path: Path
) -> None:
    """And no two tensors of a model are alike."""
    source = sources(family, tmp_path)["config"]
    first, second = model_of(source), model_of(source, seed=1)
    drawn, tensors = drawn_names(first, second), everything(first)
    for name, tensor in tensors.items():
        constant = tensor.float().std(correction=0) == 0
        assert constant != (name in drawn), name
    assert {name.split(".")[0] for name in drawn} == {"backbone", "vision", "visual_embedding"}
    assert any(name.endswith("noise.direction") for name in drawn)
    copies = {name for name in drawn if name.endswith("noise.start")}
    for name in copies:
        assert torch.equal(tensors[name], tensors[name.replace("start", "table")][0])
    firsts = [tensors[name].flatten()[:3] for name in drawn - copies if tensors[name].numel() > 2]
    # Ratios, because values of one generator differ by a factor only.
    assert len({tuple((first / first[0]).tolist()) for first in firsts}) == len(firsts)


@pytest.mark.parametrize("family", [Bart, pytest.param(T5, marks=pytest.mark.slow)])
def test_bf16_is_fp32_rounded(family: type[Backbone], tmp_path: Path) -> None:
    for source in sources(family, tmp_path).values():
        exact, rounded = model_of(source), model_of(source, dtype=torch.bfloat16)
        for name, tensor in everything(exact).items():
            found = everything(rounded)[name]
            assert torch.equal(found, tensor.to(found.dtype)), name


def moments(tensor: Tensor) -> tuple[float, float]:
    """Standard deviation and normalised fourth moment, which is 3 for normal values and 1.8 for
    uniform ones."""
    centred = tensor.double() - tensor.double().mean()
    std = centred.square().mean().sqrt().item()
    return std, (centred**4).mean().item() / std**4


@FAMILIES
def test_values_are_spread_as_the_constructors_spread_them(
    family: type[Backbone], tmp_path: Path
) -> None:
    """Compared with the same model as its constructors made it."""
    sizes = hf_config(family, 400) | {"d_model": 128}
    sizes |= {"d_kv": 16, "d_ff": 96} if family is T5 else {"encoder_ffn_dim": 96}
    file = tmp_path / "wide.json"
    file.write_text(json.dumps(sizes), encoding="utf-8")
    config = ModelSetup(
        kind=JointSeq2Seq(
            backbone=family(config=str(file), extra_tokens=0, visual_tokens=12),
            vision=ConvNet(image_size=12, grid=3, widths=[32, 64], add_mean=True),
        ),
        methods=every_kind(family),
    )
    drawn = everything(build_model(config, TASKS, torch.float32, range(400)))
    torch.manual_seed(1)
    left = build_parts(config, torch.float32, range(400))
    attach_methods(config, left, TASKS)
    large = 0
    for name, tensor in everything(left).items():
        if tensor.is_floating_point() and tensor.numel() > 1 and tensor.std() > 0:
            (std, fourth), (other, other_fourth) = moments(drawn[name]), moments(tensor)
            assert std == pytest.approx(other, rel=4 / tensor.numel() ** 0.5), name
            if tensor.numel() > 2000:
                assert fourth == pytest.approx(other_fourth, rel=0.15), name
                large += 1
        else:
            assert torch.equal(tensor, drawn[name]), name
    assert large > 60


# The tape records how random tensors were made, and repeats it.

SEED = 11


def replayed(tape: Tape, tensor: Tensor, seed: int = SEED) -> Tensor:
    """A tensor's values, with all that is drawn behind it under one seed after another."""
    place = tape.place_of(tensor)
    assert place is not None
    steps = tape.behind(place)
    draws = [number for number in steps if tape.steps[number].draws]
    return tape.replay(steps, place, {n: seed + count for count, n in enumerate(draws)})


def scaled() -> Tensor:
    return nn.Parameter(torch.randn(3, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]))


def padded() -> Tensor:
    return nn.Embedding(5, 4, padding_idx=2).weight


def orthogonal() -> Tensor:
    return nn.init.orthogonal_(torch.empty(4, 6))


def partly() -> Tensor:
    weight = torch.arange(12.0).view(3, 4).clone()
    weight[1:].normal_()
    return weight


def masked() -> Tensor:
    return torch.ones(40).masked_fill(torch.rand(40) < 0.5, 0.0)


def sliced() -> Tensor:
    return torch.randn(6, 4).chunk(2)[1]


def transposed() -> Tensor:
    return torch.randn(6, 4).T.contiguous()


ONE_DRAW: list[Callable[[], Tensor]] = [
    scaled, padded, orthogonal, partly, masked, sliced, transposed,
]  # fmt: skip


@pytest.mark.parametrize("make", ONE_DRAW)
def test_a_replay_is_what_the_seed_makes(make: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        torch.manual_seed(SEED)
        expected = make()
        with Tape() as tape:
            torch.randn(7)  # other draws before it change nothing
            tensor = make()
        assert not torch.equal(tensor, expected)
        assert torch.equal(replayed(tape, tensor), expected)
        assert not torch.equal(replayed(tape, tensor, SEED + 1), expected)


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (1.0, 2.0), (-100.0, 100.0)])
def test_a_truncated_normal_does_not_depend_on_what_was_drawn_before(
    low: float, high: float
) -> None:
    """Newer versions of torch make a number of draws that depends on the values."""
    torchs_own = nn.init._no_grad_trunc_normal_
    values = []
    for start in range(6):
        torch.manual_seed(start)
        with Tape() as tape:
            tensor = nn.init.trunc_normal_(torch.empty(100, 100), std=1.0, a=low, b=high)
        values.append(replayed(tape, tensor))
    assert nn.init._no_grad_trunc_normal_ is torchs_own
    assert all(torch.equal(other, values[0]) for other in values)
    expected = nn.init.trunc_normal_(torch.empty(100, 100), std=1.0, a=low, b=high)
    assert values[0].min() >= low
    assert values[0].max() <= high
    torch.testing.assert_close(values[0].mean(), expected.mean(), rtol=0, atol=0.05)
    torch.testing.assert_close(values[0].std(), expected.std(), rtol=0, atol=0.05)


def test_memory_that_was_freed_is_not_taken_for_another() -> None:
    with Tape() as tape:
        for _ in range(50):
            torch.randn(1000)
            assert tape.place_of(torch.ones(1000)) is None
