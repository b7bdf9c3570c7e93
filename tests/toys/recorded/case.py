"""A case recorded from the original VL-Adapter code, or from Ladder Side-Tuning's, as our
model and our batches.

Nothing here looks at a case's name: the method comes from the recorded command line flags, sizes
from the recorded config.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5LayerNorm

from tests.toys.files import ROOT
from tests.toys.recorded.configuration import (
    backbone_of,
    has_tensor,
    hf_config,
    methods_of,
    parse_flags,
)
from vlds.convert.reference import ONE_NORM, TensorPiece, named_tensors, read_tensors, spellings
from vlds.models import JointSeq2Seq
from vlds.models.build import ModelSetup, build_model
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import VLPET, Method
from vlds.models.vision import StoredFeatures
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.schema import IGNORED_LABEL, Batch, Decoding

FOLDER = Path(os.environ.get("VLDS_GOLDENS", ROOT / "tests/golden"))
CASES = sorted(
    path
    for path in FOLDER.rglob("*.json")
    if not path.name.endswith(".train6.json")
    and "common_flags" in json.loads(path.read_text(encoding="utf-8"))
)
"""Cases of whole models that the original codes' trainers recorded, by their command line flags."""
# Those of related systems alone will do: the tests of these then skip.
assert any(FOLDER.rglob("*.json")), f"no recorded cases in {FOLDER}"


@dataclass
class NamedSlice:
    """The part of one of our parameters that is one parameter of the original code."""

    key: str
    parameter: torch.nn.Parameter
    piece: TensorPiece

    @property
    def task(self) -> int | None:
        """Number of the task that alone uses it; None: all do."""
        return self.piece.slice if len(self.parameter) > 1 else None

    def of(self, tensor: Tensor) -> Tensor:
        """The piece of a tensor shaped like the parameter."""
        return self.piece.of(tensor)


class RecordedCase:
    """One `<case>.json` + `<case>.safetensors`."""

    def __init__(self, path: Path) -> None:
        self.record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(path.with_suffix(".safetensors"))
        weights = [key for key in tensors if key.startswith("weights/")]
        self.weights = {key.removeprefix("weights/"): tensors.pop(key) for key in weights}
        self.tensors = tensors
        self.tasks: list[str] = self.record["config"]["tasks"]

    def tensor(self, name: str) -> Tensor:
        """A recorded tensor; floating ones in float64."""
        tensor = self.tensors[name]
        return tensor.double() if tensor.is_floating_point() else tensor

    def methods(self) -> tuple[dict[str, Method], bool]:
        """What the flags ask for, as `methods_of` says."""
        return methods_of(parse_flags(self.record["flags"]), self.record["config"], self.weights)

    def build(self, folder: Path) -> JointModel:
        """Our model with the recorded weights, in float64, evaluation mode."""
        size = self.record["config"]
        config = folder / "config.json"
        config.write_text(json.dumps(hf_config(size)), encoding="utf-8")
        methods, train_norms = self.methods()
        grid = round(size["grid_in"] ** 0.5)
        model_config = ModelSetup(
            kind=JointSeq2Seq(
                backbone=backbone_of(size, str(config)),
                vision=StoredFeatures(dim=size["feat_dim"], grid=grid),
                visual_embedding=VisualEmbeddingConfig(
                    grid=round(size["n_boxes"] ** 0.5),
                    num_images=size["n_images"],
                    norm="sum" if has_tensor(ONE_NORM, self.weights) else "parts",
                    norm_biases=has_tensor("feat_embedding.1.bias", self.weights),
                ),
                train_norms=train_norms,
            ),
            methods=methods,
        )
        tokenizer = ["token"] * size["vocab"]  # only its length is looked at
        model = build_model(model_config, self.tasks, torch.float64, tokenizer)
        wanted = dict(model.unique_state())
        state = read_tensors(self.weights, named_tensors(model, methods, self.tasks))
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(state[name])
        return model.eval()

    @property
    def padding_counts(self) -> bool:
        """True if an example's loss depends on how far its batch is padded."""
        methods = self.methods()[0].values()
        return any(isinstance(method, VLPET) and method.padding_counts for method in methods)

    def batch(self, task: str, dtype: torch.dtype = torch.float64) -> Batch:
        """A task's recorded inputs and targets."""
        input_ids = self.tensor(f"{task}/input_ids")
        features, boxes = (
            self.tensor(f"{task}/{name}").to(dtype) for name in ("vis_feats", "boxes")
        )
        num = len(input_ids)
        if features.dim() == 3:
            features, boxes = features[:, None], boxes[:, None]
        num_images = features.shape[1]
        scores = self.tensors.get(f"{task}/scores", torch.ones(num))
        return Batch(
            ids=[str(n) for n in range(num)],
            task_index=torch.full((num,), self.tasks.index(task)),
            input_ids=input_ids,
            attention_mask=input_ids != self.record["config"]["pad"],
            labels=self.tensor(f"{task}/target_ids"),
            weights=scores.to(dtype),
            valid=torch.ones(num, dtype=torch.bool),
            image_index=torch.arange(num * num_images).view(num, num_images),
            features=features.flatten(0, 1),
            boxes=boxes.flatten(0, 1),
        )

    def coefficients(self, task: str) -> Tensor:
        """The original's loss of one task as a factor of each example's summed token nll."""
        lengths = (self.tensor(f"{task}/target_ids") != IGNORED_LABEL).sum(1).clamp(min=1).double()
        if task == "caption":
            return torch.ones_like(lengths) / lengths.sum()
        weights = self.tensors.get(f"{task}/scores", torch.ones(len(lengths))).double()
        return weights / lengths / len(lengths)

    def loss(self, model: JointModel, task: str) -> Tensor:
        """The original's loss of one task, in the model's precision."""
        dtype = next(model.parameters()).dtype
        return model(self.batch(task, dtype), self.coefficients(task).to(dtype)).loss

    def decoding(self, task: str) -> Decoding:
        """How the answers of a task were generated."""
        arguments = dict(self.record["tasks"][task]["generate_kwargs"])
        found = Decoding(
            num_beams=arguments.pop("num_beams"),
            max_new_tokens=arguments.pop("max_length") - 1,
            no_repeat_ngram_size=arguments.pop("no_repeat_ngram_size", 0),
            early_stopping=arguments.pop("early_stopping", False),
        )
        assert not arguments, f"unknown: {arguments}"
        return found

    def trainable(self, model: JointModel) -> list[NamedSlice]:
        """What trains, under the original's names."""
        first_name = {alias: first for first, alias in self.record["aliases"]}
        names = named_tensors(model, self.methods()[0], self.tasks)
        slices = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                for piece, (first, *_) in names[name].keys.items():
                    key = next((s for s in spellings(first) if s in self.weights), first)
                    slices.append(NamedSlice(first_name.get(key, key), parameter, piece))
        return slices


@contextmanager
def exact_t5_norm() -> Iterator[None]:
    """Inside, Hugging Face's T5 norm takes its variance in the precision of its input; by itself
    it does so in float32, even in a model of float64."""
    original = T5LayerNorm.forward

    def forward(self: T5LayerNorm, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)

    T5LayerNorm.forward = forward
    try:
        yield
    finally:
        T5LayerNorm.forward = original
