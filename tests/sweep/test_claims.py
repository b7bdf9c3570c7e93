"""At most one process holds a part of a sweep; what a dead one held is free again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys.files import ROOT
from vlds.cli.sweep_work import claim
from vlds.runtime.folders import NAME, FolderInUse

HOLD = """
import sys, time
from pathlib import Path
from vlds.cli.sweep_work import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_process_claims_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path / "part")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse), claim(tmp_path / "part"):
            raise AssertionError("claimed twice")
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "part").exists()
    for _ in range(2):  # the claim's file stays, and keeps nobody of this host away
        with claim(tmp_path / "part"):
            pass
        assert (tmp_path / "part" / NAME).is_file()
