"""DualEncoder: CLIP of Hugging Face, or with a ResNet as its vision tower. A picture and a text
become two vectors, which are alike if they belong together. The model itself is in
`dual_encoder_model`, the ResNet in `resnet_clip`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModelWithProjection,
    PreTrainedConfig,
)

from vlds.models.collate import WHOLE, Tokenizer, batch_of, token_ids
from vlds.models.kinds.base import PathKind
from vlds.models.kinds.dual_encoder_model import DualEncoderModel
from vlds.models.kinds.resnet_clip import ResNetClip, ResNetClipConfig
from vlds.models.loading.gate import check_config, quiet, read_config, unpartitioned
from vlds.models.loading.load_backbone import load_backbone
from vlds.models.loading.model_files import COPY_AGAIN, SourceError, some
from vlds.models.model import Model
from vlds.models.peers import Peer, clip_pixels, opened
from vlds.models.vision.base import on_meta
from vlds.schema import IGNORED_LABEL, Batch, Images, ImageSpec, Row, Turn, plain_text
from vlds.tasks.base import Task


@dataclass(frozen=True)
class DualCollator:
    """Rows and their pictures -> Batch. A row's text is its prompt and target together; a row of a
    task with a head has scores of classes instead of a target. A row's one label says whether it
    has a target."""

    tokenizer: Tokenizer

    def __call__(self, rows: Sequence[Row], images: Images, *, evaluation: bool) -> Batch:
        """`images`: the distinct images of the rows, of one size."""
        assert isinstance(images, Tensor)
        texts = [(r.example.prompt + (r.example.target or ""), r.max_target_tokens) for r in rows]
        ids = token_ids(self.tokenizer, texts)
        batch = batch_of(rows, ids, self.tokenizer.pad_token_id, evaluation=evaluation)
        missing = [row.example.target is None for row in rows]
        if not all(missing):
            batch.labels = torch.tensor([[IGNORED_LABEL if m else 0] for m in missing])
        batch.images = images
        return batch

    def prompt_lengths(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        return [len(tokens) for tokens in token_ids(self.tokenizer, prompts)]

    def answer_lengths(self, answers: Sequence[tuple[str, int]]) -> list[int]:
        return self.prompt_lengths(answers)

    def turns_length(self, turns: Sequence[Turn]) -> int:
        return self.prompt_lengths([(plain_text(turns), WHOLE)])[0]


CLASSES: dict[str, tuple[Any, Any]] = {
    CLIPConfig.model_type: (CLIPConfig, CLIPModel),
    ResNetClipConfig.model_type: (ResNetClipConfig, ResNetClip),
}
"""`model_type` of a config.json -> classes of the config and of the model."""
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
LEGACY_END = 2
"""The eos_token_id of CLIP's first configs, which was wrong: Hugging Face reads it otherwise."""


@dataclass(frozen=True, kw_only=True)
class DualEncoder(PathKind):
    """Hugging Face's CLIP, or one with a ResNet that `vlds convert clip` wrote. Tasks with a head
    learn classes; tasks without one learn which text belongs to which picture, by CLIP's loss over
    the whole global batch."""

    # Where it comes from.

    @property
    def sources(self) -> dict[str, str]:
        return {} if self.path is None else {"backbone": self.path}

    # Pictures and text.

    @property
    def image(self) -> ImageSpec:
        """Square pictures; their aspect ratio is not kept."""
        size = self.read_config().vision_config.image_size
        return ImageSpec(size, size)

    @property
    def fewest_images(self) -> int:
        return 1

    def check_tasks(self, tasks: Mapping[str, Task], num_micro_batches: int) -> None:
        super().check_tasks(tasks, num_micro_batches)
        with_head = [name for name, task in tasks.items() if task.head is not None]
        without = [name for name in tasks if name not in with_head]
        if with_head and without:
            raise ValueError(
                f"tasks: {', '.join(with_head)} have a head and learn classes, "
                f"{', '.join(without)} learn pairs of pictures and texts; DualEncoder trains them "
                "in separate runs"
            )
        if without and num_micro_batches > 1:
            raise ValueError(
                f"data.micro_batch_size: it cuts a rank's share into {num_micro_batches} "
                "micro-batches, but CLIP's loss compares all pairs of the global batch; leave it "
                "out, or lower data.global_batch_size"
            )
        most = self.read_config().text_config.max_position_embeddings
        for name in without:
            if tasks[name].max_target_tokens > most:
                raise ValueError(
                    f"tasks.{name}.max_target_tokens: {tasks[name].max_target_tokens}, but the "
                    f"text encoder has learned {most} positions, which prompt and text share; "
                    f"give at most {most}"
                )
            if tasks[name].evaluate and tasks[name].decoding.answers is None:
                raise ValueError(
                    f"tasks.{name}.decoding.answers: DualEncoder writes no text, it finds the most "
                    "fitting one of a list; name the list, or drop tasks." + name + ".evaluate"
                )

    def collator(self, processor: Any, dtype: torch.dtype = torch.float32) -> DualCollator:
        return DualCollator(processor)

    # The model.

    def read_config(self) -> Any:
        """Hugging Face's config.

        Errors: ValueError if it is not CLIP's.
        """
        source, field = self.config_place
        _, fields = read_config(PreTrainedConfig, source, field)
        if (kind := fields.get("model_type")) not in CLASSES:
            raise ValueError(f"{field}: {source} is a {kind} model, not CLIP; name a CLIP")
        config, _ = read_config(CLASSES[kind][0], source, field)
        parts = [config.text_config]
        if kind == CLIPConfig.model_type:  # a ResNet has other sizes, which its config checks
            parts.append(config.vision_config)
        for part in parts:
            check_config(part, f"{field}: {source}", SIZES)
        return config

    def build(self, dtype: torch.dtype, processor: Any) -> DualEncoderModel:
        """Errors: ValueError if the model cannot be read, or the tokenizer has more tokens or ends
        texts otherwise."""
        config = self.read_config()
        with unpartitioned():  # DeepSpeed cannot part the scale, which has no dimensions
            model_class = CLASSES[config.model_type][1]
            backbone, names = load_backbone(model_class, config, self.path, dtype)
        if self.path is not None and not on_meta():
            # Unlike tables that a model computes, a batch norm's statistics cannot be made up.
            lost = sorted(
                n for n, _ in backbone.named_buffers() if "running" in n and n not in names
            )
            if lost:
                raise SourceError(
                    f"model.path: the weights in {self.path} lack {some(lost)}; {COPY_AGAIN}"
                )
        self.check_vocabulary(processor, config.text_config.vocab_size, "text encoder")
        if processor is not None:
            end = config.text_config.eos_token_id
            # With 2, as the first configs have it, Hugging Face reads a text at its largest token.
            read_at = len(processor) - 1 if end == LEGACY_END else end
            if processor.eos_token_id != read_at:
                place, field = self.config_place
                raise ValueError(
                    f"model.tokenizer: texts end with token {processor.eos_token_id}, but with "
                    f"eos_token_id {end} in the text_config of {place} CLIP reads a text at token "
                    f"{read_at}; write the end's token into {field}, and let it not be {LEGACY_END}"
                )
        model = DualEncoderModel(backbone, processor)
        model.note_sources(names, {})
        return model

    def peers(self, model: Model, rows: Sequence[Row], images: Images) -> Iterator[Peer | str]:
        assert isinstance(model, DualEncoderModel)
        assert isinstance(images, Tensor)
        ours, config, device = model.backbone, self.read_config(), model.scale.device
        # Examples of classes have no text of their own.
        texts = [r.example.prompt + (r.example.target or "") or r.example.id for r in rows]
        most = config.text_config.max_position_embeddings
        words = self.load_processor()(
            texts, padding=True, truncation=True, max_length=most, return_tensors="pt"
        ).to(device)
        state = ours.state_dict()
        pixels = clip_pixels(self.path, "model.path", images.to(device))
        if config.model_type == CLIPConfig.model_type:
            theirs = opened(CLIPModel, self.path, "model.path", config, state)
            output = theirs(pixel_values=pixels, **words)
            seen, read = output.image_embeds, output.text_embeds
        else:
            config.text_config.projection_dim = config.projection_dim
            yield "the vision tower is timm's own ResNet, and Hugging Face has none"
            theirs = opened(
                CLIPTextModelWithProjection, self.path, "model.path", config.text_config,
                {n: t for n, t in state.items() if n.startswith("text_")},
            )  # fmt: skip
            seen = F.normalize(ours.vision_model(pixels).pooler_output, dim=-1)
            read = F.normalize(theirs(**words).text_embeds, dim=-1)
        name = f"Hugging Face's {type(theirs).__name__}"
        pictures = model.through_vision(list(images.to(device)))
        told = model.embed_texts(texts, 0)
        yield Peer(f"pictures' embeddings: ours, and {name}", {"all": pictures}, {"all": seen})
        yield Peer(f"texts' embeddings: ours, and {name}", {"all": told}, {"all": read})
        if config.model_type == CLIPConfig.model_type:
            similar = model.scale * pictures @ told.mT
            yield Peer(
                f"logits: ours, and {name}", {"all": similar}, {"all": output.logits_per_image}
            )

    def export(self, model: Model, folder: Path) -> DualEncoder:
        """The model, its tokenizer and how pictures are prepared, as Hugging Face saves them."""
        model.save_backbone(folder)
        # As `image` says: the aspect ratio is not kept, so that nothing is cropped.
        size = {"height": self.image.height, "width": self.image.width}
        with quiet():
            CLIPImageProcessor(size=size, do_center_crop=False).save_pretrained(folder)
        return replace(self, path=str(folder), config=None, tokenizer=None)
