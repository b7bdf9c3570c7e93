"""Tasks with heads beside tasks that write text: losses, answers and cuts of a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toys.models import DIM, GRID, TASKS, Words, backbone, batch, shake
from tests.toys.wide_models import wide
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.build import ModelSetup, build_model
from vlds.models.collate import JointCollator
from vlds.models.heads import LinearHead, MLPHead
from vlds.models.kinds.joint import JointModel
from vlds.models.loss import nll_of
from vlds.models.methods import LST, Adapter, LoRA, Mixture
from vlds.models.methods.context import Predicted
from vlds.models.model import Model
from vlds.models.task_heads import TaskHeads
from vlds.models.vision import StoredFeatures
from vlds.schema import IGNORED_LABEL, Batch, Decoding, Example, Row
from vlds.tasks.class_output import ClassOutput

COLOURS = ("red", "green", "blue", "dark")
OUTPUTS = {
    "gqa": ClassOutput(LinearHead(classes=("yes", "no", "left")), "cross_entropy"),
    "vqa": ClassOutput(MLPHead(classes=COLOURS), "binary_cross_entropy"),
}
"""nlvr writes text."""
VQA, GQA, NLVR = 0, 1, 2


def build(family: type[Backbone], folder: Path, **fields: Any) -> JointModel:
    kind = JointSeq2Seq(
        backbone=backbone(family, folder), vision=StoredFeatures(dim=DIM, grid=GRID)
    )
    setup = ModelSetup(kind=kind, outputs=OUTPUTS, **fields)
    model = build_model(setup, TASKS, torch.float32, Words())
    shake(model)
    assert isinstance(model, JointModel)
    return model.eval()


def mixed(model: JointModel) -> Batch:
    """Two questions of vqa, one of gqa, and a text between them."""
    examples = batch([VQA, NLVR, GQA, VQA])
    assert examples.labels is not None
    prefix = model.family.choice_prefix(model.backbone)
    has_classes = examples.task_index != NLVR
    labels = examples.labels.masked_fill(has_classes[:, None], IGNORED_LABEL)
    labels[has_classes, len(prefix) - 1] = model.backbone.config.eos_token_id
    labels[~has_classes, : len(prefix) - 1] = torch.tensor(prefix[1:], dtype=torch.long)
    targets = torch.tensor([[0.3, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    return replace(examples, labels=labels, class_targets=targets)


def closed_formula(model: JointModel, examples: Batch) -> Tensor:
    """(b,) losses by the heads over the decoder's state after the tokens that begin every answer,
    as VL-T5 and VL-BART compute it; and over the vocabulary for the text."""
    prefix = torch.tensor(model.family.choice_prefix(model.backbone))
    states, mask = model.encode(examples)
    decoded = model.backbone.get_decoder()(
        input_ids=prefix.expand(4, -1), encoder_hidden_states=states, encoder_attention_mask=mask
    ).last_hidden_state[:, -1]
    soft = torch.tensor([[0.3, 1, 0, 0], [0, 0, 0, 0]])
    vqa = F.binary_cross_entropy_with_logits(
        model.heads["vqa"](decoded[[0, 3]]), soft, reduction="none"
    ).sum(1)
    gqa = F.cross_entropy(model.heads["gqa"](decoded[[2]]), torch.tensor([1]))
    assert examples.labels is not None
    logits = model.logits(examples)[1]
    text = F.cross_entropy(logits, examples.labels[1], ignore_index=IGNORED_LABEL, reduction="sum")
    return torch.stack([vqa[0], text, gqa, vqa[1]])


@pytest.mark.parametrize("family", [T5, Bart])
def test_losses_are_those_of_the_formula(family: type[Backbone], tmp_path: Path) -> None:
    """Whichever rows are computed together."""
    model = build(family, tmp_path, methods={"adapter": Adapter(reduction=4)})
    examples, scale = mixed(model), torch.tensor([0.5, 1.0, 0.0, 2.0])
    expected = closed_formula(model, examples)
    for cut in ([], [[1], [3, 0], [2]], [[0, 2], [3], [1]]):
        output = model(examples, scale, [torch.tensor(piece) for piece in cut])
        assert torch.allclose(output.token_nll_sum, expected, rtol=1e-5)
        assert torch.allclose(output.loss, scale @ expected, rtol=1e-5)
        assert not output.token_nll_sum.requires_grad


@pytest.mark.parametrize("family", [T5, Bart])
def test_answers_are_the_best_classes(family: type[Backbone], tmp_path: Path) -> None:
    """By softmax, or by sigmoid where several may hold."""
    model = build(family, tmp_path)
    examples = mixed(model)
    states = model.first_states(examples)
    vqa = model.answer(examples.select(torch.tensor([0, 3])), Decoding())
    best, chosen = model.heads["vqa"](states[[0, 3]]).sigmoid().max(-1)
    assert [answer.text for answer in vqa] == [COLOURS[number] for number in chosen]
    assert [answer.confidence for answer in vqa] == pytest.approx(best.tolist())
    (gqa,) = model.answer(examples.select(torch.tensor([2])), Decoding())
    shares = model.heads["gqa"](states[2]).softmax(-1)
    assert gqa.text == ("yes", "no", "left")[int(shares.argmax())]
    assert gqa.confidence == pytest.approx(shares.max().item())
    assert gqa.token_confidence is None


def test_a_head_beside_a_ladder_reads_what_leaves_it(tmp_path: Path) -> None:
    model = build(T5, tmp_path, methods={"lst": LST(reduction=2)})
    examples = mixed(model)
    losses = model(examples, torch.ones(4)).token_nll_sum
    logits = model.heads["gqa"](model.first_states(examples)[[2]])
    assert losses[2].item() == pytest.approx(-logits.log_softmax(-1)[0, 1].item(), rel=1e-5)


def test_an_unknown_answer_has_no_cross_entropy(tmp_path: Path) -> None:
    """Its targets are zeros; of questions with a yes or no for each class, all are no."""
    model = build(T5, tmp_path)
    examples = mixed(model)
    none = replace(examples, class_targets=torch.zeros(4, 2))
    losses = model(none, torch.ones(4)).token_nll_sum
    assert losses[2] == 0
    logits = model.heads["vqa"](model.first_states(examples)[[0]])
    assert losses[0].item() == pytest.approx(F.softplus(logits).sum().item(), rel=1e-5)


def test_passes_are_compared_by_their_classes_too(tmp_path: Path) -> None:
    """A mixture's consistency is the symmetric divergence over the classes; over yes and no where
    each class is a question."""
    mixture = Mixture(of=Adapter(reduction=4, sharing="half_shared_up"), experts=3, consistency=2.0)
    model = build(T5, tmp_path, methods={"mixture": mixture})
    examples = mixed(model)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.context.begin_step(0, 0)
    passes = []
    for number in range(2):
        with model.context.in_pass(number):
            passes.append(model.predicted(examples))
    added = model.batch_losses["mixture"].of_examples(passes)
    (vqa, gqa), (vqa_2, gqa_2) = ([own.logits for own in each.classes] for each in passes)
    p, q = gqa.softmax(-1), gqa_2.softmax(-1)
    expected = ((p - q) * (p / q).log()).sum(-1)
    assert added[2].item() == pytest.approx(expected.item(), rel=1e-4)
    p, q = vqa.sigmoid(), vqa_2.sigmoid()
    each = (p - q) * (torch.logit(p) - torch.logit(q))
    assert torch.allclose(added[[0, 3]], each.sum(-1), rtol=1e-4)


# The collator.


class Pieces:
    """A tokenizer whose texts begin as BART's or T5's do."""

    pad_token_id = 1

    def __init__(self, before: list[int]) -> None:
        self.before = before

    def __call__(self, texts: list[str], **limits: Any) -> dict[str, list[list[int]]]:
        words = ([int(word) for word in text.split()] for text in texts)
        return {"input_ids": [[*self.before, *ids, 2] for ids in words]}


@pytest.mark.parametrize("before", [[], [0]])
def test_an_example_with_classes_has_one_label(before: list[int]) -> None:
    """The end of an answer without words; what stands before it is no label."""
    scores: list[dict[int, float] | None] = [{2: 0.3, 0: 1.0}, None, {}]
    rows = [
        Row(
            Example(str(n), "t", "5", "7 8" if s is None else "", class_scores=s), 0, 9, 9, range(0)
        )
        for n, s in enumerate(scores)
    ]
    made = JointCollator(Pieces(before), features=True)(rows, torch.zeros(0), evaluation=False)
    hidden = [IGNORED_LABEL] * len(before)
    assert made.labels is not None
    width = made.labels.shape[1]
    for row in (0, 2):
        expected = [*hidden, 2]
        assert made.labels[row].tolist() == expected + [IGNORED_LABEL] * (width - len(expected))
    assert made.labels[1].tolist() == [*before, 7, 8, 2]
    assert made.class_targets is not None
    assert torch.allclose(made.class_targets, torch.tensor([[1.0, 0, 0.3], [0, 0, 0], [0, 0, 0]]))
    chosen = made.select(torch.tensor([2, 0]))
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [[*hidden, 2]] * 2
    assert chosen.class_targets is not None
    assert chosen.class_targets[1].tolist() == made.class_targets[0].tolist()


# Heads in causal and image-text models read the state that predicts an answer's first token: with
# rows of the output layer as its weights, a head gives the logits of these tokens.

WORDS = tuple(f"word {number}" for number in range(5))
"""Classes that stand for the first tokens of the vocabulary."""
OF_WORDS = {"vqa": ClassOutput(LinearHead(classes=WORDS), "cross_entropy")}
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
    model = with_word_head(source.build({"lora": LoRA(rank=2)}, outputs=OF_WORDS))
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
    model = with_word_head(source.build(outputs=OF_WORDS))
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
    model = with_word_head(source.build(outputs=OF_WORDS))
    rows = [with_classes(row, {n: 0.5, 4: 0.2}) for n, row in enumerate(source.rows())]
    batch, scale = source.batch(rows), torch.linspace(0.5, 1, 3)
    whole = model(batch, scale)
    for cut in ([[1], [2, 0]], [[0], [1], [2]]):
        parts = model(batch, scale, [torch.tensor(piece) for piece in cut])
        assert torch.allclose(parts.token_nll_sum, whole.token_nll_sum, rtol=1e-4)


def test_a_training_step_reaches_heads_without_pictures_too() -> None:
    """A row that stands in for a picture has no class."""
    source = wide("qwen2_5_vl")
    model = source.build(outputs=OF_WORDS).train()
    (row,) = [row for row in source.rows() if len(row.images) == 0]
    output = model(source.batch([with_classes(row, {1: 1.0})]), torch.ones(1))
    output.loss.backward()
    assert output.token_nll_sum.shape == (1,)
    assert model.heads["vqa"].weight.grad.any()  # type: ignore[union-attr]
