"""CLIP with methods attached: embeddings of pictures and texts, classes, losses and answers.

Shapes: b rows, u distinct pictures, c classes, n pairs of all ranks, l tokens of a text, d width of
the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.collate import View, padded, token_ids
from vlds.models.generation.answer_list import Answer, read_answers
from vlds.models.heads.texts import ClassExtension, ClassTexts, TextClasses, Twin, unit
from vlds.models.kernels.dropout import examples_follow, pictures_follow
from vlds.models.methods.context import Predicted
from vlds.models.methods.host import is_own, run_beside
from vlds.models.model import BACKBONE_PREFIX, Model, ModelOutput, Part
from vlds.models.roles import find_roles
from vlds.models.vision.base import normalised, on_meta
from vlds.models.vision.clip import MEAN, STD
from vlds.runtime.ranks import gather_rows
from vlds.schema import UNDECAYED, Batch, Decoding, TargetModules

TOWERS = {
    "vision": ("vision_model", "visual_projection"),
    "text": ("text_model", "text_projection"),
}
"""Part -> its modules in Hugging Face's CLIP."""
MOST_SCALE = 100.0
"""Largest factor of cosines, as in CLIP's training."""
MOST_AT_ONCE = 256
"""Texts of classes that are embedded at once."""
MOST_KEPT = 1 << 18
"""Embeddings of pictures that are kept: half a gigabyte of CLIP's."""


def contrastive_nll(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """(b,) CLIP's loss (Radford et al. 2021, https://arxiv.org/abs/2103.00020) of each pair of
    embeddings (b, d) of length 1, against all ranks' pairs. Collective.

    Each picture finds its text among those of the whole global batch, and each text its picture.
    With N pairs on all ranks, embeddings x and y, and a scale s, the loss of pair i is

        1/2 [ -log softmax_j(s x_i y_j)_i - log softmax_j(s x_j y_i)_i ],    j = 1 ... N,

    and the loss of the batch is their mean. Pairs of different micro-batches would not be compared:
    the kind refuses more than one micro-batch a step.
    """
    # Each rank computes the terms of its own pairs. Gradients flow back through the gathered
    # embeddings, so it does not matter how ranks share the pairs.
    both = gather_rows(torch.cat([images, texts], 1))
    every_image, every_text = both.rows.chunk(2, 1)
    own = torch.arange(both.first, both.first + len(images), device=images.device)
    to_texts = F.cross_entropy(scale * images @ every_text.mT, own, reduction="none")
    to_images = F.cross_entropy(scale * texts @ every_image.mT, own, reduction="none")
    return (to_texts + to_images) / 2


def in_both(towers: Mapping[str, TargetModules]) -> TargetModules:
    """Where methods attach in a model whose modules at these paths are the towers."""
    paths: dict[str, tuple[str, ...]] = {}
    cures: dict[str, str] = {}
    for module, targets in towers.items():
        for role, inside in targets.paths.items():
            paths[role] = (*paths.get(role, ()), *(f"{module}.{path}" for path in inside))
        cures |= targets.cures
    return TargetModules(paths, cures=cures)


def shown_first(batch: Batch) -> list[int]:
    """The number of each row's picture."""
    numbers: list[int] = batch.on_host.image_index[:, 0].tolist()
    return numbers


def view_of(batch: Batch, number: int, view: int) -> View:
    """A view of one of a batch's pictures."""
    images, on_host = batch.images, batch.on_host.images
    assert images is not None
    assert on_host is not None
    return View(images[number], view, on_host[number])


class DualEncoderModel(Model):
    """A model of Hugging Face's class CLIPModel, or of one derived from it."""

    embeds_texts: ClassVar[bool] = True

    def __init__(self, backbone: Any, tokenizer: Any = None) -> None:
        super().__init__(tokenizer)
        self.backbone = backbone
        # DeepSpeed cannot send a tensor without dimensions.
        backbone.logit_scale = nn.Parameter(backbone.logit_scale.detach().reshape(1))
        # A tower may say where methods attach: roles are found in numbered layers alone.
        towers = {name: backbone.get_submodule(module) for name, (module, _) in TOWERS.items()}
        targets = {
            n: getattr(tower, "targets", None) or find_roles(tower) for n, tower in towers.items()
        }
        roles = in_both({TOWERS[name][0]: targets[name] for name in TOWERS})
        rules = {"logit_scale": UNDECAYED}
        plain = Part("backbone", roles, rules, takes_prompts=False, says_tokens=False)
        self.parts = {"backbone": plain}
        for name, (module, _) in TOWERS.items():
            path = BACKBONE_PREFIX + module
            self.parts[name] = replace(plain, path=path, targets=targets[name], optimizer_rules={})
        # Caches, which `_apply` and `forget_texts` empty where weights may have changed.
        self._kept_texts: dict[str, ClassTexts] = {}
        self._kept_list: tuple[tuple[str, ...], Tensor] | None = None
        # Plain attributes, so that neither a state nor a checkpoint holds them.
        self._kept_views: dict[tuple[bytes, int], Tensor] = {}
        self._twin_texts: dict[str, Tensor] = {}

    @property
    def state_width(self) -> int:
        return int(self.backbone.projection_dim)

    def save_backbone(self, folder: Path) -> None:
        # Hugging Face's file has a scale without dimensions.
        kept = self.backbone.logit_scale
        self.backbone.logit_scale = nn.Parameter(kept.detach().reshape(()))
        try:
            super().save_backbone(folder)
        finally:
            self.backbone.logit_scale = kept

    def changes(self, tower: str) -> bool:
        """True if something in a tower trains, or a method has added something to it."""
        modules = [self.backbone.get_submodule(module) for module in TOWERS[tower]]
        named = (entry for module in modules for entry in module.named_modules())
        has_more = any(not is_own(name) for name, _ in named)
        return has_more or any(p.requires_grad for module in modules for p in module.parameters())

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for frozen towers: chance in them would move the loss."""
        is_change = mode != self.training
        super().train(mode)
        for tower, modules in TOWERS.items():
            if not self.changes(tower):
                for module in modules:
                    self.backbone.get_submodule(module).eval()
        # Not all ranks evaluate, and under stage 3 all run the same modules in training.
        if self.changes("text") or (is_change and self.is_partitioned):
            self.forget_texts()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.forget_texts()
        self._kept_views.clear()
        self._twin_texts.clear()
        return super()._apply(fn, recurse)

    @property
    def is_partitioned(self) -> bool:
        """True under ZeRO stage 3."""
        return hasattr(self.backbone.logit_scale, "ds_id")  # DeepSpeed's mark

    def forget_texts(self) -> None:
        """Drop kept embeddings of texts, because weights may have changed."""
        self._kept_texts.clear()
        self._kept_list = None

    # Embeddings.

    @property
    def scale(self) -> Tensor:
        """The factor of cosines."""
        # The logarithm trains, and may pass log(100): the clamp then stops its gradient.
        logarithm: Tensor = self.backbone.logit_scale.float()
        return logarithm.clamp(max=math.log(MOST_SCALE)).exp()

    def image_embeddings(self, batch: Batch) -> Tensor:
        """(b, d) of length 1, in float32; in training, of a view of each picture if methods ask for
        views. Rows of one task that show the same view share it."""
        assert batch.images is not None
        num_views = 0
        if self.training:
            num_views = max((extension.views for *_, extension in self.extensions()), default=0)
        # View 0 is the picture itself.
        numbers = [
            1 + self.context.draw(f"view of {name}", num_views) if num_views else 0
            for name in batch.ids
        ]
        rows = list(zip(shown_first(batch), numbers, batch.task_index.tolist(), strict=True))
        # The task is part of the key, since weights of a method may differ from task to task.
        distinct = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        views = [view_of(batch, u, view) for u, view, _ in distinct]
        self.rows_follow([task for *_, task in distinct])
        embedded = self.embed_views(views)
        places = torch.tensor([distinct[row] for row in rows])
        return embedded[places.to(embedded.device, non_blocking=True)]

    def begin(self) -> None:
        """Run the modules that methods have put beside the towers, once before a batch."""
        for part in self.parts.values():
            run_beside(self.get_submodule(part.path))

    def rows_follow(self, tasks: Sequence[int]) -> None:
        """Tell methods the tasks of the rows that a tower reads next."""
        self.context.set_rows(torch.tensor(tasks), None, self.backbone.logit_scale.device)

    def embed_views(self, views: Sequence[View], twin: bool = False) -> Tensor:
        """Embeddings of a frozen tower are kept, so that it sees each view once."""
        if self.changes("vision") and not twin:
            return self.through_vision([view.pixels() for view in views])
        with torch.no_grad():
            if self.is_partitioned:  # ranks gather the weights together
                return self.through_vision([view.pixels() for view in views])
            # A frozen tower says the same of a view in every epoch.
            keys, kept = [view.key() for view in views], self._kept_views
            new = {key: view for key, view in zip(keys, views, strict=True) if key not in kept}
            if new:
                embedded = self.through_vision([view.pixels() for view in new.values()])
                kept |= dict(zip(new, embedded, strict=True))
            found = torch.stack([kept[key] for key in keys])
        # After the lookup, so that this batch is served even when the cache is full.
        if len(kept) > MOST_KEPT:
            kept.clear()
        return found

    def through_vision(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pictures (3, h, w) uint8 -> (u, d)."""
        stack = torch.stack(list(pictures))
        pixels = normalised(stack, MEAN, STD).to(self.backbone.dtype)
        with pictures_follow(stack):
            states = self.backbone.vision_model(pixel_values=pixels).pooler_output
            return unit(self.backbone.visual_projection(states))

    def through_text(self, input_ids: Tensor) -> Tensor:
        """(n, l) tokens -> (n, d) of length 1, in float32. Attention is causal, so padding behind a
        text does not change what its end says."""
        states = self.backbone.text_model(input_ids=input_ids).pooler_output
        return unit(self.backbone.text_projection(states))

    def embed_texts(self, texts: Sequence[str], task: int) -> Tensor:
        """Texts -> (n, d), as rows of a task."""
        most = self.backbone.config.text_config.max_position_embeddings
        ids = token_ids(self.tokenizer, [(text, most) for text in texts])
        parts = []
        # In pieces: a thousand classes with several templates would not fit at once.
        for start in range(0, len(ids), MOST_AT_ONCE):
            some = padded(ids[start : start + MOST_AT_ONCE], self.tokenizer.pad_token_id)
            self.rows_follow([task] * len(some))
            device = self.backbone.logit_scale.device
            parts.append(self.through_text(some.to(device, non_blocking=True)))
        return torch.cat(parts)

    # Classes.

    def extensions(self) -> list[tuple[str, TextClasses, ClassExtension]]:
        """Task, its head, and the method's module in it, for heads that have one."""
        return [
            (task, head, head.extension)
            for task, head in self.heads.items()
            if isinstance(head, TextClasses) and head.extension is not None
        ]

    def show_twins(self, batch: Batch) -> None:
        """In training, tell heads what the frozen model says of an augmented view of each picture,
        if their methods ask for it."""
        assert batch.images is not None
        for name, head, extension in self.extensions():
            if not (self.training and extension.twin_views):
                continue
            with torch.no_grad(), extension.switched_off():
                number = self.heads.numbers[name]
                if name not in self._twin_texts:
                    described = head.config.sentences().described
                    self._twin_texts[name] = self.means_of(described, number)
                views = [
                    view_of(batch, u, 1 + self.context.draw(f"twin of {id}", extension.twin_views))
                    for u, id in zip(shown_first(batch), batch.ids, strict=True)
                ]
                images = self.embed_views(views, twin=True)
                own = (batch.task_index == number).nonzero()[:, 0]
                own = own.to(images.device, non_blocking=True)
                head.twin.value = Twin(images[own], self._twin_texts[name])

    def class_texts(self, name: str, head: TextClasses) -> ClassTexts:
        """The texts of a task's classes; computed once while the text tower does not change."""
        # The scale may train though the tower does not, so it is never kept.
        is_fixed = not (self.training and self.changes("text"))
        if is_fixed and (kept := self._kept_texts.get(name)) is not None:
            return kept._replace(scale=self.scale)
        sentences, number = head.config.sentences(), self.heads.numbers[name]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_fixed):
            template = self.means_of(sentences.template, number)
            # Descriptions and negatives cost as much again: only for methods that read them.
            texts = ClassTexts(template, template, template, self.scale)
            if head.extension is not None and head.extension.reads_descriptions:
                texts = texts._replace(described=self.means_of(sentences.described, number))
            if head.extension is not None and head.extension.reads_negatives:
                texts = texts._replace(negative=self.means_of(sentences.negative, number))
        if is_fixed:
            self._kept_texts[name] = texts
        return texts._replace(scale=self.scale)

    def means_of(self, sentences: Sequence[Sequence[str]], task: int) -> Tensor:
        """Sentences of each class -> (c, d) directions of the means of their embeddings."""
        embedded = self.embed_texts([text for of_class in sentences for text in of_class], task)
        parts = embedded.split([len(of_class) for of_class in sentences])
        return unit(torch.stack([part.mean(0) for part in parts]))

    # Training.

    def use_methods(self) -> None:
        """Errors: ValueError for a method that the model cannot run, or that needs a head."""
        for module in self.backbone.modules():
            if names := list(getattr(module, "key_value_extensions", {})):
                raise ValueError(
                    f"methods.{names[0]}: it puts keys and values into attention layers, and CLIP "
                    "computes these without them; use LoRA or Adapter"
                )
        if self.batch_losses and not self.heads:
            raise ValueError(
                f"methods.{next(iter(self.batch_losses))}: it adds to the loss of single examples, "
                "and pairs of pictures and texts have none; give the tasks a head"
            )
        trains = {by for n, by in self.trained_by.items() if n.startswith(BACKBONE_PREFIX)}
        for _, head, extension in self.extensions():
            (name,) = head.extensions
            if extension.twin_views and (others := sorted(trains - {name})):
                raise ValueError(
                    f"methods.{name}: it compares with the frozen model, which "
                    f"{', '.join(others)} would change; remove one of them"
                )
            if self.tokenizer is not None and not on_meta():
                try:
                    extension.start(head.config, self.backbone, self.tokenizer)
                except ValueError as error:
                    raise ValueError(f"methods.{name}: {error}") from None

    def forward(
        self, batch: Batch, coefficients: Tensor, pieces: Sequence[Tensor] = ()
    ) -> ModelOutput:
        """As `Model.forward`; all rows are computed at once, because pairs compare with each
        other."""
        return super().forward(batch, coefficients)

    def loss_sums(self, batch: Batch) -> list[Tensor]:
        if self.heads:
            return super().loss_sums(batch)
        images, texts = self.pairs(batch)
        # Rows that only fill a rank's share would stand among the pairs twice.
        counted = batch.on_host.valid.nonzero()[:, 0].to(images.device, non_blocking=True)
        losses = contrastive_nll(images[counted], texts[counted], self.scale)
        return [losses.new_zeros(len(batch)).index_put((counted,), losses)]

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(b, d) each: pictures and texts of a batch."""
        self.begin()
        examples_follow(batch.ids)  # once for each tower, whose dropout it names
        images = self.image_embeddings(batch)
        examples_follow(batch.ids)
        self.rows_follow(batch.task_index.tolist())
        return images, self.through_text(batch.input_ids)

    def predicted(self, batch: Batch) -> Predicted:
        """What heads say of a batch; without heads, the similarities of this rank's pairs."""
        if not self.heads:
            # Unlike the loss, over this rank's pairs alone.
            images, texts = self.pairs(batch)
            rows = torch.arange(len(batch), device=images.device)
            return Predicted(
                self.scale * images @ texts.mT, rows[:, None], (rows, torch.zeros_like(rows))
            )
        return self.heads.predicted_alone(self.first_states(batch), batch)

    def logits(self, batch: Batch) -> Tensor:
        """(b, 1, c) of the classes of a batch of one task; without heads, (b, 1, b) of the texts of
        the batch."""
        if not self.heads:
            return self.predicted(batch).logits[:, None]
        head = self.heads[self.heads.name_of(batch)]
        logits: Tensor = head(self.first_states(batch))
        return logits[:, None]

    # Answers.

    def first_states(self, batch: Batch) -> Tensor:
        """(b, d) embeddings of the pictures, which heads read. Tells the heads their texts."""
        # The frozen model runs first: ZeRO-3's backward pass relies on the last run of a layer.
        self.show_twins(batch)
        self.begin()
        images = self.image_embeddings(batch)
        for name, head in self.heads.items():
            if isinstance(head, TextClasses):
                head.texts.value = self.class_texts(name, head)
        return images

    @torch.no_grad()
    def write(self, batch: Batch, decoding: Decoding) -> list[Answer]:
        """The text nearest to each picture, of the list that the task names.

        Errors: ValueError if it names none.
        """
        listed = decoding.answers if decoding.choices is None else decoding.choices
        if listed is None:
            raise ValueError(
                "decoding.answers: a dual encoder writes no text, it finds the most fitting one of "
                "a list; name one"
            )
        self.begin()
        texts, number = read_answers(listed), int(batch.task_index[0])
        if self._kept_list is None or self._kept_list[0] != texts:
            self._kept_list = texts, self.embed_texts(texts, number)
        logits = self.scale * self.image_embeddings(batch) @ self._kept_list[1].mT
        best, chosen = logits.softmax(-1).max(-1)
        pairs = zip(chosen.tolist(), best.tolist(), strict=True)
        return [Answer(texts[number], confidence, None) for number, confidence in pairs]
