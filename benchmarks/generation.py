"""Compares decoding with a plain loop over Hugging Face's `generate`: speed, and equal answers.

    python benchmarks/generation.py --out runs/generation --rounds 3

The program makes two data sets: pictures with five questions each, answered greedily through an
online vision encoder (ResNet-50 at 224), and clips of stored features with 50 to 600 words of
subtitles, described with five beams. The model is a BART of 6 + 6 layers and width 512 with random
weights, scaled up so that answers depend on the input. The logit of </s> is raised, so that answers
end at different lengths.

    plain loop                  takes the examples in their order, stores a picture per example,
                                pads a batch to its longest input, calls `generate` with its cache
                                on; with vlds' attention for CPUs
    plain loop, fused attention the same with torch's fused attention, Hugging Face's default
    our batches, their decoder  vlds' batches, Hugging Face's decoder
    vlds                        vlds' batches and decoder

All rows include reading the samples. CPU time; the rounds of all rows alternate. Tables go to
stdout.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from data_prep.packing.writer import SampleRecord, write_dataset
from vlds.data.shards.pictures import decode_image
from vlds.data.shards.sample import feature_bytes
from vlds.data.shards.store import open_dataset
from vlds.data.streams.assemble import ImageStack, StreamSetup
from vlds.data.streams.source import EvalOrder, Source, survey
from vlds.data.streams.stream import EvalStream
from vlds.models import JointSeq2Seq
from vlds.models.backbones import Bart
from vlds.models.backbones.attention import CPU_ATTENTION
from vlds.models.build import ModelSetup, build_model
from vlds.models.collate import JointCollator
from vlds.models.kinds.joint import JointModel
from vlds.models.vision import StoredFeatures, Timm, VisionEncoder
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.runtime.process import find
from vlds.schema import Batch, Decoding, ImageSpec, Row
from vlds.tasks import VQA, VideoCaption

NEAR_TIE = 1e-3
"""Different answers are a tie if their scores (mean log-probability) differ by less."""
QUESTIONS, FRAMES, FRAME_DIM = 5, 64, 512
WORDS = 5000
END_OF_ANSWERS, END_OF_DESCRIPTIONS = 0.3, 0.1
"""Share of the positions at which </s> comes next."""
SIZES = {"d_model": 512, "encoder_attention_heads": 8, "decoder_attention_heads": 8} | {
    "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "vocab_size": 32000
}  # fmt: skip


class Words:
    """A tokenizer for invented words: "w17" is a token."""

    def __init__(self, config: Any, size: int) -> None:
        self.pad_token_id, self.end, self.size = config.pad_token_id, config.eos_token_id, size
        self.start = [config.bos_token_id] if config.model_type == "bart" else []

    def __len__(self) -> int:
        return self.size

    def __call__(self, texts: list[str], max_length: int, **options: Any) -> dict[str, Any]:
        rows = []
        for text in texts:
            words = [100 + int(word[1:]) for word in text.split() if word[1:].isdecimal()]
            rows.append([*[*self.start, *words][: max_length - 1], self.end])
        return {"input_ids": rows}

    def batch_decode(self, rows: Any, skip_special_tokens: bool) -> list[str]:
        special = {self.pad_token_id, self.end, *self.start}
        return [" ".join(f"t{t}" for t in list(map(int, row)) if t not in special) for row in rows]


@dataclass(frozen=True)
class Workload:
    """A model, its data, and how to decode them."""

    title: str
    model: JointModel
    source: Source
    image: ImageSpec | None
    batch_size: int
    decoding: Decoding


Way = Callable[[Workload], dict[str, str]]
"""A way to answer every example: id -> text."""


# Ways to decode.


def ours(work: Workload) -> dict[str, str]:
    """vlds, as it evaluates."""
    answers: dict[str, str] = {}
    for batch in our_batches(work):
        texts = [answer.text for answer in work.model.answer(batch, work.decoding)]
        answers |= dict(zip(batch.ids, texts, strict=True))
    return answers


def plain(work: Workload) -> dict[str, str]:
    """The plain loop, with vlds' attention for CPUs."""
    return by_generate(work, plain_batches(work))


def plain_fused(work: Workload) -> dict[str, str]:
    """The plain loop, with Hugging Face's default attention."""
    work.model.backbone.set_attn_implementation("sdpa")
    try:
        return plain(work)
    finally:
        work.model.backbone.set_attn_implementation(CPU_ATTENTION)


def our_batches_by_generate(work: Workload) -> dict[str, str]:
    """vlds' batches, Hugging Face's decoder."""
    return by_generate(work, our_batches(work))


def our_batches(work: Workload) -> Iterator[Batch]:
    """vlds' batches: sorted by cost, one picture's questions together."""
    source, tokenizer = work.source, work.model.tokenizer
    counts = source.counts
    costs = survey(source, range(len(counts)), tokenizer).costs
    whole = source.task.unit == "sample"
    order = EvalOrder(counts, costs, work.batch_size, whole_samples=whole)
    return iter(
        EvalStream(
            source,
            order,
            StreamSetup(collator=JointCollator(tokenizer, features=False), image=work.image),
        )
    )


def plain_batches(work: Workload) -> Iterator[Batch]:
    """Batches of examples in their order, each with its own copy of the picture."""
    (dataset,) = work.source.datasets
    rows: list[Row] = []
    stack = ImageStack(work.batch_size)
    for number in range(dataset.num_samples):
        whole = work.source.task.unit == "sample"
        for annotation in [None] if whole else range(len(dataset.read(number).annotations)):
            sample = dataset.read(number)
            task = work.source.task
            example = task.example(work.source.name, sample, annotation, None)
            pictures: Sequence[Any] = sample.features
            if work.image is not None:
                pictures = [decode_image(data, work.image, sample.key) for data in sample.images]
            limits = task.max_prompt_tokens, task.max_target_tokens
            rows.append(Row(example, 0, *limits, stack.add(pictures)))
            if len(rows) == work.batch_size:
                yield plain_batch(work, rows, stack)
                rows, stack = [], ImageStack(work.batch_size)
    if rows:
        yield plain_batch(work, rows, stack)


def plain_batch(work: Workload, rows: Sequence[Row], stack: ImageStack) -> Batch:
    """A batch, padded to its longest input."""
    features = work.image is None
    return JointCollator(work.model.tokenizer, features=features)(
        rows, stack.images(), evaluation=True
    )


def by_generate(work: Workload, batches: Iterator[Batch]) -> dict[str, str]:
    """Hugging Face's `generate` over the joint encoder's states."""
    model = work.model
    answers: dict[str, str] = {}
    config = model.backbone.config
    settings = GenerationConfig(
        num_beams=work.decoding.num_beams,
        max_length=1 + work.decoding.max_new_tokens,
        do_sample=False,
        use_cache=True,
        length_penalty=1.0,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        forced_eos_token_id=config.eos_token_id if work.decoding.num_beams > 1 else None,
    )
    for batch in batches:
        with torch.no_grad():
            states, mask = model.encode(batch)
            model.context.routing.set(batch.task_index.repeat_interleave(work.decoding.num_beams))
            ids = model.backbone.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                generation_config=settings,
            )
        texts = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        answers |= dict(zip(batch.ids, texts, strict=True))
    return answers


# Models and data.


def build(folder: Path, vision: VisionEncoder, grid: int) -> JointModel:
    """The model; its config is written next to the data's folder."""
    shipped = json.loads(find("recipes/backbones/bart-base.json").read_text("utf-8"))
    file = folder.parent / "bart.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(shipped | SIZES), encoding="utf-8")
    family = Bart(config=str(file))
    config = family.read_config()
    tokenizer = Words(config, config.vocab_size + family.extra_tokens + family.visual_tokens)
    bridge = VisualEmbeddingConfig(grid=grid)
    parts = ModelSetup(kind=JointSeq2Seq(backbone=family, vision=vision, visual_embedding=bridge))
    model = build_model(parts, ["task"], torch.float32, tokenizer).eval()
    assert isinstance(model, JointModel)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter *= 3
    return model


def raise_end(work: Workload, share: float) -> Workload:
    """Raise the logit of </s>: it shall come next at this share of the first batch's positions."""
    model = work.model
    config = model.backbone.config
    batch = next(our_batches(work))
    written = model.generate(batch, Decoding(max_new_tokens=19))[0]
    ids = torch.tensor(
        [
            [config.decoder_start_token_id, *(row + [config.pad_token_id] * 19)[:18]]
            for row in written
        ]
    )
    with torch.no_grad():
        logits = model.vocabulary_logits(model.decode(*model.encode(batch), ids))
        gaps = logits.max(-1).values - logits[..., config.eos_token_id]
        model.backbone.final_logits_bias[0, config.eos_token_id] = gaps.quantile(share)
    return work


def questions(folder: Path, num: int) -> Workload:
    """Pictures of noise with five questions of 5 to 14 words each."""
    draw = np.random.default_rng(0)
    vision = Timm(model="resnet50", image_size=224)
    spec = vision.geometry.image
    assert spec is not None
    records = (
        SampleRecord(
            id=str(n),
            members=[("jpg", noise(n, spec))],
            json={"annotations": [
                {"id": f"{n}-{q}", "question": words(draw, 5, 14)} for q in range(QUESTIONS)
            ]},
        )
        for n in range(num)
    )  # fmt: skip
    write_dataset(folder, name="questions", kind="vqa", split="val", records=records)
    task = VQA(prompt="")
    source = Source("task", task, [open_dataset(folder)])
    model = build(folder, vision, 6)
    decoding = Decoding(max_new_tokens=19)
    work = Workload("Five questions per picture", model, source, spec, 30, decoding)
    return raise_end(work, END_OF_ANSWERS)


def clips(folder: Path, num: int) -> Workload:
    """Stored features with 50 to 600 words of subtitles."""
    draw = np.random.default_rng(1)
    records = (
        SampleRecord(
            id=str(n),
            members=[("features.npy", features(draw))],
            json={
                "annotations": [{"id": str(n)}],
                "subtitles": [{"text": words(draw, 50, 600), "start": 0, "end": 1}],
            },
        )
        for n in range(num)
    )
    write_dataset(folder, name="clips", kind="video_caption", split="val", records=records)
    vision = StoredFeatures(dim=FRAME_DIM, grid=8)
    source = Source("task", VideoCaption(), [open_dataset(folder)])
    # As in Hugging Face's `generate`, the start token does not count.
    decoding = Decoding(num_beams=5, max_new_tokens=19, length_counts_start=False)
    model = build(folder, vision, 8)
    work = Workload("Subtitles of 50 to 600 words", model, source, None, 8, decoding)
    return raise_end(work, END_OF_DESCRIPTIONS)


def words(draw: np.random.Generator, fewest: int, most: int) -> str:
    """Between `fewest` and `most` random words."""
    return " ".join(f"w{n}" for n in draw.integers(WORDS, size=draw.integers(fewest, most + 1)))


def features(draw: np.random.Generator) -> bytes:
    """A clip's stored features."""
    return feature_bytes(draw.normal(size=(FRAMES, FRAME_DIM)))


def noise(seed: int, spec: ImageSpec) -> bytes:
    """A JPEG of coloured noise, of the size that the encoder takes."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (7, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((spec.width, spec.height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


# Results.


def measure(work: Workload, ways: dict[str, Way], rounds: int) -> None:
    """Measure the ways in alternating rounds; print a table with speeds and differing answers."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, dict[str, str]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            answers[name] = way(work)
            seconds[name].append(time.process_time() - started)
    num = len(answers["vlds"])
    print(f"\n{work.title}: {num} examples, batches of {work.batch_size}\n")
    print("| | examples/s of CPU time | range | vlds is faster by | other answers |")
    print("|---|---|---|---|---|")
    vlds_median = statistics.median(seconds["vlds"])
    for name, measured in seconds.items():
        median = statistics.median(measured)
        speeds = f"{num / max(measured):.2f} to {num / min(measured):.2f}"
        ratio = "" if name == "vlds" else f"{median / vlds_median:.2f}"
        others = "" if name == "vlds" else differences(work, answers["vlds"], answers[name])
        print(f"| {name} | {num / median:.2f} | {speeds} | {ratio} | {others} |")
    lengths = Counter(len(text.split()) for text in answers["vlds"].values())
    print("\nWords per answer: " + ", ".join(f"{n}: {c}" for n, c in sorted(lengths.items())))


def differences(work: Workload, own: dict[str, str], other: dict[str, str]) -> str:
    """How many answers differ, and which of each pair scores higher."""
    assert own.keys() == other.keys()
    gaps = [
        score(work, key, own[key]) - score(work, key, other[key])
        for key in own
        if own[key] != other[key]
    ]
    if not gaps:
        return "none"
    ties = sum(abs(gap) < NEAR_TIE for gap in gaps)
    better = sum(gap >= NEAR_TIE for gap in gaps)
    return f"{len(gaps)}: {ties} near ties, {better} better here, {len(gaps) - ties - better} there"


def score(work: Workload, key: str, text: str) -> float:
    """The mean log-probability of an answer and its </s>, which the search compares. A </s> that
    the limit forces costs nothing."""
    batch = next(batch for batch in plain_batches(work) if key in batch.ids)
    batch = batch.select(torch.tensor([batch.ids.index(key)]))
    config, limit = work.model.backbone.config, work.decoding.max_new_tokens
    tokens = [int(word[1:]) for word in text.split()]
    ids = torch.tensor([[config.decoder_start_token_id, *tokens, config.eos_token_id]])
    with torch.no_grad():
        decoded = work.model.decode(*work.model.encode(batch), ids[:, :-1])
        scores = work.model.vocabulary_logits(decoded).log_softmax(-1)
    log_probabilities = scores[0].gather(1, ids[0, 1:, None])
    if len(tokens) >= limit - 1 and work.decoding.num_beams > 1:
        log_probabilities[-1] = 0
    return float(log_probabilities.mean())


def main() -> None:
    """Measure both workloads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--clips", type=int, default=24)
    options = parser.parse_args()
    ways: dict[str, Way] = {
        "plain loop": plain,
        "plain loop, fused attention": plain_fused,
        "our batches, their decoder": our_batches_by_generate,
        "vlds": ours,
    }
    for work in (
        questions(options.out / "questions", options.pictures),
        clips(options.out / "clips", options.clips),
    ):
        measure(work, ways, options.rounds)


if __name__ == "__main__":
    main()
