"""The flags and sizes of a recorded case, as our methods and our backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.methods import (
    LST,
    VLPET,
    Adapter,
    BitFit,
    Compacter,
    DecoderPromptTuning,
    Full,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Method,
    PromptTuning,
)
from vlds.models.methods.host import Host, bias_parameters


def parse_flags(text: str) -> dict[str, str]:
    """Command line flags -> values; "True" for those without."""
    flags: dict[str, str] = {}
    for option in text.split("--")[1:]:
        flag, _, value = option.strip().partition(" ")
        flags[flag] = value or "True"
    return flags


def methods_of(
    flags: dict[str, str], size: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[dict[str, Method], bool]:
    """The methods that the flags ask for, and whether the backbone's norms train."""
    on = {flag for flag, value in flags.items() if value not in ("False", "0")}
    methods: dict[str, Method] = {}
    if "unfreeze_language_model" in on:
        methods["full"] = Full()
    if any(flag.startswith(GATE) for flag in on):
        methods["vl_pet"] = vl_pet_of(flags, on, size)
    elif "use_adapter" in on:
        methods["adapter"] = Adapter(**bottleneck_of(flags, on))
    if "use_compacter" in on:
        methods["compacter"] = compacter_of(flags, on)
    if "use_lradapter" in on:
        rank = int(flags.get("low_rank_rank", "1"))
        methods["low_rank"] = LowRankAdapter(rank=rank, **bottleneck_of(flags, on))
    if "use_hyperformer" in on:
        methods["hyperformer"] = hyperformer_of(flags, on, weights)
    if "use_side_transformers" in on:
        methods["lst"] = lst_of(size["side_config"])
    if "use_lora" in on:
        # VL-Adapter's code has no LoRA on T5, Ladder Side-Tuning's has.
        known = has_tensor("lora_As", weights)
        methods["lora"] = lora_of(flags, on, size["backbone"]) if known else BiasesAlone()
    if "use_bitfit" in on:
        methods["bitfit"] = BitFit(
            add_biases=True, add_norm_and_head_biases=True, train_position_biases=False
        )
    if "unfreeze_bias" in on:
        # Of names with "bias" in them, T5 has only the tables of relative positions.
        methods["biases"] = BitFit() if size["backbone"] == "bart" else BiasesAlone()
    if "encoder_prompt_len" in on:
        methods["prompts"] = PromptTuning(
            sharing="single" if "use_single_prompt" in on else "multiple",
            length=int(flags["encoder_prompt_len"]),
            hidden_dim=int(flags["mid_dim"]),
        )
    if "decoder_prompt_len" in on:
        methods["decoder_prompts"] = DecoderPromptTuning(
            sharing="single" if "use_single_prompt" in on else "multiple",
            length=int(flags["decoder_prompt_len"]),
            hidden_dim=int(flags["mid_dim"]),
        )
    # On T5 the flag finds no norm, since the original's T5 has its own class of them.
    train_norms = "unfreeze_layer_norms" in on and size["backbone"] == "bart"
    return methods, train_norms


def bottleneck_of(flags: dict[str, str], on: set[str]) -> dict[str, Any]:
    """The fields that all bottlenecks have."""
    shared = [half for half in ("up", "down") if f"share_{half}_sampler" in on]
    sharing = f"half_shared_{shared[0]}" if shared else "multiple"
    if any(flag.startswith("use_single_") for flag in on) or len(shared) == 2:
        sharing = "single"
    return {
        "sharing": sharing,
        "reduction": int(flags.get("reduction_factor", "16")),
        "layer_norm_before": "add_layer_norm_before_adapter" in on,
        "layer_norm_after": "add_layer_norm_after_adapter" in on,
        "cross_attention": flags.get("add_adapter_cross_attn") != "False",
    }


def compacter_of(flags: dict[str, str], on: set[str]) -> Compacter:
    """A Compacter from its flags; a common rule and whole blocks are the original's defaults."""
    rule = "over_tasks" if "shared_phm_rule_over_tasks" in on else "own"
    factorized = flags.get("factorized_phm", "True") != "False"
    return Compacter(
        phm_dim=int(flags.get("hypercomplex_division", "4")),
        rule="everywhere" if flags.get("shared_phm_rule", "True") != "False" else rule,
        block_rank=int(flags.get("phm_rank", "1")) if factorized else None,
        **bottleneck_of(flags, on),
    )


def hyperformer_of(flags: dict[str, str], on: set[str], weights: dict[str, Tensor]) -> Hyperformer:
    """A Hyperformer from its flags, and from the weights, since not all widths are flags."""
    hidden = next(w for key, w in weights.items() if "embeding_generator.0.weight" in key)
    task = next(w for key, w in weights.items() if "task_to_embeddings" in key)
    return Hyperformer(
        reduction=int(flags.get("reduction_factor", "16")),
        task_dim=len(task),
        hidden_dim=len(hidden),
        projected_dim=int(flags.get("projected_task_embedding_dim", "64")),
        kind_embeddings="efficient_unique_hyper_net" in on,
        cross_attention=flags.get("add_adapter_cross_attn") != "False",
    )


GATE = "use_encoder_adapter_gating_"
"""What the flags begin with that choose VL-PET's gates."""
GATES = {
    "large_x_lowrank": "large",
    "middle_xy_add": "middle_x",
    "middle_ia3_add": "middle_y",
    "small_xy_cat": "small",
}


def vl_pet_of(flags: dict[str, str], on: set[str], size: dict[str, Any]) -> VLPET:
    """A VL-PET from its flags, which give widths instead of reductions."""
    (gate,) = (GATES[flag.removeprefix(GATE)] for flag in on if flag.startswith(GATE))
    value_width = flags["decoder_enc_attn_value_parallel_adapter_down_dim"]
    return VLPET(
        of=Adapter(reduction=size["d_model"] // int(flags["adapter_down_dim"])),
        gate=gate,
        gate_width=int(flags.get("adapter_gating_down_dim", "96")),
        value_width=int(value_width),
        heads=int(flags.get("encoder_adapter_multihead_num_head", "4")),
        scale=float(flags.get("encoder_gating_scaling_factor", "1")),
        padding_counts=gate == "small",
    )


def lst_of(sizes: dict[str, Any]) -> LST:
    """A ladder from its recorded settings."""
    return LST(
        reduction=sizes["task_reduction_factor"],
        encoder_layers=sizes["encoder_side_layers"],
        decoder_layers=sizes["decoder_side_layers"],
    )


def has_tensor(part: str, weights: dict[str, Tensor]) -> bool:
    """True if the name of a recorded weight contains these words."""
    return any(part in name for name in weights)


def lora_of(flags: dict[str, str], on: set[str], backbone: str) -> LoRA:
    """A LoRA from its flags; on T5 it trains no biases. Nothing was dropped when cases were
    recorded."""
    return LoRA(
        sharing="single" if "use_single_lora" in on else "multiple",
        rank=int(flags["lora_dim"]),
        alpha=float(flags.get("lora_alpha", "32")),
        dropout=0.0,
        train_biases=backbone == "bart",
    )


class BiasesAlone(Method):
    """What the original's LoRA and BitFit are on T5."""

    def attach(self, host: Host) -> list[torch.nn.Parameter]:
        """The relative position biases."""
        return bias_parameters(host.model)


def backbone_of(size: dict[str, Any], config: str) -> Backbone:
    """Our backbone; its last 40 rows or so are the visual tokens."""
    family = {"bart": Bart, "t5": T5}[size["backbone"]]
    return family(config=config, extra_tokens=0, visual_tokens=size["added_tokens"], dropout=0.0)


def hf_config(size: dict[str, Any]) -> dict[str, Any]:
    """Hugging Face's config of a recorded size."""
    ids = {
        "pad_token_id": size["pad"],
        "eos_token_id": size["eos"],
        "decoder_start_token_id": size["decoder_start"],
    }
    if size["backbone"] == "t5":
        return {
            "model_type": "t5",
            "d_model": size["d_model"],
            "d_kv": size["d_kv"],
            "d_ff": size["d_ff"],
            "num_layers": size["layers"],
            "num_decoder_layers": size["decoder_layers"],
            "num_heads": size["heads"],
            "feed_forward_proj": size["feed_forward"],
            "relative_attention_num_buckets": size["relative_attention_num_buckets"],
            "layer_norm_epsilon": size["layer_norm_epsilon"],
            **ids,
        }
    return {
        "model_type": "bart",
        "d_model": size["d_model"],
        "encoder_layers": size["encoder_layers"],
        "decoder_layers": size["decoder_layers"],
        "encoder_attention_heads": size["heads"],
        "decoder_attention_heads": size["heads"],
        "encoder_ffn_dim": size["ffn"],
        "decoder_ffn_dim": size["ffn"],
        "max_position_embeddings": size["max_position_embeddings"],
        "activation_function": size["activation"],
        "scale_embedding": size["scale_embedding"],
        "bos_token_id": size["bos"],
        **ids,
    }
