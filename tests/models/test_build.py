"""Which weights train, where weights come from, and recipes that cannot be built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.toys.models import DIM, backbone, build
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5, Bart
from vlds.models.build import ModelSetup, describe
from vlds.models.methods import Adapter, Full, Method
from vlds.models.model import Counts
from vlds.models.vision import ConvNet, StoredFeatures, Timm, VisionEncoder
from vlds.models.visual_embedding import VisualEmbeddingConfig


def net(**fields: Any) -> ConvNet:
    return ConvNet(image_size=12, grid=3, widths=[4, 8], **fields)


@pytest.mark.parametrize(
    ("methods", "vision", "message"),
    [
        ({"all": Full(part="vision")}, None, "StoredModule has no weights"),
        (
            {},
            StoredFeatures(dim=DIM, grid=4),
            "visual_tokens: 12, but an image has 16 visual tokens",
        ),
        ({"norms": Adapter()}, None, "'norms' cannot be a method's name"),
        ({"a.b": Adapter()}, None, r"'a\.b' cannot be a method's name"),
        ({"mine": Adapter(part="vision")}, net(), r"plays the role 'attn_out'; its roles: none"),
        ({}, net(weights="nowhere.safetensors"), "no such file"),
    ],
)
def test_what_cannot_be_built(
    methods: dict[str, Method], vision: VisionEncoder | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        build(backbone(T5, tmp_path), methods, vision=vision)


# Parameter counts of the paper, at full size, without creating the models.

TASKS = ["vqa", "gqa", "nlvr", "caption"]
BART = {"backbone": Bart(path="facebook/bart-base"), "train_norms": True}
T5_BASE = {"backbone": T5(path="t5-base"), "train_norms": False}


def count(parts: dict[str, Any], method: Method, **fields: Any) -> Counts:
    """Counts with VL-Adapter's stored features."""
    arguments: dict[str, Any] = {
        "vision": StoredFeatures(dim=2048, grid=7),
        "visual_embedding": VisualEmbeddingConfig(grid=6),
        **parts,
        **fields,
    }
    return describe(ModelSetup(kind=JointSeq2Seq(**arguments), methods={"method": method}), TASKS)


@pytest.mark.parametrize(
    ("parts", "method", "trainable", "total", "percent"),
    [
        (BART, Full(), 141_156_864, 141_156_864, 100.0),
        (BART, Adapter(), 6_081_600, 145_606_464, 4.177),
        (BART, Adapter(sharing="multiple"), 19_430_400, 158_955_264, 12.224),
        (BART, Adapter(sharing="half_shared_up"), 12_725_760, 152_250_624, 8.358),
        (BART, Adapter(sharing="half_shared_down"), 12_786_240, 152_311_104, 8.395),
        (T5_BASE, Full(), 224_540_160, 224_540_160, 100.0),
        (T5_BASE, Adapter(), 10_480_512, 233_439_360, 4.490),
        (T5_BASE, Adapter(reduction=4), 19_333_632, 242_292_480, 7.979),
        (T5_BASE, Adapter(sharing="multiple"), 37_178_112, 260_136_960, 14.292),
        (T5_BASE, Adapter(sharing="half_shared_up"), 23_768_832, 246_727_680, 9.634),
    ],
    ids=lambda value: str(value)[:40],
)
def test_paper_counts(
    parts: dict[str, Any], method: Method, trainable: int, total: int, percent: float
) -> None:
    counts = count(parts, method)
    assert (counts.trainable, counts.total) == (trainable, total)
    assert round(counts.percent, 3) == percent


def test_parts_add_up() -> None:
    counts = count(BART, Adapter())
    assert counts.by_part["visual_embedding"].trainable == 1_582_848
    assert counts.by_part["norms"].trainable == 49_152
    assert counts.by_part["method"].trainable == 30 * 148_320
    assert counts.by_part["backbone"].trainable == 0
    assert counts.total == sum(part.total for part in counts.by_part.values())
    shown = json.loads(json.dumps(counts.as_dict()))
    assert list(shown) == ["total", "trainable", "percent", "by_part", "outside"]
    assert max(map(len, counts.table().splitlines())) < 80


def test_vision_encoder_is_named_but_not_in_the_total() -> None:
    without = count(BART, Adapter())
    encoder = Timm(model="resnet18")
    counts = count(BART, Adapter(), vision=encoder, visual_embedding=VisualEmbeddingConfig())
    assert counts.by_part["vision"].total == 11_689_512
    assert counts.by_part["backbone"] == without.by_part["backbone"]
    assert counts.total == sum(
        part.total for name, part in counts.by_part.items() if name != "vision"
    )


@pytest.mark.parametrize(
    ("path", "weights", "width", "tables"),
    [
        ("google-t5/t5-small", 60_506_624, 512, 1),
        ("google-t5/t5-large", 737_668_096, 1024, 1),
        ("google-t5/t5-3b", 2_851_598_336, 1024, 1),
        ("google-t5/t5-11b", 11_307_321_344, 1024, 1),
        # With a head of their own.
        ("google/flan-t5-small", 76_961_152, 512, 2),
        ("google/flan-t5-base", 247_577_856, 768, 2),
        ("google/t5-v1_1-base", 247_577_856, 768, 2),
        ("google/flan-t5-large", 783_150_080, 1024, 2),
        ("google/flan-t5-xl", 2_849_757_184, 2048, 2),
        ("google/flan-t5-xxl", 11_135_332_352, 4096, 2),
    ],
)
def test_backbones_from_shipped_sizes(path: str, weights: int, width: int, tables: int) -> None:
    """Published counts of the text models, with 32,128 rows in each table of tokens."""
    counts = count({"backbone": T5(path=path)}, Adapter())
    assert counts.by_part["backbone"].total == weights + tables * (32_200 - 32_128) * width
