"""Help of the commands that take a recipe; its keys, some hundreds, are shown when asked for."""

from __future__ import annotations

RECIPE = """\
  RECIPE               a YAML file, or one that vlds brings: recipes/demo.yaml
  --KEY VALUE          another value for a key of the recipe
  --config FILE        a further recipe, whose keys take precedence
  --print_config       show the whole recipe, defaults included, and end
  --help-all           all keys, with what they mean and their defaults
"""
TRAIN = f"""\
usage: vlds train RECIPE [--KEY VALUE ...] [options]

Train what a recipe names, on all ranks. The artifact, states, metrics and
predictions go to the recipe's `output` folder.

  vlds train recipes/demo.yaml
  vlds train my.yaml --training.steps 200 --optimizer.learning_rate 1e-4
  vlds train my.yaml --ranks 2 --restarts 3
  vlds train my.yaml --resume

processes:
  --ranks N            one process per GPU by default, or one without a GPU
  --resume             go on with the run in `output`, from its newest state
  --resume auto        the same where there is a state, else start anew
  --restarts N         start a failed run again, N times at most (default 0)
  --new_phase          with --resume: go on in another mixture of tasks, each
                       task from where it was

recipe:
{RECIPE}
Ctrl-C, SIGTERM and SIGHUP save a state and end; VLDS_GRACE_S seconds later
(default 120) the ranks are killed. VLDS_LAUNCHER_ARGS goes to the deepspeed
launcher (--hostfile, --master_port, ...).
"""
PLAN = f"""\
usage: vlds plan RECIPE [--ranks N ...] [--json] [--KEY VALUE ...]

Say how many bytes each rank of a recipe's run holds, before it starts.

  vlds plan recipes/demo.yaml
  vlds plan my.yaml --ranks 1 2 4 8 --training.precision bf16

  --ranks N [N ...]    numbers of processes, a table for each (default 1)
  --json               the same as JSON
{RECIPE}"""
DESCRIBE = f"""\
usage: vlds describe RECIPE [--json] [--KEY VALUE ...]

Count the parameters of a recipe by part, and those that train, without making
them.

  vlds describe recipes/demo.yaml
  vlds describe my.yaml --methods.lora.rank 8

  --json               the same as JSON
{RECIPE}"""
HELP = {"train": TRAIN, "plan": PLAN, "describe": DESCRIBE}
