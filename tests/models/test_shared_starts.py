"""Rows that begin alike are computed together, with the numbers that each has alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, FalconConfig

from tests.toys.causal import SIZES, batch, build, kind_in, rows
from vlds.models.generation import positions
from vlds.models.generation.positions import can_share_starts
from vlds.models.kernels.dropout import StepDropout, dropout_by, examples_follow
from vlds.models.kinds.causal import CausalModel
from vlds.models.methods import (
    Adapter,
    HyperPELT,
    LoRA,
    Method,
    PrefixTuning,
    PromptTuning,
    SimAdapter,
)
from vlds.schema import Decoding, Example, Row

QUESTIONS = [
    "what colour is it?", "what colour is it now?", "it", "is it dark", "what colour is it?",
]  # fmt: skip
SHARING = ("llama", "qwen2", "phi3")


@pytest.fixture
def narrow_model_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens alone count, as in a wide model: in a tiny one, pairs of tokens cost more."""
    monkeypatch.setattr(positions, "cost", lambda num_tokens, width: num_tokens)


def questions(task: int = 0, images: range = range(1)) -> list[Row]:
    """Five questions about the same pictures."""
    return [
        Row(Example(f"q{task}{n}", "vqa", text, f"{n} red"), task, 40, 20, images)
        for n, text in enumerate(QUESTIONS)
    ]


def mixed() -> list[Row]:
    """Questions about three choices of pictures and of two tasks, in no order; one has no
    answer."""
    silent = rows()[3]._replace(example=replace(rows()[3].example, target=None))
    groups = [
        questions(),
        questions(1),
        questions(1, range(0, 2)),
        [*questions(0, range(0)), silent],
    ]
    return [group[n] for n in range(6) for group in groups if n < len(group)]


def nll_and_gradients(model: CausalModel, chosen: list[Row], kind: object) -> list[Tensor]:
    """Each token's loss, and the gradient of each weight that trains."""
    model.zero_grad()
    nll = model.token_nll(batch(kind, chosen))  # type: ignore[arg-type]
    (nll * torch.linspace(0.5, 1.5, len(nll))[:, None]).sum().backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    return [nll.detach(), *(grad for grad in trained if grad is not None)]


def drawn(kind: Any, method: Method) -> CausalModel:
    """A model in float64 whose method does something."""
    model = build(kind, {"method": method}, torch.float64).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model


METHODS: dict[str, Method] = {
    "adapter": Adapter(sharing="multiple", reduction=2),
    "lora": LoRA(rank=2, roles=["attn_out", "ffn_in"], sharing="multiple", train_biases=False),
    "prompt": PromptTuning(length=3, sharing="multiple"),
    "prefix": PrefixTuning(length=3, sharing="multiple"),
    "hyper_pelt": HyperPELT(reduction=2, prefix_length=3, visual=False),
    "sim_adapter": SimAdapter(adapters={"a": Adapter(), "b": Adapter(reduction=2)}, guide=0.0),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (kind, name)
        for name in METHODS
        for kind in SHARING
        if (kind, name) not in (("phi3", "prefix"), ("phi3", "hyper_pelt"))  # has no layer of keys
    ],
)
@pytest.mark.usefixtures("narrow_model_shares")
def test_numbers_are_those_of_each_row(kind: str, method: str, saved: Path) -> None:
    chosen = kind_in(saved / kind)
    model = drawn(chosen, METHODS[method])
    assert model.shares_starts
    together = nll_and_gradients(model, mixed(), chosen)
    model.shares_starts = False
    apart = nll_and_gradients(model, mixed(), chosen)
    assert len(together) == len(apart) > 2
    for mine, expected in zip(together, apart, strict=True):
        # Norms compute in float32.
        assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.usefixtures("narrow_model_shares")
def test_what_an_example_loses_by_dropout_depends_on_no_other_row(kind: str, saved: Path) -> None:
    """Shared or not, in any order and cut: draws follow from what a token's row says up to it."""
    chosen = kind_in(saved / kind)
    lora = LoRA(rank=2, roles=["attn_q", "ffn_in"], train_biases=False, dropout=0.5)
    model, every = drawn(chosen, lora).train(), mixed()
    whole = list(range(len(every)))
    found = []
    for shares, cut in product(
        (True, False), ([whole], [whole[::-1]], [whole[n::7] for n in range(7)])
    ):
        model.shares_starts = shares
        model.zero_grad()
        losses = torch.zeros(len(every), dtype=torch.float64)
        for numbers in cut:
            some = [every[number] for number in numbers]
            examples = batch(chosen, some)
            with dropout_by(StepDropout(0, 0)):
                examples_follow([row.example.id for row in some])
                nll = model.token_nll(examples).sum(1)
                nll.sum().backward()
            losses[numbers] = nll.detach().double()
        if len(cut) == 1:
            read = model.sequences(examples, model.visual_tokens(examples))
            lines = model.lines(examples, read, torch.zeros_like(read.mask))
            computed = read.mask.sum() if lines is None else lines.source.unique().numel()
            assert (computed < read.mask.sum()) == shares, "a start is computed once"
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append([losses, *gradients])
    for other in found[1:]:
        for mine, expected in zip(other, found[0], strict=True):
            # Norms compute in float32, and cuts add in another order.
            assert (mine - expected).abs().max() < 1e-6 * expected.abs().max()


DECODINGS = [
    Decoding(max_new_tokens=6),
    Decoding(max_new_tokens=6, num_beams=3),
    Decoding(answers=("red", "a dark picture", "it"), num_beams=2),
    Decoding(choices=("red", "blue")),
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("decoding", DECODINGS, ids=["greedy", "beams", "list", "choices"])
@pytest.mark.parametrize(
    ("kind", "method"),
    [*(("llama", name) for name in METHODS), ("qwen2", "lora"), ("phi3", "lora")],
)
@pytest.mark.usefixtures("narrow_model_shares")
def test_answers_are_those_of_each_row(
    kind: str, method: str, decoding: Decoding, saved: Path
) -> None:
    chosen = kind_in(saved / kind)
    model = drawn(chosen, METHODS[method])
    examples = batch(chosen, mixed(), evaluation=True)
    together = model.answer(examples, decoding)
    assert decoding.choices or model.starts(examples, model.visual_tokens(examples))
    model.shares_starts = False
    apart = model.answer(examples, decoding)
    assert [answer.text for answer in together] == [answer.text for answer in apart]
    assert len({answer.confidence for answer in apart}) > 1
    for one, other in zip(together, apart, strict=True):
        assert one.confidence == pytest.approx(other.confidence, rel=1e-5)


@pytest.mark.parametrize("kind", sorted({*SIZES} - {*SHARING}))
def test_other_positions_and_attention_keep_a_row_each(kind: str, saved: Path) -> None:
    """OPT learns its positions, and layers of Gemma 2 see a window."""
    assert not build(kind_in(saved / kind)).shares_starts


@pytest.mark.parametrize(
    "fields", [{"sliding_window": 8, "layer_types": ["full_attention"] * 2}, {"is_causal": False}]
)
def test_windows_and_attention_to_both_sides_share_nothing(
    fields: dict[str, object], saved: Path
) -> None:
    backbone = build(kind_in(saved / "phi3")).backbone
    assert can_share_starts(backbone)
    for name, value in fields.items():
        setattr(backbone.config, name, value)
    assert not can_share_starts(backbone)


def test_falcon_shares_with_rotary_positions_only() -> None:
    """Its config has rotary parameters even where ALiBi moves the scores."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9}
    for alibi in (False, True):
        model = AutoModelForCausalLM.from_config(FalconConfig(alibi=alibi, **sizes))
        assert can_share_starts(model) is not alibi
