"""Times that people read."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, "30:05:00" after more than a day."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest:02d}"


def duration_text(seconds: float) -> str:
    """ "1,000 h 05 min", "5 min 10 s", "10 s", "0.25 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {rest:02d} s"
    return f"{rest} s" if rest >= 10 else f"{seconds:.2g} s"
