"""All commands: which module adds each, and what it is for. `vlds data --help` shows this list and
imports none of them; a new data set adds a line."""

from __future__ import annotations

from collections.abc import Mapping

PROGRAM = "vlds data"
OF_CLASSES = "pictures of classes, in CoOp's split"
BOXES = "expressions and the boxes of what they mean"
CATALOGUE: Mapping[str, Mapping[str, str]] = {
    "official": {
        "aokvqa": "A-OKVQA: questions with four choices and ten direct answers",
        "coco-karpathy": "COCO captions in Karpathy's split; train includes restval",
        "coco-captions": "COCO captions in COCO's own split",
        "easy-vqa": "easy-VQA: the small data set that the package easy-vqa ships",
        "flickr30k": "Flickr30k: five captions a picture, in Karpathy's split",
        "gqa": "GQA: questions about Visual Genome's scene graphs",
        "nlvr2": "NLVR2: statements on picture pairs",
        "okvqa": "OK-VQA: questions that need knowledge; val is its test set",
        "lxmert": "LXMERT's captions, questions and boxes for pre-training",
        "refcoco": f"RefCOCO: {BOXES}",
        "refcoco-plus": f"RefCOCO+: {BOXES}",
        "refcocog": f"RefCOCOg: {BOXES}",
        "scienceqa": "ScienceQA: school questions with choices, half of them about pictures",
        "snli-ve": "SNLI-VE: does a picture entail a sentence",
        "textvqa": "TextVQA: questions about the text in pictures",
        "value-tvqa": "TVQA: questions with five choices about clips of TV series",
        "value-how2qa": "How2QA: questions with four choices about clips of instructions",
        "value-tvc": "TVC: descriptions of moments of TV series",
        "value-yc2c": "YC2C: descriptions of steps in cooking videos",
        "vg": "Visual Genome: questions, or phrases about regions",
        "vqav2": "VQA v2: questions with ten answers each",
    },
    "classes.few_shot": {
        "caltech101": f"Caltech101: {OF_CLASSES}",
        "oxford-pets": f"OxfordPets: {OF_CLASSES}",
        "stanford-cars": f"StanfordCars: {OF_CLASSES}",
        "flowers102": f"Flowers102: {OF_CLASSES}",
        "food101": f"Food101: {OF_CLASSES}",
        "sun397": f"SUN397: {OF_CLASSES}",
        "dtd": f"DTD: {OF_CLASSES}",
        "eurosat": f"EuroSAT: {OF_CLASSES}",
        "ucf101": f"UCF101: {OF_CLASSES}",
        "fgvc-aircraft": f"FGVCAircraft: {OF_CLASSES}",
        "imagenet": f"ImageNet: {OF_CLASSES}",
    },
    "own": {"own": "your own data, whatever form: looks at them and packs them"},
    "own_data.forms": {"jsonl": "your own data: rows in JSON lines, a JSON list or CSV"},
    "own_data.chat": {
        "chat": "your own conversations, with pictures and clips between the words",
        "video": "your own questions and conversations about clips of video",
    },
    "classes.command": {
        "imagefolder": "pictures in folders of classes; CIFAR; lists of DTD and CoOp",
        "csv-classes": "pictures of classes in a table: CSV, TSV or JSON lines",
    },
    "demo.command": {"demo": "drawn pictures of colored shapes in official layouts"},
    "plan": {"plan": "official files: which are there, where the others are, how to pack them"},
    "packed.index_command": {"index": "make existing tars a data set"},
    "packed.vocabularies": {
        "tokenizer": "train a small tokenizer on the text of packed data sets",
        "answers": "list the answers that occur often",
    },
    "packed.stats": {"stats": "count what a folder of shards holds"},
    "checking.verify": {"verify": "check shards: every byte, picture and id"},
    "preview": {"preview": "look at samples, in the terminal or on a page"},
    "packed.simulate": {
        "simulate-order": "what a run would read: mixture, epochs, each node's shards"
    },
}
"""Module -> command -> its line. A module has `add_command`, which adds all its commands."""
SUMMARIES = {name: line for lines in CATALOGUE.values() for name, line in lines.items()}
