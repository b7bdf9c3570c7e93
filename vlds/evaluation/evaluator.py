"""A model answers: `Evaluator` decodes every example once on all ranks, and the first rank gathers
and scores; `predict` answers one question. Before training, `unknown_answers` and `cut_texts` look
at a task's first examples for what its settings spoil.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Literal, NamedTuple, Protocol, TypeAlias

from vlds.artifact import LoadedRun, TrainedOn
from vlds.data.order.mixed_order import BatchCut
from vlds.data.shards.pictures import Picture as Pixels
from vlds.data.shards.pictures import decode_image
from vlds.data.streams.assemble import ImageStack, StreamSetup
from vlds.data.streams.source import EvalOrder, Source, Survey, fixed_examples, survey
from vlds.data.streams.stream import EvalStream
from vlds.evaluation.ranking import PairRanking
from vlds.evaluation.result import Decoded, Details, Evaluation
from vlds.models.collate import WHOLE, recent
from vlds.models.generation.answer_list import Answer
from vlds.models.model import Model
from vlds.recipe.config import Recipe
from vlds.runtime.checks import guess
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import Pace, clock
from vlds.schema import (
    Batch,
    Collator,
    Example,
    Group,
    RefusedRows,
    Row,
    Sample,
    SkipSample,
    Turn,
)
from vlds.tasks.base import check_unique, task_of

SAMPLES = 200
"""Samples of a task that are looked at before training."""
Lengths: TypeAlias = Callable[[Sequence[tuple[str, int]]], list[int]]
"""Tokens of (text, most tokens) pairs, as `Collator.prompt_lengths` counts them."""


def unknown_answers(sources: Sequence[Source]) -> list[str]:
    """What to tell a user if some of the first answers of a task are not classes of its head: such
    an example has no class to learn.

    Errors: ValueError if none of them is a class.
    """
    lines = []
    for source in sources:
        task = source.task
        if task.head is None:
            continue
        # `class_scores` is None without a label, and empty for an answer that is not a class; a
        # question may also have no right answer.
        labelled = (e for e in first_examples(source) if e.class_scores is not None)
        examples = [e for e in labelled if task.answer_of(e.reference) is not None]
        unknown = [e for e in examples if not any((e.class_scores or {}).values())]
        if not unknown:
            continue
        answer = task.answer_of(unknown[0].reference)
        place = f"tasks.{source.name}.head.classes"
        if len(unknown) == len(examples):
            known = ", ".join(task.head.names[:3])
            raise ValueError(
                f"{place}: none of the first {len(examples):,} answers is a class, such as "
                f"{answer!r:.60}; the classes are {known:.60}, ...: give the list of these data"
            )
        lines.append(
            f"{place}: {len(unknown):,} of the first {len(examples):,} answers are not classes, "
            f"such as {answer!r:.60}; they train no class, and are scored as wrong"
        )
    return lines


def nothing_learned(sources: Sequence[Source]) -> list[str]:
    """What to tell a user if some of the first conversations of a task have no answer to learn, as
    the data mark them or the task says (`learn: last`).

    Errors: ValueError if none of them has one.
    """
    lines = []
    for source in sources:
        talks = [e for e in first_conversations(source) if e.target is not None]
        learned = sum(e.learned or any(turn.learned for turn in e.turns) for e in talks)
        if learned == len(talks):
            continue
        place = f"tasks.{source.name}.train"
        if not learned:
            raise ValueError(
                f"{place}: none of the first {len(talks):,} conversations has an answer to learn: "
                "the data mark them (weight 0, loss false); mark less, let the task learn all "
                "(learn: all), or name other data"
            )
        lines.append(
            f"{place}: {len(talks) - learned:,} of the first {len(talks):,} conversations have no "
            "answer to learn (weight 0, loss false); they train nothing"
        )
    return lines


def num_cut(lengths: Lengths, texts: Sequence[str], most: int) -> int:
    """How many of the texts have more tokens than `most`."""
    # Collators count at most as many as they are told, so ask twice.
    whole, kept = (lengths([(text, limit) for text in texts]) for limit in (WHOLE, most))
    return sum(a > b for a, b in zip(whole, kept, strict=True))


def cut_texts(
    sources: Sequence[Source], collator: Collator, split: Literal["evaluate", "test"] | None = None
) -> list[str]:
    """What to tell a user whose limits cut some of the first prompts or answers of a task, of which
    the model then reads, learns or writes the beginning only. `split`: that of data on which a run
    is scored; None for those that it learns."""
    lines = []
    for source in sources:
        task, examples = source.task, list(first_examples(source))
        name = task_of(source.name)
        of_split = f" of tasks.{name}.{split}" if split else ""
        talks = [example.turns for example in examples if example.turns]
        prompts = [example.prompt for example in examples if not example.turns]
        answers = [example.target for example in examples if example.target is not None]
        limits: list[tuple[str, int, list[str], Lengths]] = [
            ("prompt", task.max_prompt_tokens, prompts, collator.prompt_lengths)
        ]
        if split is None:  # answers that only score are not read, and so not cut
            limits.append(("target", task.max_target_tokens, answers, collator.answer_lengths))
        for field, most, texts, lengths in limits:
            if texts and (number := num_cut(lengths, texts, most)):
                what = "prompts" if field == "prompt" else "answers"
                lines.append(
                    f"tasks.{name}.max_{field}_tokens: {most} cuts {number:,} of the first "
                    f"{len(texts):,} {what}{of_split}"
                )
        # What ends an answer need not fit: the answer is whole without it.
        decoding, most = task.decoding, task.decoding.max_new_tokens
        is_free = task.head is None and decoding.choices is None and decoding.answers is None
        written = answers if is_free and (split or task.evaluate) else []
        if number := num_cut(collator.answer_lengths, written, most + 1):
            lines.append(
                f"tasks.{name}.decoding.max_new_tokens: {most} is too few to write {number:,} of "
                f"the first {len(answers):,} answers{of_split}"
            )
        lines += (f"{line}{of_split}" for line in turns_left_out(source, talks, collator))
    return lines


class Speller(Protocol):
    """What is asked of a Hugging Face tokenizer about words that it does not know."""

    unk_token_id: int | None

    def __call__(
        self, texts: list[str], /, *, add_special_tokens: bool
    ) -> Mapping[str, list[list[int]]]: ...


def unknown_words(sources: Sequence[Source], tokenizer: Speller) -> list[str]:
    """What to tell a user whose tokenizer has no tokens for words of some of the first answers: no
    training makes the model write them."""
    lines = []
    for source in sources:
        if source.task.head is not None:
            continue
        answers = [
            text
            for e in first_examples(source)
            for text in (e.target, *(t for turn in e.turns if turn.learned for t in turn.texts))
            if text and text.strip()
        ]
        if not answers:
            continue
        tokens = tokenizer(answers, add_special_tokens=False)["input_ids"]
        bad = [
            text
            for text, ids in zip(answers, tokens, strict=True)
            if not ids or tokenizer.unk_token_id in ids
        ]
        if bad:
            lines.append(
                f"tasks.{source.name}: the model's tokenizer does not know words or signs of "
                f"{len(bad):,} of the first {len(answers):,} answers, such as {bad[0]!r:.60}; the "
                "model can never write them: name another model or tokenizer"
            )
    return lines


def turns_left_out(
    source: Source, talks: Sequence[Sequence[Turn]], collator: Collator
) -> Iterator[str]:
    """What to tell a user whose limit takes turns from some conversations, or the end of a
    question."""
    field = f"tasks.{task_of(source.name)}.max_prompt_tokens"
    most = source.task.max_prompt_tokens
    kept = [recent(turns, most, collator.turns_length)[0] for turns in talks]
    left_out = [len(turns) - len(rest) for turns, rest in zip(talks, kept, strict=True)]
    if any(left_out):
        yield (
            f"{field}: {most} leaves out {sum(left_out):,} turns, the oldest, of "
            f"{sum(map(bool, left_out)):,} of the first {len(talks):,} conversations"
        )
    if cut := sum(collator.turns_length(turns) > most for turns in kept):
        yield (
            f"{field}: {most} cuts the last question of {cut:,} of the first {len(talks):,} "
            "conversations"
        )


def first_examples(source: Source) -> Iterator[Example]:
    """The examples of a task's first samples, without those that cannot be read, which training
    counts."""
    # One by one: a sample that raises must not take the next ones with it.
    for index in range(min(SAMPLES, source.first_sample[-1])):
        try:
            for _, examples in fixed_examples(source, range(index, index + 1)):
                yield from examples
        except ValueError:
            continue


def first_conversations(source: Source) -> Iterator[Example]:
    """Those of a task's first samples; none if its first example has no turns."""
    return takewhile(lambda example: example.turns, first_examples(source))


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
    if chosen in recipe.tasks and recipe.tasks[chosen].ranks:
        raise ValueError(
            f"task: {chosen} ranks the pictures and texts of a data set; use `vlds evaluate`"
        )
    if chosen not in recipe.tasks:
        hint = guess(chosen, recipe.tasks)
        raise ValueError(f"task: the run has no task {chosen:.80}; {hint}its tasks: {known}")
    if not isinstance(question, str):
        raise ValueError(f"question: got {type(question).__name__}; give a str")
    # JSON and command lines may bring lone surrogates, at which tokenizers raise unclear errors.
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"question: character {error.start + 1} is half of a surrogate pair; decode the text "
            "as UTF-8"
        ) from None
    # Spaces of any width and control characters are nothing to read.
    is_blank = not any(character.isprintable() and character != " " for character in question)
    if recipe.tasks[chosen].input_field is not None and is_blank:
        raise ValueError(f"question: the task {chosen} needs one")
    if recipe.tasks[chosen].input_field is None and not is_blank:
        raise ValueError(f"question: the task {chosen} asks none; leave it out")
    return chosen


class Question(NamedTuple):
    """A question about pictures, ready for a batch."""

    example: Example
    pictures: Sequence[Pixels]
    """Decoded, (3, h, w) uint8 each."""


def read_question(
    loaded: LoadedRun,
    name: str,
    pictures: Sequence[bytes],
    text: str,
    files: Sequence[str] = (),
) -> Question:
    """A question to a task: `text` is the question or statement, pictures are the bytes of image
    files, and `files` their names, if they have any.

    Errors: ValueError for bytes that are not a picture, a wrong number of pictures, or a run whose
    encoder reads stored features.
    """
    field = loaded.recipe.tasks[name].input_field
    return read_annotation(loaded, name, pictures, {} if field is None else {field: text}, files)


def read_annotation(
    loaded: LoadedRun,
    name: str,
    pictures: Sequence[bytes],
    asked: Mapping[str, object],
    files: Sequence[str] = (),
) -> Question:
    """A question in the fields of an annotation, as the shards of the task hold them: of `Chat`,
    "turns" may stand for the question. The rest is as in `read_question`."""
    task, image = loaded.recipe.tasks[name], loaded.recipe.image
    if image is None:
        raise ValueError("image: the run's vision encoder reads stored features, not pictures")
    sample = Sample(
        key="0",
        dataset="command line",
        id="0",
        kind=task.kinds[0],
        images=tuple(pictures),
        features=(),
        annotations=({"id": "0", **asked},),
    )
    check_number(loaded.recipe, name, len(pictures), loaded.trained_on.get(name))
    # No generator: a task that draws in training asks its plain question.
    example = task.example(name, sample, 0 if task.unit == "annotation" else None, None)
    names = files or [f"number {number}" for number in range(1, len(pictures) + 1)]
    try:
        pixels = [decode_image(d, image, n) for d, n in zip(pictures, names, strict=True)]
    except SkipSample as error:
        reason = re.sub(r" <_io\.\w+ object at \w+>", "", str(error))  # Pillow's word for it
        raise ValueError(f"image: {reason}; name a file with a whole picture") from None
    return Question(example, pixels)


def question_batch(loaded: LoadedRun, name: str, questions: Sequence[Question]) -> Batch:
    """Questions of one task as a batch, on the model's device; with labels if they have targets.

    Errors: RefusedRows for pictures that the model's processor refuses.
    """
    task, task_index = loaded.recipe.tasks[name], list(loaded.recipe.tasks).index(name)
    # The same path as in evaluation, so that an answer does not depend on how it was asked for.
    stack = ImageStack(len(questions), loaded.recipe.image)
    limits = task.max_prompt_tokens, task.max_target_tokens
    rows = [
        Row(question.example, task_index, *limits, stack.add(question.pictures))
        for question in questions
    ]
    has_targets = any(question.example.target is not None for question in questions)
    batch = loaded.collator(rows, stack.images(), evaluation=not has_targets)
    return batch.to(next(loaded.model.parameters()).device)


def answer_questions(loaded: LoadedRun, name: str, questions: Sequence[Question]) -> list[Answer]:
    """Answers to questions of one task, computed as one batch.

    Errors: RefusedRows for pictures that the model's processor refuses.
    """
    task = loaded.recipe.tasks[name]
    written = loaded.model.answer(question_batch(loaded, name, questions), task.decoding)
    answers = []
    for question, answer in zip(questions, written, strict=True):
        lengths, prompts = loaded.collator.prompt_lengths, [question.example.prompt]
        is_cut = num_cut(lengths, prompts, task.max_prompt_tokens) > 0
        answers.append(answer._replace(text=task.answer_from(answer.text), prompt_cut=is_cut))
    return answers


def predict(
    loaded: LoadedRun,
    name: str,
    pictures: Sequence[bytes],
    text: str,
    files: Sequence[str] = (),
) -> Answer:
    """One prediction; arguments as `read_question` takes them.

    Errors: as `read_question`, and ValueError for a picture that the model's processor refuses.
    """
    question = read_question(loaded, name, pictures, text, files)
    try:
        return answer_questions(loaded, name, [question])[0]
    except RefusedRows as error:
        raise ValueError(f"image: {error}; give another picture") from None


def check_number(
    recipe: Recipe, name: str, given: int, trained_on: TrainedOn | None = None
) -> None:
    """Errors: ValueError if a task takes another number of pictures: one that reads any number
    takes as many as it has learned to read."""
    wanted = recipe.tasks[name].num_pictures
    fewest = wanted or recipe.model.fewest_images
    most = wanted or recipe.model.most_images[0]
    # A model may have places for more pictures than it has seen in training: these learned nothing.
    if wanted is None and trained_on is not None and trained_on.most_pictures is not None:
        most = min(most, max(fewest, trained_on.most_pictures))
    if not fewest <= given <= most:
        number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise ValueError(f"image: got {given}, and the task {name} takes {number}")


class EvaluationStopped(Exception):
    """A stop was requested during an evaluation. Raised on all ranks."""


class Evaluator:
    """Decodes and scores the sources that have data. The constructor reads their questions and
    plans their batches."""

    def __init__(
        self,
        recipe: Recipe,
        sources: Sequence[Source],
        collator: Collator,
        ranks: Ranks,
        say: Callable[[str], None] = print,
    ) -> None:
        """Collective. `say` reports the progress of a long evaluation.

        Errors: ValueError if the text of a sample cannot be read, or two examples have one id.
        """
        self.recipe, self.sources, self.collator = recipe, list(sources), collator
        self.ranks, self.say = ranks, say
        self.stopping: Callable[[], bool] = lambda: False
        """Asked after each batch; if it is true on a rank, the evaluation ends."""
        self.reported_left_out = False
        for source in sources:
            if source.datasets:
                source.check(recipe.image)
        self.orders: dict[str, EvalOrder] = {}
        """Of the sources whose examples are answered one by one."""
        self.groups: dict[str, Mapping[str, Sequence[Group]]] = {}
        """Source -> sample -> its groups; on the first rank."""
        for source in sources:
            if source.datasets:
                merged = self._survey(source, collator)
                self.groups[source.name] = merged.groups if merged else {}
                if source.task.ranks:
                    continue
                self.orders[source.name] = EvalOrder(
                    source.counts,
                    ranks.broadcast(merged and merged.costs),
                    recipe.data.eval_batch_size,
                    whole_samples=source.task.unit == "sample",
                )

    def _survey(self, source: Source, collator: Collator | None = None) -> Survey | None:
        """What a source asks, with costs if there is a collator; on the first rank, None
        elsewhere. Collective; errors are ValueErrors on all ranks."""
        # Each rank reads one stretch, so that the parts stand in the data's order when they are
        # joined by rank: 10 samples on 3 ranks are cut at 0, 3, 6, 10.
        ranks, num_samples = self.ranks, source.first_sample[-1]
        start, stop = (
            num_samples * n // ranks.world_size for n in (ranks.global_rank, ranks.global_rank + 1)
        )
        share, problem = Survey(), None
        # An error of one rank is gathered with the others' shares, so that all ranks raise it: one
        # that raised alone would leave the others waiting.
        try:
            share = survey(source, range(start, stop), collator)
        except ValueError as error:
            problem = str(error)
        if collator is not None:  # the caller needs costs and groups; the rest is much to send
            share.references, share.samples = [], []
        merged = Survey()
        for part, part_problem in ranks.gather((share, problem)) or []:
            merged.extend(part)
            problem = problem or part_problem
        try:
            check_unique(merged.ids)
        except ValueError as error:
            problem = problem or str(error)  # ids that come twice, on different ranks perhaps
        # Collective on all ranks, with or without a problem.
        if problem := ranks.broadcast(problem):
            raise ValueError(problem)
        return merged if ranks.is_first else None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that have data."""
        return [source.name for source in self.sources if source.datasets]

    def score_names(self, name: str) -> list[str]:
        """The scores that a task gets on its data; needs no model. Collective."""
        # Empty predictions: which scores there are depends on the references alone.
        (source,) = (source for source in self.sources if source.name == name)
        names: list[str] = []
        if (merged := self._survey(source)) is not None:
            references = dict(zip(merged.ids, merged.references, strict=True))
            names = list(source.task.score(dict.fromkeys(references, ""), references))
        broadcast_names: list[str] = self.ranks.broadcast(names)
        return broadcast_names

    def check_headlines(self) -> None:
        """Errors: ValueError for a task's headline that is none of its scores. Collective."""
        for source in self.sources:
            if source.task.headline is None or not source.datasets:
                continue
            names = source.task.all_scores(self.score_names(source.name))
            if names and source.task.headline not in names:  # unlabelled data have no scores
                raise ValueError(
                    f"tasks.{source.name}.headline: got {source.task.headline!r}; the scores of "
                    f"{source.name} are {', '.join(names)}"
                )

    def __call__(self, model: Model, *, score: bool = True) -> list[Evaluation]:
        """Decode, gather and score. Collective; returns the result on the first rank, [] elsewhere.

        Every rank decodes its part at its own pace. Errors: EvaluationStopped after `stopping` was
        true.
        """
        if score and self.ranks.is_first and not self.reported_left_out:
            # Say once, before anything is decoded, which scores cannot be computed; not of a task
            # whose recipe chose another one to stand for it.
            self.reported_left_out = True
            for source in self.sources:
                if not source.datasets or source.task.headline is not None:
                    continue
                if (missing := source.task.left_out()) is not None:
                    self.say(f"{source.name}: {missing}")
        evaluations = []
        # `number` counts tasks without data too: it is the task's index in the recipe.
        for number, source in enumerate(self.sources):
            if source.datasets:
                evaluation = self._evaluate(model, number, source, score)
                if evaluation is not None:
                    evaluations.append(evaluation)
        return evaluations

    def _evaluate(
        self, model: Model, number: int, source: Source, score: bool
    ) -> Evaluation | None:
        setup = StreamSetup(
            collator=self.collator,
            image=self.recipe.image,
            cut=BatchCut(self.ranks.world_size),
            global_rank=self.ranks.global_rank,
            worker_timeout=self.recipe.training.worker_timeout,
            blank_images=self.recipe.data.blank_images,
        )
        if source.task.ranks:
            return self._rank(model, number, source, setup, score)
        stream = EvalStream(
            source,
            self.orders[source.name],
            setup,
            num_workers=self.recipe.data.num_workers,
            task_index=number,
        )
        num, decoded = self.orders[source.name].num_examples, list[Decoded]()
        pace = Pace()
        # No collective of ours inside: ranks decode at their own pace until the gather below.
        with model.at_own_pace() as begin_batch:
            for done, batch in enumerate(stream, 1):
                begin_batch()
                answers = model.answer(batch.to(self.ranks.device), source.task.decoding)
                for row, answer in enumerate(answers):
                    if batch.valid[row]:
                        text = source.task.answer_from(answer.text)
                        known = Details(
                            batch.samples[row], answer.confidence, answer.token_confidence
                        )
                        decoded.append(Decoded(batch.ids[row], batch.references[row], text, known))
                if self.stopping():
                    break
                # Ranks take turns with the batches, so the first one's progress stands for all.
                if self.ranks.is_first and done < len(stream) and pace.line_is_due():
                    share = done / len(stream)
                    speed = share * num / pace.seconds
                    left = clock((1 - share) * num / speed)
                    self.say(
                        f"{source.name}: {round(share * num):,} of {num:,} examples  "
                        f"{speed:,.0f} examples/s  {left} left"
                    )
        if self.ranks.any(self.stopping()):  # waits for the slowest rank
            raise EvaluationStopped
        # After the first collective, so the slowest rank's time, without that of gathering.
        seconds = pace.seconds
        gathered = self.ranks.gather((decoded, stream.bad))
        if gathered is None:
            return None
        evaluation = Evaluation.of(source, gathered, seconds, self.groups[source.name])
        assert len(evaluation.predictions) == num
        return evaluation.scored(source.task) if score else evaluation

    def _rank(
        self, model: Model, number: int, source: Source, setup: StreamSetup, score: bool
    ) -> Evaluation | None:
        """`_evaluate` of a task that ranks."""
        ranking = PairRanking(
            source,
            setup,
            self.ranks,
            batch_size=self.recipe.data.eval_batch_size,
            num_workers=self.recipe.data.num_workers,
            task_index=number,
            say=self.say,
        )
        pace = Pace()
        with model.at_own_pace() as begin_batch:
            ranking.run(model, self.stopping, begin_batch)
        if self.ranks.any(self.stopping()):
            raise EvaluationStopped
        seconds = pace.seconds
        gathered = ranking.gathered()
        if gathered is None:
            return None
        evaluation = Evaluation.of(source, [gathered], seconds, self.groups[source.name])
        assert len(evaluation.predictions) == source.num_annotations
        return evaluation.scored(source.task) if score else evaluation
