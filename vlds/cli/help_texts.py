"""What the help of each command says before its options: the first examples to try."""

from __future__ import annotations

RANKS_HELP = """\
train, evaluate, predict and features start one process (rank) per GPU, or one
on a machine without GPU. More or fewer: --ranks N, or VLDS_RANKS=N in the
environment. VLDS_LAUNCHER_ARGS is handed to the deepspeed launcher (--hostfile,
--no_ssh, --node_rank, --master_addr, --master_port, ...).
On SIGTERM, SIGINT (Ctrl-C) and SIGHUP the ranks of `vlds train` save and end;
after VLDS_GRACE_S seconds (default 120) they are killed.
"""
EXAMPLES = {
    "evaluate": """\
  vlds evaluate --run runs/vqa
  vlds evaluate --run runs/vqa --data shards/mine --out scores
  vlds evaluate --predictions answers.json --data shards/vqav2-val""",
    "predict": """\
  vlds predict --run runs/vqa --image beach.jpg --question "Is it raining?"
  vlds predict --run runs/vqa --serve
  vlds predict --run runs/vqa --split test --out answers""",
    "features": """\
  vlds features --config my.yaml --data shards/mine --out shards/mine-features""",
    "report": """\
  vlds report runs/vqa
  vlds report runs/* --format md""",
    "demo": """\
  vlds demo
  vlds demo --out runs/again --seed 1""",
}
PROCESSES = """\
  --ranks N             processes: one per GPU by default, or one without"""
OF_RANKS = ("evaluate", "predict", "features")


def described(name: str, about: str) -> str:
    """The description of a command: what it does, examples, its processes."""
    parts = [about, EXAMPLES.get(name, ""), PROCESSES if name in OF_RANKS else ""]
    return "\n\n".join(filter(None, parts))
