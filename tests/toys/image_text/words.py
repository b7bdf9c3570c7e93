"""Tokenizers: a small byte-level BPE with each type's special tokens, and its chat template."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = (
    "what color is the car ? the car is red",
    "how many dogs are in the picture ? there are two dogs",
    "is the man on the left of the table ? yes, he is on the left",
    "describe the picture. a small picture of a green tree by the water",
)
MERGED = 320
"""Words of a vocabulary without special tokens: 256 bytes and what merging gives."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a type's tokenizer has beside text."""

    eos: str
    pad: str
    bos: str | None = None
    starts_with_bos: bool = False
    """Put bos before each text, as the type's real tokenizer does."""
    named: dict[str, str] = field(default_factory=dict)
    """Attribute of the tokenizer -> special token."""
    others: tuple[str, ...] = ()
    """Special tokens without a name."""
    template: str | None = None

    @property
    def special(self) -> list[str]:
        """All special tokens, in the order of their ids."""
        tokens = [self.pad, self.bos, self.eos, *self.named.values(), *self.others]
        return list(dict.fromkeys(token for token in tokens if token is not None))


def turns(
    before: str, picture: str, after: str, prompt: str, start: str = "", video: str = ""
) -> str:
    """A chat template. `before` and `after`: a message; `prompt`: what an answer follows."""
    is_image, text = "{% if part['type'] == 'image' %}", "{% else %}{{ part['text'] }}{% endif %}"
    is_video = "{% elif part['type'] == 'video' %}"
    shown = is_image + picture + (is_video + video if video else "") + text
    content = f"{{% for part in message['content'] %}}{shown}{{% endfor %}}"
    whole = f"{start}{{% for message in messages %}}{before}{content}{after}{{% endfor %}}"
    return f"{whole}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"


def chatml(picture: str, video: str = "") -> str:
    """The template of Qwen and its relatives."""
    begin, end, prompt = "<|im_start|>{{ message['role'] }}\n", "<|im_end|>\n", "<|im_start|>"
    return turns(begin, picture, end, f"{prompt}assistant\n", video=video)


def spoken(start: str, video: str = "") -> str:
    """The template of SmolVLM and Idefics3. The space before a text that comes first belongs to
    the message, so an answer's first token is not the prompt's next one."""
    return turns(
        "{{ message['role'] | capitalize }}:"
        "{% if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}",
        "<image>",
        "<end_of_utterance>\n",
        "Assistant:",
        start,
        video,
    )


GEMMA3_TURNS = turns(
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n",
    "<start_of_image>",
    "<end_of_turn>\n",
    "<start_of_turn>model\n",
    "{{ bos_token }}",
)
MISTRAL_TURNS = turns(
    "{% if message['role'] == 'user' %}[INST]{% endif %}",
    "{image}",
    "{% if message['role'] == 'user' %}[/INST]{% else %}{{ eos_token }}{% endif %}",
    "",
    "{{ bos_token }}",
)
"""The template of Mistral's models: nothing asks for an answer but the question's end."""
GLM_TURNS = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{% if m.content is string %}"
    "{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'image' %}"
    "<|begin_of_image|><|image|><|end_of_image|>{% elif part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{prompt}{% endif %}"
)
"""The template of GLM's models: nothing ends a turn but the next one."""
COHERE_TURNS = turns(
    "<|START_OF_TURN_TOKEN|>{% if message['role'] == 'assistant' %}<|CHATBOT_TOKEN|>"
    "<|START_RESPONSE|>{% else %}<|USER_TOKEN|>{% endif %}",
    "{image}",
    "{% if message['role'] == 'assistant' %}<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
    "{{ bos_token }}",
)
COHERE = (
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
    "<|START_RESPONSE|>", "<|END_RESPONSE|>",
)  # fmt: skip
LLAMA_TURNS = turns(
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n",
    "<|image|>",
    "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "{{ bos_token }}",
)
GEMMA4_TURNS = turns(
    "<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n",
    "\n\n<|image|>\n\n",
    "<turn|>\n",
    "<|turn>model\n{prompt}",
    "{{ bos_token }}",
)
PADDLE_TURNS = (
    "{{ cls_token }}{% for m in messages %}{% if m.role == 'user' %}User: "
    "{% for part in m.content %}{% if part.type == 'image' %}"
    "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{{ '\n' }}{% else %}Assistant:\n"
    "{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
DEEPSEEK_TURNS = turns(
    "{{ message['role'] | capitalize }}: ",
    "<image_placeholder>",
    "{{ eos_token if message['role'] == 'assistant' else '\n\n' }}",
    "Assistant:",
    "{{ bos_token }}",
)
THINKING_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
"""The template of Qwen3.5: it thinks unless it is told not to."""
GLM = Words(
    eos="<|endoftext|>", pad="<|pad|>",
    others=(
        "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|begin_of_image|>",
        "<|image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|video|>", "<|end_of_video|>",
    ),
    template=GLM_TURNS.replace("{prompt}", ""),
)  # fmt: skip
QWEN_VL = Words(
    eos="<|im_end|>",
    pad="<|endoftext|>",
    others=(
        "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    ),
    template=chatml(
        "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
    ),
)  # fmt: skip
TILES = (
    "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)  # fmt: skip
WORDS = {
    "qwen2_vl": QWEN_VL,
    "qwen2_5_vl": QWEN_VL,
    "qwen3_vl": QWEN_VL,
    "smolvlm": Words(
        bos="<|im_start|>", eos="<end_of_utterance>", pad="<|im_end|>", others=(*TILES, "<video>"),
        template=spoken("<|im_start|>", "<video>"),
    ),
    "idefics3": Words(
        bos="<|begin_of_text|>", eos="<|end_of_text|>", pad="<|pad|>", starts_with_bos=True,
        others=TILES, template=spoken("<|begin_of_text|>"),
    ),
    "llava": Words(
        bos="<s>", eos="</s>", pad="<pad>", starts_with_bos=True,
        named={"image_token": "<image>"},
    ),
    "llava_onevision": Words(
        eos="<|im_end|>", pad="<|endoftext|>", others=("<|im_start|>", "<image>", "<video>"),
        template=chatml("<image>\n", "<video>\n"),
    ),
    "paligemma": Words(bos="<bos>", eos="<eos>", pad="<pad>", others=("<image>",)),
    "gemma3": Words(
        bos="<bos>", eos="<eos>", pad="<pad>", starts_with_bos=True,
        named={
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        others=("<start_of_turn>", "<end_of_turn>"),
        template=GEMMA3_TURNS,
    ),
    "internvl": Words(
        eos="<|im_end|>", pad="<|endoftext|>",
        named={
            "start_image_token": "<img>", "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
        },
        others=("<|im_start|>",),
        template=chatml("<IMG_CONTEXT>\n", "<video>\n"),
    ),
    "florence2": Words(
        bos="<s>", eos="</s>", pad="<pad>", named={"image_token": "<image>"}
    ),
    "qwen3_5": replace(QWEN_VL, template=THINKING_TURNS),
    "qwen3_vl_moe": QWEN_VL,
    # Its template asks for a thought, and writes conversations without one.
    "glm4v": replace(GLM, template=GLM_TURNS.replace("{prompt}", "<think>\n")),
    "glm4v_moe": GLM,
    "glm46v": GLM,
    "lfm2_vl": Words(
        bos="<|startoftext|>", eos="<|im_end|>", pad="<|pad|>", starts_with_bos=True,
        others=(
            "<|im_start|>", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>",
            *(f"<|img_row_{row}_col_{column}|>" for row in (1, 2) for column in (1, 2)),
        ),
        template="{{ bos_token }}" + chatml("<image>"),
    ),
    "llava_next": Words(
        bos="<s>", eos="</s>", pad="<pad>", starts_with_bos=True,
        named={"image_token": "<image>"},
        template=MISTRAL_TURNS.replace("{image}", "<image>\n"),
    ),
    "vipllava": Words(
        bos="<s>", eos="</s>", pad="<pad>", starts_with_bos=True,
        named={"image_token": "<image>"},
    ),
    "mistral3": Words(
        bos="<s>", eos="</s>", pad="<pad>", starts_with_bos=True,
        others=("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        template=MISTRAL_TURNS.replace("{image}", "[IMG]"),
    ),
    "aya_vision": Words(
        bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>", starts_with_bos=True,
        others=(
            *COHERE, "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>",
            "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "TILE_1", "TILE_2",
        ),
        template=COHERE_TURNS.replace("{image}", "<image>"),
    ),
    "cohere2_vision": Words(
        bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>", starts_with_bos=True,
        named={
            "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>",
            "image_token": "<|IMG_PATCH|>", "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
        others=COHERE,
        template=COHERE_TURNS.replace("{image}", "<|IMG_PATCH|>"),
    ),
    "idefics2": Words(
        bos="<s>", eos="</s>", pad="<unk>", starts_with_bos=True,
        others=("<fake_token_around_image>", "<image>", "<end_of_utterance>"),
        template=spoken(""),
    ),
    "got_ocr2": Words(
        eos="<|endoftext|>", pad="<|pad|>", others=("<|im_start|>", "<|im_end|>", "<imgpad>")
    ),
    "blip-2": Words(
        bos="</s>", eos="</s>", pad="<pad>", starts_with_bos=True, others=("<image>",)
    ),
    "perception_lm": Words(
        bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<|pad|>", starts_with_bos=True,
        named={"image_token": "<|image|>", "video_token": "<|video|>"},
        others=("<|start_header_id|>", "<|end_header_id|>"),
        template=LLAMA_TURNS,
    ),
    "ovis2": Words(
        eos="<|im_end|>", pad="<|endoftext|>",
        others=(
            "<|im_start|>", "<image>", "<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>",
            "<IMG_ROW>", "<IMG_END>",
        ),
        template=chatml("<image>\n"),
    ),
    "paddleocr_vl": Words(
        bos="<s>", eos="</s>", pad="<unk>",
        named={
            "image_token": "<|IMAGE_PLACEHOLDER|>", "cls_token": "<|begin_of_sentence|>",
        },
        others=("<|IMAGE_START|>", "<|IMAGE_END|>", "<|video_pad|>"),
        template=PADDLE_TURNS,
    ),
    "video_llama_3": replace(QWEN_VL, template=chatml("<|image_pad|>")),
    "lighton_ocr": Words(
        eos="<|im_end|>", pad="<|endoftext|>",
        named={
            "image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>",
            "image_end_token": "<|vision_end|>",
        },
        others=("<|im_start|>",),
        template=chatml("<|image_pad|>"),
    ),
    "deepseek_vl": Words(
        bos="<bos>", eos="<eos>", pad="<pad>", starts_with_bos=True,
        named={"image_token": "<image_placeholder>"},
        template=DEEPSEEK_TURNS,
    ),
    "gemma4": Words(
        bos="<bos>", eos="<eos>", pad="<pad>", starts_with_bos=True,
        named={
            "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
            "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
        },
        others=("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|video|>"),
        template=GEMMA4_TURNS.replace("{prompt}", "<|channel>thought\n<channel|>"),
    ),
}  # fmt: skip


def tokenizer(model_type: str) -> PreTrainedTokenizerFast:
    """A type's tokenizer; any text is made of its bytes."""
    words = WORDS[model_type]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=MERGED, initial_alphabet=alphabet, show_progress=False),
    )
    raw.add_special_tokens(words.special)
    if words.starts_with_bos:
        assert words.bos is not None
        raw.post_processor = processors.TemplateProcessing(
            single=f"{words.bos} $A",
            pair=f"{words.bos} $A $B",
            special_tokens=[(words.bos, raw.token_to_id(words.bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=words.bos,
        eos_token=words.eos,
        pad_token=words.pad,
        additional_special_tokens=list(words.others),
        extra_special_tokens=words.named,
        padding_side="right",
    )
