"""Checkpoints of the original VL-T5 and VL-Adapter code (`LAST.pth`): a state dict of the whole
model. Every name begins with `module.`; shared weights are stored once under each task's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vlds.artifact import LoadedRun
from vlds.convert.output import Kind, first_names, save_torch, say
from vlds.convert.target import RunFiles, check_layout
from vlds.convert.torch_files import read_state_dict
from vlds.models.backbones.base import has_own_head
from vlds.models.methods import Method
from vlds.models.methods.base import Stored
from vlds.models.methods.bottleneck import Bottleneck
from vlds.models.methods.host import added_tensors
from vlds.models.model import BACKBONE_PREFIX, Model

VISUAL = {
    "feature_projection": "feat_embedding.0",
    "feature_norm": "feat_embedding.1",
    "box_projection": "absolute_vis_pos_embedding.0",
    "box_norm": "absolute_vis_pos_embedding.1",
    "sum_norm": "layer_norm",
    "image_order": "img_order_embedding",
}
"""Module of the visual embedding -> its name in the original code."""
OBJECT_ORDER = "encoder.visual_embedding.obj_order_embedding.weight"
TOKEN_TABLES = {"shared.weight": "", "model.shared.weight": "model."}
"""The token table, of T5 and of BART -> what stands there before the visual embedding, which reads
the table too."""
ONE_NORM = "visual_embedding.layer_norm.weight"
BELOW_MODEL = re.compile(r"(encoder|decoder|shared_task_embed|prompt_modules)\.")
"""Names that stand below `model.` on BART."""


class TensorPiece(NamedTuple):
    """A piece of a tensor: all of it, or a slice, or a part of a slice's rows."""

    slice: int | None = None
    """Number of the slice; None: the whole tensor."""
    part: int = 0
    num_parts: int = 1
    """In how many parts the slice's rows are stored."""

    def of(self, tensor: Tensor) -> Tensor:
        """A view of the piece."""
        # Part 1 of 2 of a slice with 4 rows: its rows 2 and 3.
        if self.slice is None:
            return tensor
        return tensor[self.slice].chunk(self.num_parts)[self.part]


@dataclass
class NamedTensor:
    """A tensor of ours and its names in the original code."""

    tensor: Tensor
    keys: dict[TensorPiece, list[str]] = field(default_factory=dict)
    """TensorPiece -> its names, the first task's first."""


def named_tensors(
    model: Model, methods: Mapping[str, Method], tasks: Sequence[str]
) -> dict[str, NamedTensor]:
    """First name of ours -> tensor, without the vision encoder, which the original never keeps."""
    stored: dict[str, Stored] = {}
    for name, method in methods.items():
        if added_tensors(model.backbone, name):
            layout = method.layout("reference", name, model.backbone)
            stored |= {f"{BACKBONE_PREFIX}{tensor}": s for tensor, s in layout.tensors.items()}
    named: dict[int, tuple[str, NamedTensor]] = {}
    # keep_vars: tied tensors stay one object, by whose id they are joined under one entry.
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.startswith("vision."):
            continue
        part, _, rest = name.partition(".")
        if part == "visual_embedding":
            module, _, leaf = rest.partition(".")
            keys: tuple[str, ...] = (f"encoder.visual_embedding.{VISUAL[module]}.{leaf}",)
        else:
            keys = (rest,)
            if rest in TOKEN_TABLES:
                keys = (rest, f"{TOKEN_TABLES[rest]}{OBJECT_ORDER}")
        place = stored.get(name) or Stored(keys, stacked=False)
        _, entry = named.setdefault(id(tensor), (name, NamedTensor(tensor.detach())))
        # One tensor that tasks share stands there once per task.
        slices: dict[int | None, Sequence[str]] = {None: tasks}
        if place.stacked:
            shared = len(tensor) == 1
            slices = {0: tasks} if shared else {n: [task] for n, task in enumerate(tasks)}
        for (index, users), number in product(slices.items(), range(place.num_parts)):
            piece = TensorPiece(index, number, place.num_parts)
            more = [key.format(task=task, part=number) for key in place.keys for task in users]
            entry.keys[piece] = list(dict.fromkeys([*entry.keys.get(piece, []), *more]))
    return dict(named.values())


def spellings(key: str) -> tuple[str, str]:
    """A key as T5's checkpoints have it, and as BART's may."""
    return key, f"model.{key}"


class ReferenceFile(RunFiles):
    """How the original code saves a run."""

    kind: ClassVar[Kind] = "file"
    is_whole = True

    def __init__(self, run: LoadedRun) -> None:
        """Errors: ValueError, with the reason, if the original code cannot hold the run."""
        super().__init__(run)
        check_layout(run, "reference")
        check_expressible(run)

    def write(self, out: Path) -> None:
        """Write the file."""
        vision = self.run.model.vision_module
        if vision is not None and next(vision.parameters(), None) is not None:
            say("left out: the vision encoder, which the original code never keeps")
        state = to_reference(self.run)
        save_torch({f"module.{key}": tensor for key, tensor in state.items()}, out)

    def read(self, path: Path) -> dict[str, Tensor]:
        """Our tensors, without the vision encoder's."""
        run = self.run
        names = named_tensors(run.model, run.recipe.methods, list(run.recipe.tasks))
        return read_tensors(read_state_dict(path), names)


def check_expressible(run: LoadedRun) -> None:
    """Errors: ValueError if the original code has no such method or head."""
    model = run.model
    if has_own_head(model.backbone):
        raise ValueError(
            "backbone: its output head is a separate tensor, and the original code always uses "
            "the token table as its head; `vlds convert hf` keeps the head"
        )
    for task in model.heads:
        raise ValueError(
            f"tasks.{task}.head: the original multi-task code has no heads; `vlds convert hf` "
            "keeps them"
        )
    for name, method in run.recipe.methods.items():
        if method.part == "backbone" and not added_tensors(run.model, name):
            continue  # what it trains is the backbone's own
        reason = method.refusal("reference", model.backbone)
        if method.part == "vision":
            reason = "the original code never tunes the vision encoder, nor keeps it"
        if reason is not None:
            raise ValueError(
                f"methods.{name}: {reason}; `vlds convert hf` keeps {type(method).__name__}"
            )
    bottlenecks = [name for name, m in run.recipe.methods.items() if isinstance(m, Bottleneck)]
    if len(bottlenecks) > 1:
        raise ValueError(
            f"methods: {' and '.join(bottlenecks)} stand at the same places, and the original code "
            "has one bottleneck a place"
        )


def read_tensors(
    state: Mapping[str, Tensor], names: Mapping[str, NamedTensor]
) -> dict[str, Tensor]:
    """Our tensors, by name, from a state dict of the original code.

    Errors: ValueError that names a tensor that the state dict lacks, has in another shape, or has
    beside what the run's model knows.
    """
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, entry in names.items():
        for piece, keys in entry.keys.items():
            present = [s for key in keys for s in spellings(key) if s in state]
            if not present:
                if any(each.endswith(ONE_NORM) for each in state):
                    raise ValueError(
                        "the checkpoint has one norm over the sum of all visual embeddings "
                        f"({ONE_NORM}: VL-BART's pre-training), and no weights of two norms "
                        "compute the same; the recipe must say `model.visual_embedding.norm: sum`"
                    )
                raise ValueError(
                    f"{keys[0]}: not in the checkpoint; the recipe's methods and tasks must be "
                    "those of the checkpoint"
                )
            stored, shape = state[present[0]], piece.of(entry.tensor).shape
            if stored.shape != shape or not stored.is_floating_point():
                raise ValueError(
                    f"{present[0]}: {stored.dtype} {tuple(stored.shape)} in the checkpoint, floats "
                    f"{tuple(shape)} by the recipe; the recipe's sizes must be those of the "
                    "checkpoint"
                )
            # The original code stores what tasks share under each task's name.
            for alias in present[1:]:
                other = state[alias]
                if other.dtype != stored.dtype or not torch.equal(stored, other):
                    raise ValueError(
                        f"{present[0]} and {alias} differ in the checkpoint, and are one tensor by "
                        "the recipe; give the method the `sharing` (Compacter: `rule`) of the "
                        "checkpoint"
                    )
            used.update(present)
            # Pieces of one tensor fill it one after the other.
            whole = tensors.setdefault(name, stored.new_empty(entry.tensor.shape))
            piece.of(whole).copy_(stored)
    if left := sorted(state.keys() - used):
        raise ValueError(
            f"the checkpoint holds {first_names(left, 1)} that the recipe's model has no place "
            "for; the recipe's methods and tasks must be those of the checkpoint"
        )
    return tensors


def to_reference(run: LoadedRun) -> dict[str, Tensor]:
    """A run's state dict under the original's names, all aliases included.

    Errors: ValueError if two methods would have one name.
    """
    model, recipe = run.model, run.recipe
    bart = hasattr(model.backbone, "model")  # T5 has its layers at the top
    state: dict[str, Tensor] = {}
    for entry in named_tensors(model, recipe.methods, list(recipe.tasks)).values():
        for piece, keys in entry.keys.items():
            tensor = piece.of(entry.tensor)
            for key in keys:
                if bart and BELOW_MODEL.match(key):
                    key = f"model.{key}"
                if key in state:
                    raise ValueError(
                        f"methods: two of them would be {key} in the original code, which has one "
                        "a place; fold one first (`vlds convert merge`)"
                    )
                state[key] = tensor
    return state
