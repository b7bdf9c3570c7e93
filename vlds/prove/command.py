"""The command `vlds prove`: tries each property, says what it finds, and leaves a page."""

from __future__ import annotations

import json
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from vlds.artifact import read_recipe
from vlds.prove.bench import Bench
from vlds.prove.finding import Finding, Property
from vlds.prove.page import Proof, Tried, write_proof
from vlds.prove.properties import PROPERTIES
from vlds.recipe.config import Recipe, TrainingConfig
from vlds.runtime.artifact_files import artifact_folder, check_changes, tell_hosts, tell_model
from vlds.runtime.devices import device_name, device_of, hardware
from vlds.runtime.disk import check_writable
from vlds.runtime.folders import scratch_folder
from vlds.runtime.json_files import lacks_memory
from vlds.runtime.process import FOLDERS, find
from vlds.runtime.terminal import Pace, can_redraw, duration_text, open_console, tell, visible
from vlds.training.faults import explained
from vlds.training.optimizer import parameter_groups

NAME_WIDTH = max(len(each.name) for each in PROPERTIES)
WIDTH = 80
"""Characters of a line."""
MOST_FAULTS = 4
"""Of a property on the terminal; the page has all."""
MOST_ROWS = 512
ROWS, STEPS = (16, 8), (100, 20)
"""By default, and in the short form."""
LONG_S = 10.0
"""Seconds of work that is worth a line before it begins."""


class Refused(ValueError):
    """vlds does not take the recipe."""

    def __init__(self, at: str, error: ValueError) -> None:
        super().__init__(str(error))
        self.at = at


def chosen(only: Sequence[str], skip: Sequence[str], short: bool = False) -> list[Property]:
    """The properties of these names; `short`: those alone that `vlds train --prove` tries.

    Errors: ValueError for an unknown name, or if nothing is left.
    """
    names = [each.name for each in PROPERTIES]
    for option, given in (("--only", only), ("--skip", skip)):
        for name in given:
            if name not in names:
                raise ValueError(f"{option}: got {name!r}; choose from: {', '.join(names)}")
    wanted = [p for p in PROPERTIES if (not only or p.name in only) and p.name not in skip]
    wanted = [p for p in wanted if p.in_short or not short]
    if not wanted:
        option = "--skip" if skip else "--short"
        raise ValueError(f"{option}: nothing is left to try; leave out less")
    return wanted


def recipe_of_run(run: Path, changes: Sequence[str]) -> Recipe:
    """The recipe of a run or artifact, which begins with the weights that have trained. Only vlds'
    own settings of DeepSpeed are taken: a file of others could make it write anywhere.

    Errors: ValueError if there is no artifact, it is damaged, or a change is none of its own keys.
    """
    check_changes(changes)
    tell_model(run)
    recipe = read_recipe(artifact_folder(run), changes)
    tell_hosts(run, (place for t in recipe.tasks.values() for place in (*t.train, *t.evaluate)))
    named = Path("ds_configs", Path(recipe.training.deepspeed).name)
    own = [file for folder in FOLDERS if (file := folder / named).exists()]
    if not own:
        own = [find(TrainingConfig.deepspeed)]
        line = f"training.deepspeed: {own[0].name} in place of {named.name}, which is not of vlds"
        tell(line, error=True)
    training = replace(recipe.training, deepspeed=str(own[0]))
    return replace(recipe, training=training, start=str(run))


def prove(bench: Bench, properties: Sequence[Property], say: Callable[[str], None]) -> list[Tried]:
    """Try properties in their order, and say a line for each as it ends.

    One that stands on a property that has failed is left out: it would blame the wrong place.
    """
    tried: list[Tried] = []
    failed: set[str] = set()
    pace = Pace()
    for number, each in enumerate(properties, 1):
        place = f"[{number:>{len(str(len(properties)))}}/{len(properties)}] {each.name}"
        begin = time.perf_counter()
        if broken := [name for name in each.needs if name in failed]:
            finding = Finding(left_out=f"it stands on {broken[0]}, which fails")
            failed.add(each.name)
        else:
            with working(place, left_s(tried, properties), pace):
                finding = found(each, bench)
            if finding.verdict == "fails":
                failed.add(each.name)
        tried.append(Tried(each, finding, time.perf_counter() - begin))
        for line in lines_of(tried[-1], place):
            say(line)
    return tried


def left_s(tried: Sequence[Tried], properties: Sequence[Property]) -> float | None:
    """About how many seconds the properties that are not tried yet take together, from the time of
    those that are; None before the first."""
    seconds = sum(each.seconds for each in tried)
    done = sum(each.property.cost for each in tried if not each.finding.left_out)
    left = sum(each.cost for each in properties[len(tried) :])
    return seconds * left / done if done else None


@contextmanager
def working(what: str, left: float | None, pace: Pace) -> Iterator[None]:
    """Say on stderr that something works, and about how many seconds are left for all: on a
    terminal each second in the same line, which goes at the end; elsewhere at most once, where it
    takes long."""
    from rich.progress import Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            rest = (left or 0) - (task.elapsed or 0)
            return Text(f"about {duration_text(round(rest))} left for all" if rest >= 1 else "")

    console = open_console(error=True)
    if not can_redraw(console):
        if left is not None and left > LONG_S and pace.line_is_due():
            tell(f"{what}: about {duration_text(left)} left for all", error=True, flush=True)
        yield
        return
    columns = (TextColumn("{task.description}", markup=False), TimeElapsedColumn(), Left())
    # Only while nothing else is said: rich would lead lines for stdout to stderr.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        progress.add_task(visible(what), total=None)
        yield


def found(each: Property, bench: Bench) -> Finding:
    """What a property finds; an error is a fault of the property's own."""
    # Errors of the recipe and its data were raised when the bench was opened.
    try:
        finding = each.check(bench)
        if not all(compared.holds for compared in finding.compared) and bench.flip_often():
            finding = each.check(bench)
        return finding
    except Exception as error:  # whatever a library raises: the other properties are tried too
        if lacks_memory(error):
            cure = f"give fewer --rows, or --skip {each.name}"
            return Finding(faults=(f"this machine has no memory for it ({error}); {cure}",))
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return Finding(faults=(f"stopped with {type(error).__name__}: {error} ({place})",))


def lines_of(tried: Tried, place: str) -> list[str]:
    """What the terminal shows of a property: a line, and below it its reasons and what is wrong."""
    finding = tried.finding
    worst = finding.worst
    faults = [*finding.faults, *(each.text for each in finding.compared if not each.holds)]
    reasons = [finding.left_out] if finding.left_out else list(finding.notes)
    detail = ""
    if finding.faults:
        detail = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
    elif worst:
        detail = worst.short
        what = f"{worst.what}; " if worst.holds else ""
        reasons.insert(0, f"{what}tolerance: {worst.tolerance.source}")
    place = place.ljust(place.index(tried.property.name) + NAME_WIDTH)
    took = "" if finding.left_out else duration_text(round(tried.seconds, 1))
    return [
        f"{visible(place)} {finding.verdict:<8} {took:>6}  {detail}".rstrip(),
        *(line for fault in faults[:MOST_FAULTS] for line in wrapped(fault, "    - ")),
        *([f"    and {len(faults) - MOST_FAULTS} more, on the page"] * (len(faults) > MOST_FAULTS)),
        *(line for reason in reasons for line in wrapped(reason, "    ")),
    ]


def wrapped(text: str, indent: str) -> list[str]:
    """At most four lines of a text; the page has all."""
    return textwrap.wrap(
        visible(text), WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent),
        max_lines=4, placeholder=" ..",
    )  # fmt: skip


def opened(recipe: Recipe, scratch: Path, rows: int, steps: int) -> Bench:
    """The bench, with its rows and its model.

    Errors: Refused, which names the step.
    """
    step = "reading the recipe and its data"
    try:
        with explained(recipe), working(step, None, Pace()):
            bench = Bench(recipe, scratch=scratch, rows=rows, steps=steps)
            step = "reading the first examples"
            assert bench.rows
            step = "building the model"
            parameter_groups(bench.model, bench.alone)
    except ValueError as error:
        raise Refused(step, error) from error
    return bench


def prove_recipe(
    recipe: Recipe,
    out: Path,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    rows: int | None = None,
    steps: int | None = None,
    short: bool = False,
    as_json: bool = False,
) -> int:
    """Try the properties of a recipe; write OUT/proof.json and OUT/proof.html. Exit code: 0 if all
    hold, 1 if one fails. `as_json`: what proof.json holds goes to stdout, and the lines to stderr.

    Errors: ValueError for what is wrong with the options, the recipe, its files or its data.
    """
    properties = chosen(only, skip, short)
    rows, steps = rows or ROWS[short], steps or STEPS[short]
    if rows > MOST_ROWS:
        raise ValueError(
            f"--rows is {rows}; give at most {MOST_ROWS}: a batch holds all of them, and they are "
            "computed several times"
        )
    check_writable(out, "--out")
    # A closed pipe ends no proof: its page is written anyway.
    say = partial(tell, error=as_json, flush=True)
    begin = time.perf_counter()
    proof = Proof(recipe, device_name(device_of()), rows, steps)
    say(f"on {hardware(1)}")
    refused: Refused | None = None
    with scratch_folder() as scratch:
        torch.manual_seed(recipe.seed)
        try:
            bench = opened(recipe, scratch, rows, steps)
            proof = replace(proof, rows=len(bench.rows), tried=prove(bench, properties, say))
        except Refused as error:
            refused = error
            proof = replace(proof, refused=(error.at, str(error)))
    proof = replace(proof, seconds=time.perf_counter() - begin)
    page = write_proof(proof, out)
    if as_json:
        tell(json.dumps(proof.as_tree(), indent=1))
    if refused is not None:
        raise ValueError(f"{refused} (while {refused.at}; {page})") from refused
    say(f"{proof.verdict}; {duration_text(proof.seconds)}")
    if failing := proof.of("fails"):
        say("\n".join(textwrap.wrap(f"failing: {', '.join(failing)}", WIDTH)))
    say(f"{page}")
    return int(not proof.holds)
