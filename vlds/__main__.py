"""The command `vlds`, also as `python -m vlds`."""

from __future__ import annotations

import sys

from vlds.runtime.process import Interrupted, interruptible
from vlds.runtime.terminal import tell


def main() -> int:
    """Run the command; the exit code. Ctrl-C during the imports ends in one line too."""
    try:
        with interruptible():
            from vlds.cli.main import main as run
    except Interrupted as error:
        tell(f"vlds: ended by {error.signal_name}", error=True)
        return error.exit_code
    return run()


if __name__ == "__main__":
    sys.exit(main())
