"""Prompts of the decoder are what Hugging Face's own cache makes of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toys.models import backbone, batch, build
from vlds.models.backbones import T5, Bart
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter, DecoderPromptTuning, Hyperformer, Method, PrefixTuning
from vlds.schema import Batch, Decoding

ROWS = (0, 1, 0, 2)


def tuned(folder: Path, sharing: str, **others: Method) -> JointModel:
    """A model with prompts of its decoder, in float64."""
    prompts = DecoderPromptTuning(length=5, hidden_dim=6, sharing=sharing)  # type: ignore[arg-type]
    methods = {"prompts": prompts, **others}
    return build(backbone(Bart, folder), methods, dtype=torch.float64).eval()


def expected_logits(model: JointModel, plain: JointModel, examples: Batch, sharing: str) -> Tensor:
    """From a model without prompts: run them first, and go on from the cache."""
    made = model.backbone.extensions["prompts"].decoder_network()
    rows = made[torch.tensor(ROWS)] if sharing == "multiple" else made.expand(4, -1, -1)
    states, mask = plain.encode(examples)
    decoder = plain.backbone.get_decoder()
    prompts = decoder(inputs_embeds=rows, use_cache=True)
    # transformers 5 has renamed the cache on its way.
    name = "cache" if "cache" in prompts else "past_key_values"
    output = decoder(
        input_ids=plain.backbone.prepare_decoder_input_ids_from_labels(examples.labels),
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
        use_cache=True,
        **{name: prompts[name]},
    )
    return plain.vocabulary_logits(output.last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("sharing", ["single", "multiple"])
@pytest.mark.parametrize(
    "other",
    [
        Adapter(reduction=4, sharing="multiple"),
        Hyperformer(reduction=4, task_dim=6, hidden_dim=5, projected_dim=4),
    ],
    ids=["adapters", "hyperformer"],
)
def test_the_prompts_run_first(sharing: str, other: Method, tmp_path: Path) -> None:
    """With other methods in the decoder too, which the original code could not do."""
    model = tuned(tmp_path, sharing, other=other)
    plain = build(backbone(Bart, tmp_path), {"other": other}, dtype=torch.float64).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    examples = batch(ROWS)
    found = model.logits(examples)
    assert (found - expected_logits(model, plain, examples, sharing)).abs().max() < 1e-12
    assert (found - plain.logits(examples)).abs().max() > 1e-3


@pytest.mark.parametrize("sharing", ["single", "multiple"])
def test_every_weight_trains_and_a_copy_starts_anew(sharing: str, tmp_path: Path) -> None:
    model = tuned(tmp_path, sharing)
    model(batch(ROWS), torch.ones(4)).loss.backward()
    for name, parameter in model.named_parameters():
        if model.trained_by.get(name) == "prompts":
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin.logits(batch(ROWS)), model.logits(batch(ROWS)))


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 2])
def test_answers_do_not_depend_on_the_other_rows(num_beams: int, tmp_path: Path) -> None:
    model, examples = tuned(tmp_path, "multiple"), batch(ROWS)
    decoding = Decoding(num_beams=num_beams, max_new_tokens=6)
    together = model.generate(examples, decoding)[0]
    for number in range(4):
        alone = examples.select(torch.tensor([number]))
        assert model.generate(alone, decoding)[0] == [together[number]]


@torch.no_grad()
def test_baking_keeps_the_output(tmp_path: Path) -> None:
    model = tuned(tmp_path, "multiple")
    before = model.logits(batch(ROWS))
    method = DecoderPromptTuning(length=5, hidden_dim=6, sharing="multiple")
    left = method.merge("prompts", model.backbone, ("a", "b", "c"))["prompts"]
    assert isinstance(left, DecoderPromptTuning)
    assert left.hidden_dim is None
    assert torch.equal(model.logits(batch(ROWS)), before)


@torch.no_grad()
def test_prefixes_stand_beside_them_in_either_order(tmp_path: Path) -> None:
    """BART's attention does not see the order of keys, and each method's are there once."""
    methods: dict[str, Method] = {
        "prompts": DecoderPromptTuning(length=5, hidden_dim=6),
        "prefixes": PrefixTuning(length=3, hidden_dim=6),
    }
    first, second = (
        build(backbone(Bart, tmp_path), {n: methods[n] for n in names}, dtype=torch.float64).eval()
        for names in (("prompts", "prefixes"), ("prefixes", "prompts"))
    )
    second.load_state_dict(first.state_dict())
    found = [model.logits(batch(ROWS)) for model in (first, second)]
    assert (found[0] - found[1]).abs().max() < 1e-12


def test_t5_has_no_such_prompts(tmp_path: Path) -> None:
    methods = {"prompts": DecoderPromptTuning()}
    with pytest.raises(ValueError, match=r"methods.prompts: .* plays the role 'decoder_positions'"):
        build(backbone(T5, tmp_path), methods)


def test_layers_are_not_recomputed(tmp_path: Path) -> None:
    methods = {"prompts": DecoderPromptTuning()}
    with pytest.raises(
        ValueError, match=r"DecoderPromptTuning does not go with training\.activation"
    ):
        build(backbone(Bart, tmp_path), methods, activation_checkpointing=True)
