"""HTML from templates: whatever a template puts in is shown as text, as vlds.runtime.shown says."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vlds.runtime.shown import visible

TEMPLATES = Path(__file__).with_name("templates")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
"""What a page may load: what is inside it."""


def page(template: str, script: str | None = None, policy: str = POLICY, **parts: object) -> str:
    """A page from a template, with at most one script: a file beside the templates, which the
    page's policy allows by its hash."""
    code = None
    if script is not None:
        code = Markup((TEMPLATES / script).read_text("utf-8"))
        digest = base64.b64encode(sha256(code.encode()).digest()).decode()
        policy = f"{policy}; script-src 'sha256-{digest}'"
    return environment().get_template(template).render(script=code, policy=policy, **parts)


@cache
def environment() -> Environment:
    """Templates that escape everything, and stop at names that nobody has given them."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return made


def shown(value: object) -> object:
    """A value as it goes into a page; jinja2 escapes what is not markup."""
    return value if isinstance(value, Markup | int | float) else visible(value)


def visible_tree(value: object) -> object:
    """The same for all texts of what goes into a page as JSON."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {key: visible_tree(entry) for key, entry in value.items()}
    return [visible_tree(entry) for entry in value] if isinstance(value, list | tuple) else value
