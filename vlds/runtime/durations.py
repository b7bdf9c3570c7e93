"""Times that people read."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, "30:05:00" after more than a day."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest:02d}"


def duration_text(seconds: float) -> str:
    """ "1,000 h 05 min", "5 min 10 s", "10 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
