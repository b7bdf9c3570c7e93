"""The model as a whole: loss, images, tasks, freezing, copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.toys.models import backbone, batch, build
from vlds.data.streams.assemble import ImageStack
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.collate import JointCollator
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter, Full
from vlds.models.vision import ConvNet
from vlds.models.visual_embedding import VisualEmbedding, VisualEmbeddingConfig, pool
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Example, Row

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])
NET = ConvNet(image_size=12, grid=3, widths=[4, 8])


def shown() -> Batch:
    """The batch about pictures in place of stored features."""
    pictures = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8)
    return replace(batch(), features=None, images=pictures)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def backward(model: JointModel, examples: Batch) -> Tensor:
    """Loss after a backward pass."""
    model.zero_grad()
    loss = model(examples, torch.linspace(0.1, 0.4, len(examples))).loss
    loss.backward()
    return loss.detach()


@FAMILIES
def test_an_example_does_not_depend_on_its_batch(family: type[Backbone], tmp_path: Path) -> None:
    """Neither on the tasks nor on the images and lengths of the others."""
    methods = {"adapter": Adapter(sharing="half_shared_down", reduction=4)}
    model = build(backbone(family, tmp_path), methods, dtype=torch.float64).eval()
    examples = batch()
    with torch.no_grad():
        together = model(examples, torch.ones(4)).token_nll_sum
        for number in range(4):
            alone = examples.select(torch.tensor([number]))
            found = model(alone, torch.ones(1)).token_nll_sum
            assert torch.allclose(found, together[number : number + 1], rtol=1e-10)


@FAMILIES
def test_tasks_have_their_own_weights(family: type[Backbone], tmp_path: Path) -> None:
    methods = {"adapter": Adapter(sharing="half_shared_up", reduction=4)}
    model = build(backbone(family, tmp_path), methods).eval()
    for tasks in ((0, 2, 0, 2), (1, 1, 1, 1)):
        backward(model, batch(tasks))
        for name, gradient in gradients(model).items():
            if "down_" in name:
                reached = {task for task in range(3) if gradient[task].any()}
                assert reached == set(tasks), name


@FAMILIES
def test_activation_checkpointing_changes_no_number(family: type[Backbone], tmp_path: Path) -> None:
    methods = {"adapter": Adapter(sharing="multiple", reduction=4)}
    source = backbone(family, tmp_path, dropout=0.0)
    plain = build(source, methods, train_norms=True).train()
    saving = build(source, methods, train_norms=True, activation_checkpointing=True).train()
    layers = [m for m in saving.modules() if getattr(m, "gradient_checkpointing", False)]
    assert len(layers) >= 4
    assert torch.equal(backward(plain, batch()), backward(saving, batch()))
    found, expected = gradients(saving), gradients(plain)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-7), name


def test_a_frozen_encoder_keeps_its_statistics(tmp_path: Path) -> None:
    examples = shown()
    frozen = build(backbone(T5, tmp_path), {"adapter": Adapter()}, vision=NET).train()
    before = {n: b.clone() for n, b in frozen.vision.named_buffers()}
    backward(frozen, examples)
    assert before
    assert all(torch.equal(b, before[n]) for n, b in frozen.vision.named_buffers())
    assert not [name for name in gradients(frozen) if name.startswith("vision.")]
    methods = {"all": Full(part="vision"), "adapter": Adapter()}
    trained = build(backbone(T5, tmp_path), methods, vision=NET).train()
    backward(trained, examples)
    assert not any(torch.equal(b, before[n]) for n, b in trained.vision.named_buffers())
    names = {name for name in gradients(trained) if name.startswith("vision.")}
    assert names == {f"vision.{name}" for name, _ in trained.vision.named_parameters()}
    assert {trained.part_of(name) for name in names} == {"all"}


# Features of distinct images -> visual tokens of examples.

WIDTH, DIM = 8, 5


def bridge(grid: int = 3, **fields: object) -> VisualEmbedding:
    torch.manual_seed(0)
    config = VisualEmbeddingConfig(**fields)  # type: ignore[arg-type]
    return VisualEmbedding(config, DIM, WIDTH, grid, nn.LayerNorm)


def test_pooling_7_to_6_is_a_window_of_2() -> None:
    features = torch.randn(2, 49, DIM)
    planes = features.transpose(1, 2).reshape(2, DIM, 7, 7)
    expected = nn.functional.max_pool2d(planes, 2, stride=1).flatten(2).transpose(1, 2)
    assert torch.equal(pool(features, 6), expected)
    assert pool(features, 7) is features
    with pytest.raises(ValueError, match="48 vectors an image are not a square grid"):
        pool(features[:, :48], 6)


def test_boxes_of_cells() -> None:
    boxes = bridge(grid=2, boxes="grid").cell_boxes(torch.device("cpu"))
    assert boxes.tolist() == [
        [[0, 0.5, 0, 0.5], [0.5, 1, 0, 0.5], [0, 0.5, 0.5, 1], [0.5, 1, 0.5, 1]]
    ]
    assert not bridge(grid=2).cell_boxes(torch.device("cpu")).any()


# Examples and pictures become one padded batch, each picture once.


class Words:
    """One token a word, its length; 0 pads."""

    pad_token_id = 0

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], int]] = []

    def __call__(
        self, texts: list[str], add_special_tokens: bool, truncation: bool, max_length: int
    ) -> dict[str, list[list[int]]]:
        self.seen.append((texts, max_length))
        return {"input_ids": [[len(w) for w in text.split()][:max_length] for text in texts]}


ONE = range(1)


def row(id: str, prompt: str, target: str | None, images: range = ONE, **changes: object) -> Row:
    limits = {"max_prompt_tokens": 3, "max_target_tokens": 2, "task_index": 0}
    example = Example(id, "t", prompt, target, weight=0.5, reference=id.upper())
    return Row(example=example, images=images, **(limits | changes))  # type: ignore[arg-type]


def collated(rows: list[Row], tokenizer: Words | None = None, *, evaluation: bool = False) -> Batch:
    """Rows about one picture."""
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    return JointCollator(tokenizer or Words(), features=False)(rows, images, evaluation=evaluation)


def test_padding_labels_and_limits() -> None:
    rows = [
        row("a", "a bb ccc dddd", "aaaaa"),
        row("b", "a", "a bb ccc", task_index=2, max_prompt_tokens=9, max_target_tokens=3),
    ]
    batch = collated(rows)
    assert batch.ids == ["a", "b"]
    assert batch.input_ids.tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[5, IGNORED_LABEL, IGNORED_LABEL], [1, 2, 3]]
    assert batch.task_index.tolist() == [0, 2]
    assert batch.task_index.dtype == batch.labels.dtype == batch.input_ids.dtype == torch.int64
    assert batch.weights.tolist() == [0.5, 0.5]
    assert batch.references == []


def test_rows_point_to_the_pictures_of_the_stack() -> None:
    pictures = ImageStack(1)
    one = pictures.add([np.zeros((3, 2, 2), np.uint8)])
    pair = pictures.add([np.full((3, 2, 2), n, np.uint8) for n in (1, 2)])
    rows = [
        row("a", "a", "x", one),
        row("b", "b", "x", pair),
        row("c", "c", "x", one),
        row("d", "d", "x", range(0)),
    ]
    batch = JointCollator(Words(), features=False)(rows, pictures.images(), evaluation=False)
    assert batch.images is not None
    assert batch.images.shape == (3, 3, 2, 2)
    assert batch.images.dtype == torch.uint8
    none = NO_IMAGE
    assert batch.image_index.tolist() == [[0, none], [1, 2], [0, none], [none, none]]
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_features_go_into_features() -> None:
    features = ImageStack(2)
    numbers = [features.add([np.full((2, 4), n, np.float16)]) for n in range(2)]
    rows = [row(str(n), "a", "b", images) for n, images in enumerate(numbers)]
    batch = JointCollator(Words(), features=True)(rows, features.images(), evaluation=False)
    assert batch.images is None
    assert batch.features is not None
    assert batch.features.dtype == torch.float16
    assert batch.features[:, 0, 0].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"different shapes in one batch: \(2, 4\), \(3, 4\)"):
        features.add([np.full((3, 4), 2, np.float16)])
