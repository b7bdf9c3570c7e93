"""What the help of each command says before its options: the first examples to try."""

from __future__ import annotations

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
