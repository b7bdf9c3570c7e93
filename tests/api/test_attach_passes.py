"""Methods that run in each pass of a model that the user has built compute what they compute in
vlds' own models of the same kind: the same loss and gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import vlds
from tests.toys import causal
from tests.toys.image_text.rows import tiny
from tests.toys.models import backbone, batch, build, shake
from tests.toys.users_models import PIXELS, WORDS, built, inputs, output
from vlds.api.attach import Attached
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.methods import (
    VLPET,
    Adapter,
    DecoderPromptTuning,
    Hyperformer,
    HyperPELT,
    LoRA,
    Method,
    Mixture,
    PrefixTuning,
    PromptTuning,
)
from vlds.models.methods.context import BatchContext
from vlds.models.methods.host import take_out
from vlds.models.model import Model
from vlds.schema import IGNORED_LABEL, NO_IMAGE

NAME = "mine"
EXPERTS = Mixture(of=Adapter(reduction=4, sharing="half_shared_up"), consistency=0)
METHODS: dict[str, Method] = {
    "prefixes": PrefixTuning(length=3, hidden_dim=5),
    "prompts": PromptTuning(length=3, hidden_dim=5),
    "hyper": Hyperformer(reduction=4),
    "pelt": HyperPELT(visual=False, prefix_length=2, reduction=4),
    "mixture": EXPERTS,
    "gates": VLPET(),
}
FAMILIES: dict[str, type[Backbone]] = {"T5": T5, "Bart": Bart}


def attached_like(
    ours: Model, method: Method, part: str = "", model: Any = None
) -> tuple[Any, Attached]:
    """The model of Hugging Face inside a model of vlds (or `model`, which is like it) with the same
    method, attached, and the same weights."""
    plain = copy.deepcopy(ours.backbone) if model is None else model
    take_out(plain, NAME)
    for module in plain.modules():
        config = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", "").startswith("vlds"):
            module.set_attn_implementation("sdpa")
    host = plain.get_submodule(part)
    attached = vlds.attach(host, {NAME: method})
    theirs = ours.backbone.get_submodule(part).state_dict()
    with torch.no_grad():
        for key, tensor in attached.state_dict().items():
            tensor.copy_(theirs[key])
    return plain, attached


def without_dropout(model: nn.Module) -> None:
    """For comparisons in training mode: vlds draws dropout in its own order."""
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def compare(
    ours: Model, theirs: Attached, loss: Tensor, expected: Tensor, part: str = "", **close: Any
) -> None:
    """The two losses and the gradients of all that trains."""
    torch.testing.assert_close(loss, expected, **close)
    loss.backward()
    expected.backward()
    own = dict(ours.backbone.get_submodule(part).named_parameters())
    names = [name for name, p in theirs.model.named_parameters() if p.requires_grad]
    assert names
    assert any(own[name].grad.abs().max() > 1e-6 for name in names)
    for name in names:
        torch.testing.assert_close(
            theirs.model.get_parameter(name).grad, own[name].grad, **close, msg=name
        )


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("family", "method"),
    # Refused: Hugging Face's BART would give prompts positions, vlds' gives none.
    [pair for pair in product(FAMILIES, METHODS) if pair != ("Bart", "prompts")],
)
def test_in_an_encoder_decoder(
    family: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = METHODS[method]
    ours = build(
        backbone(FAMILIES[family], tmp_path), {NAME: chosen}, dtype=torch.float64, tasks=["vqa"]
    )
    shake(ours)
    without_dropout(ours)
    plain, attached = attached_like(ours, chosen)
    ours.train()
    plain.train()
    rows = batch(tasks=(0, 0, 0))
    rows = replace(rows, image_index=torch.full_like(rows.image_index, NO_IMAGE))
    assert rows.labels is not None
    # Passes here have numbers of their own, which decide what a mixture draws.
    monkeypatch.setattr(BatchContext, "another_pass", lambda context: None)
    ours.context.begin_step(0, 0)
    loss = ours(rows, torch.ones(3, dtype=torch.float64)).loss
    made = plain(
        input_ids=rows.input_ids, attention_mask=rows.attention_mask,
        decoder_input_ids=ours.decoder_inputs(rows.labels),
    )  # fmt: skip
    labels = rows.labels.flatten()
    expected = F.cross_entropy(made.logits.flatten(0, 1), labels, reduction="sum")
    compare(ours, attached, expected, loss)


@pytest.mark.parametrize("method", ["prefixes", "prompts"])
def test_in_a_causal_language_model(method: str, tmp_path: Path) -> None:
    """Padded rows, and one token after another behind a cache."""
    causal.save_model(tmp_path / "llama", "llama")
    kind, chosen = causal.kind_in(tmp_path / "llama"), METHODS[method]
    ours = causal.build(kind, {NAME: chosen}, torch.float64).eval()
    shake(ours)
    folder = str(tmp_path / "llama")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    plain, attached = attached_like(ours, chosen, model=loaded)
    rows = causal.batch(kind, causal.rows(((), (), (), ())))
    assert rows.labels is not None
    loss = ours(rows, torch.ones(4, dtype=torch.float64)).loss
    given = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
    logits = plain(**given).logits
    assert logits.shape[:2] == rows.input_ids.shape
    shifted = logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten()
    expected = F.cross_entropy(*shifted, reduction="sum", ignore_index=IGNORED_LABEL)
    # Llama's norms compute in float32.
    compare(ours, attached, expected, loss, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(plain(**given, labels=rows.labels).loss)
    # `generate` pads on the left, counts positions itself and knows of no prompts.
    ids = rows.input_ids[:2, :6]
    padded = {
        "input_ids": torch.cat([ids.new_zeros(2, 3), ids], 1),
        "attention_mask": torch.tensor([[0] * 3 + [1] * 6] * 2),
    }
    found = plain.generate(**padded, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    written = ids
    for _ in range(4):
        written = torch.cat([written, plain(written).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found[:, 9:], written[:, 6:])


@pytest.mark.parametrize("method", ["prefixes", "mixture"])
def test_in_an_image_text_model(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, chosen = tiny("llava"), METHODS[method]
    ours = toy.build({NAME: chosen}).double()
    shake(ours)
    part = ours.parts["backbone"].path.removeprefix("backbone.")
    plain, attached = attached_like(ours, chosen, part)
    ours.train()
    plain.train()
    without_dropout(ours)
    without_dropout(plain)
    rows = toy.batch(toy.rows())
    assert rows.labels is not None
    monkeypatch.setattr(BatchContext, "another_pass", lambda context: None)
    ours.context.begin_step(0, 0)
    loss = ours(rows, torch.ones(len(rows), dtype=torch.float64)).loss
    logits = plain(**ours.inputs(rows)).logits
    shifted = logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten()
    expected = F.cross_entropy(*shifted, reduction="sum", ignore_index=IGNORED_LABEL)
    compare(ours, attached, expected, loss, part)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", ["T5", "Llama", "Llava"])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_saved_copied_and_taken_out(name: str, method: str, tmp_path: Path) -> None:
    chosen, model = METHODS[method], built(name)
    before, usual = output(model, name), built(name).config._attn_implementation  # type: ignore[union-attr]
    if (name, method) in {("Llava", "prompts"), ("Llava", "gates"), ("Llama", "gates")}:
        with pytest.raises(ValueError, match=r"methods\.method: (PromptTuning|VLPET): "):
            vlds.attach(model, chosen)
        return
    attached = vlds.attach(model, chosen)
    shake(model)
    after = output(model, name)
    assert after.shape == before.shape
    assert not torch.allclose(after, before)
    twin = copy.deepcopy(model)
    shake(model, seed=4)
    assert torch.equal(output(twin, name), after)
    again = built(name)
    vlds.attach(again, attached.save(tmp_path / "saved"))
    torch.testing.assert_close(output(again, name), output(model, name))
    assert output(again, name, rows=2).shape[0] == 2
    asked = {key: t for key, t in inputs(name).items() if key != "decoder_input_ids"}
    assert len(again.generate(**asked, max_new_tokens=3, num_beams=2)) == 3  # type: ignore[operator]
    if name == "T5":  # its encoder runs once, its decoder behind a cache
        found = again.generate(**asked, max_new_tokens=3, min_new_tokens=3, do_sample=False)  # type: ignore[operator]
        written = torch.zeros(3, 1, dtype=torch.long)
        for _ in range(3):
            logits = again(**asked, decoder_input_ids=written).logits[:, -1:]
            logits[..., 1] = -torch.inf  # no end before three tokens
            written = torch.cat([written, logits.argmax(-1)], 1)
        assert torch.equal(found, written)
    attached.detach()
    # VL-PET trains norms of the model itself, which stay as they are.
    assert method == "gates" or torch.equal(output(model, name), before)
    assert model.config._attn_implementation == usual  # type: ignore[union-attr]
    assert model.state_dict().keys() == built(name).state_dict().keys()
    vlds.attach(model, LoRA(rank=2))


def test_each_pass_draws_an_expert() -> None:
    model = built("Llama")
    attached = vlds.attach(model, EXPERTS)
    shake(model)
    assert torch.equal(output(model, "Llama"), output(model, "Llama"))
    model.train()
    drawn = {output(model, "Llama").sum().item() for _ in range(8)}
    assert len(drawn) > 1
    # A layer that is computed again in the backward pass takes the same expert.
    gradients = []
    for recomputes in (False, True):
        other = built("Llama").train()
        again = vlds.attach(other, EXPERTS)
        with torch.no_grad():
            for key, tensor in again.state_dict().items():
                tensor.copy_(attached.state_dict()[key])
        if recomputes:
            other.gradient_checkpointing_enable()  # type: ignore[operator]
            other.enable_input_require_grads()  # type: ignore[operator]
        torch.manual_seed(0)
        (output(other, "Llama").sum() + output(other, "Llama").square().sum()).backward()
        gradients.append([p.grad for p in again.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def wide_clip() -> Any:
    vision = {**PIXELS, "hidden_size": 32}
    return CLIPModel(CLIPConfig(text_config=WORDS, vision_config=vision, projection_dim=12))


REFUSED: Mapping[str, tuple[Any, Method, str]] = {
    "Bart": ("Bart", PromptTuning(), "PromptTuning: BartForConditionalGeneration takes no prompts"),
    "decoder": ("Bart", DecoderPromptTuning(), "DecoderPromptTuning: it needs a forward pass of"),
    "pictures": ("T5", HyperPELT(reduction=4), "HyperPELT: it reads which pictures each row shows"),
    "consistency": ("T5", replace(EXPERTS, consistency=1.0), "Mixture: it adds to the loss"),
    "widths": (wide_clip, PrefixTuning(), "PrefixTuning: .*are 16 and 32 wide"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_users_model_cannot_run_is_refused(case: str) -> None:
    name, method, message = REFUSED[case]
    model = built(name) if isinstance(name, str) else name()
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        vlds.attach(model, method)
    assert list(model.state_dict()) == names
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_attention_that_sees_no_added_keys() -> None:
    config = LlamaConfig(**WORDS)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    with pytest.raises(ValueError, match="run eager, which sees none: load the model with attn_im"):
        vlds.attach(model, PrefixTuning())
    vlds.attach(model, PromptTuning(length=2))
