"""Chat templates that ask for today's date read one fixed day.

The templates of Llama 3 and SmolLM3 write the date into each prompt. A run that is resumed or
evaluated tomorrow must read the prompts of today. The day is the one that Llama's own template
writes where it cannot ask.
"""

from __future__ import annotations

from datetime import date

DAY = date(2024, 7, 26)
CODES = "aAbBcdHIjmMpSUwWxXyYZ"
"""Letters of `strftime`'s codes."""
CLOCK = "strftime_now"
"""The function that templates ask; Hugging Face defines it for all of them."""


def with_fixed_date(template: str) -> str:
    """A chat template whose `strftime_now` tells of `DAY`: a macro of that name goes first. Other
    templates stay as they are."""
    if CLOCK not in template:
        return template
    texts = {"%-d": str(DAY.day), "%-m": str(DAY.month)}
    texts |= {f"%{code}": DAY.strftime(f"%{code}") for code in CODES}
    steps = "".join(f'.replace("{code}", "{text}")' for code, text in texts.items())
    # Jinja drops the line break behind the macro.
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}\n{template}"
