"""`python -m data_prep COMMAND`."""

from __future__ import annotations

import sys

from data_prep.cli import main
from vlds.runtime.terminal import tell_exception

if __name__ == "__main__":
    sys.excepthook = tell_exception
    sys.exit(main())
