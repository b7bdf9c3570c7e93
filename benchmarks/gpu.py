"""The first ten minutes on a GPU: what it computes, how fast, and what that takes, on one page.

    python benchmarks/gpu.py --out runs/gpu > gpu.md
    python benchmarks/gpu.py --out runs/gpu --models t5-large --methods LoRA --no-tests

The parts of the page:

1. The card, the libraries, and the rates of large products and of copies.
2. `make test-gpu`: every kind of model and method against the CPU, ZeRO 2 and 3, offload, fp16,
   runs that go on on the other device.
3. Training beside peft and a plain loop: `train.py`.
4. Answers, greedy, beside Hugging Face's `generate` on the same T5.
5. Where a step goes.

Without a GPU, the CPU takes its place, which shows that the program works; its first line says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "training"))
import ours  # noqa: E402
import peers  # noqa: E402
from shapes import Case, random_batch  # noqa: E402

from vlds.models.build import build_model  # noqa: E402
from vlds.runtime.devices import device_name, device_of, finish_work, profiled_activities  # noqa: E402
from vlds.schema import Decoding  # noqa: E402

NEW_TOKENS = 10
SHOWN = 15
"""Operations of a step that the page shows."""


class Numbers(ours.NoWords):
    """Stands for a tokenizer: texts are their tokens' numbers."""

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        return [" ".join(map(str, map(int, row))) for row in rows]


def median_seconds(work: Callable[[], object], rounds: int = 10) -> float:
    """Of work that a GPU does."""
    seconds = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        work()
        finish_work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first one warms up


def show_card(device: torch.device) -> None:
    """Part 1."""
    on_gpu = device.type == "cuda"
    if not on_gpu:
        print("There is no GPU here: the CPU takes its place.\n")
    versions = [
        f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers", "peft")
    ]
    if on_gpu:
        versions.append(f"CUDA {torch.version.cuda}")
    print(f"{device_name(device)}; Python {platform.python_version()}; {', '.join(versions)}.\n")
    size = 8192 if on_gpu else 512
    rows = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        flops = 2 * size**3 / median_seconds(lambda one=one, other=other: one @ other)  # type: ignore[misc]
        rows.append(f"{flops / 1e12:.2f} TFLOPS in {str(dtype).removeprefix('torch.')}")
    source = torch.empty(1 << (30 if on_gpu else 24), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / median_seconds(lambda: target.copy_(source))
    print(f"Products of {size} x {size}: {', '.join(rows)}. Copies: {rate / 1e9:.0f} GB/s.\n")


def show_tests() -> None:
    """Part 2: the last lines of the tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-rf"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print("\n".join([*lines, ended.stdout.splitlines()[-1]]), "\n")


def show_training(options: Any) -> None:
    """Part 3."""
    command = [
        sys.executable, str(HERE / "train.py"), "--out", str(options.out),
        "--rounds", str(options.rounds), "--batches", str(options.batch),
        "--models", *options.models, "--methods", *options.methods,
        "--ways", "vlds", "peft", "hooks",
    ]  # fmt: skip
    sys.stdout.flush()
    subprocess.run(command, check=True)
    print()


def show_answers(case: Case, device: torch.device, rounds: int) -> None:
    """Part 4: both write as many tokens to the same inputs, whatever the random weights prefer."""
    drawn = random_batch(case, 0)
    with tempfile.TemporaryDirectory() as folder:
        recipe, _ = ours.recipe_of(case, Path(folder))
        words: Any = Numbers(32_200)
        model = build_model(recipe.model_setup, list(recipe.tasks), case.dtype, words)
        model.to(device).eval()
    # Random weights write the end anywhere: another token, which they happen not to write, is it.
    model.backbone.config.eos_token_id = len(words) - 1
    batch = ours.batch_of(case, drawn).to(device)
    decoding = Decoding(max_new_tokens=NEW_TOKENS)
    theirs = peers.Seeing(case, peers.bare_model(case)).to(device, case.dtype).eval()
    there = drawn.to(device)

    def generate() -> None:
        visual = theirs.connector(there.features.to(case.dtype))
        embeds = torch.cat([theirs.table(there.prompts), visual], 1)
        theirs.language.generate(
            inputs_embeds=embeds, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
            do_sample=False,
        )  # fmt: skip

    with torch.no_grad():
        lengths = {len(answer.text.split()) for answer in model.answer(batch, decoding)}
        assert lengths == {NEW_TOKENS}, lengths
        own = median_seconds(lambda: model.answer(batch, decoding), rounds)
        other = median_seconds(generate, rounds)
    print(f"{case.model}, {case.batch} questions, {NEW_TOKENS} tokens each: vlds ", end="")
    print(f"{case.batch / own:.1f} answers/s, `generate` {case.batch / other:.1f}.\n")


def show_profile(case: Case) -> None:
    """Part 5."""
    with tempfile.TemporaryDirectory() as folder:
        step, _ = ours.step_of(case, Path(folder))
        for number in range(3):
            step(random_batch(case, number))
        finish_work()
        with profile(activities=profiled_activities()) as found:
            step(random_batch(case, 3))
            finish_work()
    by = "self_device_time_total" if case.device.type == "cuda" else "self_cpu_time_total"
    print(f"A step of {case.model} with {case.method}:\n\n```text")
    print(found.key_averages().table(sort_by=by, row_limit=SHOWN, max_name_column_width=48))
    print("```")


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for what it makes")
    parser.add_argument("--models", nargs="+", default=["t5-base", "t5-large", "image-text"])
    parser.add_argument("--methods", nargs="+", default=["Adapter", "LoRA"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-tests", action="store_true", help="leave out part 2")
    options = parser.parse_args()
    device = device_of()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    print("# The first ten minutes on a GPU\n")
    show_card(device)
    if not options.no_tests:
        show_tests()
    show_training(options)
    fields = {"batch": options.batch, "precision": "bf16", "dropout": 0.1}
    seq2seq = next((name for name in options.models if name in peers.T5_SIZES), "t5-base")
    show_answers(Case(model=seq2seq, method="LoRA", **fields), device, options.rounds)
    show_profile(Case(model=options.models[0], method=options.methods[0], **fields))


if __name__ == "__main__":
    main()
