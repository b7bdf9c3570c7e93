"""Compares each kind of model with a plain loop over peft and Hugging Face's model: speed and
memory of training, and speed of answers.

    python benchmarks/models.py --out runs/models --rounds 5

Each kind has a random model of a few million weights: a T5 of 4 + 4 layers and a Llama of 6 layers
behind a small ConvNet, and a LLaVA of that Llama and a CLIP of 4 layers. LoRA of rank 16 trains on
queries and values of self-attention, and the connector trains; AdamW, fp32, batches of 16.

    vlds        its engine (DeepSpeed, ZeRO-2, one rank)
    plain loop  the same class of Hugging Face, peft's LoRA, Hugging Face's loss, torch's AdamW

Both train on the same batches, made before; their random weights differ. Before training, both
answer five questions about each of eight pictures, ten tokens each: vlds as in evaluation, the
plain loop by Hugging Face's `generate`. Each measurement is a process of its own with one thread;
those of all rows alternate. The memory is the largest that training adds to what imports take. The
table goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from vlds.data.config import DataConfig
from vlds.models import Causal, ImageTextToText, JointSeq2Seq, ModelKind
from vlds.models.backbones import T5
from vlds.models.build import build_model
from vlds.models.methods import LoRA
from vlds.models.vision import ConvNet
from vlds.recipe.config import OptimizerConfig, Recipe, TrainingConfig
from vlds.schema import IGNORED_LABEL, Batch, Decoding, Example, Images, Row
from vlds.tasks import VQA

BATCH, WARM_UP, STEPS = 16, 3, 12
PICTURES, QUESTIONS, NEW_TOKENS, ANSWERED = 8, 5, 10, 5
"""Of a batch that is answered; how often it is."""
WIDTH, LAYERS, WORDS = 256, 6, 8000
SIDE, GRID = 112, 7
"""Pixels and cells along a picture's side."""
TEXT = (
    "what where which who how many is are there the a of on in left right colour red green blue "
    "yellow white black man woman child dog cat horse car bus table chair plate cup holding near "
    "standing sitting behind under over picture two three four small large round"
)
"""Words of questions and answers."""
QUERIES_AND_VALUES = {
    "JointSeq2Seq": r".*SelfAttention\.(q|v)",
    "Causal": r".*self_attn\.(q|v)_proj",
    "ImageTextToText": r".*language_model.*self_attn\.(q|v)_proj",
}
"""Kind -> what peft calls the layers of LoRA."""
WAYS = ("vlds", "plain loop")
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 704, "vocab_size": WORDS,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 192, "intermediate_size": 768,
    "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 16,
}  # fmt: skip
T5_SIZES: dict[str, Any] = {
    "model_type": "t5", "d_model": WIDTH, "d_kv": 64, "num_heads": 4, "d_ff": 1024,
    "num_layers": 4, "num_decoder_layers": 4, "vocab_size": 4000, "dropout_rate": 0.0,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip


def main() -> None:
    """Measure every kind in alternating rounds, or one kind once (`--one`)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of models and tokenizers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.out, *options.one)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    write_files(options.out)
    rows = [(kind, way) for kind in QUERIES_AND_VALUES for way in WAYS]
    measured: dict[tuple[str, str], list[dict[str, float]]] = {row: [] for row in rows}
    for number in range(options.rounds):
        for row in rows:
            measured[row].append(in_process(options.out, *row))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    print(table(measured))


def in_process(out: Path, kind: str, way: str) -> dict[str, float]:
    """One measurement in a new process with one thread."""
    command = [sys.executable, __file__, "--out", str(out), "--one", kind, way]
    variables = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind}, {way}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(out: Path, kind: str, way: str) -> dict[str, float]:
    """Samples per second of CPU time (the median step's), MB that training adds at most, trained
    weights, and answers per second of CPU time."""
    torch.manual_seed(0)
    recipe = recipe_of(out, kind)
    import deepspeed  # noqa: F401 (its import is no memory of training)
    import peft  # noqa: F401

    batches = [batch_of(recipe, number) for number in range(WARM_UP + STEPS)]
    asked = batch_of(recipe, 0, PICTURES, QUESTIONS, evaluation=True)
    start = memory("VmRSS")
    step, answer, trained = (ours if way == "vlds" else plain)(recipe, kind)

    def seconds_of(work: Callable[[Batch], object], batches: Sequence[Batch]) -> float:
        seconds = []
        for batch in batches:
            began = time.process_time()
            work(batch)
            seconds.append(time.process_time() - began)
        return statistics.median(seconds[WARM_UP:])

    # Random weights, which write no end.
    answers = PICTURES * QUESTIONS / seconds_of(answer, [asked] * (WARM_UP + ANSWERED))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    speed = BATCH / seconds_of(step, batches)
    used = memory("VmHWM") - start
    return {"speed": speed, "memory": used, "trained": trained, "answers": answers}


def memory(name: str) -> float:
    """A number of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1000


Work = Callable[[Batch], object]


def ours(recipe: Recipe, kind: str) -> tuple[Work, Work, int]:
    """A step of vlds' engine, how it answers, and the number of trained weights."""
    from vlds.runtime.deepspeed_start import start_ranks
    from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
    from vlds.training.engine import Engine
    from vlds.training.optimizer import parameter_groups, set_learning_rate

    ranks = start_ranks(60)
    config = complete_deepspeed_config(
        Path(recipe.training.deepspeed), recipe, cut_batches(recipe, 1)
    )
    processor = recipe.model.load_processor()
    model = build_model(recipe.model_setup, list(recipe.tasks), torch.float32, processor)
    groups = parameter_groups(model, recipe)
    engine = Engine(model, groups, config, ranks=ranks, tasks=list(recipe.tasks.values()))
    set_learning_rate(engine.parameter_groups, 1.0)

    def answer(batch: Batch) -> None:
        with engine.evaluation() as evaluated:
            evaluated.answer(batch, Decoding(max_new_tokens=NEW_TOKENS))

    return (lambda batch: engine.step([batch])), answer, model.count_parameters().trainable


def plain(recipe: Recipe, kind: str) -> tuple[Work, Work, int]:
    """A step of the plain loop, how it answers, and the number of trained weights."""
    model: Any = PLAIN[kind](recipe.model)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=recipe.optimizer.learning_rate)

    def step(batch: Batch) -> None:
        adamw.zero_grad()
        model(batch).backward()
        nn.utils.clip_grad_norm_(trained, recipe.optimizer.clip_norm)
        adamw.step()

    @torch.no_grad()
    def answer(batch: Batch) -> None:
        model.eval()
        model.model.generate(
            **model.prompts(batch), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
            do_sample=False,
        )  # fmt: skip
        model.train()

    return step, answer, sum(p.numel() for p in trained)


def left(mask: Tensor) -> Tensor:
    """(b, l) places that move the padding of rows to the left, where `generate` wants it."""
    return mask.long().argsort(dim=1, stable=True)


def with_lora(model: Any, kind: str) -> Any:
    """peft's LoRA on queries and values; all else is frozen."""
    from peft import LoraConfig, get_peft_model

    layers = QUERIES_AND_VALUES[kind]
    return get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=layers)
    )


class PlainPrefix(nn.Module):
    """Visual tokens behind the text of a T5, or before that of a Llama."""

    def __init__(self, kind: Any, model: Any, connector: nn.Module) -> None:
        super().__init__()
        self.vision = kind.vision.build(torch.float32).requires_grad_(False)
        self.table = model.get_input_embeddings()
        self.model = with_lora(model, type(kind).__name__)
        self.connector = connector
        self.before = type(kind) is Causal

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings and their mask."""
        with torch.no_grad():
            features = self.vision(batch.images)
        visual = self.connector(features)[batch.image_index[:, 0]]
        parts, ones = [visual, self.table(batch.input_ids)], torch.ones(visual.shape[:2])
        masks = [ones, batch.attention_mask.float()]
        if not self.before:
            parts.reverse()
            masks.reverse()
        return torch.cat(parts, 1), torch.cat(masks, 1)

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss."""
        assert batch.labels is not None
        (embeds, mask), labels = self.inputs(batch), batch.labels
        if self.before:
            unread = torch.full((len(labels), GRID * GRID), IGNORED_LABEL)
            labels = torch.cat([unread, labels], 1)
        loss: Tensor = self.model(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss
        return loss

    def prompts(self, batch: Batch) -> dict[str, Tensor]:
        """What `generate` takes."""
        embeds, mask = self.inputs(batch)
        if self.before:
            places = left(mask)
            embeds = embeds.gather(1, places[..., None].expand_as(embeds))
            mask = mask.gather(1, places)
        return {"inputs_embeds": embeds, "attention_mask": mask.long()}


class PlainWhole(nn.Module):
    """A model of Hugging Face that reads pictures itself."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        model = AutoModelForImageTextToText.from_pretrained(kind.path)
        connector = model.model.multi_modal_projector
        self.model = with_lora(model, "ImageTextToText")
        connector.requires_grad_(True)

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss."""
        loss: Tensor = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            pixel_values=torch.cat([row["pixel_values"] for row in batch.media]),
            labels=batch.labels,
        ).loss
        return loss

    def prompts(self, batch: Batch) -> dict[str, Tensor]:
        """What `generate` takes."""
        places = left(batch.attention_mask)
        return {
            "input_ids": batch.input_ids.gather(1, places),
            "attention_mask": batch.attention_mask.long().gather(1, places),
            "pixel_values": torch.cat([row["pixel_values"] for row in batch.media]),
        }


def plain_t5(kind: Any) -> nn.Module:
    """The T5, and a linear layer and a norm as its connector."""
    fields = {**T5_SIZES, "vocab_size": len(kind.load_processor())}
    model = T5ForConditionalGeneration(T5Config(**fields))
    channels = kind.vision.geometry.feature_dim
    return PlainPrefix(kind, model, nn.Sequential(nn.Linear(channels, WIDTH), nn.RMSNorm(WIDTH)))


def plain_llama(kind: Any) -> nn.Module:
    """The Llama, and LLaVA's two layers as its connector."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA))
    first = nn.Linear(kind.vision.geometry.feature_dim, WIDTH)
    return PlainPrefix(kind, model, nn.Sequential(first, nn.GELU(), nn.Linear(WIDTH, WIDTH)))


PLAIN: dict[str, Callable[[Any], nn.Module]] = {
    "JointSeq2Seq": plain_t5, "Causal": plain_llama, "ImageTextToText": PlainWhole,
}  # fmt: skip


# Models and batches.


def write_files(out: Path) -> None:
    """Tokenizers of some words, sizes, and a LLaVA with its processor."""
    words = TEXT.split()
    lines = [" ".join(words[n:] + words[:n]) for n in range(len(words))]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(out / "t5"), vocab_size=4000,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    backend = Tokenizer(BPE())
    backend.pre_tokenizer, backend.decoder = ByteLevel(), ByteLevelDecoder()
    special = ["<pad>", "</s>", "<image>"]
    trainer = BpeTrainer(vocab_size=1000, special_tokens=special, show_progress=False)
    backend.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.save_pretrained(out / "llama")
    for name, fields in (("t5", T5_SIZES), ("llama", LLAMA)):
        (out / f"{name}.json").write_text(json.dumps(fields), encoding="utf-8")
    sizes = {"height": SIDE, "width": SIDE}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=sizes),
        tokenizer=tokenizer,
        patch_size=16,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    ).save_pretrained(out / "llava")
    config = AutoConfig.for_model(
        "llava", text_config=LLAMA, vision_config=CLIP, image_token_index=2, image_seq_length=49
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(out / "llava")


def recipe_of(out: Path, kind: str) -> Recipe:
    """The recipe of a kind."""
    vision = ConvNet(image_size=SIDE, grid=GRID, widths=[16, 32, 64, 128])
    model: ModelKind = ImageTextToText(path=str(out / "llava"))
    if kind == "JointSeq2Seq":
        sizes, pieces = str(out / "t5.json"), str(out / "t5.model")
        t5 = T5(config=sizes, tokenizer=pieces, extra_tokens=0, visual_tokens=GRID * GRID)
        model = JointSeq2Seq(backbone=t5, vision=vision)
    elif kind == "Causal":
        sizes, words = str(out / "llama.json"), str(out / "llama")
        model = Causal(config=sizes, tokenizer=words, vision=vision)
    lora = LoRA(rank=16, roles=["attn_q", "attn_v"], dropout=0.0, train_biases=False)
    return Recipe(
        output=str(out / "run"),
        model=model,
        methods={"lora": lora},
        tasks={"vqa": VQA()},
        data=DataConfig(global_batch_size=BATCH),
        optimizer=OptimizerConfig(),
        training=TrainingConfig(precision="fp32", deepspeed="ds_configs/zero2.json"),
    )


def batch_of(
    recipe: Recipe,
    number: int,
    num_pictures: int = BATCH,
    questions: int = 1,
    *,
    evaluation: bool = False,
) -> Batch:
    """Questions of 3 to 12 words about each picture, with answers of 1 to 3 words."""
    collator = recipe.model.collator(recipe.model.load_processor())
    draw, known = torch.Generator().manual_seed(number), TEXT.split()
    pictures = torch.randint(256, (num_pictures, 3, SIDE, SIDE), dtype=torch.uint8, generator=draw)

    def words(least: int, most: int) -> str:
        length = int(torch.randint(least, most + 1, (), generator=draw))
        drawn = torch.randint(len(known), (length,), generator=draw).tolist()
        return " ".join(known[number] for number in drawn)

    rows = [
        Row(Example(f"{n}-{k}", "vqa", words(3, 12), words(1, 3)), 0, 24, 8, range(n, n + 1))
        for n in range(num_pictures)
        for k in range(questions)
    ]
    images: Images = pictures
    if isinstance(recipe.model, ImageTextToText):
        images = list(pictures)
    return collator(rows, images, evaluation=evaluation)


def table(measured: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """Medians and ranges of all rounds."""
    head = "| | | trained weights | samples/s | range | MB at most | range | answers/s | range |"
    lines = [head, "|---" * 9 + "|"]
    for (kind, way), rounds in measured.items():
        cells = [f"{rounds[0]['trained']:,.0f}"]
        for name in ("speed", "memory", "answers"):
            values = [each[name] for each in rounds]
            cells += [f"{statistics.median(values):.0f}", f"{min(values):.0f} to {max(values):.0f}"]
        lines.append(f"| {kind} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
