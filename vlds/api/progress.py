"""Shows what a command prints while it runs: as it is, or in a notebook with one bar that is drawn
again in its place of all lines about steps."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Protocol

from markupsafe import Markup

from vlds.runtime.terminal import tell, visible
from vlds.training.sinks import PROGRESS

BAR = Markup(
    '<div style="font-variant-numeric:tabular-nums"><progress max="{total}" value="{done}" '
    'style="width:14em;vertical-align:middle;accent-color:#3b82f6"></progress> '
    "<b>{done}</b>/{total} &nbsp; <span>{rest}</span></div>"
)


class Drawn(Protocol):
    """What a notebook has shown and can replace."""

    def update(self, shown: object) -> None:
        """Show this in its place."""


class Html:
    """HTML for a notebook, and plain text for what shows none."""

    def __init__(self, html: str, text: str) -> None:
        self.html, self.text = html, text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


class Shown:
    """Where a command's lines go."""

    def __init__(self) -> None:
        self._bar: Drawn | None = None
        self._told: tuple[int, int, str] = 0, 0, ""
        """Steps done, steps in all, and what the bar says beside them."""

    def line(self, line: str) -> None:
        """Show one line, with its end."""
        step = PROGRESS.fullmatch(line.rstrip("\n")) if in_notebook() else None
        if step is not None:
            self._told = int(step[1]), int(step[2]), visible(step[3])
        elif self._bar is not None and line.startswith("    "):  # the losses of tasks
            done, total, rest = self._told
            self._told = done, total, f"{rest}  {visible(line.strip())}"
        else:
            tell(line, end="", flush=True)
            return
        done, total, rest = self._told
        html = BAR.format(done=done, total=total, rest=rest.replace("  ", " \u00b7 "))
        bar = Html(html, f"{done}/{total} {rest}")
        if self._bar is None:
            self._bar = import_module("IPython.display").display(bar, display_id=True)
        else:
            self._bar.update(bar)


def in_notebook() -> bool:
    """True in Jupyter's kernel, also under VS Code and Colab; False in IPython's terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None
