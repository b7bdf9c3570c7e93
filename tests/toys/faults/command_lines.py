"""Every command of `vlds` and `data_prep`: a command line that works, and the inputs it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random


@dataclass(frozen=True)
class Command:
    """A command line; its words begin with the command, and its paths are relative."""

    program: str
    words: str
    reads: tuple[str, ...]
    """Names of the inputs that it needs."""
    codes: tuple[int, ...] = (0, 2)
    """Exit codes that a user may see, besides 128 + n."""
    hurt: str = ""
    """Only files whose path contains this are damaged; default: all."""

    @property
    def name(self) -> str:
        """Its name in the program's table of commands."""
        parts = self.words.split()
        return " ".join([self.program, *parts[: 2 if parts[0] == "convert" else 1]])


def vlds(words: str, *reads: str, hurt: str = "") -> Command:
    return Command("vlds", words, reads, hurt=hurt)


def prep(words: str, *reads: str, hurt: str = "", codes: tuple[int, ...] = (0, 2)) -> Command:
    return Command("data_prep", words, reads, codes, hurt)


PACK = "--out out --workers 1"
COMMANDS: tuple[Command, ...] = (
    vlds("train --config recipe/run.yaml", "world", "recipe"),
    vlds("train --config recipe/run.yaml --resume --training.steps 3", "world", "recipe", "run"),
    vlds("train --config recipe/run.yaml --resume auto", "world", "recipe", "run", hurt="state"),
    vlds("describe --config recipe/run.yaml", "world", "recipe"),
    vlds("plan --config recipe/run.yaml", "world", "recipe"),
    vlds("evaluate --run run/trained --out out", "world", "run"),
    vlds("evaluate --run lora/run --data vqa=world/vqa --out out", "world", "lora"),
    vlds("evaluate --predictions run/trained/predictions/step-00000002/vqa.jsonl --data world/vqa",
         "world", "run", hurt="vqa"),
    vlds("predict --run run/trained --image rows/images/0.jpg --question what --task vqa",
         "world", "run", "rows"),
    vlds("predict --run run/trained --data vqa=world/vqa --out out", "world", "run"),
    vlds("features --config features/recipe.yaml --data world/vqa --out out", "world", "features"),
    vlds("importance --config recipe/run.yaml --out out --samples 2", "world", "recipe"),
    vlds("convert hf --run run/trained --out out", "world", "run"),
    vlds("convert merge --run lora/run --out out", "world", "lora"),
    vlds("convert merge --how average --run lora/run lora/run --out out", "world", "lora"),
    vlds("convert reference --run reference/run --out out.pth", "world", "reference"),
    vlds("convert reference --from reference/reference.pth --run reference/run --out out",
         "world", "reference"),
    vlds("convert peft --run lora/run --out out", "world", "lora"),
    vlds("convert peft --from lora/peft --run lora/run --out out", "world", "lora"),
    vlds("convert adapters --run adapter/run --out out", "world", "adapter"),
    vlds("convert adapters --from adapter/adapters --run adapter/run --out out",
         "world", "adapter"),
    vlds("report run/trained scored/run --out out --resamples 9", "world", "run", "scored"),
    vlds("report run/trained --format md", "world", "run"),
    vlds("report scored/run --format csv --out out", "world", "scored"),
    vlds("compare run/trained scored/run --format html --out out", "world", "run", "scored"),
    vlds("sweep sweep/table.yaml --dry-run", "world", "recipe", "sweep"),
    vlds("compare sweep/table.yaml", "world", "recipe", "sweep"),
    vlds("demo --out demo", "world", "demo"),
    vlds("init --data classes/rows.csv --images classes/flat --name out --workers 1", "classes"),
    prep(f"vqav2 --src official/coco --split val {PACK}", "official", hurt="coco"),
    prep(f"gqa --src official/gqa --split val {PACK}", "official", hurt="gqa"),
    prep(f"nlvr2 --src official/nlvr2 --split dev {PACK}", "official", hurt="nlvr2"),
    prep(f"coco-karpathy --src official/coco --split val {PACK}", "official", hurt="coco"),
    prep(f"coco-captions --src official/captions --split val {PACK}", "official", hurt="captions"),
    prep(f"vg --src vg --what questions --without-coco vg/dataset_coco.json {PACK}", "vg"),
    prep(f"snli-ve --src snli_ve --split dev {PACK}", "snli_ve"),
    prep("lxmert --annotations lxmert/coco.json lxmert/vgnococo.json --answers lxmert/all_ans.json "
         "--without-coco lxmert/dataset_coco.json --exclude lxmert/more.txt "
         f"--features lxmert/features --vocabulary lxmert {PACK}", "lxmert"),
    prep(f"okvqa --src sets/okvqa --split val {PACK}", "sets", hurt="okvqa"),
    prep(f"aokvqa --src sets/aokvqa --split val {PACK}", "sets", hurt="aokvqa"),
    prep(f"textvqa --src sets/textvqa --split val {PACK}", "sets", hurt="textvqa"),
    prep(f"scienceqa --src sets/scienceqa --split test {PACK}", "sets", hurt="scienceqa"),
    prep(f"refcoco --src sets/refcoco --split testA {PACK}", "sets", hurt="refcoco"),
    prep(f"refcoco-plus --src sets/refcoco-plus --split val {PACK}", "sets", hurt="refcoco-plus"),
    prep(f"refcocog --src sets/refcocog --split val {PACK}", "sets", hurt="refcocog"),
    prep(f"flickr30k --src sets/flickr30k --split test {PACK}", "sets", hurt="flickr30k"),
    prep(f"caltech101 --src few_shot/caltech-101 --split val {PACK}", "few_shot", hurt="caltech"),
    prep(f"fgvc-aircraft --src few_shot/fgvc_aircraft --split val {PACK}",
         "few_shot", hurt="aircraft"),
    prep(f"imagenet --src few_shot/imagenet --split val {PACK}", "few_shot", hurt="imagenet"),
    prep("plan --data sets", "sets"),
    prep(f"value-tvqa --src value --split train {PACK}", "value"),
    prep(f"value-how2qa --src value --split val {PACK}", "value"),
    prep(f"value-tvc --src value --split val {PACK}", "value"),
    prep(f"value-yc2c --src value --split train {PACK}", "value"),
    prep(f"jsonl --task vqa --annotations rows/rows.json --images rows/images {PACK}", "rows"),
    prep(f"jsonl --task vqa --annotations rows/rows.csv --images rows/images {PACK} --image-size 9",
         "rows"),
    prep(f"jsonl --task vqa --annotations rows/rows.jsonl --images rows/images {PACK} "
         "--features rows/arrays --encoder net", "rows"),
    prep(f"chat --annotations rows/talks.jsonl --images rows/images --group-field patient {PACK}",
         "rows"),
    prep(f"video --annotations rows/films.jsonl --videos rows/clips --frames 2 {PACK}", "rows"),
    prep(f"imagefolder --images classes/flat --split-sizes test=0.4 {PACK}",
         "classes", hurt="flat"),
    prep(f"imagefolder --images classes/flat --lists classes/split.json {PACK}", "classes"),
    prep(f"imagefolder --images classes/cifar {PACK}", "classes", hurt="cifar"),
    prep("csv-classes --annotations classes/rows.csv --images classes/flat "
         f"--class-names classes/names.json {PACK}", "classes"),
    prep(f"own --data classes/rows.csv --images classes/flat {PACK}", "classes"),
    prep("verify packed --workers 1", "packed", codes=(0, 1, 2)),
    prep("stats packed", "packed"),
    prep("index world/vqa --name vqa --kind vqa --split train", "world", hurt="vqa"),
    prep("tokenizer world/vqa --out out.model", "world", hurt="vqa"),
    prep("answers world/vqa --out out.json --min-count 1", "world", hurt="vqa"),
    prep("stats world", "world"),
    prep("verify world --workers 1", "world", codes=(0, 1, 2)),
    prep("preview world/vqa", "world", hurt="vqa"),
    prep("preview world/vqa --out out.html", "world", hurt="vqa"),
    prep("preview world/caption --out out.html", "world", hurt="caption"),
    prep("simulate-order world/vqa world/caption --steps 5", "world"),
)  # fmt: skip


def drawn_file(folder: Path, command: Command, draw: Random) -> Path:
    """Draw a file of the inputs: first its suffix, then the file, since most files are shards."""
    files = [
        path for path in sorted(folder.rglob("*"))
        if path.is_file() and command.hurt in str(path.relative_to(folder))
    ]  # fmt: skip
    ending = draw.choice(sorted({path.suffix for path in files}))
    return draw.choice([path for path in files if path.suffix == ending])
