"""A run as a model of lmms-eval: `lmms-eval --model vlds --model_args run=RUN,task=TASK`.

lmms-eval finds `manifest` by the entry point group `lmms_eval.models`. Tasks that generate give
messages to `Vlds`; those of the type multiple_choice compare likelihoods, which lmms-eval asks of
`VldsSimple` alone (`--force_simple`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from vlds.evaluation.evaluator import Question
from vlds.evaluation.sources import encode_picture
from vlds.harness.asked import FRAMES, AskedRun, Message, Part, Settings, Video
from vlds.runtime.devices import device_of

IMAGE_MARK = "<image>"
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Of the files that lmms-eval takes for pictures; others are clips."""
VIDEO_KEYS = ("url", "path", "video")
"""Where a visual that is a dict may name its file."""


def manifest() -> ModelManifest:
    """What the entry point gives."""
    return ModelManifest(
        model_id="vlds",
        simple_class_path=f"{__name__}.VldsSimple",
        chat_class_path=f"{__name__}.Vlds",
    )


class Vlds(lmms):
    """A run that answers messages."""

    is_simple: ClassVar[bool] = False

    def __init__(
        self,
        run: str,
        task: str | None = None,
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        frames: int = FRAMES,
        trust: str = "",
        **changes: object,
    ) -> None:
        """Arguments of --model_args: `task` is required if the run has several; `frames` of a clip;
        `trust`, your own modules, with a plus between them; and changes to the recipe by their
        dotted keys, such as tasks.vqa.max_prompt_tokens=64. The others are lmms-eval's own options:
        a `batch_size` of auto is the recipe's `data.eval_batch_size`.

        Errors: ValueError as `AskedRun` has them.
        """
        super().__init__()
        if device is None:  # each process of `accelerate launch` has a GPU of its own
            device = str(device_of(int(os.environ.get("LOCAL_RANK", "0"))))
        self.asked = AskedRun(
            run,
            task,
            changes,
            device=device,
            frames=frames,
            trusted=[module for module in trust.split("+") if module],
        )
        self.batch_size = None if batch_size in (None, "auto") else int(batch_size or 0)

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval's ranks count their requests there."""
        return self.asked.device

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """An answer to each request."""
        # Requests of several tasks may come together, each with settings of its own.
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            key = json.dumps(self.settings_in(request), sort_keys=True, default=str)
            groups.setdefault(key, []).append(number)
        answers = [""] * len(requests)
        size = self.batch_size or self.asked.batch_size
        for numbers in groups.values():
            settings = Settings.of(self.settings_in(requests[numbers[0]]))
            for start in range(0, len(numbers), size):  # pictures of one batch are held at a time
                part = numbers[start : start + size]
                questions = [self.question_of(requests[number]) for number in part]
                for number, answer in zip(
                    part, self.asked.answers(questions, settings, size), strict=True
                ):
                    answers[number] = answer
        return answers

    def settings_in(self, request: Instance) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = request.args[2]
        return settings

    def question_of(self, request: Instance) -> Question:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return self.asked.read(
            [Message(m["role"], list(map(part_of, m["content"]))) for m in messages]
        )

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """lmms-eval itself refuses such tasks for models that read messages."""
        raise NotImplementedError("vlds: tasks that compare likelihoods need --force_simple")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("vlds: tasks of several rounds are not answered")


class VldsSimple(Vlds):
    """A run that answers a text about pictures, and gives likelihoods."""

    is_simple: ClassVar[bool] = True

    def settings_in(self, request: Instance) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = request.args[1]
        return settings

    def question_of(self, request: Instance) -> Question:
        text, _, doc_to_visual, doc_id, task, split = request.args
        return self.simple_question(text, doc_to_visual(self.task_dict[task][split][doc_id]))

    def simple_question(self, text: str, visuals: Iterable[Any] | None) -> Question:
        """A text with pictures and clips: where its marks say, or else in front of it."""
        shown = [part_of_visual(visual) for visual in visuals or ()]
        between = text.split(IMAGE_MARK)
        parts: list[Part] = []
        if len(between) == len(shown) + 1:
            for part, visual in zip(between, [*shown, None], strict=True):
                parts += [part] if part else []
                parts += [] if visual is None else [visual]
        else:
            parts = [*shown, text]
        return self.asked.read([Message("user", parts)])

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Returns a number for each continuation, and whether it is the greedy answer.

        What the number is depends on what lmms-eval does with it. Of a task of type
        multiple_choice it takes the smallest, since its own models return the loss, a mean over
        tokens: so it is that. Of a task of type loglikelihood it makes a perplexity: so it is the
        logarithm of the probability.
        """
        results = []
        size = self.batch_size or self.asked.batch_size
        for start in range(0, len(requests), size):
            asked, wants_loss = [], []
            for request in requests[start : start + size]:
                if len(request.args) < 6:
                    raise ValueError(
                        "vlds: the metric acc_mutual_info is not supported; leave it out"
                    )
                text, target, doc_to_visual, doc_id, task, split = request.args
                doc = self.task_dict[task][split][doc_id]
                answer = target if isinstance(target, str) else str(target(doc))
                asked.append((self.simple_question(text, doc_to_visual(doc)), answer))
                wants_loss.append(isinstance(target, str))
            for found, is_choice in zip(
                self.asked.likelihoods(asked, size), wants_loss, strict=True
            ):
                nll, length = (float("inf"), 1) if found is None else (found.nll, found.num_tokens)
                value = nll / length if is_choice else -nll
                # lmms-eval 0.7.3 makes a text of the pair (unwrap_generation_output), on which its
                # scores then fail, unless it is wrapped like an answer.
                pair = (value, found is not None and found.is_greedy)
                results.append(GenerationResult(pair))
        return results


def part_of(content: Mapping[str, Any]) -> Part:
    """A part of a message.

    Errors: ValueError for sound, and for what is not a picture or clip.
    """
    if content["type"] == "text":
        return str(content["text"])
    if content["type"] == "audio":
        raise ValueError("vlds: a message with sound, which is not read; choose another task")
    return part_of_visual(content["url"], is_video=content["type"] == "video")


def part_of_visual(visual: Any, is_video: bool | None = None) -> Part:
    """A picture, or a clip by its file: lmms-eval gives Pillow's pictures, and clips as paths or as
    dicts that may say which seconds are meant."""
    if isinstance(visual, Mapping):
        place = next((visual[key] for key in VIDEO_KEYS if key in visual), None)
        if not isinstance(place, str):
            raise ValueError(f"vlds: a visual with {', '.join(visual)}; a file of video expected")
        start, end = visual.get("video_start"), visual.get("video_end")
        return Video(Path(place), float(start or 0), None if end is None else float(end))
    if isinstance(visual, str):
        is_video = not visual.lower().endswith(PICTURE_ENDINGS) if is_video is None else is_video
    if is_video:
        return Video(Path(visual))
    return encode_picture(visual)
