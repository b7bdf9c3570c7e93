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
    found: int = words.get_vocab()[token]
    return found


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


def qwen3_5(words: PreTrainedTokenizerFast) -> Fields:
    """The first language layer is a linear attention; the heads are rotated in part."""
    rope = {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    }  # fmt: skip
    whole = later_qwen(words, num_position_embeddings=16)
    return whole | {
        "text_config": language(
            words, rope_parameters=rope, layer_types=["linear_attention", "full_attention"],
            linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
            linear_num_value_heads=4,
        )
    }  # fmt: skip


def qwen3_vl_moe(words: PreTrainedTokenizerFast) -> Fields:
    whole = qwen3_vl(words)
    experts = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "num_experts": 4}
    return whole | {"text_config": whole["text_config"] | experts}


def glm(words: PreTrainedTokenizerFast, **text: Any) -> Fields:
    """GLM-4.1V and its relatives: as Qwen's, with other names."""
    tokens = {
        "image": "image", "video": "video", "image_start": "begin_of_image",
        "image_end": "end_of_image", "video_start": "begin_of_video",
        "video_end": "end_of_video",
    }  # fmt: skip
    rope = {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    }  # fmt: skip
    return {
        "text_config": language(words, rope_parameters=rope, **text),
        "vision_config": {
            "depth": 2, "num_heads": HEADS, "patch_size": 14, "hidden_size": VISION_WIDTH,
            "intermediate_size": 36, "out_hidden_size": WIDTH, "image_size": SIDE,
        },
        **{f"{key}_token_id": token_id(words, f"<|{name}|>") for key, name in tokens.items()},
    }  # fmt: skip


def glm4v_moe(words: PreTrainedTokenizerFast) -> Fields:
    """The first layer is dense, the second has four experts and a shared one."""
    return glm(
        words, moe_intermediate_size=16, num_experts_per_tok=2, n_routed_experts=4
    )  # fmt: skip


def glm46v(words: PreTrainedTokenizerFast) -> Fields:
    whole = glm(words)
    whole["text_config"]["model_type"] = "glm4v_text"
    whole["vision_config"]["model_type"] = "glm4v_vision"
    return whole


def lfm2_vl(words: PreTrainedTokenizerFast) -> Fields:
    """The first language layer is a convolution."""
    vision = tower(patch=7, model_type="siglip2_vision_model", num_patches=16)
    return {
        "text_config": language(
            words, model_type="lfm2", layer_types=["conv", "full_attention"],
            block_auto_adjust_ff_dim=False,
        ),
        "vision_config": {k: v for k, v in vision.items() if k != "image_size"},
        "image_token_id": token_id(words, "<image>"),
        "projector_hidden_size": FFN_WIDTH,
    }  # fmt: skip


def clip(words: PreTrainedTokenizerFast, layers: int = 3, **fields: Any) -> Fields:
    """LLaMA behind CLIP."""
    return {
        "text_config": language(words, model_type="llama"),
        "vision_config": tower(patch=14, layers=layers, model_type="clip_vision_model"),
        **fields,
    }


def llava_next(words: PreTrainedTokenizerFast) -> Fields:
    return clip(
        words, image_token_index=token_id(words, "<image>"), image_grid_pinpoints=GRID,
        image_seq_length=4,
    )  # fmt: skip


def vipllava(words: PreTrainedTokenizerFast) -> Fields:
    """It reads the states of several vision layers."""
    return clip(
        words, image_token_index=token_id(words, "<image>"), vision_feature_layers=[-2, 1],
        image_seq_length=4,
    )  # fmt: skip


def pixtral(words: PreTrainedTokenizerFast, text: str, image_token: str) -> Fields:
    """Mistral 3 and LightOnOCR: four patches become a token."""
    return {
        "text_config": language(words, model_type=text),
        "vision_config": tower(patch=14, model_type="pixtral", head_dim=VISION_WIDTH // HEADS)
        | {"image_size": 4 * SIDE},
        "image_token_id": token_id(words, image_token),
        "spatial_merge_size": 2,
    }


def mistral3(words: PreTrainedTokenizerFast) -> Fields:
    return pixtral(words, "mistral", "[IMG]")


def lighton_ocr(words: PreTrainedTokenizerFast) -> Fields:
    return pixtral(words, "qwen3", "<|image_pad|>")


def cohere(words: PreTrainedTokenizerFast) -> Fields:
    """Aya Vision and Command A Vision: the second language layer attends to all tokens."""
    layers = ["sliding_attention", "full_attention"]
    return {
        "text_config": language(
            words, model_type="cohere2", sliding_window=16, layer_types=layers, logit_scale=1.0
        ),
        "vision_config": siglip(patch=7),
        "image_token_id": token_id(words, "<|IMG_PATCH|>"),
        "downsample_factor": 2,
        "alignment_intermediate_size": 2 * FFN_WIDTH,
    }


def aya_vision(words: PreTrainedTokenizerFast) -> Fields:
    whole = cohere(words)
    return whole | {"image_token_index": whole.pop("image_token_id")}


def idefics2(words: PreTrainedTokenizerFast) -> Fields:
    """A resampler makes three tokens of each picture."""
    return {
        "text_config": language(words, model_type="mistral"),
        "vision_config": tower(patch=14),
        "perceiver_config": {
            "hidden_size": WIDTH, "resampler_n_latents": 3, "resampler_depth": 1,
            "resampler_n_heads": HEADS, "resampler_head_dim": 8, "num_key_value_heads": 1,
        },
        "image_token_id": token_id(words, "<image>"),
    }  # fmt: skip


def got_ocr2(words: PreTrainedTokenizerFast) -> Fields:
    """A SAM tower, whose layers attend within windows; its processor writes 256 tokens for any
    picture."""
    return {
        "text_config": language(words, model_type="qwen2", max_position_embeddings=2048),
        "vision_config": {
            "hidden_size": VISION_WIDTH, "output_channels": 8, "num_hidden_layers": 2,
            "num_attention_heads": HEADS, "image_size": 64, "patch_size": 1, "window_size": 8,
            "global_attn_indexes": [], "mlp_dim": 36,
        },
        "image_token_index": token_id(words, "<imgpad>"),
        "image_seq_length": 4,
    }  # fmt: skip


def blip2(words: PreTrainedTokenizerFast) -> Fields:
    """A Q-Former asks three questions of each picture."""
    return {
        "text_config": {
            "model_type": "opt", "vocab_size": len(words), "hidden_size": WIDTH,
            "ffn_dim": FFN_WIDTH, "word_embed_proj_dim": WIDTH, "num_hidden_layers": 2,
            "num_attention_heads": HEADS, "max_position_embeddings": 512, "dropout": 0.0,
            **special_ids(words),
        },
        "vision_config": tower(patch=14),
        "qformer_config": {
            "hidden_size": VISION_WIDTH, "intermediate_size": 36, "num_hidden_layers": 2,
            "num_attention_heads": HEADS, "encoder_hidden_size": VISION_WIDTH,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
        "num_query_tokens": 3,
        "image_token_index": token_id(words, "<image>"),
    }  # fmt: skip


def perception_lm(words: PreTrainedTokenizerFast) -> Fields:
    """CLIP in place of a tower of timm."""
    whole = clip(
        words, layers=2, image_token_id=token_id(words, "<|image|>"),
        video_token_id=token_id(words, "<|video|>"), projector_pooling_ratio=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    whole["vision_config"]["model_args"] = {"embed_dim": VISION_WIDTH}
    return whole


def ovis2(words: PreTrainedTokenizerFast) -> Fields:
    """Tokens are mixtures of 24 visual words."""
    signs = ("START", "GRID", "COL", "ROW", "END")
    return {
        "text_config": language(words, model_type="qwen2"),
        "vision_config": tower(patch=14, vocab_size=24, hidden_stride=1),
        "image_token_id": token_id(words, "<IMG_ATOM>"),
        "visual_indicator_token_ids": [token_id(words, f"<IMG_{sign}>") for sign in signs],
        "vocab_size": len(words),
        "hidden_size": WIDTH,
    }


def paddleocr_vl(words: PreTrainedTokenizerFast) -> Fields:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    return {
        "text_config": language(words, rope_parameters=rope),
        "vision_config": tower(patch=14),
        "image_token_id": token_id(words, "<|IMAGE_PLACEHOLDER|>"),
        "video_token_id": token_id(words, "<|video_pad|>"),
        "vision_start_token_id": token_id(words, "<|IMAGE_START|>"),
        "vision_end_token_id": token_id(words, "<|IMAGE_END|>"),
    }


def video_llama_3(words: PreTrainedTokenizerFast) -> Fields:
    vision = tower(patch=14)
    return {
        "text_config": language(words, model_type="qwen2"),
        "vision_config": {k: v for k, v in vision.items() if k != "image_size"},
        "image_token_id": token_id(words, "<|image_pad|>"),
        "video_token_id": token_id(words, "<|video_pad|>"),
    }


def deepseek_vl(words: PreTrainedTokenizerFast) -> Fields:
    return {
        "text_config": language(words, model_type="llama"),
        "vision_config": siglip(patch=14),
        "image_token_id": token_id(words, "<image_placeholder>"),
    }


def gemma4(words: PreTrainedTokenizerFast) -> Fields:
    """Vision layers are linear layers that clip, around plain ones."""
    layers = ["sliding_attention", "full_attention"]
    return {
        "text_config": language(
            words, layer_types=layers, sliding_window=16, hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=len(words), global_head_dim=WIDTH // HEADS,
        ),
        "vision_config": {
            "hidden_size": VISION_WIDTH, "intermediate_size": 36, "num_hidden_layers": 2,
            "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
            "head_dim": VISION_WIDTH // HEADS, "patch_size": 7, "pooling_kernel_size": 2,
            "position_embedding_size": 64, "use_clipped_linears": True,
        },
        "audio_config": None,
        **{
            f"{name}_id": token_id(words, str(getattr(words, name)))
            for name in ("image_token", "boi_token", "eoi_token", "audio_token", "boa_token")
        },
        "video_token_id": token_id(words, "<|video|>"),
        "eoa_token_index": token_id(words, "<audio|>"),
    }  # fmt: skip


CONFIGS = {
    "qwen3_5": qwen3_5, "qwen3_vl_moe": qwen3_vl_moe, "glm4v": glm, "glm4v_moe": glm4v_moe,
    "glm46v": glm46v, "lfm2_vl": lfm2_vl, "llava_next": llava_next, "vipllava": vipllava,
    "mistral3": mistral3, "aya_vision": aya_vision, "cohere2_vision": cohere,
    "idefics2": idefics2, "got_ocr2": got_ocr2, "blip-2": blip2, "perception_lm": perception_lm,
    "ovis2": ovis2, "paddleocr_vl": paddleocr_vl, "video_llama_3": video_llama_3,
    "lighton_ocr": lighton_ocr, "deepseek_vl": deepseek_vl, "gemma4": gemma4,
    "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "smolvlm": tiled,
    "idefics3": tiled, "llava": llava, "llava_onevision": llava_onevision, "paligemma": paligemma,
    "gemma3": gemma3, "internvl": internvl, "florence2": florence2,
}  # fmt: skip
