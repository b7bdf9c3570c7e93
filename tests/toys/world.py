"""The files of a tiny real run: shards, a tokenizer, model sizes, DeepSpeed configs; its recipe."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from PIL import Image

from data_prep.packing.writer import SampleRecord, write_dataset
from vlds.data.config import DataConfig
from vlds.data.errors import ErrorPolicy
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5
from vlds.models.methods import Adapter
from vlds.models.vision import ConvNet
from vlds.recipe.config import OptimizerConfig, Recipe, TrainingConfig
from vlds.tasks import VQA, Caption

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
SIZES: dict[str, Any] = {
    "model_type": "t5", "vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2,
    "num_decoder_layers": 2, "num_heads": 4, "dropout_rate": 0.1, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip


def write_world(folder: Path) -> None:
    """Data sets vqa and caption, spiece.model, t5.json, zero2.json and zero3.json."""
    for kind, samples in (("vqa", 24), ("caption", 10)):
        write_dataset(
            folder / kind,
            name=kind,
            kind=kind,
            split="train",
            records=records(kind, samples),
            shard_samples=8,
        )
    write_tokenizer(folder / "spiece.model")
    (folder / "t5.json").write_text(json.dumps(SIZES), encoding="utf-8")
    for stage in (2, 3):
        zero: dict[str, Any] = {"stage": stage}
        if stage == 3:
            zero["stage3_param_persistence_threshold"] = 0
        text = json.dumps({"zero_optimization": zero, "bf16": {"enabled": "auto"}})
        (folder / f"zero{stage}.json").write_text(text, encoding="utf-8")


def records(kind: str, num_samples: int) -> Iterator[SampleRecord]:
    """Samples with a picture of one colour, and 1 to 3 questions or 2 captions of two lengths."""
    for index in range(num_samples):
        colour = list(COLOURS)[index % len(COLOURS)]
        label = {"label": {colour: 1.0, "dark": 0.3}}
        questions = [
            {"id": f"q{index}-{n}", "question": f"what colour is it {'now ' * n}?", **label}
            for n in range(1 + index % 3)
        ]
        texts = [f"it is {colour}", f"a picture that is {colour} and nothing but {colour}"]
        captions = [{"id": f"c{index}-{n}", "caption": text} for n, text in enumerate(texts)]
        yield SampleRecord(
            id=f"{kind}-{index}",
            members=[("jpg", picture(colour, index))],
            json={"annotations": questions if kind == "vqa" else captions, "size": [[16, 16]]},
        )


def picture(colour: str, seed: int) -> bytes:
    """A noisy JPEG of 16 x 16 pixels."""
    noise = np.random.default_rng(seed).integers(-20, 20, (16, 16, 3))
    pixels = (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tokenizer(file: Path, capitals: bool = False) -> None:
    """A sentencepiece model of the world's words, perhaps in capitals, with T5's special pieces."""
    lines = ["vqa: what colour is it now ?", "caption: a picture that is", "and nothing but dark"]
    texts = [line.upper() if capitals else line for line in (*lines, *COLOURS)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20), model_writer=model, vocab_size=60,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    file.write_bytes(model.getvalue())


def world_recipe(folder: Path, output: Path, stage: int = 2, precision: str = "fp32") -> Recipe:
    """Ten steps with dropout and a state after every fifth; vqa is evaluated at the end."""
    shared: dict[str, Any] = {"max_prompt_tokens": 12, "max_target_tokens": 12}
    decoding = replace(VQA().decoding, max_new_tokens=6)
    return Recipe(
        output=str(output),
        seed=7,
        methods={"adapter": Adapter(sharing="half_shared_up", reduction=4)},
        tasks={
            "vqa": VQA(
                train=[str(folder / "vqa")],
                evaluate=[str(folder / "vqa")],
                weight=2.0,
                decoding=decoding,
                **shared,
            ),
            "caption": Caption(
                train=[str(folder / "caption")],
                decoding=decoding,
                **shared,
            ),
        },
        data=DataConfig(
            global_batch_size=8, micro_batch_size=2, errors=ErrorPolicy(max_bad_fraction=1.0)
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, connector_learning_rate=3e-3),
        training=TrainingConfig(
            steps=10,
            precision=precision,  # type: ignore[arg-type]
            deepspeed=str(folder / f"zero{stage}.json"),
            log_every=1,
            save_every=5,
            collective_timeout=60,
        ),
        model=JointSeq2Seq(
            backbone=T5(
                config=str(folder / "t5.json"),
                tokenizer=str(folder / "spiece.model"),
                extra_tokens=0,
                visual_tokens=4,
            ),
            vision=ConvNet(image_size=16, grid=2, widths=[4, 8, 8]),
            train_norms=True,
        ),
    )
