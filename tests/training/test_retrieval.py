"""Retrieval: captions compete with captions of other pictures in training; in evaluation, every one
is compared with every picture."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.cross_modal import cross_modal_recipe
from tests.toys.files import read_lines
from tests.toys.kinds import built
from tests.toys.rank_jobs import check_complaint, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.trained_runs import save_run, trained_run
from tests.toys.world import COLOURS, picture, world_recipe
from vlds.artifact import LoadedRun, load_run
from vlds.data.shards.pictures import decode_pictures
from vlds.data.streams.source import Source, fixed_example
from vlds.evaluation.evaluator import Evaluator, choose_task
from vlds.evaluation.result import Evaluation
from vlds.evaluation.sources import evaluation_sources
from vlds.models.heads import LinearHead
from vlds.models.model import Model
from vlds.recipe.config import Recipe
from vlds.runtime.deepspeed_start import start_ranks
from vlds.schema import Batch, Row, Sample
from vlds.tasks import Retrieval
from vlds.tasks.base import ask
from vlds.tasks.retrieval import DEPTHS

NUM_PICTURES, CAPTIONS = 11, 2
WORDS = ("what", "colour", "is", "it", "now", "picture", "that", "nothing", "but", "dark")


def write_captions(folder: Path) -> None:
    """Eleven pictures with two captions each, all unlike."""
    draw = random.Random(0)

    def records() -> Iterator[SampleRecord]:
        for number in range(NUM_PICTURES):
            captions = [
                {"id": f"c{number}-{n}", "caption": " ".join(draw.sample(WORDS, 3 + number % 4))}
                for n in range(CAPTIONS)
            ]
            pixels = picture(list(COLOURS)[number % len(COLOURS)], number)
            yield SampleRecord(
                id=f"p{number}",
                members=[("jpg", pixels)],
                json={"annotations": captions, "size": [[16, 16]]},
            )

    write_dataset(folder, name="toy", kind="caption", split="test", records=records())


def retrieval_recipe(world: Path, output: Path, **fields: object) -> Recipe:
    """The captions, with a head that has Matching's classes."""
    data = str(output.parent / "captions")
    if not Path(data).exists():
        write_captions(Path(data))
    task = Retrieval(
        train=[data],
        evaluate=[data],
        head=LinearHead(classes=Retrieval.labels),
        max_prompt_tokens=12,
        **fields,  # type: ignore[arg-type]
    )
    recipe = cross_modal_recipe(world, output)
    return replace(recipe, tasks={"vqa": recipe.tasks["vqa"], "find": task})


def source_of(recipe: Recipe) -> Source:
    return evaluation_sources(recipe)[1]


def training_rows(recipe: Recipe, num: int) -> tuple[list[Row], Tensor]:
    """The first caption of some pictures with captions drawn for it, a question, and pictures."""
    source, task = source_of(recipe), recipe.tasks["find"]
    rows = []
    for number in range(num):
        rng = np.random.default_rng(number)
        sample = source.datasets[0].read(number)
        num_others = task.num_others(evaluation=False)
        beside = source.beside(sample, rng.random(num_others).tolist())
        rows.append(Row(ask(task, "find", beside, 0, rng), 1, 12, 1, [number]))
    question = replace(rows[0].example, id="q", prompt="what is it", rivals=())
    rows.insert(1, Row(question, 0, 12, 1, [num]))
    draw = torch.Generator().manual_seed(0)
    size = (num + 1, 3, 16, 16)
    return rows, torch.randint(256, size, dtype=torch.uint8, generator=draw)


def rank_score(model: Model, batch: Batch) -> Tensor:
    """Each row's score by the second class of the head."""
    logits: Tensor = model.heads["find"](model.first_states(batch))
    return logits[:, 1]


@pytest.mark.parametrize("pieces", [(), ([2, 0], [3, 1])])
def test_a_caption_competes_with_those_of_other_pictures(
    pieces: tuple[list[int], ...], world: Path, tmp_path: Path
) -> None:
    """The loss is METER's: cross-entropy over the true text's score and those of false ones. A row
    with fewer rivals, and a question beside them, keep theirs."""
    recipe = retrieval_recipe(world, tmp_path / "run", false_texts=3)
    model = built(recipe).double().eval()
    rows, pictures = training_rows(recipe, 3)
    last = rows[3].example
    rows[3] = rows[3]._replace(example=replace(last, rivals=last.rivals[:1]))
    collator = recipe.model.collator(recipe.model.load_processor())
    batch = collator(rows, pictures, evaluation=False)
    assert batch.rivals is not None
    assert batch.rivals.shape == (4, 3, batch.input_ids.shape[1])
    parts = [torch.tensor(piece) for piece in pieces]
    output = model(batch, torch.tensor([0.5, 2.0, 1.0, 0.25]), parts)
    expected = {}
    for number in (0, 2, 3):
        row = rows[number]
        texts = [row.example.prompt, *row.example.rivals]
        assert len(texts) == (2 if number == 3 else 4)
        scores = []
        for text in texts:
            alone = row._replace(example=replace(row.example, prompt=text, rivals=()))
            one = collator([alone], pictures, evaluation=False)
            scores.append(rank_score(model, one))
        expected[number] = F.cross_entropy(torch.cat(scores)[None], torch.tensor([0]))
    for number, loss in expected.items():
        assert abs(float(output.token_nll_sum[number] - loss)) < 1e-9
    question = model.loss_sums(batch.select(torch.tensor([1])))[0]
    assert torch.allclose(output.token_nll_sum[1], question[0])
    total = 0.5 * expected[0] + 2 * question[0] + expected[2] + 0.25 * expected[3]
    assert abs(float(output.loss - total)) < 1e-9
    output.loss.backward()
    gradient = model.heads["find"].weight.grad
    assert gradient is not None
    assert gradient[1].any()
    assert not gradient[0].any(), "the class `false` has no part in it"


def test_false_captions_are_drawn_and_never_the_pictures_own(world: Path, tmp_path: Path) -> None:
    recipe = retrieval_recipe(world, tmp_path / "run", false_texts=40)
    rows, _ = training_rows(recipe, 1)
    own = {a["caption"] for a in source_of(recipe).datasets[0].read(0).annotations}
    rivals = rows[0].example.rivals
    assert len(rivals) == 40
    assert own.isdisjoint(rivals)
    assert len(set(rivals)) > 10
    sample = source_of(recipe).datasets[0].read(0)
    twin = replace(sample, id="twin")
    drawn = replace(sample, others=(twin, source_of(recipe).datasets[0].read(1)))
    example = recipe.tasks["find"].example("find", drawn, 0, np.random.default_rng(0))
    assert len(example.rivals) == 1, "captions that the picture has as well are no rivals"
    assert recipe.tasks["find"].num_others(evaluation=True) == 0


Found = tuple[list[Evaluation], list[str]]


def evaluate(run: Path) -> Found:
    """What a rank finds, and says, of a run's retrieval."""
    loaded, said = load_run(run), list[str]()
    sources = [
        replace(s, datasets=[]) if s.name == "vqa" else s for s in evaluation_sources(loaded.recipe)
    ]
    evaluator = Evaluator(loaded.recipe, sources, loaded.collator, start_ranks(60), said.append)
    return evaluator(loaded.model), said


def run_of(recipe: Recipe) -> LoadedRun:
    """A run with weights that tell pairs apart, in its folder."""
    run = trained_run(recipe, spread=0.3)
    save_run(run)
    run.model.eval()
    return run


def all_scores(recipe: Recipe, model: Model) -> Tensor:
    """(pictures, captions) each pair on its own, in the data's order."""
    source, collator = source_of(recipe), recipe.model.collator(recipe.model.load_processor())
    samples: list[Sample] = [source.datasets[0].read(n) for n in range(NUM_PICTURES)]
    texts = [fixed_example(source, "toy-test", s, n) for s in samples for n in range(CAPTIONS)]
    scores = torch.empty(len(samples), len(texts))
    image = recipe.model.image
    assert image is not None
    for p, sample in enumerate(samples):
        pixels = torch.from_numpy(np.stack(decode_pictures(sample, image)))
        for t, text in enumerate(texts):
            batch = collator([Row(text, 1, 12, 1, [0])], pixels, evaluation=False)
            with torch.no_grad():
                scores[p, t] = rank_score(model, batch)
    return scores


def recalls(scores: Tensor) -> dict[str, float]:
    """METER's six numbers of (pictures, captions)."""
    owner = torch.arange(scores.shape[1]) // CAPTIONS
    found = {}
    for depth in DEPTHS:
        pictures = scores.topk(min(depth, len(scores)), 0).indices
        found[f"image_R@{depth}"] = (pictures == owner).any(0).double().mean().item()
        texts = owner[scores.topk(min(depth, scores.shape[1]), 1).indices]
        own = texts == torch.arange(len(scores))[:, None]
        found[f"text_R@{depth}"] = own.any(1).double().mean().item()
    return found


def test_every_pair_is_scored(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = retrieval_recipe(world, tmp_path / "run")
    recipe = replace(recipe, data=replace(recipe.data, eval_batch_size=5))
    scores = all_scores(recipe, run_of(recipe).model)
    ((found,), said), (nothing, silence) = ranks2.run(evaluate, tmp_path / "run", timeout=200)
    assert not nothing + silence
    assert found.scores == pytest.approx(recalls(scores))
    assert said[0] == "find: 11 pictures and 22 texts: 242 pairs on 2 rank(s)"
    assert re.fullmatch(r"find: \d+ of 242 pairs  [\d,]+ pairs/s  \d\d:\d\d:\d\d left", said[1])
    prediction = json.loads(found.predictions["c4-1"])
    best = scores[:, 2 * 4 + 1].argsort(descending=True)[:10].tolist()
    assert prediction["pictures"] == [f"toy/p{picture}" for picture in best]
    assert prediction["caption"] == 1 + int((scores[4] > scores[4, 9]).sum())
    task = recipe.tasks["find"]
    assert task.correct(found.predictions["c4-1"], "toy/p4") == (best[0] == 4)


def test_folds_are_ranked_apart(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = retrieval_recipe(world, tmp_path / "run", fold=4)
    scores = all_scores(recipe, run_of(recipe).model)
    ((found,), said), _ = ranks2.run(evaluate, tmp_path / "run", timeout=200)
    parts = [scores[n : n + 4, 2 * n : 2 * n + 8] for n in (0, 4, 8)]
    for name, value in found.scores.items():
        # Of 11 pictures, 4 are in the first fold, 4 in the second and 3 in the last.
        expected = sum(recalls(part)[name] * len(part) / NUM_PICTURES for part in parts)
        assert value == pytest.approx(expected), name
    assert "in 3 folds: 82 pairs" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_trains_and_is_scored(
    stage: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = retrieval_recipe(world, tmp_path / "run", false_texts=2)
    training = replace(
        recipe.training, deepspeed=str(world / f"zero{stage}.json"), best="find/image_R@10",
        evaluate_every=recipe.training.num_steps,
    )  # fmt: skip
    recipe = replace(recipe, training=training, tasks={"find": recipe.tasks["find"]})
    assert ranks2.run(run_recipe, recipe, False, timeout=200) == [0, 0]
    assert json.loads((tmp_path / "run/best/best.json").read_text())["score"] == training.best
    scores = [line["scores"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")
              if "scores" in line][-1]  # fmt: skip
    assert set(scores["find"]) == {f"{of}_R@{k}" for of in ("image", "text") for k in DEPTHS}
    assert load_run(tmp_path / "run").model.heads["find"].weight.shape == (2, 32)


def test_what_cannot_rank_says_so(world: Path, tmp_path: Path) -> None:
    recipe = retrieval_recipe(world, tmp_path / "run")
    joint = world_recipe(world, tmp_path / "run")
    tasks = {"find": recipe.tasks["find"]}
    complaint = check_complaint(replace(joint, tasks=tasks))
    assert re.search("tasks.find: it ranks .* use the model CrossModal or JointEncoder", complaint)
    streamed = replace(recipe, data=replace(recipe.data, reader="sequential"))
    assert "tasks.find compares samples" in check_complaint(streamed)
    with pytest.raises(ValueError, match=r"task: find ranks .*; use `vlds evaluate`"):
        choose_task(recipe, "find", "a picture")
