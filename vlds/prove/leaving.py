"""Leaves right: what a run leaves, and what is made of it for others, computes what the run does,
on the user's own rows.

The reference is not the artifact but the newest state, whose masters are put into a model that is
built anew: a fault in writing the artifact, or in reading it, is on one side only.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from vlds.artifact import LoadedRun, load_run
from vlds.convert.adapters import plain
from vlds.convert.hf import convert_run, read_back
from vlds.convert.peft import PeftFolders
from vlds.convert.target import export_run
from vlds.convert.verify import TOLERANCES, Verification, difference, logits_on
from vlds.models.generation.answer_list import Answer
from vlds.models.loading.gate import quiet
from vlds.models.methods.host import states_type
from vlds.prove.answers import same_answers
from vlds.prove.bench import Bench
from vlds.prove.finding import Comparison, Finding
from vlds.prove.runs import whole_way
from vlds.prove.started import STEPS, Trained, changes_of, refusal, trained
from vlds.schema import Batch, Images, Row
from vlds.training.run import load_model

CPU = torch.device("cpu")
SHOWN = 4
"""Rows of each task."""
REFUSED = re.compile(r"(model|methods|tasks)\b")
"""Begins an error that names what a layout cannot hold of a recipe; others are of files."""


@dataclass(frozen=True)
class Rows:
    """Some rows of each task, for any model that reads them."""

    rows: Mapping[str, Sequence[Row]]
    images: Images

    @classmethod
    def of(cls, bench: Bench) -> Rows:
        """Of a bench; tasks without a row are left out."""
        numbers = {name: bench.of_task(name)[:SHOWN] for name in bench.recipe.tasks}
        rows = {name: [bench.rows[n] for n in of] for name, of in numbers.items() if of}
        return cls(rows, bench.images)

    def batch(self, run: LoadedRun, task: str, *, evaluation: bool = False) -> Batch:
        """A task's rows as a run reads them."""
        # Collators take the images that rows index, whichever others there are.
        collator = run.recipe.model.collator(run.processor, states_type(run.model))
        return collator(self.rows[task], self.images, evaluation=evaluation).to(CPU)

    def logits(self, run: LoadedRun) -> dict[str, Tensor]:
        """Of each task."""
        return {task: logits_on(run.model, task, self.batch(run, task)) for task in self.rows}

    def answers(self, run: LoadedRun) -> dict[str, list[Answer]]:
        """Of each task that is answered row by row."""
        with run.model.evaluating() as model:
            return {
                name: model.answer(self.batch(run, name, evaluation=True), task.decoding)
                for name, task in run.recipe.tasks.items()
                if name in self.rows and not task.ranks and not task.masks_words
            }


@dataclass(frozen=True)
class OnRows(Verification):
    """The check of a conversion on these rows; it notes what it finds instead of judging."""

    rows: Rows = field(kw_only=True)
    layout: str = field(kw_only=True)
    found: list[Comparison] = field(default_factory=list, kw_only=True)

    def logits(self, run: LoadedRun, task: str) -> Tensor:
        return logits_on(run.model, task, self.rows.batch(run, task))

    def compare(self, before: Mapping[str, LoadedRun], after: LoadedRun) -> float:
        return super().compare({task: before[task] for task in self.rows.rows}, after)

    def judge(
        self, differences: Mapping[str, tuple[float, float]], dtype: torch.dtype, by: str = ""
    ) -> float:
        self.found.append(compared(f"{by}logits of {self.layout}", differences, dtype))
        return self.found[-1].difference


def compared(
    what: str, differences: Mapping[str, tuple[float, float]], dtype: torch.dtype
) -> Comparison:
    """The largest of the tasks' differences of logits."""
    shares = {task: share for task, (share, _) in differences.items()}
    worst = max(shares, key=lambda task: (shares[task] != shares[task], shares[task]))
    # fp16 rounds less than bf16.
    limit = TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16])
    return Comparison(what, shares[worst], limit, f"tasks.{worst}")


def leaves_right(bench: Bench) -> Finding:
    """Open what a run has left in a fresh process, convert it, and let others open that."""
    way = whole_way(bench)
    if (reason := refusal(bench, way)) is not None:
        return Finding(left_out=reason)
    run, rows = trained(bench, way), Rows.of(bench)
    reference = masters_of(bench, run)
    logits, answers = in_fresh_process(run.folder, rows)
    compares, faults, notes = [], list[str](), changes_of(bench)
    differences = {
        task: difference(ours, logits[task]) for task, ours in rows.logits(reference).items()
    }
    what = "logits of the artifact in a fresh process, and of the run's weights"
    compares.append(compared(what, differences, states_type(reference.model)))
    for name, ours in rows.answers(reference).items():
        what = f"tasks.{name}: answers of the artifact in a fresh process, and of the run's weights"
        numbers = bench.of_task(name)[:SHOWN]
        compares.append(same_answers(what, bench, numbers, answers[name], ours))
    del reference
    out = bench.scratch / "left"
    out.mkdir()
    layouts: dict[str, Callable[[OnRows], None]] = {
        "hf": lambda check: convert_run(run.folder, out / "hf", merge=False, verification=check),
        "merge": lambda check: convert_run(
            run.folder, out / "merge", merge=True, verification=check
        ),
        "peft": lambda check: export_run(
            run.folder, PeftFolders, out / "peft", check, prepare=plain
        ),
    }
    for layout, convert in layouts.items():
        check = OnRows(rows=rows, layout=layout)
        try:
            # What they tell is for users of `vlds convert`.
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), quiet():
                convert(check)
                if layout != "peft":
                    in_hugging_face(out / layout, check)
                elif not check.found:
                    notes.append("peft is not installed: nothing has opened its folder")
        except ValueError as error:
            refused = REFUSED.match(str(error)) is not None
            (notes if refused else faults).append(f"{layout} {'is left out' * refused}: {error}")
        compares += check.found
    return Finding(compared=tuple(compares), faults=tuple(faults), notes=tuple(notes))


def masters_of(bench: Bench, run: Trained) -> LoadedRun:
    """The run's model as it was built, with the masters of its last state."""
    precision = run.recipe.training.precision
    recipe = replace(bench.alone, training=replace(bench.alone.training, precision=precision))
    folder = run.state_folder(STEPS)
    model, _ = load_model(recipe, bench.prepared, bench.processor, bench.ranks, folder)
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.moving_buffers())}
    with torch.no_grad():
        for key, values in run.tensors(STEPS).items():
            name, _, what = key.rpartition(" ")
            if what in ("fp32", "buffer"):
                tensors[name].copy_(values)
    return LoadedRun(recipe, bench.processor, model.eval())


Opened = tuple[dict[str, Tensor], dict[str, list[Answer]]]
"""Task -> logits, and answers."""


def in_fresh_process(folder: Path, rows: Rows) -> Opened:
    """What an artifact computes in a process that has loaded nothing before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        # As bytes: tensors would be shared through the system's descriptors.
        found = pool.submit(open_artifact, pickle.dumps((folder, rows))).result()
    opened: Opened = pickle.loads(found)
    return opened


def open_artifact(sent: bytes) -> bytes:
    """What the fresh process does."""
    folder, rows = pickle.loads(sent)
    run = load_run(folder)
    return pickle.dumps((rows.logits(run), rows.answers(run)))


@torch.no_grad()
def in_hugging_face(folder: Path, check: OnRows) -> None:
    """Let Hugging Face's class open a folder; compare the run's logits with its weights in place of
    ours."""
    run = load_run(folder)
    kind, dtype = run.recipe.model, states_type(run.model)
    expected = check.rows.logits(run)
    given = read_back(folder, kind.auto_class, dtype)
    ours = run.model.backbone.state_dict()
    common = given.keys() & ours.keys()
    for name in common:
        if ours[name].is_floating_point():
            ours[name].fill_(torch.nan)  # tied or not, each must come from there
    for name in common:
        ours[name].copy_(given[name].reshape(ours[name].shape))
    found = check.rows.logits(run)
    differences = {task: difference(expected[task], found[task]) for task in found}
    check.judge(differences, dtype, f"{kind.auto_class}'s {len(common)} tensors in ")
