"""Runs what a stranger's file asks for, such as a chat template or a pattern, within limits; and
makes HTML pages in which no text from others becomes markup.

`limited` runs in a copy of this process, since nothing in Python bounds the time and memory of a
single operation: one pattern may backtrack for years, and one product of a text and a number may
ask for all memory. The copy makes a text, which must not need threads or devices.
"""

from __future__ import annotations

import base64
import gc
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import NoReturn

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vlds.runtime.process import ASKING
from vlds.runtime.terminal import visible

SECONDS = 2
"""CPU time, if a caller does not say otherwise; MEMORY too."""
PATIENCE = 60
"""Seconds on the clock: on a busy machine, the CPU time takes longer."""
MEMORY = 512 << 20
"""Bytes beyond those of this process."""
LARGEST = 4 << 20
"""Bytes of the text that is made."""
MADE, FAILED = b"+", b"-"
"""What the copy writes before the text, or before the text of an error."""


class OverLimit(ValueError):
    """It took more time or memory than it may."""


def limited(make: Callable[[], str], seconds: int = SECONDS, memory: int = MEMORY) -> str:
    """What `make` gives in a copy of this process.

    Errors: OverLimit; ValueError with the text of whatever `make` raises.
    """
    reader, writer = os.pipe()
    if (copy := os.fork()) == 0:
        os.close(reader)
        _answer(make, writer, seconds, memory)
    # The copy must hold the only writing end: reading ends when that is closed.
    os.close(writer)
    answer: bytes | None = None
    try:
        # All that the copy writes until it ends; None if it does not end in time.
        written, end = b"", time.monotonic() + PATIENCE
        with DefaultSelector() as ready:
            ready.register(reader, EVENT_READ)
            while answer is None and (left := end - time.monotonic()) > 0:
                if ready.select(left):
                    more = os.read(reader, 1 << 16)
                    written += more
                    answer = None if more else written
    finally:
        os.close(reader)
        # Killed after a time-out, an error or Ctrl-C here; waited for in any case, or it stays
        # behind as a zombie.
        if answer is None:
            os.kill(copy, signal.SIGKILL)
        _, status = os.waitpid(copy, 0)
    if answer and status == 0:
        text = answer[1:].decode("utf-8", "surrogatepass")
        if answer[:1] == MADE:
            return text
        raise ValueError(text)
    raise OverLimit(f"it takes more than {seconds} seconds, or more than {memory >> 20} MiB")


def _answer(make: Callable[[], str], writer: int, seconds: int, memory: int) -> NoReturn:
    """In the copy: write what is made, or why it is not."""
    # The copy must neither run what its parent would at a signal or its end, nor outlive a limit.
    try:
        gc.disable()
        for number in ASKING:
            signal.signal(number, signal.SIG_DFL)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads, and a warning that it forked
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        with suppress(OSError):  # the file is Linux's
            with open("/proc/self/statm", encoding="ascii") as file:
                pages = int(file.read().split()[0])
            # The copy begins with all of this process's memory.
            most = pages * resource.getpagesize() + memory
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        try:
            answer = MADE + make().encode("utf-8", "surrogatepass")
        except MemoryError:
            answer = b""
        except BaseException as error:  # in a child: its parent raises what this pipe says
            answer = FAILED + (str(error) or type(error).__name__).encode("utf-8", "replace")
        if len(answer) > LARGEST:
            answer = FAILED + f"it writes more than {LARGEST >> 20} MiB".encode()
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


# HTML pages from templates. A package keeps its templates beside its code; frame.html and style.css
# are shared by all pages.

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
    # Instead of jinja2's default, which sorts the keys.
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
