"""Help texts of commands: 80 columns wide, with paragraphs filled and indented lines kept."""

from __future__ import annotations

import argparse
import textwrap

WIDTH = 80


class HelpPage(argparse.HelpFormatter):
    """For descriptions and epilogs that hold examples, indented by two blanks."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=WIDTH - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in text.strip("\n").split("\n\n"):
            if not paragraph.startswith("  "):
                paragraph = textwrap.fill(" ".join(paragraph.split()), width)
            paragraphs.append(textwrap.indent(paragraph, indent))
        return "\n\n".join(paragraphs)
