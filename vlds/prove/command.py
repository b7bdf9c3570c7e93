"""The command `vlds prove`: tries each property, says what it finds, and leaves a page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vlds.prove.bench import Bench
from vlds.prove.finding import Finding, Property
from vlds.prove.properties import PROPERTIES
from vlds.recipe.config import Recipe
from vlds.runtime.files import write_whole
from vlds.runtime.folders import scratch_folder
from vlds.runtime.json_files import lacks_memory
from vlds.runtime.terminal import duration_text, tell

NAME_WIDTH = max(len(each.name) for each in PROPERTIES)
MOST_LINES = 4
"""Faults of a property on the terminal; the page has all."""


@dataclass(frozen=True)
class Tried:
    """A property, what it has found, and how long that took."""

    property: Property
    finding: Finding
    seconds: float


def chosen(only: Sequence[str], skip: Sequence[str]) -> list[Property]:
    """The properties of these names.

    Errors: ValueError for an unknown name.
    """
    names = [each.name for each in PROPERTIES]
    for option, given in (("--only", only), ("--skip", skip)):
        for name in given:
            if name not in names:
                raise ValueError(f"{option}: got {name!r}; choose from: {', '.join(names)}")
    wanted = [p for p in PROPERTIES if (not only or p.name in only) and p.name not in skip]
    if not wanted:
        raise ValueError("--skip: nothing is left to try; skip less")
    return wanted


def prove(bench: Bench, properties: Sequence[Property]) -> list[Tried]:
    """Try properties in their order, and say a line for each as it ends.

    One that stands on a property that has failed is left out: it would blame the wrong place.
    """
    tried: list[Tried] = []
    failed: set[str] = set()
    for number, each in enumerate(properties, 1):
        tell(f"[{number}/{len(properties)}] {each.name:<{NAME_WIDTH}} ", end="", flush=True)
        begin = time.perf_counter()
        if broken := [name for name in each.needs if name in failed]:
            finding = Finding(left_out=f"it stands on {broken[0]}, which fails")
            failed.add(each.name)
        else:
            finding = found(each, bench)
            if finding.verdict == "fails":
                failed.add(each.name)
        seconds = time.perf_counter() - begin
        tried.append(Tried(each, finding, seconds))
        for line in lines_of(tried[-1]):
            tell(line, flush=True)
    return tried


def found(each: Property, bench: Bench) -> Finding:
    """What a property finds; an error is a fault of the property's own."""
    # Errors of the recipe and its data were raised when the bench was opened.
    try:
        return each.check(bench)
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        if lacks_memory(error):
            raise ValueError(
                f"{each.name}: this machine has no memory for it ({error}); give fewer --rows, or "
                f"--skip {each.name}"
            ) from error
        return Finding(faults=(f"stopped with {type(error).__name__}: {error}",))


def lines_of(tried: Tried) -> list[str]:
    """What the terminal shows of a property."""
    finding, took = tried.finding, duration_text(tried.seconds)
    if finding.left_out:
        return [f"left out: {finding.left_out}"]
    worst = finding.worst
    detail = f"; {worst.text}" if worst is not None else ""
    lines = [f"{finding.verdict} ({took}){detail if finding.verdict == 'holds' else ''}"]
    if finding.verdict == "fails":
        wrong = [each.text for each in finding.compared if not each.holds]
        faults = [*finding.faults, *wrong]
        lines += [f"    {fault}" for fault in faults[:MOST_LINES]]
        if len(faults) > MOST_LINES:
            lines.append(f"    and {len(faults) - MOST_LINES} more, on the page")
    return [*lines, *(f"    note: {note}" for note in finding.notes)]


def tree_of(recipe: Recipe, tried: Sequence[Tried]) -> dict[str, object]:
    """What `proof.json` holds."""
    return {
        "recipe": recipe.output,
        "holds": holds(tried),
        "properties": [
            {
                "name": each.property.name,
                "claim": each.property.claim,
                "verdict": each.finding.verdict,
                "seconds": round(each.seconds, 3),
                "compared": [asdict(c) | {"holds": c.holds} for c in each.finding.compared],
                "faults": list(each.finding.faults),
                "notes": list(each.finding.notes),
                "left_out": each.finding.left_out,
            }
            for each in tried
        ],
    }


def holds(tried: Sequence[Tried]) -> bool:
    """True if no property fails."""
    return all(each.finding.verdict != "fails" for each in tried)


def prove_recipe(
    recipe: Recipe, out: Path, *, only: Sequence[str], skip: Sequence[str], rows: int, steps: int
) -> int:
    """Try the properties of a recipe; write OUT/proof.json and OUT/proof.html. Exit code: 0 if all
    hold, 1 if one fails.

    Errors: ValueError for what is wrong with the recipe, its files or its data.
    """
    properties = chosen(only, skip)
    begin = time.perf_counter()
    with scratch_folder() as scratch:
        torch.manual_seed(recipe.seed)
        tried = prove(Bench(recipe, scratch=scratch, rows=rows, steps=steps), properties)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "proof.json", json.dumps(tree_of(recipe, tried), indent=1) + "\n")
    took = duration_text(time.perf_counter() - begin)
    bad = [each.property.name for each in tried if each.finding.verdict == "fails"]
    left = sum(each.finding.verdict == "left out" for each in tried)
    verdict = f"{len(tried) - len(bad) - left} of {len(tried)} properties hold"
    tell(f"{verdict}{', ' + str(left) + ' left out' if left else ''}; {took}")
    if bad:
        tell(f"failing: {', '.join(bad)}")
    return int(bool(bad))
