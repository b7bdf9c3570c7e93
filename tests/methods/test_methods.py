"""What every method keeps, on every backbone, and what each one computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys.method_cases import FAMILIES, METHOD_CASES, PAIRS, Toy, is_idle, methods_of_case
from tests.toys.models import TASKS, backbone, batch, build, shake
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.methods import (
    IA3,
    VLPET,
    Adapter,
    BitFit,
    Hyperformer,
    LoRA,
    Method,
    PromptTuning,
)
from vlds.models.methods.compacter import phm
from vlds.models.methods.context import BatchContext
from vlds.models.methods.host import (
    CROSS_ATTENTION,
    Host,
    zero_at_first,
)
from vlds.recipe.build import build as built


@pytest.mark.sampled(10)
@PAIRS
def test_every_weight_that_trains_gets_a_gradient(
    name: str, family: type[Backbone], tmp_path: Path
) -> None:
    model = build(backbone(family, tmp_path), methods_of_case(name)).eval()
    examples = replace(batch(), boxes=torch.rand(3, 9, 4))
    model(examples, torch.ones(4)).loss.backward()
    named = dict(model.named_parameters())
    trained = {n for n, p in named.items() if p.requires_grad and not is_idle(n)}
    unmoved = zero_at_first(model)
    for parameter in trained:
        assert named[parameter].grad is not None, parameter
        zero = not named[parameter].grad.any()
        assert zero == (parameter in unmoved), parameter
    assert all(p.grad is None for n, p in named.items() if n not in trained)


@pytest.mark.sampled(24)
@PAIRS
def test_bf16_trains(name: str, family: type[Backbone], tmp_path: Path) -> None:
    """Activations, extensions and gradients keep the precision; the loss stays near the other."""
    source, methods = backbone(family, tmp_path), methods_of_case(name)
    exact = build(source, methods).eval()
    model = build(source, methods).to(torch.bfloat16).eval()
    loss = model(batch(), torch.ones(4)).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact(batch(), torch.ones(4)).loss.item(), rel=0.05)
    gradients = [p.grad for n, p in model.named_parameters() if p.requires_grad and not is_idle(n)]
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients)


@pytest.mark.sampled(10)
@PAIRS
def test_recomputed_layers_give_the_same_gradients(
    name: str, family: type[Backbone], tmp_path: Path
) -> None:
    source, methods = backbone(family, tmp_path, dropout=0.0), methods_of_case(name)
    if not methods["method"].recomputable:
        with pytest.raises(ValueError, match="does not go with"):
            build(source, methods, activation_checkpointing=True)
        return
    if isinstance(methods["method"], LoRA):
        methods["method"] = replace(methods["method"], dropout=0.0)
    found = []
    for recompute in (False, True):
        model = build(source, methods, activation_checkpointing=recompute).train()
        model(batch(), torch.ones(4)).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][key], atol=1e-6), key


@torch.no_grad()
def test_few_rows_and_many_give_the_same_product() -> None:
    """A sum of Kronecker products, built for many rows and not for few."""
    generator = torch.Generator().manual_seed(0)
    draw = [
        torch.randn(s, generator=generator).double() for s in ((2, 2, 2), (2, 8, 3), (6,), (20, 16))
    ]
    rule, blocks, bias, rows = draw
    whole = sum(torch.kron(a, b) for a, b in zip(rule, blocks, strict=True))
    expected = rows @ whole + bias
    # Of two tasks, the second one's numbers are negative, but for the rule, which they share.
    sign = torch.tensor([1.0, -1.0]).double()[:, None]
    weights = [rule[None], blocks * sign[..., None, None], bias * sign]
    for number in (20, 7):
        both = phm(torch.stack([rows[:number], rows[:number]]), *weights)
        assert (both - expected[:number] * sign[..., None]).abs().max() < 1e-12


@pytest.mark.sampled(4)
@PAIRS
def test_counts_follow_the_formula(name: str, family: type[Backbone], tmp_path: Path) -> None:
    expected = METHOD_CASES[name].num_trained
    counts = build(backbone(family, tmp_path), methods_of_case(name)).count_parameters()
    assert expected in (None, counts.by_part["method"].trainable)


@pytest.mark.sampled(9)
@PAIRS
def test_methods_that_begin_as_the_frozen_model(
    name: str, family: type[Backbone], tmp_path: Path
) -> None:
    source = backbone(family, tmp_path)
    frozen, tuned = build(source).eval(), build(source, methods_of_case(name)).eval()
    with torch.no_grad():
        for key, tensor in dict(tuned.unique_state()).items():
            if key in (state := dict(frozen.unique_state())):
                tensor.copy_(state[key])
        losses = [m(batch(), torch.ones(4)).token_nll_sum for m in (tuned, frozen)]
    if METHOD_CASES[name].starts_frozen:
        assert torch.equal(*losses)


def test_which_biases_train(tmp_path: Path) -> None:
    """All of BART's and no weight; on T5 the relative position biases and, if asked, new ones."""
    model = build(backbone(Bart, tmp_path), {"biases": BitFit()})
    trained = {name for name in model.trained_by if not name.startswith("visual_embedding.")}
    own = {name for name, _ in model.named_parameters() if name.startswith("backbone.")}
    assert trained == {name for name in own if name.endswith(".bias")}
    with pytest.raises(ValueError, match=r"32 linear layers of T5.* have no bias .*add_biases"):
        build(backbone(T5, tmp_path), {"biases": BitFit()})
    model = build(backbone(T5, tmp_path), {"biases": BitFit(add_biases=True)})
    added = [name for name in model.trained_by if ".extensions." in name]
    assert len(added) == 32
    assert sum("relative_attention_bias" in name for name in model.trained_by) == 2
    model = build(backbone(T5, tmp_path), {"lora": LoRA(rank=4)})
    assert sum("relative_attention_bias" in name for name in model.trained_by) == 2


LADDER = BitFit(
    add_biases=True,
    add_norm_and_head_biases=True,
    init="ladder_side_tuning",
    train_position_biases=False,
)


def test_the_biases_of_ladder_side_tuning_begin_as_there(tmp_path: Path) -> None:
    """Attention and head are drawn from U(-1/sqrt(in), 1/sqrt(in)); the others begin at 0."""
    model = build(backbone(T5, tmp_path), {"biases": LADDER})
    for name, parameter in model.named_parameters():
        if ".extensions." in name:
            if "Attention" in name or "lm_head" in name:
                assert 0 < parameter.abs().max() <= 1 / math.sqrt(Toy.width), name
                assert parameter.std() > 0.3 / math.sqrt(Toy.width), name
            else:
                assert not parameter.any(), name


@FAMILIES
def test_initial_weights_are_the_originals(family: type[Backbone], tmp_path: Path) -> None:
    """N(0, 0.02) and zero biases on BART; on T5 PyTorch's default of a linear layer, far from the
    identity."""
    model = build(backbone(family, tmp_path), methods_of_case("Adapter per task"))
    parts: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if ".extensions." in name:
            parts.setdefault(name.rsplit(".", 1)[1], []).append(parameter.detach().flatten())
    found = {name: torch.cat(tensors) for name, tensors in parts.items()}
    for name, inputs in (("down", 16), ("up", 4)):
        weight, bias = found[f"{name}_weight"], found[f"{name}_bias"]
        if family is Bart:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not bias.any()
        else:
            bound = 1 / math.sqrt(inputs)
            for tensor in (weight, bias):
                assert tensor.abs().max().item() <= bound
                assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.sampled(7)
@PAIRS
def test_merging_keeps_the_output(name: str, family: type[Backbone], tmp_path: Path) -> None:
    """The merged model is what a model of the plainer methods is, and computes the same; or the
    method says why it cannot merge."""
    source, case = backbone(family, tmp_path), METHOD_CASES[name]
    method = case.method
    model = build(source, {"method": method}, seed=1).eval()
    shake(model)
    reason = case.refused.get(f"{family.__name__} merge") or case.refused.get("merge")
    if type(method).merge is Method.merge:
        reason = reason or f"{type(method).__name__} computes what no plain layer computes"
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            method.merge("method", model.backbone, TASKS)
        return
    with torch.no_grad():
        before = model.logits(batch())
        left = method.merge("method", model.backbone, TASKS)
        after = model.logits(batch())
    assert (after - before).abs().max() < 1e-6 * before.abs().max()
    assert tuple(map(type, left.values())) == case.merged
    plain = build(source, dict(left), seed=2)
    shapes = {key: tensor.shape for key, tensor in plain.unique_state()}
    assert {key: tensor.shape for key, tensor in model.unique_state()} == shapes
    if left:
        plain.load_state_dict(model.state_dict())
        assert torch.equal(plain.eval().logits(batch()), after)


def test_the_order_of_folding(tmp_path: Path) -> None:
    """What stands nearer to the weights is folded first."""
    methods: dict[str, Method] = {
        "factors": IA3(),
        "updates": LoRA(rank=2, roles=["attn_v", "ffn_out"], train_biases=False),
    }
    for order in (["factors", "updates"], ["updates", "factors"]):
        chosen = {name: methods[name] for name in order}
        model = build(backbone(T5, tmp_path), chosen).eval()
        shake(model)
        with pytest.raises(ValueError, match=f"{order[0]} (stands between {order[1]}|may read)"):
            methods[order[1]].merge(order[1], model.backbone, TASKS)


def test_impossible_fields() -> None:
    with pytest.raises(ValueError, match="reduction: got 0"):
        built(Adapter, {"reduction": 0})
    with pytest.raises(ValueError, match="sharing: got multiple for the vision encoder"):
        Adapter(part="vision", sharing="multiple")
    with pytest.raises(ValueError, match="one set of weights per task for the vision encoder"):
        Hyperformer(part="vision")
    with pytest.raises(ValueError, match="add_norm_and_head_biases: got true for the vision enc"):
        BitFit(part="vision", add_norm_and_head_biases=True)
    with pytest.raises(ValueError, match="init: got ladder_side_tuning, but no biases are added"):
        BitFit(init="ladder_side_tuning")
    with pytest.raises(ValueError, match=r"of\.attention: got false, and gates stand behind"):
        VLPET(of=Adapter(attention=False))
    with pytest.raises(ValueError, match="part: PromptTuning stands before text"):
        PromptTuning(part="vision")


def test_a_bottleneck_without_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reduction: 32 leaves nothing of a layer 16 wide"):
        build(backbone(T5, tmp_path), {"method": Adapter(reduction=32)})


@pytest.mark.sampled(15)
@pytest.mark.parametrize("name", METHOD_CASES)
def test_a_role_that_is_needed_and_missing_is_an_error(name: str, tmp_path: Path) -> None:
    """Of every role, a method does without, or says that it cannot, or has declared it optional."""
    method = METHOD_CASES[name].method
    source = backbone(Bart, tmp_path)
    roles = source.target_modules.paths
    optional = set(roles) if isinstance(method, BitFit) else {*CROSS_ATTENTION}

    with torch.device("meta"):
        plain = source.load(60, torch.float32).model

    def trained(paths: Mapping[str, tuple[str, ...]]) -> int:
        cures = {role: f"No {role}!" for role in roles}
        targets = replace(source.target_modules, paths=paths, cures=cures)
        with torch.device("meta"):
            host = Host("method", deepcopy(plain), targets, TASKS, BatchContext())
            return len(method.attach(host))

    whole = trained(roles)
    for role in roles:
        others = {key: paths for key, paths in roles.items() if key != role}
        try:
            changed = trained(others) != whole
        except ValueError as error:
            assert f"plays the role '{role}'" in str(error)  # noqa: PT017
        else:
            assert not changed or role in optional, role
