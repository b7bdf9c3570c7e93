"""Dropout by example: how often, how independent, its gradient, and what it does not depend on."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlds.models.kernels import dropout
from vlds.models.kernels.dropout import (
    StepDropout,
    decoder_follows,
    dropout_by,
    examples_follow,
    keys_stand_before,
    pictures_follow,
    tasks_follow,
    visual_tokens_end,
)
from vlds.models.kernels.fused import compiled_functions

PROBABILITIES = [0.05, 0.1, 0.5, 0.999]
IDS = [str(number) for number in range(32)]


def dropped(
    shape: Sequence[int],
    probability: float = 0.5,
    *,
    step: int = 0,
    ids: Sequence[str] = IDS,
    calls: int = 1,
    visual: int = 0,
) -> list[Tensor]:
    """Where the calls of one pass drop."""
    with dropout_by(StepDropout(7, step)):
        examples_follow(ids)
        if visual:
            visual_tokens_end(shape[-2], visual)
        return [F.dropout(torch.ones(*shape), probability) == 0 for _ in range(calls)]


def deviation(probability: float, count: int) -> float:
    """Of the mean of so many draws."""
    return math.sqrt(probability * (1 - probability) / count)


def assert_independent(first: Tensor, second: Tensor) -> None:
    """Draws at one half agree as often as two coins."""
    agree = (first == second).double().mean()
    assert abs(agree - 0.5) < 4.5 * deviation(0.5, first.numel())


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_each_place_is_dropped_as_often_as_asked(probability: float) -> None:
    (found,) = dropped((32, 50, 256), probability)
    # Four neighbours share one hash: each of the four is looked at alone.
    for place in range(4):
        part = found[..., place::4].double()
        assert abs(part.mean() - probability) < 4 * deviation(probability, part.numel())


@pytest.mark.parametrize(
    "distance", [(0, 0, 1), (0, 0, 3), (0, 0, 4), (0, 1, 0), (1, 0, 0), (3, 7, 20)]
)
def test_neighbours_are_dropped_independently(distance: tuple[int, int, int]) -> None:
    (found,) = dropped((32, 50, 256))
    ends = [size - step for size, step in zip(found.shape, distance, strict=True)]
    a, b, c = (slice(end) for end in ends)
    d, e, f = (slice(step, None) for step in distance)
    assert_independent(found[a, b, c], found[d, e, f])


def test_corners_of_a_square_are_dropped_independently() -> None:
    # Their keys add up to the same sum two by two, which a weak hash would show.
    (found,) = dropped((32, 50, 256))
    signs = found.double() * 2 - 1
    for lane in range(4):
        part = signs[..., lane::4]
        product = part[:, :-1, :-1] * part[:, 1:, :-1] * part[:, :-1, 1:] * part[:, 1:, 1:]
        assert abs(product.mean()) < 4.5 / math.sqrt(product.numel())


def test_layers_and_steps_are_dropped_independently() -> None:
    first, second = dropped((32, 50, 256), calls=2)
    assert_independent(first, second)
    assert_independent(first, *dropped((32, 50, 256), step=1))


def test_rows_beside_an_example_change_nothing() -> None:
    (whole,) = dropped((32, 50, 64))
    (part,) = dropped((5, 50, 64), ids=IDS[10:15])
    assert torch.equal(part, whole[10:15])


def test_padding_behind_an_example_changes_nothing() -> None:
    (whole,) = dropped((32, 50, 64))
    (short,) = dropped((32, 20, 64))
    assert torch.equal(short, whole[:, :20])
    (whole,) = dropped((32, 50, 64), visual=36)
    (short,) = dropped((32, 40, 64), visual=36)
    assert torch.equal(short[:, :4], whole[:, :4])
    assert torch.equal(short[:, 4:], whole[:, 14:])


def test_attention_follows_text_and_pictures() -> None:
    (whole,) = dropped((32, 3, 50, 50), visual=36)
    (short,) = dropped((32, 3, 40, 40), visual=36)
    for rows, ours in ((slice(4), slice(4)), (slice(14, None), slice(4, None))):
        for columns, mine in ((slice(4), slice(4)), (slice(14, None), slice(4, None))):
            assert torch.equal(short[:, :, ours, mine], whole[:, :, rows, columns])


def test_a_decoder_reads_the_sequence_as_an_encoder_does() -> None:
    """What LoRA drops of a decoder's keys follows text and pictures, whatever the padding."""

    def drawn(length: int) -> Tensor:
        with dropout_by(StepDropout(7, 0)):
            examples_follow(IDS)
            visual_tokens_end(length + 6, 6)
            decoder_follows(4)
            return F.dropout(torch.ones(32, length + 6, 8)) == 0

    padded, short = drawn(9), drawn(5)
    assert torch.equal(padded[:, :5], short[:, :5])
    assert torch.equal(padded[:, 9:], short[:, 5:])


def test_prefixes_do_not_make_a_decoders_tokens_the_sequence() -> None:
    """A decoder's own keys behind prefixes may be as many as the tokens that it reads."""

    def drawn(length: int) -> Tensor:
        with dropout_by(StepDropout(7, 0)):
            examples_follow(IDS)
            visual_tokens_end(length, 4)
            decoder_follows(5)
            keys_stand_before(3)
            return F.dropout(torch.ones(32, 2, 5, 3 + 5)) == 0

    assert torch.equal(drawn(8), drawn(11))


def test_kept_elements_and_their_gradients_are_scaled() -> None:
    inputs = torch.randn(64, 3, 33, requires_grad=True)
    with dropout_by(StepDropout(0, 0)):
        outputs = F.dropout(inputs, 0.25)
        outputs.sum().backward()
    kept = outputs != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(outputs, inputs * kept / 0.75)
    torch.testing.assert_close(inputs.grad, kept / 0.75)


def test_a_layer_that_is_computed_again_drops_the_same() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5))
    inputs = torch.randn(4, 6, 8, requires_grad=True)
    gradients = []
    for again in (False, True):
        torch.manual_seed(3)
        inputs.grad = None
        with dropout_by(StepDropout(0, 0)):
            outputs = []
            for start in (0, 2):  # two sets of rows, of which the first is computed again last
                examples_follow(IDS[start : start + 2])
                rows = inputs[start : start + 2]
                outputs.append(
                    checkpoint(layer, rows, use_reentrant=False) if again else layer(rows)
                )
            torch.cat(outputs).square().sum().backward()
        assert inputs.grad is not None
        gradients.append(inputs.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_tokens_of_all_rows_in_one_dimension() -> None:
    """Some layers flatten (b, l, d) to (b * l, d)."""
    (whole,) = dropped((32, 6, 8))
    (flat,) = dropped((32 * 6, 8))
    assert torch.equal(flat.view(32, 6, 8), whole)
    (some,) = dropped((4 * 6, 8), ids=IDS[3:7])
    assert torch.equal(some.view(4, 6, 8), whole[3:7])


def test_pictures_draw_by_what_they_show() -> None:
    pictures = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)

    def drawn(shown: Tensor, ids: Sequence[str]) -> Tensor:
        with dropout_by(StepDropout(7, 0)):
            examples_follow(ids)
            with pictures_follow(shown):
                return F.dropout(torch.ones(len(shown), 5, 8)) == 0

    whole = drawn(pictures, IDS[:4])
    assert torch.equal(drawn(pictures[[2, 0]], IDS[:2]), whole[[2, 0]])
    assert_independent(whole[0], whole[1])


def test_tasks_draw_by_their_number() -> None:
    """Whichever of them a batch has, even if it has as many examples."""

    def of_tasks(tasks: Sequence[int], ids: Sequence[str]) -> Tensor:
        with dropout_by(StepDropout(7, 0)):
            examples_follow(ids)
            with tasks_follow(tasks):
                return F.dropout(torch.ones(len(tasks), 3, 64)) == 0

    whole = of_tasks([0, 2], IDS)
    assert torch.equal(of_tasks([0, 2], IDS[:2]), whole)
    assert torch.equal(of_tasks([2], IDS[:1]), whole[1:])
    assert_independent(*whole)


def test_sequences_without_a_text_and_empty_tensors() -> None:
    (found,) = dropped((32, 3, 36, 36), visual=36)
    assert abs(found.double().mean() - 0.5) < 4 * deviation(0.5, found.numel())
    (empty,) = dropped((32, 0, 8))
    assert empty.shape == (32, 0, 8)


@pytest.mark.parametrize("width", [3000, 768, 50, 7, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
def test_compiled_and_torchs_dropout_are_the_same_bits(
    dtype: torch.dtype, width: int, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled_functions(dropout.SOURCE) is None:
        pytest.skip("no C compiler")
    values = torch.randn(32, 50, width).to(dtype)
    values[0, 0, 0], values[1, 0, 0] = float("inf"), float("nan")
    if turned:
        values = values.transpose(0, 1).contiguous().transpose(0, 1)

    def outputs() -> Tensor:
        with dropout_by(StepDropout(7, 0)):
            examples_follow(IDS)
            visual_tokens_end(50, 20)
            return F.dropout(values, 0.1)

    compiled = outputs()
    monkeypatch.setattr(dropout, "compiled_drop", lambda dtype: None)
    torch.testing.assert_close(compiled, outputs(), rtol=0, atol=0, equal_nan=True)
    assert 0 < (compiled == 0).double().mean() < 0.2


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "cc --no-such-flag", '"'])
def test_without_a_compiler_torch_drops(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler)
    compiled_functions.cache_clear()
    try:
        with dropout_by(StepDropout(0, 0)):
            assert 0 < (F.dropout(torch.ones(9, 400), 0.1) == 0).double().mean() < 0.2
        assert compiled_functions(dropout.SOURCE) is None
    finally:
        compiled_functions.cache_clear()
