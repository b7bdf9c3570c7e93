"""Other ways to train the cases of `benchmarks/train.py`: peft, adapters, and a bare loop with
hooks. Imports nothing of vlds.

    python benchmarks/training/peers.py NAME CASE
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from llava import IMAGE, LLAMA, llava_config
from shapes import FEATURES, GRID, Case, RandomBatch, serve
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

REDUCTION, RANK, ALPHA = 8, 128, 32
"""Of adapters and Compacter; of LoRA."""
T5_SIZES = {
    "t5-base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5-large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}
LORA_LAYERS = {
    "bart-base": r".*(q_proj|v_proj)",
    "t5-base": r".*(SelfAttention|EncDecAttention)\.(q|v)",
    "t5-large": r".*(SelfAttention|EncDecAttention)\.(q|v)",
    "causal": r".*(q_proj|v_proj)",
    "image-text": r".*language_model.*(q_proj|v_proj)",
}
"""Model -> what LoRA is beside."""
ADAPTED = {
    "bart-base": ("out_proj", "fc2"),
    "t5-base": ("SelfAttention.o", "EncDecAttention.o", "wo"),
    "t5-large": ("SelfAttention.o", "EncDecAttention.o", "wo"),
    "causal": ("o_proj", "down_proj"),
    "image-text": ("o_proj", "down_proj"),
}
"""Model -> ends of the names of layers that adapters stand behind."""


def bare_model(case: Case) -> Any:
    """The model of Hugging Face with random weights."""
    torch.manual_seed(0)
    if case.model == "bart-base":
        return BartForConditionalGeneration(
            BartConfig(
                d_model=768, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=3072,
                decoder_ffn_dim=3072, encoder_attention_heads=12, decoder_attention_heads=12,
                vocab_size=50_465, dropout=case.dropout, attention_dropout=case.dropout,
                activation_dropout=case.dropout,
            )
        )  # fmt: skip
    if case.model in T5_SIZES:
        return T5ForConditionalGeneration(
            T5Config(
                **T5_SIZES[case.model], vocab_size=32_200, dropout_rate=case.dropout,
                decoder_start_token_id=0,
            )
        )  # fmt: skip
    if case.model == "image-text":
        return AutoModelForImageTextToText.from_config(llava_config())
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA))


class Seeing(nn.Module):
    """A language model that reads visual tokens beside its prompt."""

    def __init__(self, case: Case, language: Any) -> None:
        super().__init__()
        self.is_causal = case.model == "causal"
        self.language = language
        self.table = language.get_input_embeddings()
        width = self.table.weight.shape[1]
        self.connector = nn.Sequential(nn.Linear(FEATURES, width), nn.LayerNorm(width))

    def forward(self, batch: RandomBatch) -> Tensor:
        """The mean loss."""
        visual = self.connector(batch.features.to(self.table.weight.dtype))
        prompts, labels = batch.prompts, batch.labels
        if self.is_causal:
            text = self.table(torch.cat([prompts, labels], 1))
            unread = labels.new_full((len(labels), visual.shape[1] + prompts.shape[1]), -100)
            embeds, labels = torch.cat([visual, text], 1), torch.cat([unread, labels], 1)
        else:
            embeds = torch.cat([self.table(prompts), visual], 1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        loss: Tensor = self.language(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss
        return loss


class SeeingItself(nn.Module):
    """A model that reads pictures; its connector trains, and its vision tower does not."""

    def __init__(self, language: Any) -> None:
        super().__init__()
        self.language = language
        for name, weight in language.named_parameters():
            if "vision_tower" in name or "projector" in name:
                weight.requires_grad_("projector" in name)

    def forward(self, batch: RandomBatch) -> Tensor:
        """The mean loss."""
        prompts, labels = batch.prompts, batch.labels
        pictures = labels.new_full((len(labels), GRID * GRID), IMAGE)
        tokens = torch.cat([pictures, prompts, labels], 1)
        unread = labels.new_full((len(labels), GRID * GRID + prompts.shape[1]), -100)
        loss: Tensor = self.language(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=batch.features.to(self.language.dtype),
            labels=torch.cat([unread, labels], 1),
        ).loss
        return loss


def with_peft(case: Case) -> Any:
    """peft's LoRA."""
    from peft import LoraConfig, get_peft_model

    model = bare_model(case)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=case.dropout,
        target_modules=LORA_LAYERS[case.model],
    )  # fmt: skip
    return get_peft_model(model, config)


def with_adapters(case: Case) -> Any:
    """The methods of `adapters`."""
    import adapters  # type: ignore[import-not-found]

    model = bare_model(case)
    adapters.init(model)
    configs = {
        "Adapter": lambda: adapters.DoubleSeqBnConfig(
            reduction_factor=REDUCTION, non_linearity="gelu"
        ),
        "Compacter": lambda: adapters.CompacterConfig(reduction_factor=REDUCTION),
        "LoRA": lambda: adapters.LoRAConfig(
            r=RANK, alpha=ALPHA, dropout=case.dropout, attn_matrices=["q", "v"]
        ),
    }
    model.add_adapter("words", config=configs[case.method]())
    model.train_adapter("words")
    return model


def with_hooks(case: Case) -> Any:
    """The model as it is, with a few lines of hooks."""
    model = bare_model(case)
    if case.method == "Full":
        return model
    model.requires_grad_(False)
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if case.method == "Adapter":
        for name, linear in linears:
            if name.endswith(ADAPTED[case.model]):
                down = nn.Linear(linear.out_features, linear.out_features // REDUCTION)
                up = nn.Linear(linear.out_features // REDUCTION, linear.out_features)
                linear.adapter = nn.Sequential(down, nn.GELU(), up)
                linear.register_forward_hook(lambda m, _, out: out + m.adapter(out))
    else:
        for name, linear in linears:
            if re.fullmatch(LORA_LAYERS[case.model], name):
                down = nn.Linear(linear.in_features, RANK, bias=False)
                up = nn.Linear(RANK, linear.out_features, bias=False)
                linear.update = nn.Sequential(nn.Dropout(case.dropout), down, up)
                linear.register_forward_hook(
                    lambda m, inputs, out: out + m.update(inputs[0]) * (ALPHA / RANK)
                )
    return model


def step_of(case: Case, language: Any) -> tuple[Callable[[RandomBatch], object], int]:
    """A step of a plain loop, and the number of trained weights."""
    model = SeeingItself(language) if case.model == "image-text" else Seeing(case, language)
    model = model.to(case.device, case.dtype).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=1e-4)

    def step(batch: RandomBatch) -> None:
        adamw.zero_grad()
        model(batch.to(case.device)).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        adamw.step()

    return step, sum(p.numel() for p in trained)


PEERS: dict[str, Callable[[Case], Any]] = {
    "peft": with_peft, "adapters": with_adapters, "hooks": with_hooks,
}  # fmt: skip

if __name__ == "__main__":
    the_case = Case.from_command()
    serve(the_case, *step_of(the_case, PEERS[sys.argv[1]](the_case)))
