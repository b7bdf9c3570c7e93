"""Checkpoints of other systems' whole models, under the names of their own code: METER's
(https://arxiv.org/abs/2111.02387) and CLIP-ViL's (https://arxiv.org/abs/2107.06383).

Both are state dicts of encoders, what joins them, and heads; METER's stand inside a file of PyTorch
Lightning. Of tables of positions and of pictures' types, other sizes are resized as the original
codes do.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vlds.artifact import LoadedRun
from vlds.convert.output import Kind, first_names, save_torch, say
from vlds.convert.target import RunFiles, check_layout
from vlds.convert.torch_files import read_state_dict
from vlds.models.heads import LinearHead, MLPHead
from vlds.models.kinds.cross_modal_model import CrossModalModel
from vlds.models.kinds.joint_encoder import JointEncoderModel
from vlds.models.loading.resizing import resized, resizes_of
from vlds.models.methods.host import added_tensors
from vlds.models.vision import ClipTokens, StoredFeatures, Timm
from vlds.tasks import GQA, NLVR2, VQA, Entailment, Matching, Retrieval, Task
from vlds.tasks.matching import MATCH, OTHER

LAST_LAYER = "3."
"""How the names of the last layer of `MLPHead` begin, whose rows are the classes."""
UNREAD = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "sacred.config.custom_containers.ReadOnlyDict",
    "sacred.config.custom_containers.ReadOnlyList",
)
"""What Lightning's checkpoints hold beside tensors, numbers and texts."""


class Place(NamedTuple):
    """Where the original code has a tensor: under a name, as a whole or as a part of its rows."""

    key: str
    part: int = 0
    num_parts: int = 1
    rows: tuple[int, ...] | None = None
    """The original's row of each of ours, of a head whose classes it has in another order."""

    def of(self, stored: Tensor) -> Tensor:
        """Our tensor in the original's."""
        # A file with another number of classes stays as it is, for the caller to refuse.
        if self.rows is not None and len(self.rows) == len(stored):
            return stored[list(self.rows)]
        return stored.chunk(self.num_parts)[self.part]

    def restored(self, ours: Tensor) -> Tensor:
        """The original's part in our tensor."""
        return ours if self.rows is None else ours[torch.tensor(self.rows).argsort()]


class WholeModelFile(RunFiles):
    """How an original code saves a run."""

    kind: ClassVar[Kind] = "file"
    is_whole = True
    system: ClassVar[str]
    """Whose code it is."""
    inside: ClassVar[str | None] = None
    """The file's entry that is the state dict; None if the file is one."""
    unread: ClassVar[re.Pattern[str]]
    """Names of tensors that the original code keeps and never uses."""
    heads: ClassVar[re.Pattern[str]]
    """How names of heads begin."""
    classes: ClassVar[Mapping[type[Task], tuple[str, ...]]]
    """Task -> the order of its classes. Other tasks' order is that of the user's data."""

    def __init__(self, run: LoadedRun) -> None:
        """Errors: ValueError, with the reason, if the original code cannot hold the run."""
        super().__init__(run)
        check_layout(run, "reference")
        for name in run.recipe.methods:
            if added_tensors(run.model.get_submodule(run.model.parts["backbone"].path), name) or (
                (vision := run.model.vision_module) is not None and added_tensors(vision, name)
            ):
                raise ValueError(
                    f"methods.{name}: {self.system}'s code has no such weights; convert a recipe "
                    "with Full or without methods, and begin the run with it (`start`)"
                )
        for name, task in run.recipe.tasks.items():
            theirs = self.order_of(task)
            if theirs and task.head is not None and set(task.head.names) != set(theirs):
                raise ValueError(
                    f"tasks.{name}.head.classes: {', '.join(task.head.names)}, and {self.system}'s "
                    f"code has {', '.join(theirs)}; leave `classes` out"
                )

    @abstractmethod
    def place_of(self, name: str) -> Place:
        """Where the original code has a tensor of ours."""

    def read(self, path: Path) -> dict[str, Tensor]:
        """Our tensors; those of heads that the file lacks are left out."""
        state = self.prepared(read_state_dict(path, UNREAD, self.inside))
        tensors: dict[str, Tensor] = {}
        used, resizes = set(), resizes_of(self.run.model)
        for name, mine in self.run.model.unique_state():
            place = self.place_of(name)
            if (stored := state.get(place.key)) is None:
                if name.startswith("heads."):
                    continue  # the caller says that nothing holds it
                raise ValueError(
                    f"{path}: it has no {place.key}; name a checkpoint of {self.system}'s code, "
                    "and a recipe with its encoders and sizes"
                )
            used.add(place.key)
            # Some have half precision.
            wide = stored.float() if stored.is_floating_point() else stored
            found = resized(name, place.of(wide), mine.shape, resizes)
            if found.shape != mine.shape:
                raise ValueError(
                    f"{place.key}: {tuple(stored.shape)} in {path}, which gives "
                    f"{tuple(found.shape)} for {name}, {tuple(mine.shape)} by the recipe; the "
                    "recipe's sizes must be those of the checkpoint"
                )
            tensors[name] = found
        left = [key for key in state if key not in used and not self.unread.match(key)]
        if other := [key for key in left if not self.heads.match(key)]:
            raise ValueError(
                f"{path} holds {first_names(sorted(other), 3)} that the recipe's model has no "
                "place for; its sizes must be those of the checkpoint"
            )
        if heads := sorted({key.partition(".")[0] for key in left if self.heads.match(key)}):
            say(f"left out, since no task has it: {', '.join(heads)}")
        return tensors

    def prepared(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The file's tensors by the names that `place_of` gives."""
        return state

    def write(self, out: Path) -> None:
        """Write the file."""
        parts: dict[str, dict[int, Tensor]] = {}
        for name, tensor in self.run.model.unique_state():
            place = self.place_of(name)
            pieces = parts.setdefault(place.key, {})
            if place.part in pieces:
                raise ValueError(
                    f"{name}: {self.system}'s code has one {place.key}, and another task's head "
                    "has taken it; convert a run with one of the two tasks"
                )
            pieces[place.part] = place.restored(tensor.detach())
        state = {
            key: torch.cat([pieces[number] for number in sorted(pieces)])
            if len(pieces) > 1
            else pieces[0]
            for key, pieces in parts.items()
        }
        state = self.restored(state)
        save_torch(state if self.inside is None else {self.inside: state}, out)

    def restored(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `prepared`."""
        return state

    def task_of_head(self, name: str) -> tuple[Task, str]:
        """The task of a head's tensor, and the rest of its name."""
        _, task, leaf = name.split(".", 2)
        return self.run.recipe.tasks[task], leaf

    def place_in_head(self, head: str, task: Task, leaf: str) -> Place:
        """Where the original code has a tensor of a task's head."""
        rows = None
        theirs, ours = self.order_of(task), task.head
        assert ours is not None
        if theirs and (isinstance(ours, LinearHead) or leaf.startswith(LAST_LAYER)):
            rows = tuple(theirs.index(name) for name in ours.names)
        return Place(f"{head}.{leaf}", rows=rows)

    def order_of(self, task: Task) -> tuple[str, ...] | None:
        """The original's classes of a task."""
        return next((o for known, o in self.classes.items() if isinstance(task, known)), None)


def renamed(name: str, names: Mapping[str, str]) -> str:
    """A name with parts replaced."""
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


FUSION = {
    "text_layers": "cross_modal_text_layers",
    "image_layers": "cross_modal_image_layers",
    "text_pooler": "cross_modal_text_pooler",
    "image_pooler": "cross_modal_image_pooler",
    "text_projection": "cross_modal_text_transform",
    "image_projection": "cross_modal_image_transform",
    "types": "token_type_embeddings",
}
"""Module of the co-attention -> METER's."""
WORDS = {
    "dense.weight": "transform.dense.weight",
    "dense.bias": "transform.dense.bias",
    "norm.weight": "transform.LayerNorm.weight",
    "norm.bias": "transform.LayerNorm.bias",
    "words.weight": "decoder.weight",
    "words.bias": "bias",
}
"""Tensor of the head of masked words -> METER's."""
CLIP = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding": "conv1",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
"""A part of CLIP's names in Hugging Face's code -> in OpenAI's."""
IN_PROJECTION = re.compile(r"(.*)self_attn\.([qkv])_proj\.(weight|bias)")
METER_HEADS: Mapping[type[Task], str] = {
    VQA: "vqa_classifier",
    NLVR2: "nlvr2_classifier",
    Entailment: "snli_classifier",
    Matching: "itm_score.fc",
}
RANK = "rank_output+itm_score.fc"
"""Retrieval's head: the first row is the matching head's, the second METER's `rank_output`, or in
its place the matching head's, with which METER begins."""


class MeterFile(WholeModelFile):
    """How METER's code saves a run."""

    system = "METER"
    inside = "state_dict"
    unread = re.compile(
        r"text_transformer\.(pooler\.|embeddings\.position_ids$)"
        r"|vit_model\.(ln_final\.|positional_embedding$)"
    )
    heads = re.compile(r"vqa_classifier\.|nlvr2_classifier\.|snli_classifier\.|mlm_|itm_|rank_")
    # As nlvr2_dataset.py and write_snli.py number them.
    classes: ClassVar[Mapping[type[Task], tuple[str, ...]]] = {
        NLVR2: ("false", "true"),
        Entailment: ("contradiction", "neutral", "entailment"),
        Matching: (OTHER, MATCH),
    }

    def __init__(self, run: LoadedRun) -> None:
        super().__init__(run)
        assert isinstance(run.model, CrossModalModel)
        if not isinstance(run.recipe.encoder, ClipTokens):
            raise ValueError(
                f"model.vision: {type(run.recipe.encoder).__name__}, and vlds reads METER's "
                "checkpoints with CLIP; take ClipTokens"
            )
        for name, task in run.recipe.tasks.items():
            if task.head is None:
                continue
            if isinstance(task, (Matching, Retrieval)):
                fits = isinstance(task.head, LinearHead)
            else:
                fits = isinstance(task.head, MLPHead) and task.head.order == "norm_gelu"
                fits &= any(isinstance(task, known) for known in METER_HEADS)
            if not fits:
                raise ValueError(
                    f"tasks.{name}.head: METER has MLPHead with order norm_gelu for VQA, NLVR2 and "
                    "Entailment, and LinearHead for Matching and Retrieval"
                )

    def place_of(self, name: str) -> Place:
        part, _, rest = name.partition(".")
        if part == "heads":
            task, leaf = self.task_of_head(name)
            if isinstance(task, Retrieval):
                return Place(f"{RANK}.{leaf}")
            found = next(head for known, head in METER_HEADS.items() if isinstance(task, known))
            return self.place_in_head(found, task, leaf)
        if part == "vision":
            inner = rest.removeprefix("net.").removeprefix("vision_model.")
            if (match := IN_PROJECTION.fullmatch(inner)) is not None:
                block = renamed(match[1], CLIP)
                key = f"vit_model.visual.{block}attn.in_proj_{match[3]}"
                return Place(key, "qkv".index(match[2]), 3)
            return Place(f"vit_model.visual.{renamed(inner, CLIP)}")
        part, _, rest = rest.partition(".")
        if part == "text":
            return Place(f"text_transformer.{rest}")
        if part == "words":
            return Place(f"mlm_score.{WORDS[rest]}")
        module, _, leaf = rest.partition(".")
        return Place(f"{FUSION[module]}.{leaf}")

    def prepared(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        for leaf in ("weight", "bias"):
            fit = state.get(f"itm_score.fc.{leaf}")
            rank = state.pop(f"rank_output.{leaf}", None)
            if fit is not None:
                state[f"{RANK}.{leaf}"] = fit if rank is None else torch.cat([fit[:1], rank])
        return state

    def restored(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        for leaf in ("weight", "bias"):
            if (both := state.pop(f"{RANK}.{leaf}", None)) is not None:
                state |= {f"rank_output.{leaf}": both[1:]}
                state.setdefault(f"itm_score.fc.{leaf}", both)
        return state


EMBEDDING = {
    "projection": "visn_fc.visn_fc",
    "norm": "visn_fc.visn_layer_norm",
    "rows": "visual_pos.x_position_embedding",
    "columns": "visual_pos.y_position_embedding",
}
"""Module of the visual embedding -> its name in CLIP-ViL's encoder."""


class ClipVilFile(WholeModelFile):
    """How CLIP-ViL's code saves a run: the joint encoder of its pre-training, or with a head."""

    system = "CLIP-ViL"
    unread = re.compile(
        r"bert\.embeddings\.position_ids$|bert\.encoder\.visual_model\."
        r"|bert\.encoder\.visn_fc\.box_"
    )
    heads = re.compile(r"cls\.|answer_head\.|obj_predict_head\.|logit_fc\.")
    # As in UNITER's database of SNLI-VE, which its code reads (VE_ENT2IDX).
    classes: ClassVar[Mapping[type[Task], tuple[str, ...]]] = {
        Entailment: ("contradiction", "entailment", "neutral"),
        Matching: (OTHER, MATCH),
    }

    def __init__(self, run: LoadedRun) -> None:
        super().__init__(run)
        assert isinstance(run.model, JointEncoderModel)
        self.vision = run.recipe.encoder
        if not isinstance(self.vision, (Timm, StoredFeatures)):
            raise ValueError(
                f"model.vision: {type(self.vision).__name__}, and CLIP-ViL's code has CLIP's "
                "ResNet; take Timm, such as resnet50x4_clip.openai, or StoredFeatures"
            )
        for name, task in run.recipe.tasks.items():
            wanted = LinearHead if isinstance(task, Matching) else MLPHead
            known = isinstance(task, (VQA, GQA, Entailment, Matching))
            if not known or not isinstance(task.head, wanted):
                raise ValueError(
                    f"tasks.{name}: CLIP-ViL's code has MLPHead for VQA, GQA and Entailment, and "
                    "LinearHead for Matching"
                )

    def place_of(self, name: str) -> Place:
        part, _, rest = name.partition(".")
        if part == "heads":
            task, leaf = self.task_of_head(name)
            head = "cls.seq_relationship" if isinstance(task, Matching) else "logit_fc"
            return self.place_in_head(head, task, leaf)
        if part == "vision":
            return Place(f"vision.{rest.removeprefix('net.')}")
        if part == "visual_embedding":
            module, _, leaf = rest.partition(".")
            return Place(f"bert.encoder.{EMBEDDING[module]}.{leaf}")
        return Place(f"bert.{rest}")

    def prepared(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # A fine-tuned model has its encoder inside another module.
        state = {key.removeprefix("lxrt_encoder.model."): value for key, value in state.items()}
        if isinstance(self.vision, Timm):
            start = "bert.encoder.visual_model."
            clip = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            state |= {f"vision.{k}": v for k, v in self.in_timm(clip).items()}
        return state

    def in_timm(self, clip: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of OpenAI's CLIP under timm's names."""
        from timm.models.byobnet import checkpoint_filter_fn

        assert self.run.model.vision_module is not None
        net = self.run.model.vision_module.net
        found: dict[str, Tensor] = checkpoint_filter_fn(clip, net)
        return found

    def write(self, out: Path) -> None:
        raise ValueError(
            "model: vlds reads CLIP-ViL's checkpoints and writes none; use `vlds convert hf`"
        )


def original_file(run: LoadedRun) -> RunFiles:
    """The layout of the code that first had a run's kind of model.

    Errors: ValueError if there is none, or it cannot hold the run.
    """
    from vlds.convert.reference import ReferenceFile

    if isinstance(run.model, CrossModalModel):
        return MeterFile(run)
    return ClipVilFile(run) if isinstance(run.model, JointEncoderModel) else ReferenceFile(run)
