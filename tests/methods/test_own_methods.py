"""Methods of a user's own that need more than a place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.examples.picture_scale import PictureScale
from tests.examples.two_passes import TwoPasses
from tests.toys.models import backbone, batch, build, shake
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.kernels.attention import step_kernels
from vlds.models.kernels.dropout import StepDropout
from vlds.models.methods import Method
from vlds.schema import Decoding

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])


@FAMILIES
def test_a_second_pass_adds_a_named_term(family: type[Backbone], tmp_path: Path) -> None:
    source = backbone(family, tmp_path, dropout=0.2)
    model = build(source, {"method": TwoPasses(reduction=4, weight=2.0)}).train()
    examples, coefficients = batch(), torch.tensor([1.0, 0.5, 2.0, 1.5])
    with step_kernels(model, StepDropout(0, 0)):
        output = model(examples, coefficients)
    added = output.added["method"]
    assert (added > 0).all()
    expected = coefficients @ (output.token_nll_sum + added)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert not model.eval()(examples, coefficients).added


@FAMILIES
def test_any_cut_of_a_batch_gives_the_same_loss_and_gradient(
    family: type[Backbone], tmp_path: Path
) -> None:
    """Of the second pass too, whose dropout draws anew for each example."""
    source = backbone(family, tmp_path, dropout=0.2)
    methods: dict[str, Method] = {"method": TwoPasses(reduction=4), "scale": PictureScale()}
    examples, found = batch(), []
    for pieces in ([[0, 1, 2, 3]], [[2], [0, 1, 3]]):
        model = build(source, methods).train()
        shake(model)
        total = torch.zeros(())
        for piece in pieces:
            with step_kernels(model, StepDropout(0, 0)):
                output = model(examples.select(torch.tensor(piece)), torch.ones(len(piece)))
                output.loss.backward()
            total = total + output.loss.detach()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((total, gradients))
    (whole, of_whole), (cut, of_cut) = found
    assert cut.item() == pytest.approx(whole.item(), rel=1e-5)
    for one, other in zip(of_whole, of_cut, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


@FAMILIES
@torch.no_grad()
def test_answers_keep_their_pictures(family: type[Backbone], tmp_path: Path) -> None:
    model = build(backbone(family, tmp_path), {"method": PictureScale()}).eval()
    shake(model)
    examples, decoding = batch(), Decoding(num_beams=2, max_new_tokens=5)
    together = model.generate(examples, decoding)[0]
    rows = [examples.select(torch.tensor([row])) for row in range(len(examples))]
    assert together == [model.generate(row, decoding)[0][0] for row in rows]
