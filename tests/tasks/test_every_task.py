"""Rules for every task. Tasks are found by their class, so an imported new task is tested too."""

from __future__ import annotations

import numpy as np
import pytest

import vlds.tasks
from tests.toys.task_samples import sample_of
from vlds.schema import Example, Sample
from vlds.tasks import Task
from vlds.tasks.base import check_unique

TASKS = [cls for cls in vars(vlds.tasks).values() if isinstance(cls, type) and cls is not Task]


def evaluation_examples(task: Task, sample: Sample) -> list[Example]:
    if task.unit == "sample":
        return [task.example("name", sample, None, None)]
    return [task.example("name", sample, i, None) for i in range(len(sample.annotations))]


@pytest.fixture(params=TASKS, ids=lambda cls: cls.__name__)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param()


def test_the_prompt_can_be_left_out(task: Task) -> None:
    sample = sample_of(task.kinds[0])
    rng = np.random.default_rng(0)
    told, bare = (
        type(task)(prompt=prompt).example("n", sample, 0, rng).prompt for prompt in ("do: ", "")
    )
    assert told in ("do: " + bare, f"{bare} do: ")


def test_perfect_answers_score_one_and_no_answers_zero(task: Task) -> None:
    examples = evaluation_examples(task, sample_of(task.kinds[0]))
    references = {example.id: example.reference for example in examples}
    perfect = task.score({example.id: example.target or "" for example in examples}, references)
    nothing = task.score(dict.fromkeys(references, ""), references)
    assert perfect.keys() == nothing.keys()
    for name in perfect:
        if "cider" not in name.lower():  # one picture has no CIDEr
            assert (perfect[name], nothing[name]) == (1.0, 0.0), name
    assert all(name.count("/") != 1 for name in perfect)  # a score, or SCORE/TABLE/GROUP
    assert all(task.correct(ex.target or "", ex.reference) in (True, None) for ex in examples)


def test_evaluation_is_deterministic_and_its_references_are_json(task: Task) -> None:
    import json

    sample = sample_of(task.kinds[0])
    assert evaluation_examples(task, sample) == evaluation_examples(task, sample)
    for example in evaluation_examples(task, sample):
        assert json.loads(json.dumps(example.reference)) == example.reference


def test_a_split_without_labels_is_predicted_and_not_scored(task: Task) -> None:
    examples = evaluation_examples(task, sample_of(task.kinds[0], labels=False))
    assert [(example.target, example.reference) for example in examples] == [(None, None)] * len(
        examples
    )
    references = {example.id: example.reference for example in examples}
    assert task.score(dict.fromkeys(references, "x"), references) == {}


def test_a_split_without_labels_cannot_be_trained_on(task: Task) -> None:
    sample = sample_of(task.kinds[0], labels=False)
    with pytest.raises(
        ValueError, match=r"data set toy-val: .* no labels, so it cannot be trained"
    ):
        task.example("name", sample, 0, np.random.default_rng(0))


def test_ids_must_fit(task: Task) -> None:
    examples = evaluation_examples(task, sample_of(task.kinds[0]))
    references = {example.id: example.reference for example in examples}
    with pytest.raises(ValueError, match=rf"have no prediction: {examples[0].id}"):
        task.score({}, references)
    with pytest.raises(ValueError, match="a prediction but no reference: stray"):
        task.score(dict.fromkeys([*references, "stray"], ""), references)


def test_an_id_may_stand_only_once() -> None:
    check_unique(["b", "a"])
    with pytest.raises(ValueError, match=r"^2 ids appear twice in .*: a, b; make each data set"):
        check_unique(["a", "b", "a", "b"])


NO_MEANS = {"mean_class_accuracy", "consistency", "consistency_by_text", "distribution"}


def test_each_example_adds_to_a_score_or_it_is_not_a_mean(task: Task) -> None:
    """The mean of the examples' values is the score, also for a table's cell."""
    for kind in task.kinds:
        examples = evaluation_examples(task, sample_of(kind))
        references = {example.id: example.reference for example in examples} | {"unknown": None}
        predictions = {example.id: example.target or "" for example in examples}
        predictions |= {examples[0].id: "wrong", "unknown": ""}
        scores = task.score(predictions, references)
        assert scores
        for name, score in scores.items():
            values = task.example_scores(name, predictions, references)
            assert (values is None) == (name in NO_MEANS), name
            if values is not None:
                assert len(values) == len(examples)
                assert np.nanmean(values) == pytest.approx(score), name
