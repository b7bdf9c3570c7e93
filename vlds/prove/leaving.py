"""Leaves right: what a run leaves, and what is made of it for others, computes what the run does,
on the user's own rows.

The reference is not the artifact but the newest state, whose masters are put into a model that is
built anew: a fault in writing the artifact, or in reading it, is on one side only.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext, redirect_stderr, redirect_stdout
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
from vlds.models.partitioned import layer_by_layer
from vlds.prove.answers import same_answers
from vlds.prove.bench import Bench
from vlds.prove.finding import OF_GRADIENTS, Comparison, Finding, Tolerance
from vlds.prove.runs import whole_way
from vlds.prove.started import STEPS, Trained, changes_of, most_ranks, refusal, trained
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.rank_environment import free_port, local_rank
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch, Images, Row
from vlds.training.run import load_model

SHOWN = 4
"""Rows of each task."""
WAIT = 600.0
"""Seconds that processes which share weights wait for each other."""
REFUSED = re.compile(r"(model|methods|tasks)\b")
"""Begins an error that names what a layout cannot hold of a recipe; others are of files."""
Opened = tuple[dict[str, Tensor], dict[str, list[Answer]]]
"""Task -> logits, and answers."""


@dataclass(frozen=True, kw_only=True)
class OnRows(Verification):
    """The check of a conversion on some rows, which notes what it finds instead of judging."""

    rows: Mapping[str, Sequence[Row]]
    """Of each task that has any."""
    images: Images
    layout: str = ""
    found: list[Comparison] = field(default_factory=list)

    def batch(self, run: LoadedRun, task: str, *, evaluation: bool = False) -> Batch:
        """A task's rows as a run reads them; all images are in it."""
        return run.collator(self.rows[task], self.images, evaluation=evaluation)

    def logits(self, run: LoadedRun, task: str) -> Tensor:
        return logits_on(run.model, task, self.batch(run, task))

    def opened(self, run: LoadedRun, ranks: Ranks | None = None) -> Opened:
        """What a run computes; answers of the tasks that are answered row by row. `ranks`: they
        hold a part of each weight."""
        sharing = nullcontext() if ranks is None else layer_by_layer(run.model, ranks)
        with torch.no_grad(), sharing, run.model.evaluating() as model:
            answers = {
                name: model.answer(self.batch(run, name, evaluation=True), task.decoding)
                for name, task in run.recipe.tasks.items()
                if name in self.rows and not task.ranks and not task.masks_words
            }
            return {task: self.logits(run, task) for task in self.rows}, answers

    def compare(self, before: Mapping[str, LoadedRun], after: LoadedRun) -> float:
        return super().compare({task: before[task] for task in self.rows}, after)

    def judge(
        self, differences: Mapping[str, tuple[float, float]], dtype: torch.dtype, by: str = ""
    ) -> float:
        worst = max(differences, key=lambda t: (math.isnan(differences[t][0]), differences[t]))
        share, where = differences[worst][0], f"tasks.{worst}"
        what = f"{by}logits of {self.layout}"
        self.found.append(Comparison(what, share, limit_of(dtype), where))
        return share


def leaves_right(bench: Bench) -> Finding:
    """Open what a run has left in a fresh process, convert it, and let others open that."""
    way = whole_way(bench)
    if (reason := refusal(bench, way)) is not None:
        return Finding(left_out=reason)
    run, out = trained(bench, way), bench.scratch / "left"
    numbers = {name: bench.of_task(name)[:SHOWN] for name in bench.recipe.tasks}
    rows = {name: [bench.rows[n] for n in of] for name, of in numbers.items() if of}
    check = OnRows(rows=rows, images=bench.images)
    limit = bench.tolerance(OF_GRADIENTS)
    compared, faults, notes = list[Comparison](), list[str](), changes_of(bench)
    reference = as_built(bench, run)
    untrained = {task: check.logits(reference, task) for task in rows}
    put_masters(reference, run)
    ours, our_answers = check.opened(reference)
    del reference
    moved = max(difference(ours[task], untrained[task])[0] for task in ours)
    if moved <= (most := limit_of(torch.float32).share):
        notes.append(
            f"{STEPS} steps have changed the logits by {moved:.2g}, which a tolerance of {most:g} "
            "hides: whether what they have trained is left does not show here"
        )
    processes = {1: "the artifact in a fresh process"}
    methods = bench.recipe.methods.values()
    can_share = bench.recipe.model.packed_bits is None and not any(
        method.needs_whole_model for method in methods
    )
    if can_share and most_ranks(bench) > 1:
        processes[2] = "the artifact in two processes with a part of each weight"
    for num, layout in processes.items():
        each = replace(check, layout=layout, found=compared)
        theirs, answers = in_fresh_processes(num, check, run)
        differences = {task: difference(ours[task], theirs[task]) for task in ours}
        each.judge(differences, torch.float32, "the run's weights, and ")
        for name, given in our_answers.items():
            what = f"tasks.{name}: answers of the run's weights, and of {layout}"
            ids = [row.example.id for row in rows[name]]
            compared.append(same_answers(what, ids, given, answers[name], limit))
    out.mkdir()
    layouts: dict[str, Callable[[OnRows], None]] = {
        "hf": lambda each: convert_run(run.folder, out / "hf", merge=False, verification=each),
        "merge": lambda each: convert_run(run.folder, out / "merge", merge=True, verification=each),
        "peft": lambda each: export_run(run.folder, PeftFolders, out / "peft", each, plain),
    }
    for layout, convert in layouts.items():
        each = replace(check, layout=layout, found=[])
        try:
            # What they tell is for users of `vlds convert`.
            with redirect_stdout(io.StringIO()) as told, redirect_stderr(told), quiet():
                convert(each)
                if layout != "peft":
                    in_hugging_face(out / layout, each)
        except ValueError as error:
            refused = REFUSED.match(str(error)) is not None
            (notes if refused else faults).append(f"{layout}{' is left out' * refused}: {error}")
        notes += [line for line in told.getvalue().split("\n") if "not installed" in line]
        compared += each.found
    return Finding(compared=tuple(compared), faults=tuple(faults), notes=tuple(notes))


def limit_of(dtype: torch.dtype) -> Tolerance:
    """How far logits may be off in a type; fp16 rounds less than bf16."""
    share = TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16])
    return Tolerance(share, "that of `vlds convert`")


def as_built(bench: Bench, run: Trained) -> LoadedRun:
    """The run's model before its first step."""
    folder = run.state_folder(STEPS)
    model, _ = load_model(bench.alone, bench.prepared, bench.processor, bench.ranks, folder)
    return LoadedRun(bench.alone, bench.processor, model.eval())


@torch.no_grad()
def put_masters(built: LoadedRun, run: Trained) -> None:
    """Put the masters of the run's last state into its model."""
    model = built.model
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.moving_buffers())}
    for key, values in run.tensors(STEPS).items():
        name, _, what = key.rpartition(" ")
        if what in ("fp32", "buffer"):
            tensors[name].copy_(values)


def in_fresh_processes(num: int, check: OnRows, run: Trained) -> Opened:
    """What a run's artifact computes in processes that have loaded nothing before; of several, each
    holds a part of each weight."""
    # As bytes: tensors would be shared through the system's descriptors.
    sent, port = pickle.dumps((check, run.folder)), free_port()
    with ProcessPoolExecutor(num, mp_context=get_context("spawn")) as pool:
        ranks = [pool.submit(open_artifact, sent, rank, num, port) for rank in range(num)]
        for rank in as_completed(ranks):
            rank.result()  # the first that fails, and not one that waits for it
    opened: Opened = pickle.loads(ranks[0].result())
    return opened


def open_artifact(sent: bytes, rank: int, num: int, port: int) -> bytes:
    """What a fresh process does."""
    check, folder = pickle.loads(sent)
    # In half precision, rounding chooses between words that are nearly as likely, and all that
    # follow differ.
    dtype = torch.float32
    if num == 1:
        return pickle.dumps(check.opened(load_run(folder, dtype=dtype)))
    os.environ |= local_rank(rank, num, port)
    ranks = start_ranks(WAIT)
    changes = ["--training.evaluate_whole", "false"]
    run = load_run(folder, dtype=dtype, changes=changes, ranks=ranks)
    return pickle.dumps(check.opened(run, ranks))


@torch.no_grad()
def in_hugging_face(folder: Path, check: OnRows) -> None:
    """Let Hugging Face's class open a folder; compare the run's logits with its weights in place of
    ours."""
    run = load_run(folder)
    kind, dtype = run.recipe.model, states_type(run.model)
    expected = {task: check.logits(run, task) for task in check.rows}
    given, ours = read_back(folder, kind.auto_class, dtype), run.model.backbone.state_dict()
    common = given.keys() & ours.keys()
    for name in common:
        if ours[name].is_floating_point():
            ours[name].fill_(torch.nan)  # tied or not, each must come from there
    for name in common:
        ours[name].copy_(given[name].reshape(ours[name].shape))
    differences = {task: difference(expected[task], check.logits(run, task)) for task in expected}
    check.judge(differences, dtype, f"{kind.auto_class}'s {len(common)} tensors in ")
