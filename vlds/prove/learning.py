"""What trains, learns, and uses the picture: some steps on the bench."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from vlds.models.loss import targets_of
from vlds.models.model import Model
from vlds.models.partitioned import gathered
from vlds.models.roles import optimizer_rules
from vlds.prove.bench import Bench
from vlds.prove.finding import (
    EXACT,
    OF_GRADIENTS,
    OF_UPDATES,
    ROUNDING,
    Comparison,
    Finding,
    Tolerance,
    compare_numbers,
    roundings,
)
from vlds.runtime.process import find
from vlds.schema import IGNORED_LABEL, Images, OptimizerRule
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import Engine, State
from vlds.training.gradients import GradientWatch, is_explained
from vlds.training.optimizer import (
    MOMENTS,
    decays,
    parameter_groups,
    peak_learning_rate,
    set_learning_rate,
)
from vlds.training.run import load_model

NUM_LEARNED = 8
"""Rows that are learnt by heart."""
LEARNT, SHARE = 0.5, 0.1
"""Loss of a token, in nats, or else the share of the first loss, at which rows count as learnt. A
model that does not tell the rows apart stays above, unless nearly all have one answer."""
KNOWN = (
    f"at {LEARNT:g} nats a token, or a {1 / SHARE:.0f}th of the first loss, rows count as learnt"
)
FACTORS = (1, 5)
"""Times the recipe's learning rates, one after the other: these may be too low to learn in so few
steps."""
STEPS_TO_MOVE = 3
"""Steps after which all that trains has a gradient: where a product of two weights begins at zero,
the first step moves one of them, and the second the other."""


def what_trains(bench: Bench) -> Finding:
    """Take steps of the real engine, in the recipe's precision, and see what has moved."""
    given = bench.recipe.training
    training = replace(bench.alone.training, precision=given.precision, deepspeed=given.deepspeed)
    recipe = replace(bench.alone, training=training)
    cut = cut_batches(recipe, 1)
    model, _ = load_model(recipe, bench.prepared, bench.processor, bench.ranks, None)
    model.shows_clips = True
    wanted = set(model.trained_by)
    moving = {name for name, _ in model.moving_buffers()}
    counts = model.count_parameters()
    model.to(bench.ranks.device).train()
    before = whole_state(model)
    rules = optimizer_rules(model)
    numbers = list(range(len(bench.rows)))
    # Two micro-batches, whose gradients the engine adds up.
    half = len(numbers) if bench.compares else (len(numbers) + 1) // 2
    cuts = [part for part in (numbers[:half], numbers[half:]) if part]
    # On a GPU each pass draws its own dropout.
    alike = bench.ranks.device.type == "cpu" or not bench.drops
    gradients = bench.measure(cuts, model=model, dropout=True).gradients if alike else {}
    model.zero_grad(set_to_none=True)
    config = complete_deepspeed_config(find(recipe.training.deepspeed), recipe, cut)
    engine = Engine(
        model, parameter_groups(model, recipe), config, ranks=bench.ranks,
        tasks=list(recipe.tasks.values()), seed=recipe.seed,
        betas=(recipe.optimizer.betas[0], recipe.optimizer.betas[1]), eps=recipe.optimizer.eps,
        update=recipe.optimizer.update, num_steps=recipe.training.num_steps,
    )  # fmt: skip
    watch = GradientWatch(engine.model, engine.model.trained_by, bench.ranks)
    said: list[str] = []
    compared, notes = rounding(bench, gradients, cuts)
    try:
        set_learning_rate(engine.parameter_groups, 1.0)
        held = {name for name, _ in engine.trainable_parameters()}
        batches = [bench.batch(part) for part in cuts]
        start = engine.export()
        for step in range(1, STEPS_TO_MOVE + 1):
            report = engine.step(batches)
            said += watch.after_step(step == STEPS_TO_MOVE)
            state = engine.export()  # masters go back into the weights that are compared
            if report.skipped:
                notes.append(f"step {step} was skipped: its gradient is not finite")
            elif step == 1:
                assert start is not None
                assert state is not None
                compared += first_step(bench, start, state, gradients, rules)
        after = whole_state(model)
    except ValueError as error:  # a whole method takes no part
        said.append(str(error))
        after = whole_state(model)
    finally:
        engine.close()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    strays = sorted(moved - wanted - moving)
    faults = [f"{name}: is frozen, and has moved" for name in strays]
    faults += [f"{name}: trains, and is not in the optimizer" for name in sorted(wanted - held)]
    faults += [f"{name}: is frozen, and in the optimizer" for name in sorted(held - wanted)]
    # A weight may stand still for a reason that the watch knows, such as boxes that are all zero.
    faults += [line for line in said if not is_explained(line)]
    notes += [line for line in said if is_explained(line)]
    notes.append(f"{counts.trainable:,} of {counts.total:,} weights train ({counts.percent:.2f} %)")
    return Finding(
        compared=(Comparison("frozen weights that have moved", len(strays), EXACT), *compared),
        faults=tuple(faults),
        notes=tuple(notes),
    )


def rounding(
    bench: Bench, gradients: Mapping[str, Tensor], cuts: Sequence[Sequence[int]]
) -> tuple[list[Comparison], list[str]]:
    """What half precision makes of gradients: a comparison with those in float32, or a note where
    rounding leaves too little of them."""
    dtype = bench.recipe.training.dtype
    if not gradients or dtype == torch.float32:
        return [], []
    limit = bench.tolerance(OF_GRADIENTS, dtype)
    what = (
        f"gradient of each trained weight, in {str(dtype).removeprefix('torch.')}, and in float32"
    )
    exact = bench.measure(cuts, dropout=True).gradients
    compared = compare_numbers(what, gradients, exact, limit)
    if bench.changes[OF_GRADIENTS] * ROUNDING[dtype] / ROUNDING[torch.float32] < limit.share:
        return [compared], []
    return [], [
        f"{what}: {compared.difference:.2g} of the largest, since one rounding of each weight "
        "changes them as much; later in training, or in float32, this may be less"
    ]


def first_step(
    bench: Bench,
    before: State,
    after: State,
    gradients: Mapping[str, Tensor],
    rules: Mapping[str, OptimizerRule],
) -> Iterator[Comparison]:
    """Compare what the engine's first step has made of the gradient with AdamW's formula, and the
    gradient with that of `Bench.measure` in the same precision, if there is one. `rules`: of each
    trained weight."""
    config, dtype = bench.recipe.optimizer, bench.recipe.training.dtype
    names = [name for name, tensors in before.items() if "fp32" in tensors]
    if gradients:
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        clipped = min(1.0, config.clip_norm / norm) if config.clip_norm and norm else 1.0
        half = dtype != torch.float32
        yield compare_numbers(
            "gradient of each trained weight: of the run's engine, in two micro-batches, and of a "
            "step that only computes",
            {name: after[name]["exp_avg"] / (1 - config.betas[0]) for name in names},
            {name: (clipped * gradients[name]).cpu() for name in names},
            # In half precision, the same products; only the sum of micro-batches rounds.
            roundings(OF_UPDATES, dtype) if half else bench.tolerance(OF_GRADIENTS, dtype),
        )
    expected: dict[str, Tensor] = {}
    for name in names:
        first, second = (
            after[name][moment].double() / (1 - beta)
            for moment, beta in zip(MOMENTS, config.betas, strict=True)
        )
        rate = peak_learning_rate(bench.model.part_of(name), bench.recipe) * rules[name].rate
        decay = rate * config.weight_decay * decays(rules[name], config)
        # transformers adds epsilon before the second moment's correction, and decays at the end.
        old = config.update == "transformers"
        eps = config.eps / math.sqrt(1 - config.betas[1]) if old else config.eps
        start, move = before[name]["fp32"].double(), rate * first / (second.sqrt() + eps)
        moved = (start - move) * (1 - decay) if old else start * (1 - decay) - move
        # What no loss has read stays, and so does what belongs to a task that is not there.
        end, kept = after[name]["fp32"].double(), second == 0
        if bench.model.trained_by[name] in bench.model.step_rules:
            kept |= end == 0  # a method's rule may set weights to zero after the step
        expected[name] = torch.where(kept, end, moved)
    yield compare_numbers(
        "weights after the first step: of the run's engine, and by AdamW's formula at the recipe's "
        "rates",
        {name: after[name]["fp32"] for name in names},
        expected,
        roundings(OF_UPDATES, torch.float32),
    )


def whole_state(model: Model) -> dict[str, Tensor]:
    """Copies of all tensors of a model, which ZeRO-3 may have partitioned."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.unique_state():
        with gathered([tensor]):
            state[name] = tensor.detach().cpu().clone()
    return state


def chosen_rows(bench: Bench) -> list[int]:
    """Rows to learn by heart: those first that ask the same of unlike pictures with unlike answers,
    which the question alone cannot tell apart."""
    groups: dict[tuple[int, str], dict[tuple[int, ...], int]] = {}
    for number, row in enumerate(bench.rows):
        asked = groups.setdefault((row.task_index, row.example.shown), {})
        # Of rows that ask the same of the same pictures, one: two answers cannot be learnt.
        asked.setdefault(tuple(row.images), number)
    paired: list[int] = []
    alone: list[int] = []
    for group in groups.values():
        numbers = list(group.values())
        examples = [bench.rows[number].example for number in numbers]
        answers = {(example.target, str(example.class_scores)) for example in examples}
        (paired if len(answers) > 1 else alone).extend(numbers)
    return [*paired, *alone][:NUM_LEARNED]


@dataclass(frozen=True)
class Descent:
    """Some rows that were learnt by heart."""

    rows: list[int]
    factor: float
    """Times the recipe's learning rates."""
    steps: int
    first: float
    """Loss of all rows before the first step."""
    last: float
    num_tokens: int
    """Learned tokens, or examples with classes, of the rows."""
    still: list[str]
    """Weights that never had a gradient."""
    weights: dict[str, Tensor]
    """What has trained, at the end."""

    @property
    def learnt(self) -> bool:
        return self.last <= max(LEARNT * self.num_tokens, SHARE * self.first)


@lru_cache(maxsize=1)
def by_heart(bench: Bench) -> Descent:
    """Learn some rows at the recipe's rates, or else at higher ones; the bench's model stays as it
    is."""
    for factor in FACTORS:
        with bench.borrowed():
            descent = descend(bench, chosen_rows(bench), factor)
        if descent.learnt:
            break
    return descent


def descend(bench: Bench, numbers: list[int], factor: float) -> Descent:
    """Train these rows with torch's AdamW at the recipe's rates times a factor."""
    model, groups = bench.model, parameter_groups(bench.model, bench.alone)
    set_learning_rate(groups, factor)
    config = bench.alone.optimizer
    betas = (config.betas[0], config.betas[1])
    # Decay and clipping would only slow down what is learnt here.
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=config.eps, weight_decay=0)
    num_tokens = int((targets_of(bench.batch(numbers)) != IGNORED_LABEL).sum())
    descent = Descent(numbers, factor, 0, math.nan, math.nan, num_tokens, [], {})
    moved: set[str] = set()
    for step in range(bench.steps + 1):
        measured = bench.measure([numbers])
        last = float(sum(measured.losses.values()))
        first = last if step == 0 else descent.first
        descent = replace(descent, steps=step, first=first, last=last)
        if descent.learnt or not math.isfinite(last):
            break
        moved |= {name for name, gradient in measured.gradients.items() if gradient.any()}
        optimizer.step()
    parameters = dict(model.named_parameters())
    weights = {name: parameters[name].detach().clone() for name in model.trained_by}
    return replace(descent, still=[n for n in weights if n not in moved], weights=weights)


def learns(bench: Bench) -> Finding:
    """Learn a few rows by heart."""
    descent = by_heart(bench)
    num, limit = len(descent.rows), max(LEARNT * descent.num_tokens, SHARE * descent.first)
    each = max(1, descent.num_tokens)
    notes = [
        f"{num} rows in {descent.steps} steps: loss of a token {descent.first / each:.3g} nats, "
        f"then {descent.last / each:.3g}"
    ]
    if descent.factor > 1:
        notes.append(
            f"at {descent.factor:g} times the recipe's learning rates; at these it was slower"
        )
    what = f"loss of a token: after {descent.steps} steps on {num} rows"
    still = [f"{name} ({bench.model.trained_by[name]}) stands still" for name in descent.still]
    return Finding(
        compared=(Comparison(what, descent.last / each, Tolerance(limit / each, KNOWN)),),
        faults=tuple(() if descent.learnt else still),
        notes=tuple(notes),
    )


def uses_the_picture(bench: Bench) -> Finding:
    """On rows that were learnt by heart, hide and swap the pictures."""
    descent = by_heart(bench)
    numbers = [number for number in descent.rows if bench.rows[number].images]
    if bench.images is None or not numbers:
        return Finding(left_out="no row has a picture")
    with bench.borrowed() as model:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in descent.weights.items():
                parameters[name].copy_(weight)
        seen, blank, swapped = (
            evaluated(bench, numbers, images)
            for images in (bench.images, blanked(bench.images), swapped_images(bench, numbers))
        )
    notes = [
        f"loss of a token: {seen:.3g} nats with the pictures, {blank:.3g} with blank ones, "
        f"{swapped:.3g} with those of other rows"
    ]
    faults = []
    if blank == seen and swapped == seen:
        faults.append(
            "the loss is the same whatever the pictures show: they do not reach the model"
        )
    elif not (blank > seen and swapped > seen):
        notes.append(
            "these pictures do not lower the loss: the questions tell the answers, or the model "
            "needs longer"
        )
    return Finding(faults=tuple(faults), notes=tuple(notes))


@torch.no_grad()
def evaluated(bench: Bench, numbers: Sequence[int], images: Images) -> float:
    """The mean loss of a token of rows with these images, in nats."""
    batch = bench.batch(numbers, images=images)
    with bench.plainly() as model:
        model.eval()
        sums = model.loss_sums(batch)[0]
        model.train()
    return float(sums.double().sum()) / max(1, int((targets_of(batch) != IGNORED_LABEL).sum()))


def blanked(images: Images) -> Images:
    """Grey pictures, or features of zeros, as `data.blank_images` makes them."""
    if isinstance(images, list):
        return [torch.full_like(image, 128) for image in images]
    assert images is not None
    return torch.full_like(images, 128 if images.dtype == torch.uint8 else 0)


def swapped_images(bench: Bench, numbers: Sequence[int]) -> Images:
    """Each image in the place of another one of these rows."""
    images = bench.images
    used = list(dict.fromkeys(image for n in numbers for image in bench.rows[n].images))
    place = dict(zip(used, [*used[1:], *used[:1]], strict=True))
    if isinstance(images, list):
        return [images[place.get(n, n)] for n in range(len(images))]
    assert images is not None
    return images[[place.get(n, n) for n in range(len(images))]]
