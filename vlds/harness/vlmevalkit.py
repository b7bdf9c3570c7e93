"""A run as a model of VLMEvalKit: `python -m vlds.harness.vlmevalkit run.py --config FILE`.

VLMEvalKit has no door for models of other packages: its run.py takes the names in a dict of its
own, and from a config the names of classes in `vlmeval.vlm`. This program adds `Vlds` to the
latter, and then runs run.py with the words that follow.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from vlds.runtime.terminal import tell


def main(words: Sequence[str]) -> int:
    """Run VLMEvalKit's run.py; exit code 2 if it is not named."""
    if not words or not Path(words[0]).is_file():
        tell(f"error: name VLMEvalKit's run.py, then its options; got {words[:1]}", error=True)
        return 2
    # Its package is in the same folder, and nothing installs it.
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    import vlmeval.vlm

    from vlds.harness.vlmevalkit_model import Vlds

    vlmeval.vlm.Vlds = Vlds
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
