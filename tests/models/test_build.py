"""Which weights train, where weights come from, and recipes that cannot be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.toys.models import DIM, backbone, batch, build, saved_backbone
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.build import ModelSetup, build_model
from vlds.models.loading.hashes import hash_source
from vlds.models.methods import Adapter, Full, Method
from vlds.models.methods.host import is_own
from vlds.models.vision import ConvNet, StoredFeatures, VisionEncoder
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
