"""The model as a whole: loss, images, tasks, freezing, copies."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.toys.models import backbone, batch, build
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter, Full
from vlds.models.vision import ConvNet
from vlds.schema import NO_IMAGE, Batch, Decoding

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


@FAMILIES
def test_a_copy_is_a_model_of_its_own(family: type[Backbone], tmp_path: Path) -> None:
    model = build(backbone(family, tmp_path), {"adapter": Adapter(sharing="multiple")}).eval()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(batch(), torch.ones(4)).loss, model(batch(), torch.ones(4)).loss)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model(batch(tasks=(1, 1)), torch.ones(2))
    assert twin(batch(), torch.ones(4)).loss > 0
    assert twin.context.routing is not model.context.routing


def test_images_are_encoded_once(tmp_path: Path) -> None:
    model = build(backbone(T5, tmp_path), {"adapter": Adapter()}, vision=NET).eval()
    seen: list[int] = []
    model.vision.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    examples = shown()
    model.generate(examples, Decoding(num_beams=3, max_new_tokens=4))[0]
    assert seen == [3]
    tokens, _ = model.visual_tokens(examples)
    assert tokens.shape == (4, 2 * model.visual_embedding.num_tokens, 16)


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


def test_low_precision_losses_are_summed_in_float32(tmp_path: Path) -> None:
    model = build(backbone(Bart, tmp_path), {"adapter": Adapter()}, dtype=torch.bfloat16)
    output = model(batch(), torch.ones(4))
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients(model).values())
    assert len(model.generate(batch(), Decoding(num_beams=2, max_new_tokens=3))[0]) == 4


def test_batches_that_cannot_be_used(tmp_path: Path) -> None:
    model = build(backbone(T5, tmp_path), {"adapter": Adapter()})
    with pytest.raises(ValueError, match="neither pictures nor stored features"):
        model(replace(batch(), features=None), torch.ones(4))
    with pytest.raises(ValueError, match="no targets"):
        model(replace(batch(), labels=None), torch.ones(4))
    assert NO_IMAGE in batch().image_index
