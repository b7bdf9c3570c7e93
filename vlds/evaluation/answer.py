"""One question about pictures, answered by a loaded run. Nothing here needs ranks or DeepSpeed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlds.artifact import LoadedRun, TrainedOn
from vlds.config import Recipe
from vlds.data.shards.decode import decode_image
from vlds.data.streams.image_stack import new_stack
from vlds.evaluation.cut_texts import num_cut
from vlds.models.generation.answer import Answer
from vlds.runtime.near_names import guess
from vlds.schema import RefusedRows, Row, Sample, SkipSample
from vlds.tasks.base import Task


def choose_task(recipe: Recipe, name: str | None, question: str) -> str:
    """The named task, or the only one; checks the question too.

    Errors: ValueError if no task is named and the run has several, if the name is unknown, or if
    the question is not text or is missing.
    """
    known = ", ".join(recipe.tasks)
    if not name and len(recipe.tasks) > 1:
        raise ValueError(f"task: the run has several tasks, say which: {known}")
    chosen = name or next(iter(recipe.tasks))
    if not isinstance(chosen, str):
        raise ValueError(f"task: got {type(chosen).__name__}; give the name of a task: {known}")
    if chosen not in recipe.tasks:
        hint = guess(chosen, recipe.tasks)
        raise ValueError(f"task: the run has no task {chosen:.80}; {hint}its tasks: {known}")
    check_text(question)
    if recipe.tasks[chosen].input_field is not None and is_blank(question):
        raise ValueError(f"question: the task {chosen} needs one")
    return chosen


def check_text(question: str) -> None:
    """Errors: ValueError where a question from Python is not text that can be written as UTF-8."""
    if not isinstance(question, str):
        raise ValueError(f"question: got {type(question).__name__}; give a str")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"question: character {error.start + 1} is half of a surrogate pair; decode the text "
            "as UTF-8"
        ) from None


def is_blank(text: str) -> bool:
    """True where there is nothing to read: spaces of any width, control characters."""
    return not any(character.isprintable() and character != " " for character in text)


def predict(
    loaded: LoadedRun,
    name: str,
    pictures: Sequence[bytes],
    text: str,
    files: Sequence[str] = (),
) -> Answer:
    """One prediction: `text` is the question or statement, pictures are the bytes of image files,
    and `files` their names, if they have any.

    Errors: ValueError for bytes that are not a picture, a picture that the model's processor
    refuses, a wrong number of pictures, or a run whose encoder reads stored features.
    """
    task, image = loaded.recipe.tasks[name], loaded.recipe.image
    if image is None:
        raise ValueError("image: the run's vision encoder reads stored features, not pictures")
    sample = sample_of(task, pictures, text)
    check_number(loaded.recipe, name, len(pictures), loaded.trained_on.get(name))
    example = task.example(name, sample, 0 if task.unit == "annotation" else None, None)
    names = files or [f"number {number}" for number in range(1, len(pictures) + 1)]
    try:
        pixels = [decode_image(d, image, n) for d, n in zip(pictures, names, strict=True)]
    except SkipSample as error:
        reason = re.sub(r" <_io\.\w+ object at \w+>", "", str(error))  # Pillow's word for it
        raise ValueError(f"image: {reason}; name a file with a whole picture") from None
    stack = new_stack(image, 1)
    images = stack.add(pixels)
    task_index = list(loaded.recipe.tasks).index(name)
    row = Row(example, task_index, task.max_prompt_tokens, task.max_target_tokens, images)
    try:
        batch = loaded.collator([row], stack.images(), evaluation=True)
    except RefusedRows as error:
        raise ValueError(f"image: {error}; give another picture") from None
    device = next(loaded.model.parameters()).device
    answer = loaded.model.answer(batch.to(device), task.decoding)[0]
    is_cut = num_cut(loaded.collator.prompt_lengths, [example.prompt], task.max_prompt_tokens) > 0
    return answer._replace(text=task.answer_from(answer.text), prompt_cut=is_cut)


def check_number(
    recipe: Recipe, name: str, given: int, trained_on: TrainedOn | None = None
) -> None:
    """Errors: ValueError if a task takes another number of pictures: one that reads any number
    takes as many as it has learned to read."""
    wanted = recipe.tasks[name].num_pictures
    fewest = wanted or recipe.model.fewest_images
    most = wanted or recipe.model.most_images[0]
    if wanted is None and trained_on is not None and trained_on.most_pictures is not None:
        most = min(most, max(fewest, trained_on.most_pictures))
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
