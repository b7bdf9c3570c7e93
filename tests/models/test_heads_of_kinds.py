"""Heads in causal and image-text models read the state that predicts an answer's first token: with
rows of the output layer as its weights, a head gives the logits of these tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.toys.wide_models import wide
from vlds.models.heads import LinearHead
from vlds.models.loss import nll_of
from vlds.models.methods import LoRA
from vlds.models.methods.context import Predicted
from vlds.models.model import Model
from vlds.models.task_heads import TaskHeads
from vlds.schema import IGNORED_LABEL, Decoding, Row
from vlds.tasks.class_output import ClassOutput

WORDS = tuple(f"word {number}" for number in range(5))
"""Classes that stand for the first tokens of the vocabulary."""
OUTPUTS = {"vqa": ClassOutput(LinearHead(classes=WORDS), "cross_entropy")}
TYPES = ["llama", "qwen2_5_vl", "florence2", "paligemma"]
"""Sequences with and without placeholders of pictures, and a decoder of its own."""


def with_word_head(model: Model) -> Model:
    """The head has the rows of the first tokens in the output layer."""
    layer = model.backbone.get_output_embeddings()
    head = model.heads["vqa"]
    with torch.no_grad():
        head.weight.copy_(layer.weight[: len(WORDS)])
        bias = getattr(model.backbone, "final_logits_bias", None)
        head.bias.zero_() if bias is None else head.bias.copy_(bias[0, : len(WORDS)])
    return model.eval()


def with_classes(row: Row, scores: dict[int, float]) -> Row:
    """A row of the first task has scores of classes in place of its text; others are as they
    are."""
    if row.task_index:
        return row
    return row._replace(example=replace(row.example, target="", class_scores=scores))


def first_rows(predicted: Predicted) -> Tensor:
    """(b, w) logits of the first label of each example."""
    numbers = torch.full(predicted.labels.shape, -1)
    numbers[predicted.places] = torch.arange(len(predicted.logits))
    return predicted.logits[numbers.masked_fill(numbers < 0, len(predicted.logits)).amin(1)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model_type", TYPES)
def test_a_head_reads_what_predicts_the_first_token(model_type: str) -> None:
    source = wide(model_type)
    model = with_word_head(source.build({"lora": LoRA(rank=2)}, outputs=OUTPUTS))
    texts = source.rows()
    heads, model.heads = model.heads, TaskHeads()
    as_text = model.predicted(source.batch(texts))
    caption = nll_of(as_text)[1].sum()
    num_before = len(source.collator.chat.start_ids) if model_type == "florence2" else 0
    if num_before:  # tokens that begin every answer are labels of texts
        hidden = as_text.labels.clone()
        hidden[:, :num_before] = IGNORED_LABEL
        kept = as_text.places[1] >= num_before
        rows, columns = (numbers[kept] for numbers in as_text.places)
        as_text = Predicted(as_text.logits[kept], hidden, (rows, columns))
    model.heads = heads
    batch = source.batch([with_classes(row, {2: 1.0}) for row in texts])
    predicted = model.predicted(batch)
    (found,) = predicted.classes
    assert found.rows.tolist() == [0, 2]
    expected = first_rows(as_text)[[0, 2], : len(WORDS)]
    assert torch.allclose(found.logits, expected, rtol=1e-4, atol=1e-5)
    assert found.targets.tolist() == [[0, 0, 1, 0, 0]] * 2
    losses = model.loss_sums(batch)[0]
    assert torch.allclose(losses[[0, 2]], -expected.log_softmax(-1)[:, 2], rtol=1e-4)
    assert torch.allclose(losses[1], caption, rtol=1e-4)  # learned as without heads


@pytest.mark.parametrize("model_type", TYPES)
def test_an_answer_is_the_word_that_would_be_chosen(model_type: str) -> None:
    """From the prompt alone, with the confidence among the classes."""
    source = wide(model_type)
    model = with_word_head(source.build(outputs=OUTPUTS))
    rows = [row for row in source.rows() if row.task_index == 0]
    batch = source.batch(rows, evaluation=True)
    with torch.no_grad():
        logits = model.first_logits(batch.prompts())[:, : len(WORDS)]  # type: ignore[attr-defined]
    answers = model.answer(batch, Decoding())
    assert [answer.text for answer in answers] == [WORDS[n] for n in logits.argmax(-1)]
    shares = logits.softmax(-1).amax(-1).tolist()
    assert [answer.confidence for answer in answers] == pytest.approx(shares, rel=1e-4)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_cut_changes_nothing(model_type: str) -> None:
    source = wide(model_type)
    model = with_word_head(source.build(outputs=OUTPUTS))
    rows = [with_classes(row, {n: 0.5, 4: 0.2}) for n, row in enumerate(source.rows())]
    batch, scale = source.batch(rows), torch.linspace(0.5, 1, 3)
    whole = model(batch, scale)
    for cut in ([[1], [2, 0]], [[0], [1], [2]]):
        parts = model(batch, scale, [torch.tensor(piece) for piece in cut])
        assert torch.allclose(parts.token_nll_sum, whole.token_nll_sum, rtol=1e-4)


def test_a_training_step_reaches_heads_without_pictures_too() -> None:
    """A row that stands in for a picture has no class."""
    source = wide("qwen2_5_vl")
    model = source.build(outputs=OUTPUTS).train()
    (row,) = [row for row in source.rows() if len(row.images) == 0]
    output = model(source.batch([with_classes(row, {1: 1.0})]), torch.ones(1))
    output.loss.backward()
    assert output.token_nll_sum.shape == (1,)
    assert model.heads["vqa"].weight.grad.any()  # type: ignore[union-attr]
