"""Faults that trainers have had, planted one by one: each is named by the property whose place it
is, and no other property blames its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from tests.toys.recipes import short_recipe, with_task
from vlds.data.streams import assemble
from vlds.models.collate import JointCollator
from vlds.models.generation.decoding import best_choice
from vlds.models.kernels import fused
from vlds.models.kernels.dropout import StepDropout
from vlds.models.kinds.joint import JointModel
from vlds.models.methods.bottleneck import BottleneckModule
from vlds.models.model import Model
from vlds.models.visual_embedding import VisualEmbedding
from vlds.prove.answers import answers
from vlds.prove.bench import Bench
from vlds.prove.command import found
from vlds.prove.finding import Finding
from vlds.prove.properties import PROPERTIES
from vlds.recipe.config import Recipe
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Decoding, Images, Row
from vlds.training import loss as step_loss
from vlds.training import optimizer
from vlds.training.optimizer import TaskAdamW

Plant: TypeAlias = Callable[[pytest.MonkeyPatch], None]
STARTED = {"rank-free", "resume-free", "leaves-right", "fits"}
HERE = [each for each in PROPERTIES if each.name not in STARTED]
"""Those that start no processes, in which a test cannot plant anything so simply."""


def findings(recipe: Recipe, scratch: Path) -> Mapping[str, Finding]:
    """What each property finds; as the command does, without those that stand on a failing one."""
    bench = Bench(recipe, scratch=scratch, rows=8, steps=60)
    tried: dict[str, Finding] = {}
    cut: set[str] = set()
    for each in HERE:
        broken = [name for name in each.needs if tried[name].verdict == "fails" or name in cut]
        if broken:
            tried[each.name] = Finding(left_out=f"it stands on {broken[0]}")
            cut.add(each.name)
        else:
            tried[each.name] = found(each, bench)
    return tried


def recipe_in(world: Path, folder: Path) -> Recipe:
    recipe = short_recipe(world, folder / "run", 2)
    # Long enough for the questions, which are then read whole.
    tasks = {n: replace(t, max_prompt_tokens=40) for n, t in recipe.tasks.items()}
    return replace(recipe, tasks=tasks)


def collated(change: Callable[[Batch, Sequence[Row]], Batch]) -> Plant:
    """The collator's batches, changed."""
    original = JointCollator.__call__

    def call(
        self: JointCollator, rows: Sequence[Row], images: Images, *, evaluation: bool
    ) -> Batch:
        return change(original(self, rows, images, evaluation=evaluation), rows)

    return lambda patch: patch.setattr(JointCollator, "__call__", call)


def learned_padding(batch: Batch, _: Sequence[Row]) -> Batch:
    """Padding counts in the loss."""
    if batch.labels is not None:
        batch.labels = batch.labels.masked_fill(batch.labels == IGNORED_LABEL, 0)
    return batch


def dropped_pictures(batch: Batch, _: Sequence[Row]) -> Batch:
    batch.image_index = torch.full_like(batch.image_index, NO_IMAGE)
    return batch


def dropped_questions(batch: Batch, _: Sequence[Row]) -> Batch:
    """A prompt's end, where its question stands, is masked."""
    batch.attention_mask[:, 3:] = False
    return batch


def detached_adapter(patch: pytest.MonkeyPatch) -> None:
    """An adapter adds to the states, and what it adds has no gradient."""
    through = BottleneckModule.through
    patch.setattr(BottleneckModule, "through", lambda self, states: through(self, states).detach())


def padding_attended(patch: pytest.MonkeyPatch) -> None:
    """The decoder sees the padding of the text beside it."""
    encode = JointModel.encode

    def call(self: JointModel, batch: Batch) -> tuple[Tensor, Tensor]:
        states, mask = encode(self, batch)
        return states, torch.ones_like(mask)

    patch.setattr(JointModel, "encode", call)


def drawn_by_place(patch: pytest.MonkeyPatch) -> None:
    """What an example loses by dropout depends on its place in the batch."""

    def start(self: StepDropout, ids: Sequence[str], number: int = 0) -> None:
        self.examples = torch.arange(len(ids)) << 32
        self.tokens = self.lines = None
        self._num_calls = 0

    patch.setattr(StepDropout, "start", start)


def wrong_kernel(patch: pytest.MonkeyPatch) -> None:
    """The backward pass of the tokens' loss is a tenth too large."""
    backward = fused.TokenNLL.backward

    def call(ctx: Any, gradient: Tensor) -> Any:
        of_logits, *rest = backward(ctx, 1.1 * gradient)  # type: ignore[no-untyped-call]
        return (of_logits, *rest)

    patch.setattr(fused.TokenNLL, "backward", staticmethod(call))


def wrong_mean(patch: pytest.MonkeyPatch) -> None:
    """The loss of an example is summed over its tokens, whatever the task's reduction."""
    coefficients = step_loss.coefficients

    def call(batch: Batch, *args: Any) -> Tensor:
        return coefficients(batch, *args) * step_loss.target_lengths(batch)

    patch.setattr(step_loss, "coefficients", call)


def unseen_pictures(patch: pytest.MonkeyPatch) -> None:
    """Visual tokens stand there, and say nothing of the picture."""
    forward = VisualEmbedding.forward

    def call(self: VisualEmbedding, features: Tensor, *args: Any) -> Tensor:
        return forward(self, torch.zeros_like(features), *args)

    patch.setattr(VisualEmbedding, "forward", call)


def moved_backbone(patch: pytest.MonkeyPatch) -> None:
    """A step moves a frozen weight."""
    from vlds.training.engine import Engine

    step = Engine.step

    def call(self: Engine, batches: Sequence[Batch]) -> Any:
        report = step(self, batches)
        with torch.no_grad():
            frozen = next(p for p in self.model.backbone.parameters() if not p.requires_grad)
            frozen.view(-1)[0] += 1e-3
        return report

    patch.setattr(Engine, "step", call)


def frozen_connector(patch: pytest.MonkeyPatch) -> None:
    """The visual embedding is said to train, and is frozen after all."""
    from vlds.training import run

    load = run.load_model

    def call(*args: Any) -> Any:
        model, lines = load(*args)
        model.visual_embedding.requires_grad_(False)
        return model, lines

    for module in ("vlds.prove.learning.load_model", "vlds.prove.bench.load_model"):
        patch.setattr(module, call)


def neighbours_pictures(patch: pytest.MonkeyPatch) -> None:
    """A row gets the picture of the sample that was opened before its own."""
    row = assemble.Assembler._row

    def call(*args: Any) -> Row | None:
        made = row(*args)
        return made and made._replace(images=[max(0, image - 1) for image in made.images])

    patch.setattr(assemble.Assembler, "_row", call)


def swapped_colours(patch: pytest.MonkeyPatch) -> None:
    """Red and blue change places before the model, as where a library reads BGR."""
    decode = assemble.decode_pictures
    patch.setattr(
        assemble, "decode_pictures", lambda *args: [each[::-1].copy() for each in decode(*args)]
    )


def unasked_in_evaluation(patch: pytest.MonkeyPatch) -> None:
    original = JointCollator.__call__

    def call(*args: Any, evaluation: bool) -> Batch:
        batch = original(*args, evaluation=evaluation)
        return dropped_questions(batch, []) if evaluation else batch

    patch.setattr(JointCollator, "__call__", call)


def always_training(patch: pytest.MonkeyPatch) -> None:
    """Evaluation leaves dropout on."""
    patch.setattr(Model, "eval", lambda self: self)


def halved_sums(patch: pytest.MonkeyPatch, share: float = 0.5) -> None:
    """The engine takes the mean of micro-batches, whose losses are shares of the whole already."""
    backward = DeepSpeedEngine.backward

    def call(self: Any, loss: Tensor, **options: Any) -> Any:
        return backward(self, loss * share, **options)

    patch.setattr(DeepSpeedEngine, "backward", call)


def rate_twice(patch: pytest.MonkeyPatch) -> None:
    """A group has its own rate times that of all."""
    update = TaskAdamW._update

    def call(self: TaskAdamW, flat: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        update(self, flat, gradient, group | {"lr": group["lr"] * group["peak_lr"]})

    patch.setattr(TaskAdamW, "_update", call)


def rounded_masters(patch: pytest.MonkeyPatch) -> None:
    """The masters that the optimizer moves are in bf16."""
    step = TaskAdamW.step

    def call(self: TaskAdamW, closure: None = None) -> None:
        step(self, closure)
        for flat in self.segments:
            flat.data.copy_(flat.bfloat16())

    patch.setattr(TaskAdamW, "step", call)


def decaying_norms(patch: pytest.MonkeyPatch) -> None:
    """All that trains decays, norms and biases too."""
    patch.setattr(optimizer, "decays", lambda *args: True)


FAULTS: dict[str, tuple[Plant, str]] = {
    "padding is learned": (collated(learned_padding), "reads-right"),
    "pictures are dropped": (collated(dropped_pictures), "reads-right"),
    "questions are dropped": (collated(dropped_questions), "reads-right"),
    "pictures are the neighbours'": (neighbours_pictures, "reads-right"),
    "colours are swapped": (swapped_colours, "reads-right"),
    "evaluation does not ask": (unasked_in_evaluation, "reads-right"),
    "dropout is always on": (always_training, "source-parity"),
    "a method is detached": (detached_adapter, "what-trains"),
    "the connector is frozen": (frozen_connector, "what-trains"),
    "a frozen weight moves": (moved_backbone, "what-trains"),
    "micro-batches are averaged": (halved_sums, "what-trains"),
    "a rate counts twice": (rate_twice, "what-trains"),
    "masters are rounded": (rounded_masters, "what-trains"),
    "norms decay": (decaying_norms, "what-trains"),
    "a kernel is wrong": (wrong_kernel, "gradient-parity"),
    "the mean of a batch is wrong": (wrong_mean, "gradient-parity"),
    "padding is attended": (padding_attended, "batch-free"),
    "dropout depends on the place": (drawn_by_place, "batch-free"),
    "pictures say nothing": (unseen_pictures, "uses-the-picture"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_right_property_names_it(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, place = FAULTS[name]
    plant(monkeypatch)
    tried = findings(recipe_in(world, tmp_path), tmp_path)
    assert [each for each, finding in tried.items() if finding.verdict == "fails"] == [place]


def test_nothing_is_blamed_without_a_fault(world: Path, tmp_path: Path) -> None:
    tried = findings(recipe_in(world, tmp_path), tmp_path)
    assert {finding.verdict for finding in tried.values()} == {"holds"}


@pytest.mark.parametrize("kind", ["joint", pytest.param("causal", marks=pytest.mark.slow)])
def test_shares_of_choices(
    kind: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shares of all choices sum to one, and not those of all words."""
    recipe = short_recipe(world, tmp_path / "run", 2, kind)
    recipe = with_task(recipe, "vqa", decoding=Decoding(choices=("red", "blue", "is")))
    bench = Bench(recipe, scratch=tmp_path, rows=8)
    right = answers(bench)
    assert right.verdict == "holds"
    assert any(each.what.startswith("confidences of vqa") for each in right.compared)

    def of_all_words(logits: Tensor, choices: list[list[int]]) -> tuple[list[int], Tensor]:
        chosen, _ = best_choice(logits, choices)
        return chosen, logits.softmax(-1).amax(-1)

    module = import_module("vlds.models.kinds." + {"joint": "joint", "causal": "base"}[kind])
    monkeypatch.setattr(module, "best_choice", of_all_words)
    wrong = answers(bench)
    assert [each.what[:11] for each in wrong.compared if not each.holds] == ["confidences"]
