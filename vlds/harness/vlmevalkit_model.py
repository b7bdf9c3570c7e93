"""A run as a model of VLMEvalKit. `vlds.harness.vlmevalkit` runs VLMEvalKit with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlmeval.vlm.base import BaseModel

from vlds.evaluation.sources import encode_picture
from vlds.harness.asked import FRAMES, AskedRun, Message, Part, Video
from vlds.schema import Speaker


class Vlds(BaseModel):
    """A run that answers VLMEvalKit's messages, as its recipe decodes."""

    INTERLEAVE: ClassVar[bool] = True

    def __init__(
        self,
        run: str,
        task: str | None = None,
        *,
        frames: int = FRAMES,
        trust: Sequence[str] = (),
        **changes: object,
    ) -> None:
        """`task`: required if the run has several; `frames` of a clip; `trust`: your own modules;
        `changes`: dotted keys of the recipe, such as tasks.chat.decoding.max_new_tokens.

        Errors: ValueError as `AskedRun` has them.
        """
        super().__init__()
        self.asked = AskedRun(run, task, changes, frames=frames, trusted=trust)
        self.VIDEO_LLM = self.asked.reads_talks
        """False: VLMEvalKit gives frames of clips as pictures."""

    def generate_inner(
        self, message: Sequence[Mapping[str, Any]], dataset: str | None = None
    ) -> str:
        """The answer to a list of parts, as {"type": "text", "value": "What is it?"}; the value of
        a picture or clip is its path. A part may say its role, which is the user's by default."""
        messages: list[Message] = []
        for part in message:
            role: Speaker = part.get("role", "user")
            if not messages or messages[-1].role != role:
                messages.append(Message(role, []))
            messages[-1] = messages[-1]._replace(parts=[*messages[-1].parts, part_of(part)])
        return self.answer(messages)

    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """The answer to a conversation, whose turns have a role and a content of parts."""
        return self.answer(
            [Message(turn["role"], list(map(part_of, turn["content"]))) for turn in message]
        )

    def answer(self, messages: Sequence[Message]) -> str:
        (answer,) = self.asked.answers([self.asked.read(messages)])
        return answer


def part_of(part: Mapping[str, Any]) -> Part:
    """Errors: ValueError for a picture that cannot be read."""
    if part["type"] == "text":
        return str(part["value"])
    if part["type"] == "video":
        return Video(Path(part["value"]))
    return encode_picture(part["value"])
