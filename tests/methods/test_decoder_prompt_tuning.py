"""Prompts of the decoder are what Hugging Face's own cache makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toys.models import backbone, batch, build
from vlds.models.backbones import Bart
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter, DecoderPromptTuning, Hyperformer, Method
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


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 2])
def test_answers_do_not_depend_on_the_other_rows(num_beams: int, tmp_path: Path) -> None:
    model, examples = tuned(tmp_path, "multiple"), batch(ROWS)
    decoding = Decoding(num_beams=num_beams, max_new_tokens=6)
    together = model.generate(examples, decoding)[0]
    for number in range(4):
        alone = examples.select(torch.tensor([number]))
        assert model.generate(alone, decoding)[0] == [together[number]]


def test_layers_are_not_recomputed(tmp_path: Path) -> None:
    methods = {"prompts": DecoderPromptTuning()}
    with pytest.raises(
        ValueError, match=r"DecoderPromptTuning does not go with training\.activation"
    ):
        build(backbone(Bart, tmp_path), methods, activation_checkpointing=True)
