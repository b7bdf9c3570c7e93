"""Answers: the same alone, in any batch and order, and as sure as the model's own logits say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from vlds.models.generation.answer_list import Answer
from vlds.models.kinds.library import both_answers
from vlds.models.model import Model
from vlds.prove.bench import Bench
from vlds.prove.finding import OF_GRADIENTS, Comparison, Finding, Tolerance
from vlds.schema import IGNORED_LABEL, Decoding

BY_LIBRARY, MOST_TOKENS = 4, 16
"""Rows of a task that the library answers, and tokens of these answers."""


def answers(bench: Bench) -> Finding:
    """Answer each task's rows in several ways."""
    compared: list[Comparison] = []
    faults: list[str] = []
    notes: list[str] = []
    limit = bench.tolerance(OF_GRADIENTS)
    with bench.model.evaluating() as model:
        for name, task in bench.recipe.tasks.items():
            numbers = bench.of_task(name)
            if not numbers:
                continue
            pairs = bench.compares and task.head is None and task.decoding.answers is None
            if task.ranks or task.masks_words or pairs:
                notes.append(f"tasks.{name}: it is not answered row by row")
                continue
            ids = [bench.rows[number].example.id for number in numbers]
            together = answer(bench, numbers, task.decoding)
            ways = {
                "one by one": [answer(bench, [n], task.decoding)[0] for n in numbers],
                "in reverse order": answer(bench, numbers[::-1], task.decoding)[::-1],
                "beside half of the rows": [
                    *answer(bench, numbers[: len(numbers) // 2], task.decoding),
                    *answer(bench, numbers[len(numbers) // 2 :], task.decoding),
                ],
            }
            for way, others in ways.items():
                what = f"answers of {name}: together, and {way}"
                compared.append(same_answers(what, ids, together, others, limit))
            if any(not 0 <= each.confidence <= 1 + 1e-6 for each in together):
                faults.append(f"tasks.{name}: a confidence is not between 0 and 1")
            if task.head is None and task.decoding.choices is not None:
                shares = shares_of_choices(bench, numbers, task.decoding.choices)
                what = f"confidences of {name}: as answered, and from the losses of all choices"
                compared.append(same_answers(what, ids, together, shares, limit))
            restricted = task.decoding.answers is not None or task.decoding.choices is not None
            if task.head is not None or restricted:
                continue  # no free text, whose logits a forward pass could give again
            if (found := sure_as_logits(bench, model, name, numbers, task.decoding)) is not None:
                compared.append(found)
            else:
                notes.append(f"tasks.{name}: log-probabilities were not compared with logits")
    for theirs in by_the_library(bench):
        if isinstance(theirs, str):
            notes.append(theirs)
        else:
            compared.append(theirs)
    return Finding(compared=tuple(compared), faults=tuple(faults), notes=tuple(notes))


def by_the_library(bench: Bench) -> Iterator[Comparison | str]:
    """Without methods: greedy answers in one batch, and those of the library's own `generate` for
    one row at a time."""
    kind, tasks = bench.recipe.model, bench.recipe.tasks.items()
    free = [n for n, t in tasks if not (t.head or t.ranks or t.masks_words)]
    if kind.packed_bits is not None or not free:
        return
    with bench.without_methods() as model:
        if (library := kind.library(model)) is None:
            yield f"no library generates with a {type(kind).__name__}"
            return
        for name in free:
            given = [bench.rows[number] for number in bench.of_task(name)]
            rows = library.readable(given[:BY_LIBRARY], bench.images)
            if not rows:
                continue
            most = min(bench.recipe.tasks[name].decoding.max_new_tokens, MOST_TOKENS)
            ours, theirs = both_answers(library, bench.collator, model, rows, bench.images, most)
            about = "" if library.sees else " to texts without pictures"
            what = f"tasks.{name}: answers{about} in a batch, and those of {library.name}"
            ids, limit = [row.example.id for row in rows], bench.tolerance(OF_GRADIENTS)
            yield same_answers(what, ids, ours, theirs, limit)


def answer(bench: Bench, numbers: Sequence[int], decoding: Decoding) -> list[Answer]:
    """The answers to some rows in one batch."""
    if not numbers:
        return []
    return bench.model.answer(bench.batch(numbers, evaluation=True), decoding)


def same_answers(
    what: str,
    ids: Sequence[str],
    ours: Sequence[Answer],
    theirs: Sequence[Answer],
    limit: Tolerance,
) -> Comparison:
    """The largest difference of log-confidences; infinite where texts differ."""
    worst, where = 0.0, ""
    for id, a, b in zip(ids, ours, theirs, strict=True):
        difference = abs(math.log(max(a.confidence, 1e-30)) - math.log(max(b.confidence, 1e-30)))
        # Where two answers are as likely, rounding may choose either.
        if a.text != b.text and difference > limit.share:
            difference = math.inf
        if difference > worst:
            worst, where = difference, f"example {id}: {a.text!r:.40} and {b.text!r:.40}"
    return Comparison(what, worst, limit, where)


def shares_of_choices(bench: Bench, numbers: Sequence[int], choices: Sequence[str]) -> list[Answer]:
    """The surest choice of each row, and its share of what the model gives to all of them: each is
    read as the row's answer, up to the token in which choices begin to differ."""
    tokens, nll = list[list[list[int]]](), list[list[list[float]]]()
    for choice in choices:
        rows = list(bench.rows)
        for number in numbers:
            example = replace(rows[number].example, target=choice, learned=True)
            rows[number] = rows[number]._replace(example=example, max_target_tokens=1 << 16)
        batch = bench.batch(numbers, rows=rows)
        assert batch.labels is not None
        labels, losses = batch.labels.cpu(), bench.model.token_nll(batch).double().cpu()
        # A conversation's turns before the answer are the same for all choices.
        learned = labels != IGNORED_LABEL
        tokens.append([each[at].tolist() for each, at in zip(labels, learned, strict=True)])
        nll.append([each[at].tolist() for each, at in zip(losses, learned, strict=True)])
    answers: list[Answer] = []
    for row in range(len(numbers)):
        columns = zip(*(of_choice[row] for of_choice in tokens), strict=False)
        first = next(place for place, ids in enumerate(columns) if len(set(ids)) > 1)
        shares = torch.tensor([-of_choice[row][first] for of_choice in nll]).double().softmax(0)
        # Ties go to the last, as in answering.
        best = len(choices) - 1 - int(shares.flip(0).argmax())
        answers.append(Answer(choices[best], float(shares[best]), None))
    return answers


def sure_as_logits(
    bench: Bench, model: Model, name: str, numbers: Sequence[int], decoding: Decoding
) -> Comparison | None:
    """Write answers token by token, with the cache; then read them at once, as in training, and
    compare their log-probabilities. None if the model writes no texts, or reads no answer as it was
    written: some texts have more than one row of tokens."""
    greedy = replace(decoding, num_beams=1, no_repeat_ngram_size=0, answers=None)
    if not (written := model.write_tokens(bench.batch(numbers, evaluation=True), greedy)):
        return None
    rows = list(bench.rows)
    for number, each in zip(numbers, written, strict=True):
        text = model.tokenizer.decode(each.words, skip_special_tokens=True)
        example = replace(rows[number].example, target=text, learned=True)
        rows[number] = rows[number]._replace(example=example, max_target_tokens=1 << 16)
    batch = bench.batch(numbers, rows=rows)
    assert batch.labels is not None
    labels, nll = batch.labels.cpu(), model.token_nll(batch).double().cpu()
    worst, where, compared = 0.0, "", 0
    for place, (number, each) in enumerate(zip(numbers, written, strict=True)):
        learned = labels[place] != IGNORED_LABEL
        ids = labels[place][learned].tolist()
        # A conversation's turns before the answer are learned too: the answer comes last. Where a
        # decoder writes it alone, what it did not write, such as BART's <s>, would be read before.
        same = ids[-len(each.ids) :] if batch.labels_on_prompt else ids
        if not each.ids or same != each.ids:
            continue
        compared += 1
        logp = -float(nll[place][learned][-len(each.ids) :].sum())
        difference = abs(logp - each.log_probability) / max(1.0, len(each.ids) ** 0.5)
        if difference > worst:
            worst, where = difference, f"example {rows[number].example.id}"
    if not compared:
        return None
    what = (
        f"log-probability of {name}: {compared} answers, written with the cache, and read at once"
    )
    return Comparison(what, worst, bench.tolerance(OF_GRADIENTS), where)
