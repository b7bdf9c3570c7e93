"""Every method in every layout: there and back bit for bit, or refused with the reason."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import vlds.methods
from tests.convert.runs import CASES, METHODS, assert_same, logits_of, made_run, recipe_with
from vlds.artifact import LoadedRun, load_run
from vlds.convert.adapter_folders import gathered, plain, write_folders
from vlds.convert.adapters import adapters_layout
from vlds.convert.foreign_files import read_state_dict
from vlds.convert.hf import fold_methods, write_hf
from vlds.convert.peft import peft_layout
from vlds.convert.reference import check_expressible, from_reference, to_reference
from vlds.convert.target import Target, scrub

REFERENCE = {
    "full", "bitfit", "adapter", "adapters, half", "compacter", "compacters", "thin compacter",
    "low rank", "hyperformer", "hyperformer, kinds", "prompts", "decoder prompts",
}  # fmt: skip
BOTTLENECKS = {"adapter", "adapters, half", "compacter", "compacters", "thin compacter"}
LAYOUTS = {
    "reference": {
        "T5": REFERENCE - {"bitfit", "decoder prompts"},
        "Bart": REFERENCE | {"bitfit, new", "lora", "loras"},
        "FLAN": set(),
    },
    "peft": {
        "T5": {"lora", "loras", "lora, some", "ia3", "ia3s", "bare prompts", "prompts"},
        "Bart": {"lora", "loras", "lora, some", "ia3", "ia3s"},
        "FLAN": {"lora", "ia3", "bare prompts"},
    },
    "adapters": {"T5": BOTTLENECKS, "Bart": BOTTLENECKS, "FLAN": BOTTLENECKS},
}
"""What each layout can express."""
REASONS = {
    ("reference", "bitfit, new"): "gives no layer a new bias",
    ("reference", "bitfit, all"): "gives no layer a new bias",
    ("reference", "lora"): "no LoRA on T5",
    ("reference", "loras"): "no LoRA on T5",
    ("reference", "lora, some"): "no LoRA on T5|has LoRA at attn_q, attn_v, .* nowhere else",
    ("reference", "ia3"): "original code has no IA3",
    ("reference", "ia3s"): "original code has no IA3",
    ("reference", "bare prompts"): r"makes prompts with a network \(hidden_dim\)",
    ("reference", "prefixes"): "original code has no PrefixTuning",
    ("peft", "full"): "holds one method beside the backbone, the recipe has none",
    ("peft", "bitfit"): "holds one method beside the backbone, the recipe has none",
    ("peft", "bitfit, new"): "gives no layer a new bias|the recipe has none",
    ("peft", "bitfit, all"): "gives no layer a new bias",
    ("peft", "adapter"): "peft has no Adapter; `vlds convert adapters`",
    ("peft", "adapters, half"): "peft has no Adapter; `vlds convert adapters`",
    ("peft", "compacter"): "peft has no Compacter",
    ("peft", "compacters"): "peft has no Compacter",
    ("peft", "thin compacter"): "peft has no Compacter",
    ("peft", "low rank"): "`vlds convert merge`, then `vlds convert adapters`",
    ("peft", "hyperformer"): "`vlds convert merge`, then `vlds convert adapters`",
    ("peft", "hyperformer, kinds"): "`vlds convert merge`, then `vlds convert adapters`",
    ("peft", "prompts"): "on BART move the text's",
    ("peft", "bare prompts"): "peft's prompts have positions, and on BART move the text's",
    ("peft", "decoder prompts"): "no prompts that run through the decoder alone",
    ("peft", "prefixes"): "prefixes before the decoder's keys alone",
    ("adapters", "full"): "holds one method beside the backbone, the recipe has none",
    ("adapters", "bitfit"): "holds one method beside the backbone, the recipe has none",
    ("adapters", "bitfit, new"): "adapters has no BitFit|the recipe has none",
    ("adapters", "bitfit, all"): "adapters has no BitFit",
    ("adapters", "low rank"): "`vlds convert merge` makes it Adapter",
    ("adapters", "hyperformer"): "`vlds convert merge` makes it Adapter",
    ("adapters", "hyperformer, kinds"): "`vlds convert merge` makes it Adapter",
    ("adapters", "lora"): "LoRA has `vlds convert peft`",
    ("adapters", "loras"): "LoRA has `vlds convert peft`",
    ("adapters", "lora, some"): "LoRA has `vlds convert peft`",
    ("adapters", "ia3"): "IA3 has `vlds convert peft`",
    ("adapters", "ia3s"): "IA3 has `vlds convert peft`",
    ("adapters", "prompts"): "adapters has no PromptTuning",
    ("adapters", "bare prompts"): "adapters has no PromptTuning",
    ("adapters", "decoder prompts"): "adapters has no DecoderPromptTuning",
    ("adapters", "prefixes"): "adapters has no PrefixTuning",
}
NOT_FOLDED = {
    ("T5", "adapter"): "Adapter computes what no plain layer computes",
    ("Bart", "adapter"): "Adapter computes what no plain layer computes",
    ("FLAN", "adapter"): "Adapter computes what no plain layer computes",
    ("T5", "adapters, half"): "Adapter computes what no plain layer computes",
    ("Bart", "adapters, half"): "Adapter computes what no plain layer computes",
    ("T5", "bitfit, new"): "have none in their own class",
    ("T5", "bitfit, all"): "have none in their own class",
    ("Bart", "bitfit, all"): "have none in their own class",
    ("T5", "loras"): "one layer cannot hold the updates of several tasks",
    ("Bart", "loras"): "one layer cannot hold the updates of several tasks",
    ("T5", "ia3s"): "one layer cannot hold the factors of several tasks",
    ("Bart", "ia3s"): "one layer cannot hold the factors of several tasks",
}
NOTHING_TO_COMPUTE = {"full", "bitfit", "bitfit, new", "bare prompts"}
Pair = tuple[str, str, LoadedRun, LoadedRun]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def pair(request: pytest.FixtureRequest, world: Path, tmp_path: Path) -> Pair:
    """Backbone, method, and two runs of that recipe with other weights."""
    family, name = request.param
    recipe = recipe_with(family, name, world, tmp_path)
    return family, name, made_run(recipe, seed=1), made_run(recipe, seed=2)


def test_every_method_of_the_registry_is_here() -> None:
    """A new method must say which layouts can express it."""
    covered = {type(make()) for make in METHODS.values()}
    shipped = {getattr(vlds.methods, name) for name in vlds.methods.__all__}
    assert covered == {method for method in shipped if not inspect.isabstract(method)}


def refused(layout: str, pair: Pair) -> bool:
    """Whether the layout cannot express the method; then it says why."""
    family, name, first, _ = pair
    if name in LAYOUTS[layout][family]:
        return False
    reason = f"methods.*({REASONS.get((layout, name))})"
    if (layout, family) == ("reference", "FLAN"):
        reason = (
            "backbone: its output head is a tensor of its own, .*`vlds convert hf` keeps the head"
        )
    with pytest.raises(ValueError, match=reason):
        CHECKS[layout](first)
    return True


CHECKS = {
    "reference": check_expressible,
    "peft": lambda run: peft_layout(run, None),
    "adapters": adapters_layout,
}


def test_reference_there_and_back(pair: Pair, tmp_path: Path) -> None:
    """The original's layout holds all but the vision encoder."""
    if refused("reference", pair):
        return
    _, _, first, second = pair
    check_expressible(first)
    tasks = list(first.recipe.tasks)
    torch.save(to_reference(first), tmp_path / "LAST.pth")
    scrub(second.model)
    target = Target(second, set())
    target.fill(from_reference(read_state_dict(tmp_path / "LAST.pth"), second.model, tasks), Path())
    assert_same(dict(second.model.unique_state()), dict(first.model.unique_state()))


@pytest.mark.parametrize("layout", ["peft", "adapters"])
def test_libraries_there_and_back(layout: str, pair: Pair, tmp_path: Path) -> None:
    """Their layouts hold the method alone."""
    if refused(layout, pair):
        return
    layout_of = {"peft": lambda run: peft_layout(run, None), "adapters": adapters_layout}[layout]
    first, second = plain(pair[2]), plain(pair[3])
    theirs = {name: t.clone() for name, t in second.model.unique_state()}
    (tmp_path / "files").mkdir()
    write_folders(first, layout_of(first), tmp_path / "files")
    found = gathered(tmp_path / "files", layout_of(second), second)
    own = {n: t for n, t in first.model.unique_state() if "extensions.method" in n}
    assert_same(found, own)
    Target(second, set()).fill(found, Path())
    assert_same(dict(second.model.unique_state()), theirs | own)
    assert any(not torch.equal(theirs[name], tensor) for name, tensor in own.items())


def test_hf_gives_the_same_outputs(pair: Pair, tmp_path: Path) -> None:
    _, _, first, second = pair
    (tmp_path / "out").mkdir()
    expected = logits_of(first.model)
    write_hf(first, tmp_path / "out")
    found = logits_of(load_run(tmp_path / "out").model)
    assert torch.equal(found, expected)
    assert not torch.equal(found, logits_of(second.model))


def test_folding_gives_the_same_outputs(pair: Pair) -> None:
    family, name, first, _ = pair
    if (reason := NOT_FOLDED.get((family, name))) is not None:
        with pytest.raises(ValueError, match=f"methods.method: .*{reason}"):
            fold_methods(first)
        return
    expected = logits_of(first.model)
    found = logits_of(fold_methods(first).model)
    tolerance = 0.0 if name in NOTHING_TO_COMPUTE else 1e-6
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
