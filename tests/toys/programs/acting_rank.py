"""A program that the launcher tests start instead of a trainer; it does what its arguments say."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from vlds.cli.rank import watch_launcher, without_local_rank
from vlds.runtime.process import ASKING


def main() -> None:
    """Arguments: a folder for what this rank reports, what to do, and words to report."""
    folder, action, *words = without_local_rank(sys.argv[1:])
    global_rank = os.environ["RANK"]
    here = Path(folder)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)

    def save(*_: object) -> None:
        time.sleep(0.5)
        (here / f"saved{global_rank}").touch()
        sys.exit(0)

    if action == "late":
        (here / f"started{global_rank}").touch()
        while not (here / "go").exists():
            time.sleep(0.05)
    if action in ("save", "late"):
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, save)
        watch_launcher(lambda: os.kill(os.getpid(), signal.SIGTERM), grace_s=10, poll_s=0.2)
    if action == "deaf":
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, signal.SIG_IGN)
        watch_launcher(lambda: None, grace_s=1, poll_s=0.2)
    report = {"pid": os.getpid(), "arguments": sys.argv[1:], "words": words}
    report["environment"] = dict(os.environ)
    (here / f"{global_rank}.part").write_text(json.dumps(report))
    (here / f"{global_rank}.part").rename(here / f"{global_rank}.json")
    if action == "fail" and global_rank == "1":
        while not (here / "0.json").exists():  # the launcher ends the other rank, however far it is
            time.sleep(0.05)
        sys.exit(3)
    if action != "end":
        time.sleep(120)


if __name__ == "__main__":
    main()
