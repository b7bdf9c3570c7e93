"""`vlds data COMMAND`, as `python -m data_prep COMMAND`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # as in vlds/__main__.py

from vlds.runtime.process import SAFE_PATH, Interrupted, interruptible
from vlds.runtime.terminal import end_output, guard_output, tell, tell_exception


def main() -> int:
    """Run the command and return its exit code; Ctrl-C is one line during the imports, too."""
    sys.excepthook = tell_exception
    os.environ[SAFE_PATH] = "1"
    guard_output()
    try:
        with interruptible():
            from .cli import main as run
    except Interrupted as error:
        tell(f"interrupted by {error.signal_name}", error=True)
        return error.exit_code
    return end_output(run())


if __name__ == "__main__":
    sys.exit(main())
