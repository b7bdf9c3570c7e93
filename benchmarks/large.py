"""Measures what each rank holds of a model that ZeRO stage 3 has partitioned, from loading to the
artifact.

    python benchmarks/large.py --out runs/large
    python benchmarks/large.py --out runs/large --ranks 2 --layers 4

The model is a T5 with random weights in bf16, 1.6 billion by default, which the first run writes to
OUT/large. Adapters train in it. Ranks are processes of this machine. Every few milliseconds each
reads how much memory it has of its own: without the pages of files that the kernel can drop. A
phase's number is the most in it, less what a rank holds then of a tiny T5 (imports, torch's and
DeepSpeed's own), as a share of the whole model's bytes; in all, and without the bytes of what
trains: weights, masters, moments, gradients, and in the artifact's phase the run state. In
evaluation, the first rank answers one batch and the last one as many as there are ranks. The table
goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

WIDTH, HEADS, WORDS = 1792, 28, 32_128
TINY: dict[str, int] = {"layers": 1, "width": 56, "words": WORDS}
"""Sizes of a model that takes next to nothing."""
FEATURES, GRID, ROWS, PROMPT, LABELS, NEW_TOKENS = 512, 4, 2, 12, 4, 4
PHASES = ("loading", "engine", "training", "evaluation", "artifact")
STEPS = 2


class Numbers:
    """Stands for a tokenizer: texts are their tokens' numbers."""

    def __len__(self) -> int:
        return WORDS

    def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()


class Watched:
    """The memory of this process, read by a thread."""

    def __init__(self) -> None:
        self.most = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            self.most = max(self.most, self.now())
            time.sleep(0.005)

    @staticmethod
    def now() -> int:
        """Bytes that are in no file."""
        status = dict(
            line.split(":", 1)
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        )
        return sum(1024 * int(status[name].split()[0]) for name in ("RssAnon", "RssShmem"))

    @contextmanager
    def phase(self, found: dict[str, int], name: str) -> Iterator[None]:
        """Inside is a phase, whose most goes to `found`."""
        self.most = self.now()
        yield
        found[name] = max(self.most, self.now())


def write_model(folder: Path, layers: int, width: int = WIDTH, words: int = WORDS) -> None:
    """A checkpoint with random weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=words, d_model=width, d_kv=width // HEADS, d_ff=4 * width, num_heads=HEADS,
        num_layers=layers, num_decoder_layers=layers, dtype="bfloat16", decoder_start_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config).bfloat16()
    draw = torch.Generator().manual_seed(0)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02, generator=draw)
    model.tie_weights()
    model.save_pretrained(folder)


def run_rank(out: Path) -> None:
    """Go through all phases on one rank; write what was found to OUT/rank-N.json."""
    from vlds.artifact import own_tensors, save_artifact
    from vlds.data.config import DataConfig
    from vlds.models import JointSeq2Seq
    from vlds.models.backbones import T5
    from vlds.models.build import build_model
    from vlds.models.methods import Adapter
    from vlds.models.partitioned import partitioned_loading
    from vlds.models.vision import StoredFeatures
    from vlds.recipe.config import OptimizerConfig, Recipe, TrainingConfig
    from vlds.runtime.deepspeed_start import start_ranks
    from vlds.runtime.process import returning_freed_memory
    from vlds.schema import Batch, Decoding
    from vlds.tasks import VQA
    from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
    from vlds.training.engine import Engine
    from vlds.training.optimizer import parameter_groups, set_learning_rate

    ranks = start_ranks(1800)
    words: Any = Numbers()
    recipe = Recipe(
        output=str(out / "run"),
        model=JointSeq2Seq(
            backbone=T5(path=str(out / "model"), tokenizer="none", extra_tokens=0, dropout=0.0),
            vision=StoredFeatures(dim=FEATURES, grid=GRID),
        ),
        methods={"adapter": Adapter(reduction=8)},
        tasks={"vqa": VQA()},
        data=DataConfig(global_batch_size=ROWS * ranks.world_size),
        optimizer=OptimizerConfig(),
        training=TrainingConfig(deepspeed="ds_configs/zero3.json"),
    )

    def batch(number: int) -> Batch:
        draw = torch.Generator().manual_seed(number)
        tokens = torch.randint(100, 20_000, (ROWS, PROMPT + LABELS), generator=draw)
        return Batch(
            ids=[str(row) for row in range(ROWS)],
            task_index=torch.zeros(ROWS, dtype=torch.int64),
            input_ids=tokens[:, :PROMPT],
            attention_mask=torch.ones(ROWS, PROMPT, dtype=torch.bool),
            labels=tokens[:, PROMPT:],
            labels_on_prompt=False,
            weights=torch.ones(ROWS),
            valid=torch.ones(ROWS, dtype=torch.bool),
            image_index=torch.arange(ROWS)[:, None],
            features=torch.randn(ROWS, GRID * GRID, FEATURES, generator=draw).half(),
            media=[],
        )

    config = complete_deepspeed_config(
        Path(recipe.training.deepspeed), recipe, cut_batches(recipe, ranks.world_size)
    )
    watched, found, seconds = Watched(), dict[str, int](), dict[str, float]()
    began = time.perf_counter()
    with watched.phase(found, "loading"), partitioned_loading(config):
        model = build_model(recipe.model_setup, ["vqa"], torch.bfloat16, words)
    seconds["loading"] = time.perf_counter() - began
    with watched.phase(found, "engine"):
        engine = Engine(
            model, parameter_groups(model, recipe), config,
            ranks=ranks, tasks=list(recipe.tasks.values()), evaluates_whole=False,
        )  # fmt: skip
        set_learning_rate(engine.parameter_groups, 1.0)
    began = time.perf_counter()
    with watched.phase(found, "training"):
        for step in range(STEPS):
            engine.step([batch(step * ranks.world_size + ranks.global_rank)])
    seconds["a step"] = (time.perf_counter() - began) / STEPS
    began = time.perf_counter()
    with (
        engine.evaluation() as evaluated,
        watched.phase(found, "evaluation"),  # behind: what training kept goes back there
        evaluated.at_own_pace() as begin_batch,
    ):
        for number in range(1 + ranks.global_rank):
            begin_batch()
            evaluated.answer(batch(number), Decoding(max_new_tokens=NEW_TOKENS))
    # One token after another passes all layers of the decoder, which are gathered each time.
    seconds["an answered batch"] = (time.perf_counter() - began) / ranks.world_size
    with returning_freed_memory(), watched.phase(found, "artifact"):
        state = engine.export()
        masters = {
            name: torch.empty(0) if state is None else state[name]["fp32"]
            for name, _ in engine.trainable_parameters()
        }
        tensors = own_tensors(model, masters)
        if ranks.is_first:
            save_artifact(out / "run/artifact", tensors, recipe, words)
        ranks.barrier()
    sizes, counts = engine.bytes_per_rank(), model.count_parameters()
    trains = sizes["trainable"] + sizes["optimizer"]
    # Whole while a pass runs; gradients, and this rank's part of their sums in fp32; masters and
    # moments of the run state.
    weights = gradients = 2 * counts.trainable
    own_sums = 4 * counts.trainable // ranks.world_size
    trained = {
        "engine": trains,
        "training": trains + weights + gradients + own_sums,
        "evaluation": trains + weights,
        "artifact": trains + 12 * counts.trainable * ranks.is_first,
    }
    facts = {
        "bytes": found,
        "trained": trained,
        "seconds": seconds,
        "weights": counts.total,
        "trains": counts.trainable,
    }
    (out / f"rank-{ranks.global_rank}.json").write_text(json.dumps(facts), encoding="utf-8")
    os._exit(0)


def measure(out: Path, num_ranks: int) -> list[dict[str, Any]]:
    """What each rank found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--out", str(out), "--rank"],
            env=os.environ
            | {
                "RANK": str(rank), "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu",
            },
        )
        for rank in range(num_ranks)
    ]  # fmt: skip
    if any([process.wait() for process in processes]):
        sys.exit("a rank has failed")
    return [json.loads((out / f"rank-{n}.json").read_text()) for n in range(num_ranks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/large"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--layers", type=int, default=17, help="of encoder and decoder each")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run_rank(options.out)
    large, tiny = options.out / "large", options.out / "tiny"
    for folder, sizes in ((large, {"layers": options.layers}), (tiny, TINY)):
        if not (folder / "model").exists():
            write_model(folder / "model", **sizes)
    whole = sum(file.stat().st_size for file in (large / "model").glob("*.safetensors"))
    print(f"| ranks | | {' | '.join(PHASES)} | loading | a step | a batch |")
    print(f"|---:|---|{'---:|' * (len(PHASES) + 3)}")
    for num_ranks in options.ranks:
        empty, found = measure(tiny, num_ranks), measure(large, num_ranks)
        held = [max(rank["bytes"][phase] for rank in empty) for phase in PHASES]
        seconds = [max(rank["seconds"][key] for rank in found) for key in found[0]["seconds"]]
        for what in ("in all", "beside what trains"):
            shares = []
            for phase, of_empty in zip(PHASES, held, strict=True):
                own = [
                    rank["bytes"][phase] - (what != "in all") * rank["trained"].get(phase, 0)
                    for rank in found
                ]
                shares.append(f"{(max(own) - of_empty) / whole:.0%}")
            cells = [*shares, *(f"{number:.1f} s" for number in seconds)]
            print(f"| {num_ranks} | {what} | {' | '.join(cells)} |", flush=True)
    print(
        f"\n{found[0]['weights']:,} weights, of which {found[0]['trains']:,} train; {whole:,} bytes"
    )


if __name__ == "__main__":
    main()
