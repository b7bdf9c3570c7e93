"""CLIP-ViL's joint encoder with adapters follows VL-Adapter's code, value by value: states, loss,
and the gradients of what trains there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from tests.toys.recorded.related import (
    CLIP_VIL_NAMES,
    RelatedCase,
    check_gradient,
    recorded,
)
from vlds.models import JointEncoder
from vlds.models.build import ModelSetup, build_model
from vlds.models.heads import MLPHead
from vlds.models.kinds.joint_encoder import JointEncoderModel
from vlds.models.methods import Adapter
from vlds.models.model import Model
from vlds.models.vision import StoredFeatures
from vlds.schema import IGNORED_LABEL, Batch
from vlds.tasks.class_output import ClassOutput


def ours(name: str) -> str:
    """Our name of a weight of the original code."""
    for theirs, mine in CLIP_VIL_NAMES.items():
        name = name.replace(theirs, mine)
    return name


def model_of(case: RelatedCase, folder: Path) -> JointEncoderModel:
    """The recorded model, in float64."""
    sizes = dict(case["config"])
    classes, reduction = sizes.pop("classes"), sizes.pop("reduction_factor")
    vision = StoredFeatures(dim=sizes.pop("feature_dim"), grid=sizes.pop("grid"))
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(BertConfig(**sizes, **dropout).to_dict()))
    kind = JointEncoder(config=str(folder / "config.json"), vision=vision, train_norms=True)
    head = MLPHead(classes=tuple(f"answer {number}" for number in range(classes)))
    setup = ModelSetup(
        kind=kind,
        methods={"adapter": Adapter(reduction=reduction)},
        outputs={"vqa": ClassOutput(head, "binary_cross_entropy")},
    )
    model: Model = build_model(setup, ["vqa"], torch.float64, None)
    assert isinstance(model, JointEncoderModel)
    state = model.state_dict()
    weights = {ours(name): tensor for name, tensor in case.under("weights/").items()}
    assert weights.keys() == state.keys()
    model.load_state_dict({n: tensor.view_as(state[n]) for n, tensor in weights.items()})
    model.heads["vqa"][2].eps = 1e-12  # type: ignore[index]  # MLPHead's is PyTorch's 1e-5
    return model


@recorded("clip_vil_joint_encoder")
def test_it_is_the_original_codes(path: Path, tmp_path: Path) -> None:
    case = RelatedCase(path)
    model = model_of(case, tmp_path)
    num = len(case["text_ids"])
    batch = Batch(
        ids=[str(number) for number in range(num)],
        task_index=torch.zeros(num, dtype=torch.long),
        input_ids=case["text_ids"],
        attention_mask=case["text_masks"].bool(),
        labels=case["text_ids"].where(torch.arange(8) == 0, IGNORED_LABEL),
        labels_on_prompt=True,
        weights=torch.ones(num),
        valid=torch.ones(num).bool(),
        image_index=torch.arange(num)[:, None],
        references=[],
        samples=[],
        class_targets=case["targets"],
        features=case["features"].flatten(2).mT,
    )
    assert (model.first_states(batch) - case["out/pooled"]).abs().max() < 1e-9
    assert (model.logits(batch)[:, 0] - case["out/logits"]).abs().max() < 1e-9
    output = model(batch, torch.full((num,), 1 / num, dtype=torch.float64))
    assert float(output.loss.detach()) == pytest.approx(case["loss"], abs=1e-9)
    output.loss.backward()
    trained = {ours(name) for name in case["grads"]}
    # The tables of cells train here, and stay as they are there.
    tables = {f"visual_embedding.{table}.weight" for table in ("rows", "columns")}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained | tables
    for name, expected in case["grads"].items():
        check_gradient(model.get_parameter(ours(name)).grad, expected, name)
