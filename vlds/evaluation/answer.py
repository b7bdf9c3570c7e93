"""One question about pictures, answered by a loaded run. Nothing here needs ranks or DeepSpeed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlds.artifact import LoadedRun
from vlds.config import Recipe
from vlds.data.shards.decode import decode_image
from vlds.data.streams.collate import ImageStack, Row, collate
from vlds.models.vl_model import Answer
from vlds.schema import Sample, SkipSample
from vlds.tasks.base import Task


def choose_task(recipe: Recipe, name: str | None, question: str) -> str:
    """The named task, or the only one; ValueError if it is unknown or needs a question."""
    known = ", ".join(recipe.tasks)
    if name is None and len(recipe.tasks) > 1:
        raise ValueError(f"task: the run has several tasks, say which: {known}")
    chosen = name or next(iter(recipe.tasks))
    if chosen not in recipe.tasks:
        raise ValueError(f"task: the run has no task {chosen}; its tasks: {known}")
    if recipe.tasks[chosen].input_field is not None and not question:
        raise ValueError(f"question: the task {chosen} needs one")
    return chosen


def predict(
    loaded: LoadedRun,
    name: str,
    pictures: Sequence[bytes],
    text: str,
    files: Sequence[str] = (),
) -> Answer:
    """One prediction: `text` is the question or statement, pictures are the bytes of image files,
    and `files` their names, if they have any.

    Errors: ValueError for bytes that are not a picture, a wrong number of pictures, or a run whose
    encoder reads stored features.
    """
    task, image = loaded.recipe.tasks[name], loaded.recipe.image
    if image is None:
        raise ValueError("image: the run's vision encoder reads stored features, not pictures")
    sample = sample_of(task, pictures, text)
    check_number(loaded.recipe, name, len(pictures))
    example = task.example(name, sample, 0 if task.unit == "annotation" else None, None)
    names = files or [f"number {number}" for number in range(1, len(pictures) + 1)]
    try:
        pixels = [decode_image(d, image, n) for d, n in zip(pictures, names, strict=True)]
    except SkipSample as error:
        reason = re.sub(r" <_io\.\w+ object at \w+>", "", str(error))  # Pillow's word for it
        raise ValueError(f"image: {reason}; name a file with a whole picture") from None
    stack = ImageStack(1)
    images = stack.add(pixels)
    task_index = list(loaded.recipe.tasks).index(name)
    row = Row(example, task_index, task.max_prompt_tokens, task.max_target_tokens, images)
    batch = collate([row], stack, loaded.tokenizer, features=False, evaluation=True)
    device = next(loaded.model.parameters()).device
    answer = loaded.model.answer(batch.to(device), task.decoding)[0]
    return answer._replace(text=task.answer_from(answer.text))


def check_number(recipe: Recipe, name: str, given: int) -> None:
    """Errors: ValueError if a task takes another number of pictures."""
    wanted = recipe.tasks[name].num_pictures
    fewest, most = wanted or 1, wanted or recipe.visual_embedding.num_images
    if not fewest <= given <= most:
        number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise ValueError(f"image: got {given}, and the task {name} takes {number}")


def sample_of(task: Task, pictures: Sequence[bytes], text: str) -> Sample:
    """A sample made of a user's pictures and text."""
    annotation = {"id": "0"} if task.input_field is None else {"id": "0", task.input_field: text}
    return Sample(
        key="0",
        dataset="command line",
        id="0",
        kind=task.kinds[0],
        images=tuple(pictures),
        features=(),
        annotations=(annotation,),
    )
