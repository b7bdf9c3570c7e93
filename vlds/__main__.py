"""The command `vlds`, also as `python -m vlds`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # the working directory, in which a stranger's files may lie

from vlds.runtime.process import SAFE_PATH, Interrupted, interruptible
from vlds.runtime.terminal import end_output, guard_output, tell


def main() -> int:
    """Run the command; the exit code. Ctrl-C during the imports ends in one line too."""
    os.environ[SAFE_PATH] = "1"
    guard_output()
    try:
        with interruptible():
            from vlds.cli.main import main as run
    except Interrupted as error:
        tell(f"vlds: ended by {error.signal_name}", error=True)
        return error.exit_code
    return end_output(run())


if __name__ == "__main__":
    sys.exit(main())
