"""Walks the tables of VL-Adapter, VL-PET and Ladder Side-Tuning: for each published row its recipe,
its sweep, and how many weights train, beside the share that the paper prints. Makes
docs/published.md.

    python benchmarks/published_rows.py > docs/published.md

Published values stand in the sweeps alone, where `vlds compare` shows them. A test compares the
page with the lists below and with sweeps/, so that no row is without a command unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

from vlds.models.build import describe
from vlds.recipe.build import build
from vlds.recipe.config import Recipe
from vlds.recipe.paths import BASE, on_base
from vlds.report.sweep import Sweep, read_sweep


class Table(NamedTuple):
    """Rows of a paper that one sweep trains."""

    title: str
    sweep: str
    """Name of the file in sweeps/, without its ending."""
    rows: Mapping[str, str]
    """Row of the sweep -> what about it is not the paper's; "" if nothing is known to differ."""


LST_ROWS = dict.fromkeys(["full fine-tuning", "adapter", "LoRA", "BitFit", "prompt", "LST"], "")
TABLE_1 = "settings of Table 1"
GATES = ["small", "middle X", "middle Y", "large"]
PAPERS: Mapping[str, tuple[Table, ...]] = {
    "VL-Adapter (arXiv 2112.06825)": (
        Table(
            "Table 1, CLIP-BART",
            "vl_adapter_image_bart",
            dict.fromkeys(
                ["full fine-tuning", "multiple adapters", "half-shared adapters", "single adapter",
                 "hyperformer", "multiple compacters", "single compacter", "multiple LoRA",
                 "single LoRA", "multiple prompts", "single prompt"],
                "",
            ),
        ),
        Table(
            "parts, CLIP-BART",
            "vl_adapter_image_bart_parts",
            dict.fromkeys(["visual embedding alone", "visual embedding and norms"], TABLE_1),
        ),
        Table(
            "pretrained CLIP-BART",
            "vl_adapter_image_bart_pretrained",
            dict.fromkeys(["full fine-tuning", "single adapter"], "our pretraining"),
        ),
        Table(
            "task prompts, CLIP-BART",
            "vl_adapter_image_bart_prompts",
            {
                "full fine-tuning": "",
                "full fine-tuning, prompts": TABLE_1,
                "multiple adapters": "",
                "multiple adapters, prompts": TABLE_1,
                "single adapter": TABLE_1,
                "single adapter, prompts": "",
            },
        ),
        Table(
            "what trains, CLIP-BART on VQA",
            "vl_adapter_image_bart_clip",
            dict.fromkeys(["CLIP and BART", "CLIP", "BART", "neither"], TABLE_1),
        ),
        Table(
            "CLIP-T5",
            "vl_adapter_image_t5",
            {
                "full fine-tuning": "",
                "multiple adapters": "reduction from its share",
                "half-shared adapters": "reduction of the other adapters",
                "single adapter": "settings of LST",
                "hyperformer": "reduction from its share",
                "multiple compacters": "reduction of the script",
                "single compacter": "reduction of the script",
                "single LoRA": "settings and scores of LST",
                "multiple prompts": "rate of the script",
                "single prompt": "settings and scores of LST",
            },
        ),
        Table(
            "videos, CLIP-BART",
            "vl_adapter_video_bart",
            {"full fine-tuning": "", "single adapter": "", "single LoRA": "", "single prompt": ""},
        ),
    ),
    "VL-PET (arXiv 2308.09804)": (
        Table(
            "Table 2, CLIP-BART",
            "vl_pet_image_bart",
            {
                "full fine-tuning": "",
                "BitFit": "",
                "single prompt": "rate of VL-Adapter",
                "single compacter": "rate of VL-Adapter",
                "hyperformer": "",
                "single LoRA": "",
                "single adapter": "",
                **{f"VL-PET {gate}": "" for gate in GATES},
            },
        ),
        Table("Table 2, CLIP-T5, quoted", "lst_image_t5", LST_ROWS),
        Table("Table 2, CLIP-T5", "vl_pet_image_t5", {f"VL-PET {gate}": "" for gate in GATES}),
        Table(
            "Table 9, CLIP-BART",
            "vl_pet_image_bart_designs",
            {
                "single compacter": "rate of VL-Adapter",
                **{f"compacter, {gate}": "rate of VL-PET" for gate in GATES},
                "single adapter": "",
                **{f"adapter, {gate}": "rate of VL-PET" for gate in GATES},
            },
        ),
        Table(
            "Table 3, videos, CLIP-BART",
            "vl_pet_video_bart",
            {
                **dict.fromkeys(
                    ["full fine-tuning", "BitFit", "single prompt", "single compacter",
                     "single LoRA", "single adapter"],
                    "rate, epochs and batch of VL-Adapter",
                ),
                **{f"VL-PET {gate}": "last epoch, not the best" for gate in GATES},
            },
        ),
    ),
    "Ladder Side-Tuning (arXiv 2206.06522)": (
        Table("Table 3, CLIP-T5", "lst_image_t5", LST_ROWS),
    ),
}  # fmt: skip
ROWS = [(table, row) for tables in PAPERS.values() for table in tables for row in table.rows]
BESIDE = {
    "vl_adapter_image_bart_features": "Table 1 from the official downloads, with stored features",
    "vl_adapter_image_bart_sizes": "VL-Adapter's figure over sizes: five methods in 23 sizes, five "
    "of them the paper's",
    "vl_adapter_video_t5": "CLIP-T5 on videos: VL-Adapter has scripts for it; we know no published "
    "scores",
}
"""Sweeps whose rows no table has."""
MISSING = {
    "VL-Adapter on the test servers of VQA and GQA": "their labels are not public; `vlds predict "
    "--data` writes the files to submit for runs of Table 1 ([evaluation](evaluation.md))",
    "VL-Adapter on CLIP-ViL": "`recipes/related/clip_vil_*.yaml` train single rows, on BERT or on "
    "the published encoder; we do not know the scores",
    "The papers' supplements; VL-PET's tables other than 2, 3 and 9": "we could not read them",
    "LST on GLUE: Tables 1 and 2, Figures 5 and 6": "text alone, for which vlds has no data",
}
"""Published rows that no sweep trains -> the reason."""
HEAD = """\
# Published rows

The tables of VL-Adapter, VL-PET and Ladder Side-Tuning (LST) on pictures and videos, row by row.
`vlds describe` counts a row at the published size; the papers say that 4.18 and 2.98 % train:

```sh
vlds describe recipes/vl_adapter/bart_image_single_adapter.yaml | grep 'total  '
vlds describe recipes/vl_pet/bart_image_small.yaml | grep 'total  '
```

```text
total                        145,606,464       6,081,600     4.177
total                        143,845,068       4,291,020     2.983
```

Each row has the share of weights that the paper says it trains, those that train here, the
published average of the scores, and the recipe, below `recipes/`. Where `+` follows it, the sweep
changes it: alone it does not train the row. `vlds sweep` trains a table, `vlds compare` shows it
beside all published scores ([sweeps](sweeps.md)). `benchmarks/published_rows.py` makes this page.

- **ready**: the settings are those of the original scripts. Otherwise the last column says what is
  not known to be theirs. Nobody has run a table in full yet.
- **Sources**: VL-PET's values are from figures in its repository, LST's as VL-PET quotes them,
  VL-Adapter's from secondary sources: compare them with the papers before you quote them."""


class Count(NamedTuple):
    """What trains."""

    trainable: int
    percent: float


@cache
def sweep_of(table: str) -> Sweep:
    """The sweep of a table."""
    return read_sweep([f"sweeps/{table}.yaml"])


def recipe_cell(sweep: Sweep, row: str) -> str:
    """The recipe's file of a row, below recipes/, and a sign if the sweep changes it."""
    given = sweep.recipes[row]
    file = (given if isinstance(given, str) else given[BASE]).removeprefix("recipes/")
    return f"`{file}`{'' if isinstance(given, str) or given.keys() == {BASE} else ' +'}"


def count(sweep: Sweep, row: str) -> Count:
    """Count the weights of a row at the published size, on the meta device."""
    given = sweep.recipes[row]
    # Without the sweep's overrides: they name folders of runs that do not exist yet.
    tree = on_base({BASE: given} if isinstance(given, str) else given, Path(), Recipe)
    recipe = build(Recipe, tree)
    methods = {name: method.in_artifact() for name, method in recipe.model_setup.methods.items()}
    counts = describe(replace(recipe.model_setup, methods=methods), list(recipe.tasks))
    return Count(counts.trainable, counts.percent)


def row_line(table: Table, row: str, counted: Count) -> str:
    """The row's line of the page."""
    sweep = sweep_of(table.sweep)
    published = sweep.published.get(row, {})
    share, average = published.get("trains"), published.get("average")
    status = [table.rows[row] or "ready"]
    if average is None:
        status.append("scores not known here")
    # By the three decimals that the page shows: 4.505 may be 4.51.
    if share is not None and (off := round(abs(round(counted.percent, 3) - share), 3)) > 0.005:
        status.append(f"{off} off")
    cells = [
        table.title,
        row,
        "" if share is None else f"{share:.2f}",
        f"{counted.trainable:,}",
        f"{counted.percent:.3f}",
        "" if average is None else f"{average:.2f}".removesuffix("0"),
        recipe_cell(sweep, row),
        "; ".join(status),
    ]
    return f"| {' | '.join(cells)} |"


def page(counts: Mapping[tuple[str, str], Count]) -> str:
    """docs/published.md; `counts`: of each sweep's name and row."""
    lines = [HEAD]
    for paper, tables in PAPERS.items():
        lines += ["", f"## {paper}", ""]
        sweeps = "; ".join(f"{t.title}: `sweeps/{t.sweep}.yaml`" for t in tables)
        lines += wrap(f"{sweeps}.", 110, break_long_words=False, break_on_hyphens=False)
        lines += [
            "",
            "| table | row | published % | trained weights | % | average | recipe | status |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [row_line(t, row, counts[t.sweep, row]) for t in tables for row in t.rows]
    lines += ["", "## Beside the tables", "", "| sweep, or rows without one | what, or why |"]
    lines += ["|---|---|"]
    lines += [f"| `sweeps/{sweep}.yaml` | {what} |" for sweep, what in BESIDE.items()]
    lines += [f"| {rows} | {why} |" for rows, why in MISSING.items()]
    return "\n".join([*lines, ""])


def main() -> None:
    """Count all rows and print the page."""
    counts = {(table.sweep, row): count(sweep_of(table.sweep), row) for table, row in ROWS}
    print(page(counts), end="")


if __name__ == "__main__":
    main()
