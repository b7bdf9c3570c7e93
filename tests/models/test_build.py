"""Which weights train, where weights come from, and recipes that cannot be built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.toys.models import DIM, backbone, batch, build, saved_backbone
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.build import ModelSetup, build_model, describe
from vlds.models.loading.hashes import hash_source
from vlds.models.methods import Adapter, Full, Method
from vlds.models.methods.host import is_own
from vlds.models.model import Counts
from vlds.models.vision import ConvNet, StoredFeatures, Timm, VisionEncoder
from vlds.models.visual_embedding import VisualEmbeddingConfig

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])


def net(**fields: Any) -> ConvNet:
    return ConvNet(image_size=12, grid=3, widths=[4, 8], **fields)


@FAMILIES
def test_what_trains(family: type[Backbone], tmp_path: Path) -> None:
    source = backbone(family, tmp_path)
    model = build(source, {"mine": Adapter()}, train_norms=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == model.trained_by.keys()
    assert {model.part_of(name) for name in trained} == {"mine", "norms", "visual_embedding"}
    for name in trained:
        assert (model.part_of(name) == "mine") == (".extensions.mine." in name)
    assert all("norm" in name for name in trained if model.part_of(name) == "norms")
    only = build(source, {"mine": Adapter()}, train_visual_embedding=False)
    assert {only.part_of(n) for n, p in only.named_parameters() if p.requires_grad} == {"mine"}


@FAMILIES
def test_parts_come_before_methods_that_train_them_too(
    family: type[Backbone], tmp_path: Path
) -> None:
    """So that the rates of these parts, and their counts, hold whatever the methods are."""
    model = build(backbone(family, tmp_path), {"all": Full()}, train_norms=True)
    norms = [name for name in model.trained_by if "norm" in name and name.startswith("backbone.")]
    assert len(norms) > 8
    assert {model.trained_by[name] for name in norms} == {"norms"}
    assert {n for n, _ in model.backbone.named_parameters(prefix="backbone")} <= {
        n for n, by in model.trained_by.items() if by in ("all", "norms")
    }


@FAMILIES
def test_pretrained_names_stay(family: type[Backbone], tmp_path: Path) -> None:
    source = saved_backbone(family, tmp_path, vocabulary=60)
    plain = family.model_class.from_pretrained(tmp_path)
    model = build(source, {"one": Adapter(), "two": Adapter(init="identity")})
    own = {name for name in model.backbone.state_dict() if is_own(name)}
    assert own == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name
    tied = {
        id(p)
        for n, p in model.backbone.state_dict(keep_vars=True).items()
        if "embed_tokens" in n or "lm_" in n
    }
    assert tied == {id(model.backbone.get_input_embeddings().weight)}


@FAMILIES
def test_sources(family: type[Backbone], tmp_path: Path) -> None:
    """Frozen tensors equal the checkpoint's; in the token table, the first rows do."""
    model = build(
        saved_backbone(family, tmp_path, vocabulary=40), {"mine": Adapter()}, train_norms=True
    )
    plain = family.model_class.from_pretrained(tmp_path)
    original = {f"backbone.{name}": tensor for name, tensor in plain.state_dict().items()}
    state = dict(model.unique_state())
    table = next(iter(model.sources.rows))
    assert model.sources.rows == {table: 40}
    assert torch.equal(state[table][:40], original[table])
    assert state[table].shape[0] == 60
    assert state[table][40:].std() == pytest.approx(family.new_row_std, rel=0.2)
    for name in model.sources.names:
        assert torch.equal(state[name], original[name]), name
    left = state.keys() - model.sources.names - model.sources.rows.keys()
    expected = {n for n, p in model.named_parameters() if p.requires_grad}
    buffers = {"backbone.final_logits_bias"} if family is Bart else set()
    assert left == expected | buffers


def test_sources_of_random_and_of_trained_weights(tmp_path: Path) -> None:
    random = build(backbone(T5, tmp_path), {"mine": Adapter()})
    trained = build(saved_backbone(T5, tmp_path / "saved"), {"all": Full()})
    for model in (random, trained):
        assert not model.sources.names
        assert not model.sources.rows


def test_sources_of_the_visual_part(tmp_path: Path) -> None:
    first = build(backbone(T5, tmp_path), vision=net())
    save_file(first.vision.state_dict(), tmp_path / "vision.safetensors")
    save_file(first.visual_embedding.state_dict(), tmp_path / "bridge.safetensors")
    config = ModelSetup(
        kind=JointSeq2Seq(
            backbone=backbone(T5, tmp_path),
            vision=net(weights=str(tmp_path / "vision.safetensors")),
            visual_embedding=VisualEmbeddingConfig(weights=str(tmp_path / "bridge.safetensors")),
            train_visual_embedding=False,
        ),
        seed=7,
    )
    second = build_model(config, ["vqa"], torch.float32, range(60))
    visual = {n for n, _ in second.unique_state() if n.startswith("vis")}
    assert second.sources.names == visual
    pictures = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    assert torch.equal(second.vision(pictures), first.eval().vision(pictures))
    assert config.kind.source_hashes().keys() == {"vision encoder", "visual embedding"}


def test_hashes_follow_the_bytes(tmp_path: Path) -> None:
    saved_backbone(T5, tmp_path / "a")
    saved_backbone(T5, tmp_path / "b")
    assert hash_source(str(tmp_path / "a")) == hash_source(str(tmp_path / "b"))
    weights = tmp_path / "b" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert hash_source(str(tmp_path / "a")) != hash_source(str(tmp_path / "b"))
    assert hash_source("t5-base") == hash_source("t5-base") != hash_source("t5-large")


def test_meta_device_needs_no_tokenizer_and_no_weights(tmp_path: Path) -> None:
    vision = net(weights=str(tmp_path / "none.safetensors"))
    source = saved_backbone(Bart, tmp_path, vocabulary=48)
    (tmp_path / "model.safetensors").unlink()
    kind = JointSeq2Seq(backbone=source, vision=vision)
    with torch.device("meta"):
        setup = ModelSetup(kind=kind, methods={"mine": Adapter()})
        model = build_model(setup, ["a", "b"], torch.float32, None)
    assert all(p.device.type == "meta" for p in model.parameters())
    assert model.backbone.get_input_embeddings().num_embeddings == 48 + 12


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
        ({"keys": Adapter()}, None, "'keys' cannot be a method's name"),
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


def test_several_methods_extend_one_layer_in_order(tmp_path: Path) -> None:
    source = backbone(T5, tmp_path)
    model = build(source, {"one": Adapter(reduction=4), "two": Adapter(sharing="multiple")}).eval()
    layer = model.backbone.encoder.block[0].layer[0].SelfAttention.o
    assert list(layer.extensions) == ["one", "two"]
    model.context.routing.set(torch.tensor([2, 2]))
    inputs = torch.randn(2, 3, 16)
    plain = inputs @ layer.weight.T
    expected = layer.extensions["two"](inputs, layer.extensions["one"](inputs, plain))
    assert torch.allclose(layer(inputs), expected, atol=1e-6)
    assert model(batch(), torch.ones(4)).loss > 0


def test_a_source_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    saved_backbone(T5, tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=rf"^cannot read {weights} \(.*\); copy it again"):
        hash_source(str(tmp_path / "a"))


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
