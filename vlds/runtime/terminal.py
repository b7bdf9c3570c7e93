"""What people read: nothing else in vlds prints to the terminal.

Texts from others (questions, ids, file names, servers' answers) are made safe before they are
shown. In a terminal, control characters could move the cursor, change colours, rename the window or
hide text; bidi controls reorder text, in a browser too. So they are shown as escapes.

Secrets in URLs are never stored or shown. A URL may carry a login (`https://user:password@host/`)
or secrets in its query (a presigned `?X-Amz-Signature=...`). Only the process that got such a URL
uses it in full; recipes, artifacts, logs, errors and names of cached files get it through
`without_credentials`.
"""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, MutableMapping
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, TypeVar
from urllib.parse import unquote

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from rich.console import Console


HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and newline
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # bidi controls, invisible ones
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufff9-\ufffb"  # likewise
    "\u2028\u2029"  # line ends for some programs only
    "\ud800-\udfff"  # surrogates, which cannot be encoded
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"  # invisible characters and copies of ASCII
)
OTHERS_SPEAK_AFTER_S = 5.0
"""Seconds until other ranks than the first say the same: the launcher looks after its ranks every
second."""


def visible(text: object) -> str:
    """The text, safe for a terminal: control and invisible characters become escapes such as
    `\\x1b` and `\\u202e`, and URLs lose their credentials."""
    return HIDDEN.sub(
        lambda character: character[0].encode("unicode_escape").decode("ascii"),
        without_credentials(str(text)),
    )


def shell_command(*words: object) -> str:
    """A command for the user to run: names in it, which others may have chosen, run nothing."""
    return shlex.join(map(str, words))


def tell(text: object, *, end: str = "\n", error: bool = False, flush: bool = False) -> None:
    """Print text to stdout, or with `error` to stderr."""
    print(visible(text), end=end, file=sys.stderr if error else sys.stdout, flush=flush)


class Away(OSError):
    """What a command needs does not answer. It is nobody's mistake, and passes: a run that ends by
    it may be restarted. The message is complete."""


def complain(who: str, error: ValueError | Away) -> int:
    """Say what the user got wrong, or what is away; the exit code.

    All ranks usually find the same mistake. So the first rank of a machine speaks at once, and the
    others only if they still live some seconds later: when a rank ends, the launcher ends the rest.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(OTHERS_SPEAK_AFTER_S)
    tell(f"{who}: {error}", error=True, flush=True)
    return 1 if isinstance(error, Away) else 2


class Output(io.FileIO):
    """stdout or stderr of a program. Once nobody reads it, or its disk is full, one line on stderr
    says so and the rest is dropped: no work is lost with its commentary."""

    lost: ClassVar[int] = 0
    """Exit code of a program that has lost output; 0 if it has not."""

    def write(self, data: Buffer, /) -> int:
        """As any file, but that it raises no OSError."""
        try:
            return super().write(data)
        except OSError as error:
            unread = isinstance(error, BrokenPipeError)
            Output.lost = 128 + signal.SIGPIPE if unread else 2
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            why = "nobody reads it" if unread else error.strerror
            if self.fileno() == 1:
                tell(f"vlds: cannot print any more: {why}; the work goes on without", error=True)
            return len(memoryview(data))


def guard_output() -> None:
    """Let this program print through `Output`, whoever prints: libraries do too."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        if before is not None:  # None: closed before the start
            file = io.BufferedWriter(Output(descriptor, "w", closefd=False))
            lines = before.line_buffering or before.write_through
            guarded = io.TextIOWrapper(file, before.encoding, before.errors, line_buffering=lines)
            setattr(sys, name, guarded)


def end_output(code: int) -> int:
    """Write what is still unwritten; the exit code of a program that ends with `code`."""
    if sys.stdout is not None:
        sys.stdout.flush()
    return code or Output.lost


def tell_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """`sys.excepthook` of vlds: a traceback may quote data."""
    tell("".join(traceback.format_exception(kind, error, trace)), end="", error=True, flush=True)


def open_console(*, error: bool = False, quiet: bool = False) -> Console:
    """The console of stdout, or with `error` of stderr.

    Only a terminal gets colours and lines that are drawn again. Notebooks and build servers set
    FORCE_COLOR and the like for all programs, and rich takes them for a terminal.
    """
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(
        stderr=error,
        quiet=quiet,
        force_terminal=stream.isatty(),
        force_jupyter=False,
        highlight=False,
    )


def can_redraw(console: Console) -> bool:
    """True if lines on the console can be drawn again, as a progress bar is."""
    return console.is_terminal and not console.is_dumb_terminal


def bytes_text(count: float) -> str:
    """Bytes in the unit that leaves at most four digits before the point."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.2f} TB"


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


SECONDS_BETWEEN_LINES = 10.0
Item = TypeVar("Item")


class Pace:
    """Says when the next line about long work is due. The first seconds have none, since short work
    needs no report."""

    def __init__(self) -> None:
        self._started = self._last_line = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return time.monotonic() - self._started

    def line_is_due(self) -> bool:
        """True once in every `SECONDS_BETWEEN_LINES`."""
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


def follow(items: Iterable[Item], what: str, total: int, done: int = 0) -> Iterator[Item]:
    """Yield the items and show progress on stderr: a bar on a terminal, else a line now and then.
    `done` of the `total` items were finished before."""
    # Supervisors and ranks print, but draw no bars.
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = open_console(error=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    pace = Pace()
    with Progress(
        *columns, console=console, transient=True, disable=not can_redraw(console)
    ) as progress:
        bar = progress.add_task(visible(what), total=total, completed=done)
        for count, item in enumerate(items, done):
            if progress.disable and pace.line_is_due():
                tell(f"{what}: {count:,} of {total:,}", error=True, flush=True)
            yield item
            progress.advance(bar)


SETTINGS = {
    # torch's C++ code warns about missing CPU features and about sockets of its rendezvous.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # torch's profiler says that it starts and stops.
    "KINETO_LOG_LEVEL": "6",
    # Deprecation warnings inside torch and deepspeed, which users cannot fix.
    "PYTHONWARNINGS": "ignore",
    # transformers reports tied and unused weights, which vlds checks itself.
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet_libraries() -> None:
    """Silence what libraries report by themselves in this process, before they are imported; their
    errors still reach the user. What the user has set stays."""
    set_quiet(os.environ)
    quiet_imports()
    hide_mlflow()
    # It looks for kernels that it can do without.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PYTHONWARNINGS is read when Python starts: this process needs the filter itself.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def quiet_imports() -> None:
    """Keep libraries from warning as they are imported: DeepSpeed that it finds no GPU, tqdm in a
    notebook that it finds no ipywidgets."""
    if not has_gpu_driver():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", "IProgress not found")


def hide_mlflow() -> None:
    """Let the imports of this process find no mlflow. DeepSpeed's autotuner, which vlds does not
    use, imports it: that takes seconds, and starts threads."""
    sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]  # as Python's manual has it


def show_mlflow() -> None:
    """Let this process find mlflow again, for a run that it tracks."""
    if "mlflow" in sys.modules and sys.modules["mlflow"] is None:
        del sys.modules["mlflow"]


def set_quiet(environment: MutableMapping[str, str]) -> None:
    """Silence libraries in a process that will start with this environment."""
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)


def has_gpu_driver() -> bool:
    """True if this machine may have a usable GPU; torch is not imported."""
    # NVIDIA's driver, AMD's, and Windows' for WSL.
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))


MASK = "..."
"""Replaces the value of a secret in a query."""
PASSWORD = r"[^\s/?#@:'\"<>]*:(?!\d*['\"<>])[^\s/?#@]*@"
"""A login whose password may contain quotes; elsewhere in a text, a quote ends the URL."""
URL = re.compile(
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{{0,30}})://(?P<rest>(?:{PASSWORD})?[^\s'\"<>]+)"
)
LOGIN = re.compile(
    r"[^/?#]*@"
    # A password that was pasted with a slash or the like: a port is all digits.
    r"|(?!\[)[^/?#@:]*:(?!\d*(?:[/?#]|$)).*@"
)
PARAMETER = re.compile(r"(?P<name>[?&#;][^=?&#;]*)=(?P<value>[^&#;]*(?:;[^=&#;]*(?=[&#;]|$))*)")
SECRET = re.compile(
    r"sign|token|key|secret|pass|pwd|cred|auth|jwt|session|hmac|policy|cookie|bearer|ticket|verify"
    r"|(?:^|[^a-z])(?:sig|sas|code|pw|md5|hdnts|hdnea|hdntl)(?:$|[^a-z])",
    re.IGNORECASE,
)
"""Names of parameters whose values are secrets, with those of AWS, Google Cloud, Azure, Akamai,
Cloudflare and nginx."""
WEB = ("http", "https", "ftp", "ftps", "ws", "wss")
"""Schemes that lose the whole login. Others keep its user: sftp://user@host, abfs://box@host."""


def without_credentials(text: str) -> str:
    """The text with its URLs cleaned: no logins, and `...` for secrets in their queries."""
    return URL.sub(_clean, text) if "://" in text else text


def lost_credentials(url: str) -> bool:
    """True if a URL was stored without a secret of its query, so that it cannot be opened."""
    return any(match["value"] == MASK for match in PARAMETER.finditer(url))


def _clean(url: re.Match[str]) -> str:
    def masked(parameter: re.Match[str]) -> str:
        value = unquote(parameter["value"])  # may be a URL with credentials
        secret = SECRET.search(unquote(parameter["name"])) or without_credentials(value) != value
        return f"{parameter['name']}={MASK}" if secret else parameter[0]

    # https://me:word@host/x?token=abc&n=2 -> https://host/x?token=...&n=2
    scheme, rest = url["scheme"], url["rest"]
    # fsspec writes github://org:repository@branch, which looks like a login.
    if (login := LOGIN.match(rest)) and scheme.lower() not in ("github", "gitlab"):
        user = login[0].partition(":")[0].removesuffix("@")
        user_part = "" if scheme.lower() in WEB or not user else f"{user}@"
        rest = user_part + rest[login.end() :]
    return f"{scheme}://{PARAMETER.sub(masked, rest)}"
