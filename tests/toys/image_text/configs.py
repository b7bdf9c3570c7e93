"""Configs of tiny models: for each type, what differs from its class's defaults."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

Fields = dict[str, Any]

WIDTH = 32
VISION_WIDTH = 24
FFN_WIDTH = 40
HEADS = 2
SIDE = 28
"""Pixels of a tile's side."""
GRID = [[height, width] for height in (SIDE, 2 * SIDE) for width in (SIDE, 2 * SIDE)]
"""Sizes of llava_onevision's tiled pictures: at most four tiles."""


def config(model_type: str, words: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """The config of a type's tiny model."""
    return AutoConfig.for_model(model_type, **CONFIGS[model_type](words))


def token_id(words: PreTrainedTokenizerFast, token: str) -> int:
    """Id of a special token."""
    return words.get_vocab()[token]


def special_ids(words: PreTrainedTokenizerFast) -> Fields:
    """Ids of the three tokens that every config names."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(words, name) for name in names}


def language(words: PreTrainedTokenizerFast, **fields: Any) -> Fields:
    """A decoder of two layers with two heads that share keys and values."""
    return {
        "vocab_size": len(words), "hidden_size": WIDTH, "intermediate_size": FFN_WIDTH,
        "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": 1,
        "head_dim": WIDTH // HEADS, "max_position_embeddings": 512, **special_ids(words), **fields,
    }  # fmt: skip


def bart(words: PreTrainedTokenizerFast) -> Fields:
    """An encoder and a decoder of two layers each."""
    eos = words.eos_token_id
    return {
        "dropout": 0.0,  # chance would part ranks that compute the same
        "model_type": "bart", "vocab_size": len(words), "d_model": WIDTH,
        "encoder_layers": 2, "encoder_attention_heads": HEADS, "encoder_ffn_dim": FFN_WIDTH,
        "decoder_layers": 2, "decoder_attention_heads": HEADS, "decoder_ffn_dim": FFN_WIDTH,
        "max_position_embeddings": 512, **special_ids(words), "decoder_start_token_id": eos,
        "forced_eos_token_id": eos,
    }  # fmt: skip


def tower(patch: int, layers: int = 2, **fields: Any) -> Fields:
    """A vision transformer of pictures of 28 pixels: CLIP, SigLIP and their relatives."""
    return {
        "hidden_size": VISION_WIDTH, "intermediate_size": 36, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "image_size": SIDE, "patch_size": patch, **fields,
    }  # fmt: skip


def siglip(patch: int) -> Fields:
    """SigLIP without its pooling head."""
    return tower(patch, model_type="siglip_vision_model", vision_use_head=False)


def davit() -> Fields:
    """Florence-2's tower in two stages: 28 pixels become 7 x 7, then 2 x 2 cells, padded to whole
    windows."""
    return {
        "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 4], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "embed_dim": [16, VISION_WIDTH], "num_heads": [2, 2],
        "num_groups": [2, 2], "window_size": 4, "mlp_ratio": 2.0, "projection_dim": WIDTH,
        "max_position_embeddings": 8,
    }  # fmt: skip


def qwen(words: PreTrainedTokenizerFast, **vision: Any) -> Fields:
    """A Qwen with a tower of two layers, patches of 14 pixels, 4 patches a token."""
    tokens = {
        "image": "image_pad", "video": "video_pad",
        "vision_start": "vision_start", "vision_end": "vision_end",
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    return {
        "text_config": language(words, rope_parameters=rope),
        "vision_config": {"depth": 2, "num_heads": HEADS, "patch_size": 14, **vision},
        **{f"{key}_token_id": token_id(words, f"<|{name}|>") for key, name in tokens.items()},
    }


def qwen2_vl(words: PreTrainedTokenizerFast) -> Fields:
    return qwen(words, embed_dim=VISION_WIDTH, hidden_size=WIDTH, mlp_ratio=2)


def later_qwen(words: PreTrainedTokenizerFast, **vision: Any) -> Fields:
    """Qwen2.5-VL and Qwen3-VL, which name their tower's sizes otherwise."""
    sizes = {"hidden_size": VISION_WIDTH, "intermediate_size": 36, "out_hidden_size": WIDTH}
    return qwen(words, **sizes, **vision)


def qwen2_5_vl(words: PreTrainedTokenizerFast) -> Fields:
    """The first vision layer attends within windows of 56 pixels, the second over the picture."""
    return later_qwen(words, window_size=2 * SIDE, fullatt_block_indexes=[1])


def qwen3_vl(words: PreTrainedTokenizerFast) -> Fields:
    """The first vision layer's states also go to the first language layer."""
    return later_qwen(words, num_position_embeddings=16, deepstack_visual_indexes=[0])


def tiled(words: PreTrainedTokenizerFast) -> Fields:
    """SmolVLM and Idefics3."""
    return {
        "text_config": language(words, model_type="llama"),
        "vision_config": tower(patch=7),
        "image_token_id": token_id(words, "<image>"),
        "pad_token_id": words.pad_token_id,
    }


def llava(words: PreTrainedTokenizerFast) -> Fields:
    """Three vision layers: like the hub's models, it reads the states before the last one."""
    return {
        "text_config": language(words, model_type="llama"),
        "vision_config": tower(patch=14, layers=3, model_type="clip_vision_model"),
        "image_token_index": token_id(words, "<image>"),
        "image_seq_length": 4,
    }


def llava_onevision(words: PreTrainedTokenizerFast) -> Fields:
    return {
        "text_config": language(words, model_type="qwen2"),
        "vision_config": siglip(patch=14),
        "image_token_index": token_id(words, "<image>"),
        "video_token_index": token_id(words, "<video>"),
        "image_grid_pinpoints": GRID,
    }


def paligemma(words: PreTrainedTokenizerFast) -> Fields:
    return {
        "text_config": language(words, model_type="gemma"),
        "vision_config": siglip(patch=14),
        "image_token_index": token_id(words, "<image>"),
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "projection_dim": WIDTH,
    }


def gemma3(words: PreTrainedTokenizerFast) -> Fields:
    """The first language layer attends to 16 tokens, the second to all."""
    layers = ["sliding_attention", "full_attention"]
    return {
        "text_config": language(
            words, layer_types=layers, sliding_window=16, query_pre_attn_scalar=16
        ),
        "vision_config": siglip(patch=7),
        "mm_tokens_per_image": 4,
        "boi_token_index": token_id(words, "<start_of_image>"),
        "eoi_token_index": token_id(words, "<end_of_image>"),
        "image_token_index": token_id(words, "<image_soft_token>"),
        "eos_token_id": [words.eos_token_id, token_id(words, "<end_of_turn>")],
    }


def internvl(words: PreTrainedTokenizerFast) -> Fields:
    return {
        "text_config": language(words, model_type="qwen2"),
        "vision_config": tower(patch=7),
        "image_token_id": token_id(words, "<IMG_CONTEXT>"),
        "image_seq_length": 4,
    }


def florence2(words: PreTrainedTokenizerFast) -> Fields:
    return {
        "text_config": bart(words),
        "vision_config": davit(),
        "image_token_id": token_id(words, "<image>"),
    }


CONFIGS = {
    "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "smolvlm": tiled,
    "idefics3": tiled, "llava": llava, "llava_onevision": llava_onevision, "paligemma": paligemma,
    "gemma3": gemma3, "internvl": internvl, "florence2": florence2,
}  # fmt: skip
