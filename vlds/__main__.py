"""`python -m vlds` is the command `vlds`."""

from __future__ import annotations

import sys

from vlds.launch import main

if __name__ == "__main__":
    sys.exit(main())
