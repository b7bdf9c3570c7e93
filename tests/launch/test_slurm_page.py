"""The job script in docs/launching.md, with programs in SLURM's place that do what SLURM would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

STANDINS = {
    "scontrol": """[ "$*" = "show hostnames" ] && printf 'node7\\nnode9\\n'""",
    "srun": """shift; for n in 0 1; do SLURM_NODEID=$n "$@" || exit; done""",
    "vlds": """printf '%s\\n' "$VLDS_LAUNCHER_ARGS" > "args-$SLURM_NODEID"
printf '%s\\n' "$*" > "words-$SLURM_NODEID\"""",
}


def test_the_job_script_starts_once_on_every_machine(root: Path, tmp_path: Path) -> None:
    page = (root / "docs" / "launching.md").read_text("utf-8")
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "hosts").read_text() == "node7 slots=8\nnode9 slots=8\n"
    for number in (0, 1):
        given = shlex.split((tmp_path / f"args-{number}").read_text())
        assert given == [
            "--hostfile", "hosts", "--no_ssh", "--node_rank", str(number),
            "--master_addr", "node7", "--master_port", "29500",
        ]  # fmt: skip
        words = (tmp_path / f"words-{number}").read_text().split()
        assert words == ["train", "--config", "recipes/demo.yaml", "--resume", "auto"]
