"""HTML pages from templates: each value goes in as text, with `vlds.runtime.shown` applied.

A room keeps its templates beside its code; frame.html and style.css are shared by all pages.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vlds.runtime.shown import visible

SHARED = Path(__file__).with_name("templates")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
"""What a page may load: what is inside it."""


def page(template: Path, script: Path | None = None, policy: str = POLICY, **values: object) -> str:
    """Render a page with at most one script, which the page's policy allows by its hash."""
    code = None
    if script is not None:
        code = Markup(script.read_text("utf-8"))
        digest = base64.b64encode(sha256(code.encode()).digest()).decode()
        policy = f"{policy}; script-src 'sha256-{digest}'"
    compiled = environment(template.parent).get_template(template.name)
    return compiled.render(script=code, policy=policy, **values)


@cache
def environment(folder: Path) -> Environment:
    """Templates of a folder and the shared ones. They escape everything; unknown names raise."""
    templates = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return templates


def shown(value: object) -> object:
    """A value as it goes into a page; jinja2 escapes it unless it is markup."""
    return value if isinstance(value, Markup | int | float) else visible(value)


def visible_tree(value: object) -> object:
    """Apply `visible` to all texts in a tree that goes into a page as JSON."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {key: visible_tree(entry) for key, entry in value.items()}
    return [visible_tree(entry) for entry in value] if isinstance(value, list | tuple) else value
