"""The check that a converted run answers as before: logits on the same pictures and texts."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlds.artifact import LoadedRun
from vlds.data.shards.pictures import decode_image
from vlds.data.streams.assemble import ImageStack
from vlds.models.methods.host import states_type
from vlds.models.model import Model
from vlds.runtime.files import read_file
from vlds.runtime.terminal import follow, tell
from vlds.schema import Batch, Example, Images, NaturalSize, RefusedRows, Row, SkipSample

TOLERANCES = {torch.bfloat16: 0.05, torch.float32: 1e-5, torch.float64: 1e-9}
"""Largest difference of logits, as a share of the largest logit, that rounding explains."""
NUM_GENERATED = 2
"""Pictures, where the user names none."""
PROMPT, TARGET = 8, 6
"""Tokens of the generated texts."""


@dataclass(frozen=True)
class Verification:
    """The pictures on which outputs are compared, and the tolerance."""

    pictures: Sequence[Path] = ()
    """Files; default: generated pictures."""
    tolerance: float | None = None
    """As a share of the largest logit; default: by the precision."""

    def compare(self, before: Mapping[str, LoadedRun], after: LoadedRun) -> float:
        """Compare each task's logits with those of the run that it comes from. Prints the largest
        difference; returns it as a share of the largest logit.

        Errors: ValueError if it is above the tolerance.
        """
        differences = {}
        for task, run in follow(before.items(), "comparing tasks", len(before)):
            expected, given = (self.logits(each, task) for each in (run, after))
            differences[task] = difference(expected, given)
        return self.judge(differences, states_type(after.model))

    def logits(self, run: LoadedRun, task: str) -> Tensor:
        """A task's logits on what is compared, which is the same for each run."""
        # `probe` draws its texts from the task's name.
        return logits(run, task, self.pictures)

    def judge(
        self, differences: Mapping[str, tuple[float, float]], dtype: torch.dtype, by: str = ""
    ) -> float:
        """Print the largest of the tasks' differences; return it as a share of the largest logit.
        `by`: who has computed the second logits, if not vlds.

        Errors: ValueError if it is above the tolerance.
        """
        # NaN counts as the largest.
        worst = max(differences, key=lambda t: (math.isnan(differences[t][0]), differences[t]))
        share, distance = differences[worst]
        limit = TOLERANCES[dtype] if self.tolerance is None else self.tolerance
        num = len(self.pictures)
        named = f"{num} picture{'s' * (num > 1)}" if num else f"{NUM_GENERATED} generated pictures"
        message = (
            f"largest difference of {by}logits on {named}: {distance:.3g}, or {share:.3g} of the "
            f"largest logit (task {worst}; tolerance {limit:g})"
        )
        # So written, NaN is above every limit.
        if not share <= limit:
            option = "--verify: " if not by else ""
            raise ValueError(f"{option}{message}: too much, so nothing was written")
        tell(message)
        return share


def difference(expected: Tensor, given: Tensor) -> tuple[float, float]:
    """The largest difference of logits: as a share of the largest logit, and itself."""
    distance, largest = (expected - given).abs().max(), expected.abs().max()
    return float(distance / largest), float(distance)


def all_tasks(run: LoadedRun) -> dict[str, LoadedRun]:
    """Each task of a run -> the run."""
    return dict.fromkeys(run.recipe.tasks, run)


def logits(run: LoadedRun, task: str, pictures: Sequence[Path]) -> Tensor:
    """A task's logits on pictures with generated texts (`probe`), as `logits_on`."""
    return logits_on(run.model, task, probe(run, task, pictures))


@torch.no_grad()
def logits_on(model: Model, task: str, batch: Batch) -> Tensor:
    """A task's logits, in float64: (b, t, w), or (b, c) of its head. Nothing trains afterwards."""
    # Torch has other kernels for trainable weights, which round differently on some CPUs.
    model.eval().requires_grad_(False)
    if task in model.heads:
        head: Tensor = model.heads[task](model.first_states(batch))
        return head.double()
    return model.logits(batch).double()


def probe(run: LoadedRun, task: str, pictures: Sequence[Path], option: str = "--verify") -> Batch:
    """A batch of one task: each picture once, with a generated text and target. `option`: what
    names the pictures.

    Errors: ValueError if a picture cannot be read.
    """
    # The same texts for both runs; `hash` would differ between processes.
    draw = torch.Generator().manual_seed(zlib.crc32(task.encode()))
    num, spec = len(pictures) or NUM_GENERATED, run.recipe.image
    if spec is None and pictures:
        raise ValueError(
            f"{option}: StoredFeatures reads no pictures; leave the files out to compare on "
            "generated features"
        )
    images: Images
    if pictures:
        assert spec is not None
        try:
            decoded = [decode_image(read_file(path), spec, str(path)) for path in pictures]
        except (OSError, SkipSample) as error:
            raise ValueError(f"{option}: {error}; name pictures that can be read") from None
        stack = ImageStack(num, spec)
        stack.add(decoded)
        images = stack.images()
    # Without pictures: noise in their place, or in that of stored features.
    elif isinstance(spec, NaturalSize):
        # Of different heights, as natural pictures are.
        sizes = [(3, 48 + 8 * n, 64) for n in range(num)]
        images = [torch.randint(256, size, generator=draw, dtype=torch.uint8) for size in sizes]
    elif spec is not None:
        shape = (num, 3, spec.height, spec.width)
        images = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    else:
        geometry = run.recipe.encoder.geometry
        channels = geometry.feature_dim + geometry.box_channels
        images = torch.randn((num, geometry.grid_size**2, channels), generator=draw).half()
    rows = [
        Row(
            example=Example(
                id=str(n),
                task=task,
                # Such a text may give more tokens than it was made of; the limits below cut it.
                # Unequal lengths, so that padding is compared too.
                prompt=generated_text(run.model.tokenizer, PROMPT - n % 3, draw),
                target=generated_text(run.model.tokenizer, TARGET, draw),
            ),
            task_index=list(run.recipe.tasks).index(task),
            max_prompt_tokens=PROMPT,
            max_target_tokens=TARGET,
            images=range(n, n + 1),
        )
        for n in range(num)
    ]
    try:
        return run.collator(rows, images, evaluation=False)
    except RefusedRows as error:
        raise ValueError(f"{option}: {error}; name other pictures") from None


def generated_text(tokenizer: Any, length: int, draw: torch.Generator) -> str:
    """Text of tokens from anywhere in the vocabulary, so that no row of its table stays unseen."""
    ids = torch.randint(len(tokenizer), (length,), generator=draw).tolist()
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text
