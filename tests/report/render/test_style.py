"""The page's colours can be read, in light and in dark."""

from __future__ import annotations

import re

import pytest

from vlds.runtime.limited import SHARED

LIGHT, DARK = (
    dict(re.findall(r"--(\w+): (#\w{6});", block))
    for block in re.findall(r":root \{([^}]*#[^}]*)\}", (SHARED / "style.css").read_text())
)


def luminance(colour: str) -> float:
    """Of WCAG 2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Of WCAG 2: 1 to 21."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_and_controls_stand_out(colours: dict[str, str]) -> None:
    grounds = [colours["ground"], colours["card"]]
    for name in ("ink", "faint", "accent", "right", "wrong", *(f"c{n}" for n in range(6))):
        assert min(contrast(colours[name], ground) for ground in grounds) >= 4.5, name
    assert min(contrast(colours["edge"], ground) for ground in grounds) >= 3
    assert contrast(colours["ink"], colours["bar"]) >= 4.5
