"""Tokenizers: a small byte-level BPE with each type's special tokens, and its chat template."""

from __future__ import annotations

from dataclasses import dataclass, field

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


def chatml(picture: str, video: str) -> str:
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
