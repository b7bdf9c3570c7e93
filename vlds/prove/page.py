"""What a proof leaves: proof.html for people, and proof.json for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from vlds.data.shards.pictures import page_picture
from vlds.prove.finding import Comparison, Finding, Property, Token, Verdict
from vlds.recipe.build import to_tree, to_yaml
from vlds.recipe.config import Recipe
from vlds.report.tables import Cell, Table, TableRow
from vlds.runtime.files import write_whole
from vlds.runtime.folders import versions_here
from vlds.runtime.limited import page
from vlds.runtime.terminal import duration_text, without_credentials

TEMPLATE = Path(__file__).with_name("templates") / "proof.html"
MOST_CHIPS = 60
"""Tokens of a long row that are shown at once; those between are folded."""
FEW_EQUAL = 3
"""Equal tokens that are shown one by one."""


@dataclass(frozen=True)
class Tried:
    """A property, what it has found, and how long that took."""

    property: Property
    finding: Finding
    seconds: float


@dataclass(frozen=True)
class Proof:
    """What is known of a recipe on a machine."""

    recipe: Recipe
    device: str
    rows: int
    steps: int
    seconds: float = 0.0
    tried: Sequence[Tried] = ()
    refused: tuple[str, str] | None = None
    """What vlds was doing when it refused the recipe, and why; then nothing was tried."""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def of(self, verdict: Verdict) -> list[str]:
        """Names of the properties with a verdict."""
        return [each.property.name for each in self.tried if each.finding.verdict == verdict]

    @property
    def holds(self) -> bool:
        """True if no property fails."""
        return self.refused is None and not self.of("fails")

    @property
    def verdict(self) -> str:
        """How many properties hold, in a few words."""
        if self.refused is not None:
            return "vlds refuses this recipe"
        fail, left = len(self.of("fails")), len(self.of("left out"))
        hold = len(self.of("holds"))
        text = f"{hold} of {len(self.tried)} properties hold{'s' * (hold == 1)}"
        text += f", {fail} fail{'s' * (fail == 1)}" if fail else ""
        return text + (f", {left} {'is' if left == 1 else 'are'} left out" if left else "")

    @property
    def circumstances(self) -> str:
        """The recipe, the device, the versions of libraries, and how long it took."""
        versions = ", ".join(f"{name} {number}" for name, number in versions_here().items())
        tried = f"; {self.rows} rows, {self.steps} steps" if self.tried else ""
        return (
            f"{without_credentials(self.recipe.output)} ({type(self.recipe.model).__name__}) on "
            f"{self.device}, with {versions}{tried}; {duration_text(self.seconds)}"
        )

    @property
    def recipe_text(self) -> str:
        """The whole recipe, as a file."""
        return without_credentials(to_yaml(to_tree(self.recipe)))

    def as_tree(self) -> dict[str, object]:
        """What proof.json holds."""
        return {
            "recipe": without_credentials(self.recipe.output),
            "recipe_sha256": sha256(self.recipe_text.encode()).hexdigest(),
            "device": self.device,
            "versions": versions_here(),
            "time": self.began.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "rows": self.rows,
            "steps": self.steps,
            "holds": self.holds,
            "refused": self.refused and {"while": self.refused[0], "why": self.refused[1]},
            "properties": [tree_of(each) for each in self.tried],
        }


def tree_of(tried: Tried) -> dict[str, object]:
    """A property in proof.json."""
    finding = tried.finding
    compared = [
        {
            "what": c.what,
            # JSON has neither infinity nor NaN.
            "difference": c.difference if math.isfinite(c.difference) else None,
            "tolerance": c.tolerance.share,
            "source": c.tolerance.source,
            "holds": c.holds,
            "where": c.where,
        }
        for c in finding.compared
    ]
    own = {f.name: getattr(finding, f.name) for f in fields(Finding) if f.name != "rows"}
    named = {"name": tried.property.name, "claim": tried.property.claim}
    return {
        **named, "verdict": finding.verdict, "seconds": round(tried.seconds, 3), **own,
        "compared": compared,
    }  # fmt: skip


class Chips(NamedTuple):
    """Equal tokens that follow each other, as one chip."""

    text: str
    learned: bool
    times: int


def chips(tokens: Sequence[Token]) -> Iterator[Chips]:
    """Tokens for the page: a picture's hundreds of equal ones are one chip."""
    for token, same in groupby(tokens):
        times = len(list(same))
        alone = times <= FEW_EQUAL
        yield from [Chips(token.text, token.learned, 1 if alone else times)] * (
            times if alone else 1
        )


def comparison_table(compared: Sequence[Comparison]) -> Table:
    """All comparisons of a property."""
    rows = [
        TableRow(
            each.what,
            [
                Cell(f"{each.difference:.2g}"),
                Cell(f"{each.tolerance.share:.2g}"),
                Cell("\u2713" if each.holds else "\u2717", "right" if each.holds else "wrong"),
            ],
            [each.where and f"largest at {each.where}", each.tolerance.source][not each.where :],
        )
        for each in compared
    ]
    return Table(["compared", "largest difference", "tolerance", "holds"], rows)


def write_proof(proof: Proof, folder: Path) -> Path:
    """Write proof.json and proof.html into a folder; the path of the page.

    Errors: CannotWrite.
    """
    write_whole(folder / "proof.json", json.dumps(proof.as_tree(), indent=1) + "\n")
    text = page(
        TEMPLATE,
        title=Path(proof.recipe.output).name,
        proof=proof,
        chips=chips,
        picture_of=page_picture,
        comparison_table=comparison_table,
        duration=duration_text,
        most=MOST_CHIPS,
    )
    write_whole(folder / "proof.html", text)
    return folder / "proof.html"
