"""Checkpoints of the original VL-T5 and VL-Adapter code (`LAST.pth`): a state dict of the whole
model, every name with `module.` before it, what tasks share once under each task's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vlds.artifact import LoadedRun, load_run
from vlds.backbones import T5
from vlds.backbones.vocabulary import has_own_head
from vlds.convert.foreign_files import read_state_dict
from vlds.convert.output import new_file, save_torch, say
from vlds.convert.reference_keys import EXTENSION, reference_tensors, spellings
from vlds.convert.target import Target, adds_tensors, scrub, target_of_run
from vlds.convert.verify import Verification, all_tasks
from vlds.methods import (
    Adapter,
    BitFit,
    Compacter,
    DecoderPromptTuning,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Method,
    PromptTuning,
)
from vlds.methods.bottleneck import Bottleneck
from vlds.methods.prompt_network import LearnedEmbeddings
from vlds.models.vl_model import VLModel

KNOWN = (
    Adapter,
    Compacter,
    DecoderPromptTuning,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    PromptTuning,
)
"""Methods of the original code that have weights of their own."""
ROLES = {"attn_q", "attn_v", "cross_attn_q", "cross_attn_v"}
"""Where the original has LoRA."""
ONE_NORM = "visual_embedding.layer_norm.weight"
BELOW_MODEL = re.compile(r"(encoder|decoder|shared_task_embed|prompt_modules)\.")
"""Names that stand below `model.` on BART."""


@dataclass
class NamedTensor:
    """A tensor of ours with all its names."""

    tensor: Tensor
    names: list[str] = field(default_factory=list)

    def keys(self, tasks: Sequence[str]) -> dict[int | None, list[str]]:
        """Number of a slice (None: the whole) -> its names in the original code.

        Errors: ValueError where it has none there.
        """
        length = self.tensor.shape[0] if self.tensor.dim() else 1
        keys: dict[int | None, list[str]] = {}
        for name in self.names:
            for entry in reference_tensors(name, length, tasks):
                keys.setdefault(entry.index, []).extend([entry.key, *entry.aliases])
        if len(self.names) > 1 and self.names[0].endswith(".down_rule"):
            keys[0].append("phm_rule")
        return keys


def named_tensors(model: VLModel) -> dict[str, NamedTensor]:
    """First name -> tensor, without the vision encoder, which the original never keeps."""
    found: dict[int, NamedTensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not name.startswith("vision."):
            found.setdefault(id(tensor), NamedTensor(tensor.detach())).names.append(name)
    return {entry.names[0]: entry for entry in found.values()}


def import_reference(
    file: Path, target: Target, out: Path, verification: Verification | None
) -> None:
    """Write the artifact of an original checkpoint.

    Errors: ValueError where the file is none, or not the recipe's.
    """
    check_expressible(target.run)
    say(f"reading {file}")
    tasks = list(target.run.recipe.tasks)
    tensors = from_reference(read_state_dict(file), target.run.model, tasks)
    target.fill(tensors, file)
    target.write(out, verification)


def export_reference(run: Path, out: Path, verification: Verification | None) -> None:
    """Write a run as the original code would have saved it.

    Errors: ValueError where it has no place for a method.
    """
    say(f"opening {run}")
    loaded = load_run(run, torch.float32)
    check_expressible(loaded)
    if next(loaded.model.vision.parameters(), None) is not None:
        say("left out: the vision encoder, which the original code never keeps")
    state = to_reference(loaded)
    with new_file(out) as partial:
        say(f"writing {out}")
        save_torch({f"module.{key}": tensor for key, tensor in state.items()}, partial)
        if verification is not None:
            again = target_of_run(run)
            scrub(again.run.model)
            tasks = list(loaded.recipe.tasks)
            again.fill(from_reference(read_state_dict(partial), again.run.model, tasks), partial)
            verification.compare(all_tasks(loaded), again.run)


def check_expressible(run: LoadedRun) -> None:
    """Errors: ValueError where the original code has no such method, backbone or norm."""
    if run.recipe.visual_embedding.norm_biases and isinstance(run.recipe.backbone, T5):
        raise ValueError(
            "visual_embedding.norm_biases: the original code's T5 norms have no bias; "
            "`vlds convert hf` keeps them"
        )
    if has_own_head(run.model.backbone):
        raise ValueError(
            "backbone: its output head is a tensor of its own, and the original code always uses "
            "the token table as its head; `vlds convert hf` keeps the head"
        )
    for name, method in run.recipe.methods.items():
        if method.part == "backbone" and not adds_tensors(run.model, name):
            continue  # what it trains is the backbone's own
        if (reason := refusal(method, isinstance(run.recipe.backbone, T5))) is not None:
            raise ValueError(
                f"methods.{name}: {reason}; `vlds convert hf` keeps {type(method).__name__}"
            )
    bottlenecks = [name for name, m in run.recipe.methods.items() if isinstance(m, Bottleneck)]
    if len(bottlenecks) > 1:
        raise ValueError(
            f"methods: {' and '.join(bottlenecks)} stand at the same places, and the original code "
            "has one bottleneck a place"
        )


def refusal(method: Method, is_t5: bool) -> str | None:
    """Why the original code cannot have a method; None where it can."""
    if method.part == "vision":
        return "the original code never tunes the vision encoder, nor keeps it"
    if isinstance(method, BitFit):
        return "the original code gives no layer a new bias"
    if not isinstance(method, KNOWN):
        return f"the original code has no {type(method).__name__}"
    if isinstance(method, LoRA) and is_t5:
        return "the original code has no LoRA on T5"
    if isinstance(method, LoRA) and set(method.roles) != ROLES:
        return f"the original code has LoRA at {', '.join(sorted(ROLES))} and nowhere else"
    if isinstance(method, LearnedEmbeddings) and method.hidden_dim is None:
        return "the original code always makes prompts with a network (hidden_dim)"
    return None


def from_reference(
    state: Mapping[str, Tensor], model: VLModel, tasks: Sequence[str]
) -> dict[str, Tensor]:
    """Our tensors, by name, from a state dict of the original code.

    Errors: ValueError that names a tensor that the state dict lacks, has in another shape, or has
    beside what the model knows.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, entry in named_tensors(model).items():
        pieces = []
        for index, keys in entry.keys(tasks).items():
            present = [s for key in keys for s in spellings(key) if s in state]
            if not present:
                raise absent(keys[0], state)
            piece = state[present[0]]
            shape = entry.tensor.shape if index is None else entry.tensor.shape[1:]
            if piece.shape != shape or not piece.is_floating_point():
                raise ValueError(
                    f"{present[0]}: {piece.dtype} {tuple(piece.shape)} in the checkpoint, floats "
                    f"{tuple(shape)} by the recipe; the recipe's sizes must be those of the "
                    "checkpoint"
                )
            check_aliases(present, state)
            used.update(present)
            pieces.append(piece)
        found[name] = pieces[0] if None in entry.keys(tasks) else torch.stack(pieces)
    if left := sorted(state.keys() - used):
        raise ValueError(
            f"the checkpoint holds {left[0]}"
            f"{f' and {len(left) - 1} more tensors' if len(left) > 1 else ''} that the recipe's "
            "model has no place for; the recipe's methods and tasks must be its own"
        )
    return found


def absent(key: str, state: Mapping[str, Tensor]) -> ValueError:
    """What to say of a tensor that the checkpoint lacks."""
    if any(name.endswith(ONE_NORM) for name in state):
        return ValueError(
            f"the checkpoint has one norm over the sum of all visual embeddings ({ONE_NORM}: "
            "VL-BART's pre-training); here features and boxes have a norm each, and no weights of "
            "these compute the same: pre-train anew"
        )
    return ValueError(
        f"{key}: not in the checkpoint; the recipe's methods and tasks must be its own"
    )


def check_aliases(names: Sequence[str], state: Mapping[str, Tensor]) -> None:
    """Errors: ValueError where names of one tensor stand for different numbers."""
    first = state[names[0]]
    for name in names[1:]:
        other = state[name]
        same_place = first.data_ptr() == other.data_ptr() and first.stride() == other.stride()
        if other.shape != first.shape or other.dtype != first.dtype:
            equal = False
        else:
            equal = same_place or torch.equal(first, other)
        if not equal:
            raise ValueError(
                f"{names[0]} and {name} differ in the checkpoint, and are one tensor by the "
                "recipe; give the method the `sharing` (Compacter: `rule`) of the checkpoint"
            )


def to_reference(run: LoadedRun) -> dict[str, Tensor]:
    """A run's state dict under the original's names, all aliases included.

    Errors: ValueError where two methods would have one name.
    """
    bart, tasks = not isinstance(run.recipe.backbone, T5), list(run.recipe.tasks)
    state: dict[str, Tensor] = {}
    for name, entry in named_tensors(run.model).items():
        match = EXTENSION.fullmatch(name)
        method = run.recipe.methods[match["method"]] if match else None
        for index, keys in entry.keys(tasks).items():
            tensor = entry.tensor if index is None else entry.tensor[index]
            for key in dict.fromkeys(keys):
                spelling = key
                if isinstance(method, (Compacter, LowRankAdapter)):
                    spelling = spellings(key)[2]
                if bart and BELOW_MODEL.match(key):
                    spelling = f"model.{spelling}"
                if spelling in state:
                    raise ValueError(
                        f"methods: two of them would be {spelling} in the original code, which has "
                        "one a place; fold one first (`vlds convert merge`)"
                    )
                state[spelling] = tensor
    return state
