"""Methods of peft: its layers stand behind the model's own, which keep their names."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM

from tests.toys.causal import causal_recipe, save_model
from tests.toys.engines import start_deepspeed, whole_state
from tests.toys.image_text.rows import tiny
from tests.toys.method_cases import CASES as METHODS
from tests.toys.models import backbone, batch, build, saved_backbone, shake
from tests.toys.rank_pool import RankPool
from tests.toys.trained_runs import (
    built_run,
    convert,
    convert_code,
    logits_of,
    recipe_with,
    save_run,
    text_logits,
    trained_run,
    write_run,
)
from vlds.artifact import load_run
from vlds.convert.hf import fold_methods, write_hf
from vlds.convert.peft import PeftFolders
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter, BitFit, LoRA, Method, Peft, PromptTuning
from vlds.models.methods.host import is_own
from vlds.models.methods.peft_layers import RERUN
from vlds.models.partitioned import partitioned_loading
from vlds.models.roles import optimizer_rules
from vlds.recipe.config import Recipe

reason = "peft is not installed: pip install 'vlds[peft]'"
PeftModel: Any = pytest.importorskip("peft", reason=reason).PeftModel
CASES = {word: case.method for word, case in METHODS[Peft].items() if isinstance(case.method, Peft)}
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 2}
MORE: dict[str, dict[str, Any]] = {
    "C3A": {"block_size": 4},
    "DELORA": {"r": 2},
    "FOURIERFT": {"n_frequency": 10},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HIRA": {"r": 2},
    "HRA": {"r": 2},
    "MISS": {"r": 2},
    "WAVEFT": {"n_frequency": 10},
}
"""Types without a case in the contract tests, and settings."""
CASES |= {t: Peft(type=t, settings=MORE[t], roles=["attn_q", "attn_v"]) for t in MORE}
READS = "computes from the weights of .*, which first, behind it already, changes"
REFUSED = {"": READS, "HIRA": READS}
"""Cases that read a layer's weights -> what is said if something stands behind it already."""
FEW = pytest.mark.parametrize(
    "word",
    [pytest.param(w, marks=() if w in ("", "pissa", "HRA") else pytest.mark.slow) for w in CASES],
    ids=lambda word: word or "dora",
)
STAGE3: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


TEXT: dict[str, Tensor] = {
    "input_ids": torch.tensor([[3, 9, 21, 8, 5], [4, 17, 6, 29, 11]]),
    "decoder_input_ids": torch.tensor([[0, 7, 12], [0, 19, 4]]),
}


def recipe_of(method: Peft, world: Path, folder: Path) -> Recipe:
    """A recipe with a method beside T5."""
    return replace(recipe_with("T5", "Peft", world, folder), methods={"method": method})


def lora(**settings: Any) -> Peft:
    """A LoRA of peft beside query and value."""
    return Peft(type="LORA", settings=LORA | settings, roles=["attn_q", "attn_v"])


@FEW
def test_the_backbone_keeps_its_names_and_sources(word: str, tmp_path: Path) -> None:
    source = saved_backbone(T5, tmp_path)
    plain, tuned = build(source), build(source, {"method": CASES[word]})
    before, after = dict(plain.unique_state()), dict(tuned.unique_state())
    own = {name for name in after if is_own(name)}
    assert own == before.keys()
    changed = {name for name in own if not torch.equal(before[name], after[name])}
    assert changed == tuned.changed
    assert bool(changed) == (word == "pissa")
    assert tuned.sources.names == plain.sources.names - changed
    assert not hasattr(tuned.backbone, "peft_config")
    assert all(".extensions.method.tuner." in name for name in after.keys() - own)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("word", CASES)
def test_shapes_have_the_types_of_weights(word: str, tmp_path: Path) -> None:
    source, methods = backbone(T5, tmp_path), {"method": CASES[word]}
    whole = build(source, methods, dtype=torch.bfloat16)
    with torch.device("meta"):
        shapes = build(source, methods, dtype=torch.bfloat16)
    types = {name: p.dtype for name, p in whole.named_parameters()}
    assert {name: p.dtype for name, p in shapes.named_parameters()} == types


@FEW
def test_the_seed_and_the_name_draw_each_weight(word: str, tmp_path: Path) -> None:
    """Whatever was drawn before, and whatever else the model has."""
    source = saved_backbone(T5, tmp_path)
    first = dict(build(source, {"method": CASES[word]}, seed=3).unique_state())
    torch.manual_seed(99)
    other = build(source, {"before": Adapter(), "method": CASES[word]}, seed=3)
    second = dict(other.unique_state())
    for name, tensor in first.items():
        if ".extensions.method." in name or name in other.changed:
            assert torch.equal(tensor, second[name]), name


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_peft_opens_a_changed_backbone_that_was_exported(
    start: str, world: Path, tmp_path: Path
) -> None:
    """The exported folder holds the backbone as the start has changed it, and peft's the rest."""
    run = trained_run(recipe_of(lora(init_lora_weights=start), world, tmp_path), seed=1)
    expected, folder = text_logits(run, 0, **TEXT), save_run(run)
    assert convert_code("peft", "--run", folder, "--out", tmp_path / "early") == 2
    convert("hf", "--run", folder, "--out", tmp_path / "hf", "--verify")
    assert torch.equal(text_logits(load_run(tmp_path / "hf"), 0, **TEXT), expected)
    words = ["--run", tmp_path / "hf", "--base", "hf", "--out", tmp_path / "peft", "--verify"]
    convert("peft", *words)
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
    plain = base(**TEXT).logits
    theirs = PeftModel.from_pretrained(base, tmp_path / "peft").eval()(**TEXT).logits
    assert (theirs - expected).abs().max() < 2e-6 * expected.abs().max()
    assert (theirs - plain).abs().max() > 1e-4 * expected.abs().max()


def opened_logits(run: Path) -> Tensor:
    """Logits of a run that a new process opens."""
    return logits_of(load_run(run, torch.float32).model)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("word", ["pissa", "vera"])
def test_a_fresh_process_gives_the_same_logits(
    word: str, world: Path, ranks1: RankPool, tmp_path: Path
) -> None:
    run = trained_run(recipe_with("T5", f"Peft {word}", world, tmp_path), seed=1)
    expected = logits_of(run.model)
    (found,) = ranks1.run(opened_logits, save_run(run))
    assert torch.equal(found, expected)


@pytest.mark.sampled(2)
@torch.no_grad()
@pytest.mark.parametrize(
    "copied",
    [deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize(
    "method",
    [
        CASES["oft"],
        CASES["vera"],
        CASES["norms"],
        BitFit(add_biases=True, add_norm_and_head_biases=True),
    ],
    ids=["oft", "vera", "norms", "BitFit"],
)
def test_a_copy_has_its_own_weights(
    method: Method, copied: Callable[[JointModel], JointModel], tmp_path: Path
) -> None:
    model = build(backbone(T5, tmp_path), {"method": method}).eval()
    shake(model)
    logits = model.logits(batch())
    copy = copied(model)
    assert torch.equal(copy.logits(batch()), logits)
    shake(copy)
    for name in model.state_dict():
        if is_own(name) and name.startswith("backbone."):
            copy.state_dict()[name].mul_(1.5)
    assert torch.equal(model.logits(batch()), logits)
    assert not torch.equal(copy.logits(batch()), logits)


@pytest.mark.parametrize("word", ["", "lokr", "norms"])
def test_weight_decay(word: str, tmp_path: Path) -> None:
    """Matrices decay; factors, magnitudes and norms do not."""
    model = build(backbone(T5, tmp_path), {"method": CASES[word]})
    for name, rule in optimizer_rules(model).items():
        if ".extensions." in name:
            shape = model.get_parameter(name).shape
            assert rule.decays == (sum(size > 1 for size in shape) > 1), name


@FEW
def test_merging_and_peft(word: str, world: Path, tmp_path: Path) -> None:
    """peft opens the folder with the same outputs; merged layers give them too."""
    run = trained_run(recipe_of(CASES[word], world, tmp_path), seed=1)
    expected = text_logits(run, 0, **TEXT)
    (tmp_path / "hf").mkdir()
    write_hf(run, tmp_path / "hf")
    if not CASES[word].changes_base:
        (tmp_path / "peft").mkdir()
        PeftFolders(run).write(tmp_path / "peft")
        base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
        with torch.no_grad():
            plain = base(**TEXT).logits
            theirs = PeftModel.from_pretrained(base, tmp_path / "peft").eval()(**TEXT).logits
        assert (theirs - expected).abs().max() < 2e-6 * expected.abs().max()
        assert (theirs - plain).abs().max() > 1e-4 * expected.abs().max()
    merged = text_logits(fold_methods(run), 0, **TEXT)
    assert (merged - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_an_output_layer(model_type: str, world: Path, tmp_path: Path) -> None:
    """Qwen2's is tied to the token table: folding would change both."""
    save_model(tmp_path / "source", model_type)
    recipe = causal_recipe(
        tmp_path, world, tmp_path / "run", path=str(tmp_path / "source"), train_projector=False
    )
    settings = LORA | {"target_modules": ["q_proj", "lm_head"]}
    recipe = replace(recipe, methods={"method": Peft(type="LORA", settings=settings)})
    run = write_run(recipe, seed=1)
    convert("peft", "--run", run, "--out", tmp_path / "peft", "--verify")
    pissa = Peft(type="LORA", settings=settings | {"init_lora_weights": "pissa"})
    changed = replace(recipe, methods={"method": pissa})
    if model_type == "qwen2":
        with pytest.raises(ValueError, match="weights are the token table's too, and folding"):
            convert("merge", "--run", run, "--out", tmp_path / "merged")
        with pytest.raises(ValueError, match="pissa takes a part out of the output layer's"):
            built_run(changed)
    else:
        convert("merge", "--run", run, "--out", tmp_path / "merged", "--verify")
        built_run(changed)


def test_what_peft_cannot_fold_is_told(world: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        Peft(type="LORA", roles=["attn_q"], settings=LORA | {"lora_bias": True}), world, tmp_path
    )
    with pytest.raises(ValueError, match="the base layer has no bias; use `vlds convert hf`"):
        fold_methods(trained_run(recipe, seed=1))


@FEW
def test_behind_another_method(word: str, tmp_path: Path) -> None:
    """What stands behind a layer already still acts, and folding the two in their order changes no
    output; or the order is refused."""
    methods: dict[str, Method] = {
        "first": LoRA(rank=2, roles=["attn_q"], train_biases=False),
        "method": replace(CASES[word], roles=["attn_q"]),
    }
    refusal = "computes .* again, without first" if CASES[word].type in RERUN else REFUSED.get(word)
    if refusal is not None:
        if word != "norms":
            with pytest.raises(ValueError, match=refusal):
                build(backbone(T5, tmp_path), methods)
        return
    model = build(backbone(T5, tmp_path), methods).eval()
    shake(model)
    model(batch(), torch.ones(4)).loss.backward()
    for name, parameter in model.named_parameters():
        if ".extensions.first." in name:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    assert folding_error(model, methods) < 1e-5


@torch.no_grad()
def folding_error(model: JointModel, methods: dict[str, Method]) -> float:
    """How far logits move, relative to the largest, when all methods are folded in their order."""
    expected = model.eval().logits(batch())
    for name, method in methods.items():
        assert method.merge(name, model.backbone, ["a", "b"]) == {}
    return float((model.logits(batch()) - expected).abs().max() / expected.abs().max())


def test_a_part_that_sees() -> None:
    built = tiny("llava").build({"eyes": replace(lora(use_dora=True), part="vision")})
    named = [name for name, by in built.trained_by.items() if by == "eyes"]
    assert named
    assert all("vision" in name for name in named)


def test_target_modules_of_the_settings(tmp_path: Path) -> None:
    """As peft reads them: the ends of paths, or a pattern."""
    source = backbone(Bart, tmp_path)
    by_role = build(source, {"method": lora()})
    ends = Peft(
        type="LORA", settings=LORA | {"target_modules": ["self_attn.q_proj", "self_attn.v_proj"]}
    )
    assert build(source, {"method": ends}).trained_by == by_role.trained_by
    ada = Peft(type="ADALORA", settings={"init_r": 2, "target_r": 1, "target_modules": ["q_proj"]})
    assert build(source, {"method": ada}).trained_by
    with pytest.raises(ValueError, match=r"methods.method: .*nothing"):
        build(
            source, {"method": Peft(type="LORA", settings=LORA | {"target_modules": ["nothing"]})}
        )


HOSTILE: dict[str, dict[str, Any]] = {
    "a pattern that backtracks": {"target_modules": r"([a-z._0-9]+)+\$"},
    "no pattern": {"target_modules": "("},
    "many names": {"target_modules": [f"layer{n}" for n in range(300_000)]},
    "a rank's pattern": {"target_modules": ["q_proj"], "rank_pattern": {r"([a-z._0-9]+)+\$": 2}},
    "many ranks": {
        "target_modules": ["q_proj"],
        "alpha_pattern": {f"layer{n}": 2 for n in range(300_000)},
    },
    "an exclusion": {"target_modules": ["q_proj"], "exclude_modules": r"(\w+\.?)+\$"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_layers_cannot_take_long(name: str, tmp_path: Path) -> None:
    method = Peft(type="LORA", settings=LORA | HOSTILE[name])
    looking = r"settings: looking for layers by their|Target modules .* not found in the base model"
    with pytest.raises(ValueError, match=rf"^methods\.method: ({looking})") as raised:
        build(backbone(Bart, tmp_path), {"method": method})
    assert len(str(raised.value)) < 2000


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="type: got IA3; use vlds' own IA3"):
        Peft(type="IA3", roles=["attn_q"])
    with pytest.raises(ValueError, match="type: got LORAH; did you mean 'LORA'"):
        Peft(type="LORAH", roles=["attn_q"])
    with pytest.raises(ValueError, match=r"settings.use_dorra: .* did you mean 'use_dora'"):
        lora(use_dorra=True)
    with pytest.raises(ValueError, match=r"settings\.bias: got 'all'; name the method BitFit"):
        lora(bias="all")
    with pytest.raises(ValueError, match=r"settings\.coft: got True; it changes weights in the"):
        Peft(type="OFT", settings={"coft": True}, roles=["attn_q"])
    with pytest.raises(ValueError, match="init_lora_weights: got loftq; choose true, false"):
        lora(init_lora_weights="loftq")
    with pytest.raises(ValueError, match=r"roles: name roles.* and not both"):
        Peft(type="LORA", settings=LORA)
    with pytest.raises(ValueError, match=r"roles: name roles.* and not both"):
        lora(target_modules=["q"])
    with pytest.raises(ValueError, match=r"methods.method: .*shared is an embedding"):
        build(
            backbone(T5, tmp_path),
            {"method": Peft(type="LORA", settings=LORA | {"target_modules": "shared"})},
        )
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'vlds\[peft\]'"):
        lora()


def test_other_methods_layers_are_no_targets(tmp_path: Path) -> None:
    methods: dict[str, Method] = {
        "first": PromptTuning(hidden_dim=5),
        "second": Peft(type="LORA", settings=LORA | {"target_modules": r"extensions\.first\..*"}),
    }
    with pytest.raises(ValueError, match=r"methods.second: target_modules mean extensions.first"):
        build(backbone(T5, tmp_path), methods)


def load_in_parts(source: Backbone, method: Peft) -> dict[str, Any]:
    """Load the backbone partitioned; the state, and gradients of one batch."""
    import deepspeed

    start_deepspeed()
    with partitioned_loading(STAGE3):
        model = build(source, {"method": method}, seed=3)
        parted = [n for n, p in model.backbone.named_parameters() if hasattr(p, "ds_tensor")]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    engine = deepspeed.initialize(
        model=model, model_parameters=trained, optimizer=optimizer, config=STAGE3
    )[0]
    state = whole_state(model)
    model.eval()
    loss = engine(batch(), torch.ones(4)).loss
    engine.backward(loss)
    gradients = {
        n: deepspeed.utils.safe_get_full_grad(p).cpu()
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    engine.destroy()
    return {
        "state": state, "gradients": gradients, "loss": loss.item(), "parted": parted,
        "changed": model.changed,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.sampled(3)
@FEW
def test_a_partitioned_backbone(word: str, ranks2: RankPool, tmp_path: Path) -> None:
    """Stage 3 gives the same weights, loss and gradients as a whole model."""
    source = saved_backbone(T5, tmp_path)
    whole = build(source, {"method": CASES[word]}, seed=3).eval()
    loss = whole(batch(), torch.ones(4)).loss
    loss.backward()
    expected: dict[str, nn.Parameter] = dict(whole.named_parameters())
    for result in ranks2.run(load_in_parts, source, CASES[word], timeout=60):
        assert result["parted"]
        assert result["changed"] == whole.changed
        assert result["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for name, tensor in whole.unique_state():
            assert torch.equal(result["state"][name], tensor), name
        for name, gradient in result["gradients"].items():
            assert torch.allclose(gradient, expected[name].grad, rtol=1e-3, atol=1e-5), name
