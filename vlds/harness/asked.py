"""A run as harnesses ask it: messages with pictures and clips between the words, settings of
generation, and continuations whose likelihood is wanted. Their own words are in lmms_eval.py and
vlmevalkit_model.py.

A task of type `Chat` gets the messages as they are. Any other task gets one question behind its own
prompt, with the pictures in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch

from vlds.artifact import LoadedRun, load_run
from vlds.evaluation.evaluator import (
    Question,
    answer_questions,
    check_number,
    choose_task,
    question_batch,
    read_annotation,
)
from vlds.models.collate import WHOLE
from vlds.models.loss import nll_of
from vlds.recipe.paths import trust
from vlds.runtime.devices import device_of
from vlds.runtime.process import data_prep
from vlds.runtime.terminal import tell
from vlds.schema import Decoding, RefusedRows, Speaker
from vlds.tasks.chat import Chat

T = TypeVar("T")
FRAMES = 8
"""Of a clip, where nobody says how many."""
NOT_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")
"""Settings that say how to sample, which vlds does not."""


class Video(NamedTuple):
    """A clip in a file."""

    path: Path
    start: float = 0.0
    end: float | None = None
    """Seconds; None is the clip's end."""


Part: TypeAlias = "str | bytes | Video"
"""A text, an encoded picture or a clip."""


class Message(NamedTuple):
    """What one speaker says."""

    role: Speaker
    parts: Sequence[Part]


class Likelihood(NamedTuple):
    """Of a continuation, with the end that answers have."""

    nll: float
    """Negative log-likelihood, summed over its tokens."""
    num_tokens: int
    is_greedy: bool
    """True if each of its tokens is the likeliest."""


@dataclass(frozen=True)
class Settings:
    """How an answer is to be generated, as benchmarks ask for it."""

    max_new_tokens: int | None = None
    num_beams: int | None = None
    until: tuple[str, ...] = ()
    """An answer ends before the first of these."""
    unknown: tuple[str, ...] = ()
    """Settings that vlds does not have."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """From the names of Hugging Face's `generate` and of lm-eval.

        Errors: ValueError for a setting that asks for samples.
        """
        rest = {name: value for name, value in given.items() if value is not None}
        temperature = float(rest.get("temperature", 0))
        if rest.get("do_sample", temperature > 0) and ("temperature" not in rest or temperature):
            raise ValueError(
                f"generation settings ask for samples (do_sample {rest.get('do_sample')}, "
                f"temperature {rest.get('temperature')}), and vlds answers greedily or by beams; "
                "set do_sample to False"
            )
        until = rest.pop("until", ())
        longest = rest.pop("max_new_tokens", rest.pop("max_gen_toks", None))
        beams = rest.pop("num_beams", None)
        return cls(
            None if longest is None else int(longest),
            None if beams is None else int(beams),
            tuple(filter(None, [until] if isinstance(until, str) else until)),
            tuple(sorted(set(rest) - {*NOT_SAMPLING, "max_gen_toks"})),
        )

    def decoding(self, own: Decoding) -> Decoding:
        """A task's decoding with these settings. Where it chooses among answers, the longest of
        them decides and not `max_new_tokens`."""
        return replace(
            own,
            num_beams=own.num_beams if self.num_beams is None else self.num_beams,
            max_new_tokens=self.max_new_tokens or own.max_new_tokens,
        )

    def cut(self, text: str) -> str:
        """An answer up to the first of `until`."""
        return text[: min((text.find(s) for s in self.until if s in text), default=len(text))]


DEFAULTS = Settings()


class AskedRun:
    """A run, or an artifact, and the task of it that answers."""

    def __init__(
        self,
        run: str | Path,
        task: str | None = None,
        changes: Mapping[str, object] = {},
        *,
        device: str | None = None,
        frames: int = FRAMES,
        trusted: Sequence[str] = (),
    ) -> None:
        """`task`: required if the run has several; `changes`: dotted keys of the recipe, as
        `vlds evaluate` takes them; `trusted`: your own modules whose classes the run names.

        Errors: ValueError as `load_run` has them, for an unknown task or key, and for a device that
        this machine lacks.
        """
        if odd := [key for key in changes if "." not in key]:
            raise ValueError(
                f"{odd[0]} is unknown; give run, task, frames, trust, or a dotted key of the "
                "recipe, such as tasks.chat.decoding.max_new_tokens"
            )
        for module in trusted:
            trust(module)
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
            raise ValueError(f"frames: got {frames!r:.60}; give a whole number, 1 or more")
        words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
        loaded = load_run(Path(run), changes=words)
        # Any question will do: the recipe has the names of the tasks.
        self.task = choose_task(loaded.recipe, task, "?")
        if loaded.recipe.image is None:
            raise ValueError(
                f"run: {run} reads stored features, and harnesses give pictures; evaluate it with "
                "`vlds evaluate`"
            )
        try:
            self.device = device_of() if device is None else torch.device(device)
            loaded.model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device: got {device!r:.60}: {error}; name another") from None
        self._loaded, self._frames = loaded, frames
        self._variants: dict[tuple[tuple[str, Any], ...], LoadedRun] = {}
        self._told = set[str]()

    @property
    def reads_talks(self) -> bool:
        """True if the task reads messages as they are, with clips among them."""
        return isinstance(self._loaded.recipe.tasks[self.task], Chat)

    @property
    def batch_size(self) -> int:
        """Questions that the run's recipe answers together."""
        return self._loaded.recipe.data.eval_batch_size

    def read(self, messages: Sequence[Message]) -> Question:
        """What the task makes of messages.

        Errors: ValueError for what is not a picture or clip, for another number of them than the
        run takes, and, unless the task is a `Chat`, for clips and for more than one question.
        """
        pictures: list[bytes] = []
        turns: list[dict[str, Any]] = []
        for role, said in messages:
            parts: list[dict[str, Any]] = []
            for part in said:
                if isinstance(part, str):
                    parts.append({"type": "text", "text": part})
                elif isinstance(part, Video):
                    shown, times, duration = self._clip(part)
                    pictures += shown
                    parts.append({"type": "video", "times": times, "duration": duration})
                else:
                    pictures.append(part)
                    parts.append({"type": "image"})
            # Answers before the last question are given: none of them is asked for.
            turns.append({"role": role, "content": parts, "learn": False})
        if self.reads_talks:
            return read_annotation(self._loaded, self.task, pictures, {"turns": turns})
        if [turn["role"] for turn in turns] != ["user"]:
            raise ValueError(
                f"task: {self.task} reads one question, got {len(turns)} messages "
                f"({', '.join(turn['role'] for turn in turns)}); ask a task of type Chat"
            )
        text = " ".join(part["text"] for part in turns[0]["content"] if "text" in part)
        field = self._loaded.recipe.tasks[self.task].input_field
        if field is None and text:
            self._tell_once(f"{self.task} reads pictures alone: it does not see the words")
        asked = {} if field is None else {field: text}
        return read_annotation(self._loaded, self.task, pictures, asked)

    def _clip(self, video: Video) -> tuple[list[bytes], list[float], float]:
        """Frames, when they are shown, and the clip's seconds; chosen as `vlds data video` does."""
        if not self.reads_talks:
            raise ValueError(
                f"task: {self.task} reads pictures, got the clip {video.path}; ask a task of type "
                "Chat"
            )
        loaded = self._loaded
        try:
            check_number(loaded.recipe, self.task, self._frames, loaded.trained_on.get(self.task))
        except ValueError as error:
            raise ValueError(
                f"frames: a clip is read as {self._frames} pictures; {error}; give another number "
                "of frames"
            ) from None
        clip, picture, source = map(
            data_prep, ("packing.clip", "packing.picture", "packing.source")
        )
        clip.check_av()
        rule = picture.PictureRule(frames=picture.FrameRule(num=self._frames))
        try:
            frames = clip.read_clip(video.path, rule, source.Span(video.start, video.end))
        except clip.BadClip as error:
            raise ValueError(f"{video.path}: {error}") from None
        return [each.data for each in frames.pictures], frames.times, frames.duration

    def answers(
        self,
        questions: Sequence[Question],
        settings: Settings = DEFAULTS,
        batch_size: int | None = None,
    ) -> list[str]:
        """An answer to each question; empty where the model's processor refuses a picture, as in
        `vlds evaluate`."""
        task = self._loaded.recipe.tasks[self.task]
        run = self._with(decoding=settings.decoding(task.decoding))
        for name in settings.unknown:
            self._tell_once(f"the setting {name} is asked for, which vlds does not have")
        field = f"tasks.{self.task}.max_prompt_tokens"

        def answer(batch: Sequence[Question]) -> list[str]:
            answers = answer_questions(run, self.task, batch)
            if any(each.prompt_cut for each in answers):
                self._tell_once(
                    f"a question is longer than {field} ({task.max_prompt_tokens}): its end is "
                    "not read"
                )
            return [settings.cut(each.text) for each in answers]

        return [text or "" for text in self._by_batch(questions, batch_size, answer)]

    def likelihoods(
        self, asked: Sequence[tuple[Question, str]], batch_size: int | None = None
    ) -> list[Likelihood | None]:
        """How likely the model gives each text as the answer; None where its processor refuses a
        picture. Blanks around a text do not count: vlds puts its own between question and answer.

        Errors: ValueError for a task that answers by the classes of a head.
        """
        if self._loaded.recipe.tasks[self.task].head is not None:
            raise ValueError(
                f"task: {self.task} answers with a class of its head, which has no likelihood of "
                "a text; ask another task"
            )
        run = self._with(max_target_tokens=WHOLE)
        questions = [
            question._replace(example=replace(question.example, target=text.strip()))
            for question, text in asked
        ]

        def likelihood(batch: Sequence[Question]) -> list[Likelihood]:
            with torch.no_grad():
                predicted = run.model.predicted(question_batch(run, self.task, batch))
                nll = nll_of(predicted).sum(1)
            likeliest = predicted.logits.argmax(-1) == predicted.labels[predicted.places]
            num_tokens = predicted.is_label.sum(1)
            num_right = predicted.by_example(likeliest.float()).sum(1).long()
            columns = (nll.tolist(), num_tokens.tolist(), (num_right == num_tokens).tolist())
            return list(map(Likelihood, *columns))

        return self._by_batch(questions, batch_size, likelihood)

    def _with(self, **fields: Any) -> LoadedRun:
        """The run with other fields of the task."""
        # Kept, because a run has a collator of its own, which reads the chat template.
        key = tuple(fields.items())
        if key not in self._variants:
            recipe = self._loaded.recipe
            tasks = {**recipe.tasks, self.task: replace(recipe.tasks[self.task], **fields)}
            self._variants[key] = replace(self._loaded, recipe=replace(recipe, tasks=tasks))
        return self._variants[key]

    def _by_batch(
        self,
        questions: Sequence[Question],
        size: int | None,
        compute: Callable[[Sequence[Question]], Sequence[T]],
    ) -> list[T | None]:
        """What `compute` says of each question; None for those whose pictures are refused."""
        results: list[T | None] = [None] * len(questions)
        size = size or self.batch_size
        for start in range(0, len(questions), size):
            numbers: Sequence[int] = range(start, min(start + size, len(questions)))
            while numbers:
                try:
                    computed = compute([questions[number] for number in numbers])
                except RefusedRows as refused:
                    for reason in refused.reasons.values():
                        self._tell_once(f"a question gets no answer: {reason}")
                    numbers = [n for place, n in enumerate(numbers) if place not in refused.reasons]
                    continue
                for number, result in zip(numbers, computed, strict=True):
                    results[number] = result
                break
        return results

    def _tell_once(self, note: str) -> None:
        """Say what a reader of the scores must know, when it happens first."""
        if note not in self._told:
            self._told.add(note)
            tell(f"vlds: {note} (said once)", error=True, flush=True)
