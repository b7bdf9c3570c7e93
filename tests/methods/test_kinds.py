"""What every method keeps on the kinds of models that Hugging Face's own forward pass runs, or why
it is refused there. `test_methods.py` has the same for encoder-decoders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from tests.toys.causal import kind_in, save_model
from tests.toys.image_text import TYPES
from tests.toys.image_text.claims import EXPERTS_ALONE
from tests.toys.image_text.rows import NUMBERS, TASKS, images, rows_with, tiny
from tests.toys.method_cases import ALL_CASES
from tests.toys.models import shake
from tests.toys.world import world_recipe
from vlds.artifact import LoadedRun, load_run, own_tensors, save_artifact
from vlds.convert.hf import fold_methods, write_hf
from vlds.models.build import ModelSetup, build_model, describe
from vlds.models.kinds.base import ModelKind
from vlds.models.methods import LoRA, Method
from vlds.models.methods.host import zero_at_first
from vlds.models.model import Model
from vlds.schema import Batch, Row

CAUSAL = ("llama", "opt")  # whose feed-forward layers see all tokens of a batch in one line
WHOLE_TYPES = ("llama", "opt", "qwen2_5_vl")
"""Types with all cases of methods; others have each method's first one."""
ABLE = {"opt": ("no bias",), "blip-2": ("no bias",), "florence2": ("no bias", "cross_attn")}
"""Type -> what reasons name that it has."""
IN_FEED_FORWARD = (
    "Adapter", "Compacter", "LowRankAdapter", "Hyperformer", "SimAdapter", "IA3", "Mixture",
    "Shrinking", "OutputScale",
)  # fmt: skip
"""Methods that extend feed-forward layers."""


@dataclass(frozen=True)
class Sample:
    """A tiny model of a type, and rows for it."""

    kind: ModelKind
    rows: list[Row]
    pictures: Any
    able: tuple[str, ...] = ()
    experts_alone: bool = False

    def setup(self, method: Method, **fields: Any) -> ModelSetup:
        return ModelSetup(kind=self.kind, methods={"method": method}, **fields)

    def build(self, method: Method, **fields: Any) -> Model:
        processor = self.kind.load_processor()
        return build_model(self.setup(method, **fields), TASKS, torch.float32, processor)

    def batch(self, rows: Sequence[Row] | None = None, *, evaluation: bool = False) -> Batch:
        collator = self.kind.collator(self.kind.load_processor())
        return collator(self.rows if rows is None else rows, self.pictures, evaluation=evaluation)

    def refusal(self, name: str) -> str | None:
        """Pattern of why a method is refused; None if it works."""
        if self.experts_alone and name.partition(" ")[0] in IN_FEED_FORWARD:
            return "no layer of .* plays the role 'ffn_out'"
        reason = ALL_CASES[name].refused.get(type(self.kind).__name__)
        return None if any(word in (reason or "") for word in self.able) else reason


@cache
def sample(model_type: str) -> Sample:
    """The tiny model of a type, saved once in each process. Two of its rows ask about one picture,
    for two tasks, and one has no picture where the type takes such rows."""
    rows = rows_with(NUMBERS.get(model_type, (1, 2, 0)))
    able = ABLE.get(model_type, ())
    rows.append(rows[0]._replace(example=replace(rows[1].example, id="3")))
    if model_type not in CAUSAL:
        experts_alone = model_type in EXPERTS_ALONE
        return Sample(tiny(model_type).kind, rows, images(), able, experts_alone)
    folder = Path(mkdtemp(prefix=f"vlds-{model_type}-"))
    save_model(folder, model_type, spread=0.2)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Sample(kind_in(folder), rows, pictures, able)


def pairs(*types: str) -> list[Any]:
    """Types of models and cases of methods that go together."""
    return [
        pytest.param(t, name, marks=[] if t in WHOLE_TYPES and is_first else [pytest.mark.slow])
        for name in ALL_CASES
        for t in types
        for is_first in [" " not in name]
        if is_first or t in WHOLE_TYPES
    ]


PAIRS = pytest.mark.parametrize(("model_type", "name"), pairs(*CAUSAL, *TYPES))


@pytest.mark.sampled(48)
@PAIRS
def test_a_step_trains_every_weight_or_the_method_is_refused(model_type: str, name: str) -> None:
    """Also with layers that are computed again. What is refused is refused without weights."""
    source, method = sample(model_type), ALL_CASES[name].method
    if (reason := source.refusal(name)) is not None:
        with pytest.raises(ValueError, match=f"^methods.method: {reason}"):
            describe(source.setup(method), TASKS)
        return
    if isinstance(method, LoRA):
        method = replace(method, dropout=0.0)
    found = []
    for recompute in [False, *[True] * method.recomputable]:
        model = source.build(method, activation_checkpointing=recompute).train()
        model.context.begin_step(seed=0, step=1)
        torch.manual_seed(0)
        output = model(source.batch(), torch.ones(len(source.rows)))
        output.loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    mine = {n for n, by in model.trained_by.items() if by == "method"}
    assert mine
    # Softmax does not see a constant in all keys. Of all weights, a step needs some.
    aside = {n for n in mine if re.search(r"k_proj\.(bias|extensions)", n) and "bias" in n}
    unmoved = aside | zero_at_first(model)
    for parameter in mine if name != "Full" else ():
        gradient = found[0][parameter]
        of_tasks = gradient if getattr(method, "sharing", "") == "multiple" else [gradient]
        assert all(part.any() for part in of_tasks) or parameter in unmoved, parameter
    for key, gradient in found[0].items():
        assert torch.allclose(gradient, found[-1][key], atol=1e-5), key
    shake(model)
    added = model(source.batch(), torch.ones(len(source.rows))).added
    assert added.keys() == model.batch_losses.keys()
    assert all((term > 0).all() for term in added.values())


def run_of(source: Sample, method: Method, world: Path, output: Path) -> LoadedRun:
    """A run whose method has trained."""
    recipe = world_recipe(world, output)
    recipe = replace(recipe, model=source.kind, methods={"method": method})
    model = source.build(method).eval()
    shake(model)
    return LoadedRun(recipe, source.kind.load_processor(), model)


@torch.no_grad()
def logits_of(run: LoadedRun, source: Sample) -> torch.Tensor:
    """Of all rows. Nothing trains, since torch then has other kernels on some CPUs."""
    return run.model.eval().requires_grad_(False).logits(source.batch())


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize(("model_type", "name"), pairs("llama", "qwen2_5_vl"))
def test_it_is_saved_exported_and_merged(
    model_type: str, name: str, world: Path, tmp_path: Path
) -> None:
    """Opened again, it computes the same, bit for bit; merged, the same but for rounding."""
    source, case = sample(model_type), ALL_CASES[name]
    if source.refusal(name) is not None:
        return
    run = run_of(source, case.method, world, tmp_path / "run")
    expected = logits_of(run, source)
    save_artifact(tmp_path / "run/artifact", own_tensors(run.model), run.recipe, run.processor)
    assert torch.equal(logits_of(load_run(tmp_path / "run"), source), expected)
    (tmp_path / "hf").mkdir()
    write_hf(run, tmp_path / "hf")
    assert torch.equal(logits_of(load_run(tmp_path / "hf"), source), expected)
    reason = case.refused.get("merge") or case.refused.get("T5 merge")  # which has no biases, too
    if type(case.method).merge is Method.merge:
        reason = reason or "computes what no plain layer computes"
    if reason is not None:
        with pytest.raises(ValueError, match=f"methods.method: .*{reason}"):
            fold_methods(run)
        return
    folded = fold_methods(run)
    assert tuple(map(type, folded.recipe.methods.values())) == case.merged
    assert (logits_of(folded, source) - expected).abs().max() <= 1e-5 * expected.abs().max()
