"""Features of distinct images -> visual tokens of examples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlds.models.visual_embedding import VisualEmbedding, VisualEmbeddingConfig, pool
from vlds.recipe.build import build as built
from vlds.schema import NO_IMAGE

WIDTH, DIM = 8, 5


def bridge(grid: int = 3, **fields: object) -> VisualEmbedding:
    torch.manual_seed(0)
    config = VisualEmbeddingConfig(**fields)  # type: ignore[arg-type]
    return VisualEmbedding(config, DIM, WIDTH, grid, nn.LayerNorm)


@pytest.fixture
def table() -> nn.Embedding:
    torch.manual_seed(1)
    return nn.Embedding(30, WIDTH)


def test_pooling_7_to_6_is_a_window_of_2() -> None:
    features = torch.randn(2, 49, DIM)
    planes = features.transpose(1, 2).reshape(2, DIM, 7, 7)
    expected = nn.functional.max_pool2d(planes, 2, stride=1).flatten(2).transpose(1, 2)
    assert torch.equal(pool(features, 6), expected)
    assert pool(features, 7) is features
    with pytest.raises(ValueError, match="48 vectors an image are not a square grid"):
        pool(features[:, :48], 6)


@pytest.mark.parametrize("norm", ["parts", "sum"])
def test_formula(norm: str, table: nn.Embedding) -> None:
    """sum: the layout of VL-BART's pre-training (`individual_vis_layer_norm False`)."""
    module = bridge(norm=norm)
    norms = ["sum_norm"] if norm == "sum" else ["feature_norm", "box_norm"]
    names = [name for name in module.state_dict() if "norm" in name]
    assert names == [f"{name}.{tensor}" for name in norms for tensor in ("weight", "bias")]
    with torch.no_grad():
        for name in norms:
            module.get_submodule(name).weight.uniform_()  # type: ignore[operator, union-attr]
    features, boxes = torch.randn(2, 9, DIM), torch.rand(2, 9, 4)
    tokens, mask = module(features, boxes, torch.tensor([[1, 0]]), table)
    assert tokens.shape == (1, 18, WIDTH)
    assert mask.all()
    x1, x2, y1, y2 = boxes[0, 4]
    place = torch.stack([x1, x2, y1, y2, (x2 - x1) * (y2 - y1)])
    seen, placed = module.feature_projection(features[0, 4]), module.box_projection(place)
    expected = module.image_order.weight[1] + table.weight[30 - 1 - 4]
    if norm == "sum":
        expected = module.sum_norm(seen + placed + expected)
    else:
        expected = module.feature_norm(seen) + module.box_norm(placed) + expected
    assert torch.allclose(tokens[0, 9 + 4], expected, atol=1e-6)


def test_absent_images_are_masked_and_shared_ones_equal(table: nn.Embedding) -> None:
    index = torch.tensor([[0, NO_IMAGE], [0, 1], [1, 0]])
    tokens, mask = bridge()(torch.randn(2, 9, DIM), None, index, table)
    assert mask.view(3, 2, 9).all(2).tolist() == [[True, False], [True, True], [True, True]]
    assert torch.equal(tokens[0, :9], tokens[1, :9])


def test_boxes_of_cells() -> None:
    boxes = bridge(grid=2, boxes="grid").cell_boxes(torch.device("cpu"))
    assert boxes.tolist() == [
        [[0, 0.5, 0, 0.5], [0.5, 1, 0, 0.5], [0, 0.5, 0.5, 1], [0.5, 1, 0.5, 1]]
    ]
    assert not bridge(grid=2).cell_boxes(torch.device("cpu")).any()


def test_impossible_sizes() -> None:
    with pytest.raises(ValueError, match="grid: 4 is more than the encoder's 3 x 3 cells"):
        VisualEmbedding(VisualEmbeddingConfig(grid=4), DIM, WIDTH, 3, nn.LayerNorm)
    with pytest.raises(ValueError, match="num_images: got 0"):
        built(VisualEmbeddingConfig, {"num_images": 0})
