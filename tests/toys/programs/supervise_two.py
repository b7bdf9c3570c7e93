"""Supervise two ranks of acting_rank.py. Arguments: grace time in seconds, then the program's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vlds.cli.start import launch_command
from vlds.cli.supervisor import supervise
from vlds.runtime.process import signals_collected

if __name__ == "__main__":
    program = [str(Path(__file__).with_name("acting_rank.py")), *sys.argv[2:]]
    command, environment = launch_command(program, 2, [], os.environ, num_gpus=0)
    with signals_collected() as received:
        sys.exit(supervise(command, environment, float(sys.argv[1]), received).code)
