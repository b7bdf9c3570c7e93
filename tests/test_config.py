"""A recipe is read, written and read again without loss; its mistakes are named with their cure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, is_dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml

from tests.toys.recipes import RECIPE, recipe_complaint, with_model
from vlds import tasks
from vlds.cli.main import run_command
from vlds.cli.words import split_words
from vlds.data.errors import ErrorPolicy
from vlds.models import (
    Causal,
    CrossModal,
    DualEncoder,
    ImageTextToText,
    JointEncoder,
    JointSeq2Seq,
    methods,
)
from vlds.models.backbones import T5, Bart
from vlds.models.heads import LinearHead, MLPHead, TextHead
from vlds.models.kinds.cross_modal_model import CoAttentionConfig
from vlds.models.vision import ClipTokens, ClipVision, ConvNet, StoredFeatures, Timm
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.recipe.build import Builder, default_of, leaf, to_tree
from vlds.recipe.choices import concrete_classes, field_types
from vlds.recipe.config import (
    AlignmentConfig,
    DataConfig,
    MetaConfig,
    OptimizerConfig,
    Recipe,
    TrackingConfig,
    TrainingConfig,
    load_recipe,
    parse_recipe,
    save_recipe,
)
from vlds.runtime.checks import Choice, guess
from vlds.runtime.process import find, shipped
from vlds.schema import Decoding
from vlds.training.optimizer import check_rates


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A recipe on disk."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def every_choice() -> list[Recipe]:
    """Recipes that together use every shipped class with values other than the defaults."""
    decoding = Decoding(num_beams=3, max_new_tokens=7, choices=("no", "yes"), early_stopping=True)
    full = Recipe(
        output="runs/a b: c",
        seed=3,
        methods={
            "one": methods.Adapter(sharing="half_shared_down", init="identity", learning_rate=1e-4),
            "two": methods.Full(part="vision"),
            "three": methods.Compacter(phm_dim=4, rule="everywhere", block_rank=1),
            "four": methods.LowRankAdapter(rank=3),
            "five": methods.Hyperformer(kind_embeddings=True),
            "six": methods.LoRA(roles=["attn_q", "ffn_in"], dropout=0.0),
            "seven": methods.IA3(sharing="multiple"),
            "eight": methods.BitFit(add_biases=True),
            "nine": methods.PromptTuning(hidden_dim=None),
            "eleven": methods.DecoderPromptTuning(length=7),
            "twelve": methods.Peft(type="OFT", settings={"oft_block_size": 4}, roles=["ffn_in"]),
            "ten": methods.PrefixTuning(cross_attention=False),
        },
        alignment=AlignmentConfig(data="some/where", steps=3),
        meta=MetaConfig(steps=5, outer_rate=0.5, weight_decay=0.01),
        tasks={
            "first": tasks.VQA(
                train=["x", "y z"],
                weight=0.5,
                batch_size=5,
                prompt="",
                decoding=decoding,
                accuracy="legacy",
            ),
            "second": tasks.GQA(
                headline="accuracy", max_prompt_tokens=5, choices="val_choices.json"
            ),
            "third": tasks.NLVR2(evaluate=["e"], prompt='"quoted" \\ and: #odd', head=LinearHead()),
            "fourth": tasks.Caption(max_target_tokens=9, scores=["METEOR", "word_f1"]),
            "fifth": tasks.VideoQA(prompt="tvqa: "),
            "sixth": tasks.VideoCaption(headline="word_f1"),
            "seventh": tasks.Entailment(max_prompt_tokens=9),
            "eighth": tasks.VQA(head=MLPHead(classes=("yes", "no: 1", "true"), hidden=7)),
            "ninth": tasks.GQA(head=MLPHead(classes="answers.json", order="norm_gelu")),
            "tenth": tasks.Matching(head=LinearHead()),
            "eleventh": tasks.MaskedWords(share=0.2),
            "retrieval": tasks.Retrieval(head=LinearHead(), fold=7),
            "twelfth": tasks.ImageClass(headline="mean_class_accuracy"),
            "thirteenth": tasks.Refer(grid=3),
            "fourteenth": tasks.SpanPrediction(target="sentence", share=0.3),
            "fifteenth": tasks.GroundedCaption(num_regions=4),
            "sixteenth": tasks.VisualGrounding(num_regions=2),
            "seventeenth": tasks.MultipleChoice(max_prompt_tokens=9),
            "eighteenth": tasks.DirectAnswer(accuracy="official"),
            "nineteenth": tasks.TextVQA(max_words=3),
            "twentieth": tasks.Grounding(prompt=""),
            "twenty-first": tasks.Chat(learn="last", scores=["json", "anls"]),
        },
        data=DataConfig(
            global_batch_size=12,
            micro_batch_size=3,
            unit="global_batch",
            temperature=2.0,
            errors=ErrorPolicy(max_bad_fraction=0.5, on_bad_shard="substitute"),
        ),
        optimizer=OptimizerConfig(betas=[0.8, 0.95], decay_start=0.5, norms_learning_rate=1e-5),
        training=TrainingConfig(steps=7, precision="fp32", evaluate_first=True),
        tracking=TrackingConfig(tensorboard=True, wandb_project="p"),
        model=JointSeq2Seq(
            backbone=Bart(path="facebook/bart-base", dropout=0.25, visual_tokens=36),
            vision=ClipVision(path="somewhere"),
            visual_embedding=VisualEmbeddingConfig(grid=3, boxes="grid", num_images=1, norm="sum"),
            train_norms=True,
            train_visual_embedding=False,
        ),
    )
    boxed = StoredFeatures(dim=5, grid=3, boxes=True)
    others = [
        with_model(full, backbone=T5(config="sizes.json", tokenizer="t.model", extra_tokens=0)),
        with_model(full, vision=ConvNet(image_size=16, grid=2, widths=[4, 8, 8], add_mean=True)),
        with_model(replace(full, alignment=None, methods={}), vision=boxed),
        with_model(full, vision=Timm(model="resnet18", pretrained=False)),
    ]
    causal = Causal(
        path="HuggingFaceTB/SmolLM2-135M-Instruct",
        vision=ClipVision(path="somewhere"),
        grid=3,
        num_images=2,
        projector_weights="projector.safetensors",
        train_projector=False,
    )
    qwen = ImageTextToText(
        path="Qwen/Qwen2.5-VL-3B-Instruct",
        processor="somewhere",
        max_pixels=10_000,
        train_connector=False,
        roles={"backbone": {"attn_q": ["layers.*.attn.query"]}},
    )
    meter = CrossModal(
        path="FacebookAI/roberta-base",
        vision=ClipTokens(path="somewhere", image_size=288, blocks=11),
        fusion=CoAttentionConfig(width=64, layers=2, heads=4),
        masked_words=True,
        num_images=2,
    )
    clip_vil = JointEncoder(
        path="google-bert/bert-base-uncased",
        vision=Timm(model="resnet50x4_clip.openai", image_size=480),
        visual_weights="visual_embedding.safetensors",
        train_norms=True,
    )
    related = {
        "mix": methods.Mixture(of=methods.LoRA(sharing="multiple"), experts=3),
        "pet": methods.VLPET(of=methods.Compacter(), gate="small", padding_counts=True),
        "shrink": methods.Shrinking(of=methods.LoRA(rank=8), cycles=2, relative=True),
        "lst": methods.LST(
            encoder_layers=[1, 3], start="fisher", importance="importance.safetensors"
        ),
        "pelt": methods.HyperPELT(prefix_length=4),
        "fused": methods.SimAdapter(runs={"vqa": "runs/vqa", "gqa": "runs/gqa"}),
        "saved": methods.SimAdapter(adapters={"vqa": methods.Adapter(reduction=4)}, with_self=True),
    }
    others.append(replace(full, methods=related))
    few_shot = {
        "simnl": methods.SimNL(temperature=None, share=1.0, views=0),
        "tip": methods.TipAdapter(beta=2.0),
        "apollo": methods.APoLLo(depth=3, adapters=False),
    }
    texts = TextHead(templates=["a {}", "{}: no"], descriptions={"a: b": ["it's"], "c": ["d", "e"]})
    classes = {"pets": tasks.ImageClass(shots=4, half="base", head=texts)}
    clip = DualEncoder(config="clip.json", tokenizer="somewhere")
    others.append(replace(full, methods=few_shot, tasks=classes, model=clip, alignment=None))
    kinds = (causal, qwen, meter, clip_vil)
    return [full, *others, *(replace(full, model=kind, alignment=None) for kind in kinds)]


@pytest.mark.slow
def test_a_saved_recipe_is_read_as_it_was(tmp_path: Path) -> None:
    for recipe in every_choice():
        save_recipe(recipe, tmp_path / "recipe.yaml")
        assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_credentials_in_urls_work_and_are_not_saved(file: Path, tmp_path: Path) -> None:
    urls = ["https://user:hunter2@host/a", "https://host/b?sig=hunter2&n=1"]
    recipe = parse_recipe(["--config", str(file), "--tasks.vqa.train", str(urls)])
    assert recipe.tasks["vqa"].train == urls
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert "hunter2" not in (tmp_path / "saved.yaml").read_text()
    saved = load_recipe(tmp_path / "saved.yaml")
    assert saved.tasks["vqa"].train == ["https://host/a", "https://host/b?sig=...&n=1"]


def test_the_recipes_above_hold_every_shipped_class() -> None:
    there = set()
    for recipe in every_choice():
        parts = [
            recipe.model,
            getattr(recipe.model, "backbone", recipe.model),
            getattr(recipe.model, "vision", recipe.model),
            *recipe.methods.values(),
            *recipe.tasks.values(),
            *(task.head for task in recipe.tasks.values() if task.head is not None),
        ]
        there |= {type(part) for part in parts}
    known = set(concrete_classes(Choice).values())
    assert {cls for cls in known if cls.__module__.startswith("vlds.")} == there


def test_defaults_are_written_too(file: Path, tmp_path: Path) -> None:
    save_recipe(load_recipe(file), tmp_path / "resolved.yaml")
    tree = yaml.safe_load((tmp_path / "resolved.yaml").read_text())
    assert tree["optimizer"]["betas"] == [0.9, 0.999]
    assert tree["methods"]["adapter"]["class_path"] == "Adapter"
    assert tree["methods"]["adapter"]["init_args"]["sharing"] == "single"


@dataclass(frozen=True, kw_only=True)
class OwnTask(tasks.VQA):
    """A user's task."""

    kinds: ClassVar[tuple[str, ...]] = ("own",)

    hint: str = "none"
    """A field that other tasks do not have."""


def test_a_class_of_ones_own_reaches_recipe_and_command_line(file: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(["--config", str(file), "--tasks.mine", "OwnTask"])
    assert recipe.tasks["mine"] == OwnTask()
    assert parse_recipe(
        ["--config", str(file), "--tasks.mine", "OwnTask", "--tasks.mine.hint", "x"]
    ).tasks["mine"] == OwnTask(hint="x")


def test_the_command_line_overrides_the_file(file: Path) -> None:
    recipe = parse_recipe(
        [
            *("--config", str(file), "--methods.adapter.reduction", "2", "--seed=5"),
            *("--tasks.vqa.decoding.num_beams", "4", "--data.errors.max_in_a_row", "3"),
        ]
    )
    assert recipe.methods == {"adapter": methods.Adapter(reduction=2)}
    assert recipe.seed == 5
    assert recipe.tasks["vqa"].decoding == Decoding(num_beams=4, max_new_tokens=19)
    assert recipe.tasks["vqa"].train == ["a"]
    assert recipe.data.errors == ErrorPolicy(max_in_a_row=3)
    # What says the same otherwise gives way, to a recipe with this base too.
    file.write_text(f"{RECIPE}training: {{epochs: 2}}\n")
    (based := file.with_name("based.yaml")).write_text(f"base: {file}\ntraining: {{steps: 5}}\n")
    for words, length in (
        ([str(file), "--training.steps", "7"], (7, None)),
        ([str(file), "--training.steps", "null"], (None, 2)),
        ([str(based)], (5, None)),
        ([str(based), "--training.epochs", "3"], (None, 3)),
    ):
        training = parse_recipe(words).training
        assert (training.steps, training.epochs) == length


def test_a_part_of_a_section_keeps_the_rest_of_its_default() -> None:
    """Also where a field's default has other values than its class, as VQA's `decoding`."""
    shipped_classes = set(concrete_classes(Choice).values())
    seen = 0
    for cls in (Recipe, DataConfig, *shipped_classes):
        for name, hint in field_types(cls).items():
            default = default_of(cls, name)
            if not is_dataclass(default):
                continue
            given: dict[str, Any] = to_tree(default)
            fields_given = given.get("init_args", given)
            for key in list(fields_given)[1:]:
                del fields_given[key]
            assert Builder({}, cls).field(cls, name, given, name, "") == default, f"{cls}: {hint}"
            seen += 1
    assert seen > 25


def test_a_class_in_place_of_a_default_keeps_what_it_has_too(file: Path) -> None:
    mixture = ["--config", str(file), "--methods.m", "Mixture", "--methods.m.of"]
    shared = methods.Mixture().of
    assert isinstance(shared, methods.Adapter)
    for words in (["LoRA"], ["{class_path: LoRA, init_args: {rank: 3}}"]):
        method = parse_recipe([*mixture, *words]).methods["m"]
        assert isinstance(method, methods.Mixture)
        assert isinstance(method.of, methods.LoRA)
        assert method.of.sharing == shared.sharing != methods.LoRA().sharing


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (float, "1e-3", 0.001),
        (float, 3, 3.0),
        (float, "3", 3.0),
        (float, "017", 17.0),
        (int, "017", 17),
        (list[float], "[0.9, 1e-3]", [0.9, 0.001]),
        (float, "0.1234567890123456789", 0.1234567890123456789),
        (float, 5e-324, 5e-324),
        (int, "1_000", 1000),
        (int, 2**63, 2**63),
        (bool, "yes", True),
        (str, "3", "3"),
        (str, "null", "null"),
        (str, "[a]", "[a]"),
        (str, "a\udcff", "a\udcff"),
        (str | None, "null", None),
        (int | None, "null", None),
        (Literal[4, 8] | None, "8", 8),
        (Literal["on", "no"], "on", "on"),
        (list[float], ["1e-3", 1], [0.001, 1.0]),
        (list[str], ["1e-3", "no"], ["1e-3", "no"]),
        (tuple[str, ...] | str | None, '["2", "no"]', ("2", "no")),
        (tuple[str, ...] | str | None, "a.json", "a.json"),
        (dict[str, float | str], {"a": "3", "b": "c"}, {"a": 3.0, "b": "c"}),
        (dict[str, float | str], "{a: 1e1}", {"a": 10.0}),
        (float | str, "1e1", 10.0),
        (list[float], "[0.9, '0.99']", [0.9, 0.99]),
        (dict[str, Any], "{a: 1e-3, b: '3'}", {"a": 0.001, "b": "3"}),
        (dict[str, str | dict[str, Any]], {"a": "3"}, {"a": "3"}),
        (dict[str, Any], {"a": 3, "b": ["4", 0.5, None]}, {"a": 3, "b": ["4", 0.5, None]}),
    ],
)
def test_a_value_has_the_type_of_its_field(kind: Any, given: object, value: object) -> None:
    assert repr(leaf(given, kind, "key")) == repr(value)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (int, 3.0, "key: got 3.0; give a whole number"),
        (int, "3.5", "key: got '3.5'; give a whole number"),
        (int, True, "key: got true; give a whole number"),
        (float, False, "key: got false; give a number"),
        (float, float("nan"), "key: got nan; give a finite number"),
        (int | None, "", "key: got ''; give a whole number or null"),
        (float, "'3'", "key: got \"'3'\"; give a number"),
        (bool, 1, "key: got 1; give true or false"),
        (str, 3, 'key: got 3; give text: write it in quotes, like "3"'),
        (str, date(2020, 1, 2), "key: got 2020-01-02; give text: write it in quotes, like "),
        (list[str], ["a", 3], "key: got 3; give text: write it in quotes"),
        (list[str], [date(2020, 1, 2)], "key: got 2020-01-02; give text: write it in quotes"),
        (list[int], [1, 2.0], "key: got 2.0; give a whole number"),
        (list[float], [float("inf")], "key[0]: got inf; give a finite number"),
        (dict[str, dict[str, str]], {"a": {"b": 3}}, "key.a.b: got 3; give text"),
        (dict[str, float], "{1: 60}", "key: got the name 1; give text: write it in quotes"),
        (Literal[4, 8] | None, "3", "key: got '3'; give one of 4, 8 or null"),
    ],
)
def test_a_value_of_another_type_is_refused(kind: Any, given: object, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is looked at)
        leaf(given, kind, "key")
    assert message in str(error.value)


def test_a_long_name_of_a_class_is_cut(file: Path) -> None:
    words = ["--config", str(file), "--methods.adapter", "{class_path: " + "x" * 5000 + "}"]
    with pytest.raises(ValueError, match=r"'x{100}' is not a Method") as error:
        parse_recipe(words)
    assert len(str(error.value)) < 700


def test_a_dotted_key_in_a_file_is_a_part_of_its_section(file: Path) -> None:
    text = "training.steps: 5\ntasks.vqa.init_args.weight: 3\ndata: {errors.max_in_a_row: 4}\n"
    file.write_text(RECIPE + text)
    recipe = parse_recipe([str(file), "--training.log_every", "7"])
    assert (recipe.training.steps, recipe.training.log_every) == (5, 7)
    assert recipe.tasks["vqa"].weight == 3.0
    assert recipe.data.errors == ErrorPolicy(max_in_a_row=4)


@pytest.mark.sampled(22)
@pytest.mark.parametrize(
    "name",
    [
        # tests/test_vl_adapter_recipes.py reads those of the paper.
        pytest.param(name, marks=[pytest.mark.slow] if "vl_adapter" in name else [])
        for name in shipped("recipes")
        # What recipes share, such as chat/lora.yaml, has no model of its own.
        if name.endswith(".yaml") and re.search(r"^(model|base):", find(name).read_text(), re.M)
    ],
)
def test_shipped_recipes_are_right(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parse_recipe(["--config", name])
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    with pytest.raises(SystemExit):
        parse_recipe([name, "--print-config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse_recipe([str(tmp_path / "printed.yaml")]) == recipe
    assert find(recipe.training.deepspeed).exists()
    check_rates(recipe)


@pytest.mark.sampled(12)
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("dat.group", "3", "unknown key 'dat'; did you mean 'data'? the recipe has: output, seed"),
        ("data.groop", "3", "unknown key 'data.groop'; did you mean 'data.group'? data has: glo"),
        ("data.group", "three", "data.group: got 'three'; give a whole number"),
        ("data.micro_batch_size", "x", "data.micro_batch_size: got 'x'; give a whole number (1 or"),
        ("model.train_norms", "maybe", "model.train_norms: got 'maybe'; give true or"),
        ("methods.adapter.reduktion", "4", "methods.adapter: unknown key 'reduktion'; did you me"),
        ("methods.adapter.sharing", "x", "methods.adapter.sharing: got 'x'; give one of single, "),
        ("methods.extra", "Adaptor", "methods.extra: 'Adaptor' is not a Method; did you mean 'Ad"),
        ("methods.extra", "VQA", "methods.extra: 'VQA' is not a Method; choose from: APoLLo, "),
        ("methods.extra", "not.there.X", "methods.extra: not.there.X: No module named 'not'"),
        ("methods.adaptor.reduction", "3", "methods.adaptor: class_path is missing; did you mean"),
        ("model.backbone", "T6", "model.backbone: 'T6' is not a Backbone; choose from: Bart, "),
        ("model.backbone.path", "x", "model.backbone.path: x, config: sizes.json; give exactly on"),
        (
            "model.backbone.dropout",
            "x",
            "model.backbone.dropout: got 'x'; give a number (0 or more, and less than 1) or null",
        ),
        ("model.vision.grid", "3", "model.vision.grid: 3 does not come from image_size 64 by halv"),
        ("tasks.vqa.decoding.num_beam", "3", "tasks.vqa: unknown key 'decoding.num_beam'; did yo"),
        ("tasks.vqa.weight", "-1", "tasks.vqa.weight: got -1.0; give a number above 0"),
        ("tasks.vqa.train", "a", "tasks.vqa.train: got 'a'; give a list, like [a, b]"),
        ("optimizer.betas", "[0.9]", "optimizer.betas: got [0.9]; give two numbers, like [0.9, 0."),
        ("data.errors.max_in_a_row", "0", "data.errors.max_in_a_row: got 0; give 1 or more"),
        ("training.steps", "0", "training.steps: got 0; give 1 or more"),
        ("training", "null", "training: got null; give a value, or leave the key out"),
        (
            "methods",
            "{m: {class_path: LST, init_args: {encoder_layers: all}}}",
            "methods.m.encoder_layers: got 'all'; give a list, like [a, b] or null",
        ),
        ("optimizer.learning_rate", ".inf", "optimizer.learning_rate: got inf; give 0 or more"),
        (
            "optimizer.connector_learning_rate",
            "-0.1",
            "optimizer.connector_learning_rate: got -0.1; give 0 or more",
        ),
        ("optimizer.norms_learning_rate", ".inf", "optimizer.norms_learning_rate: got inf; give 0"),
        (
            "methods",
            "{m: {class_path: Mixture, init_args: {of: {class_path: LoRA}, experts: 1000000000}}}",
            "methods.m.experts: got 1000000000; give a number from 2 to 10,000",
        ),
        (
            "methods",
            "{m: {class_path: LoRA, init_args: {alpha: .inf}}}",
            "methods.m.alpha: got inf; give a number above 0",
        ),
        (
            "methods",
            "{m: {class_path: Peft, init_args: {type: LORA, settings: {lora_alpha: .nan}}}}",
            "methods.m.settings.lora_alpha: got nan; give a finite number",
        ),
        ("optimizer.decay_start", "-1", "optimizer.decay_start: got -1.0; give a number from 0 to"),
        ("methods.adapter.learning_rate", ".inf", "methods.adapter.learning_rate: got inf; give 0"),
        (
            "alignment",
            "{data: x, learning_rate: -1}",
            "alignment.learning_rate: got -1.0; give 0 or more",
        ),
        ("meta", "{steps: 0}", "meta.steps: got 0; give 1 or more"),
        ("meta", "{outer_rate: -1}", "meta.outer_rate: got -1.0; give 0 or more"),
        ("data.cache_bytes", "0", "data.cache_bytes: got 0; give 1 or more"),
        ("data.errors.max_bad_fraction", "1.5", "data.errors.max_bad_fraction: got 1.5; give a n"),
        ("seed", "-1", "seed: got -1; give a number from 0 to 18,446,744,073,709,551,615"),
        ("output.a", "b", "output: got {a: b}; give text"),
        ("tasks.vqa.train.x", "3", "tasks.vqa.train: got {x: '3'}; give a list, like [a, b]"),
        ("data", "3", "data: got '3'; give a mapping of keys, like {global_batch_size: ...}"),
        ("data.group", "", "data.group: got ''; give a whole number"),
        ("methods", "{a: b", "--methods: got '{a: b', not YAML; check its brackets and quotes"),
        ("methods.adapter.init_args", "5", "methods.adapter: init_args: got 5; give a mapping of"),
        ("data.global_batch_size", "0", "data.global_batch_size: got 0; give 1 or more"),
        ("optimizer.eps", "0", "optimizer.eps: got 0.0; give a number above 0"),
        ("data.temperature", "0", "data.temperature: got 0.0; give a number above 0"),
        ("tasks.vqa.weight", ".inf", "tasks.vqa.weight: got inf; give a number above 0"),
        ("training.steps", "1" + 20 * "0", "training.steps: got 100000000000000000000; give at m"),
        ("model.vision.image_size", "0", "model.vision.image_size: got 0; give a number from 1 to"),
        ("model.vision.widths", "[8, 0]", "model.vision.widths: got 0; give 1 or more"),
        ("data", "{window: 2020-13-45}", "--data: got '{window: 2020-13-45}', not YAML"),
        ("lr", "1", "did you mean 'optimizer.learning_rate' or 'methods.adapter.learning_rate'? "),
        ("batch_size", "1", "did you mean 'data.global_batch_size' or 'data.micro_batch_size'? "),
        ("per_device_train_batch_size", "1", "did you mean 'data.micro_batch_size'? "),
        ("learning-rate", "1", "did you mean 'optimizer.learning_rate' or 'methods.adapter.lear"),
        ("output_dir", "x", "did you mean 'output'? "),
        ("model_name_or_path", "x", "did you mean 'model.backbone.path'? "),
        ("training.seed", "1", "did you mean 'seed'? "),
        ("model.image_size", "1", "model: unknown key 'image_size'; did you mean 'vision.image_si"),
        ("lora_r", "8", "unknown key 'lora_r'; rank is a key of LoRA, LowRankAdapter; the recipe"),
        ("gpus", "2", "unknown key 'gpus'; did you mean '--ranks'? "),
        ("tasks.vqa.num_beams", "2", "tasks.vqa: unknown key 'num_beams'; did you mean 'decoding"),
        (
            "tasks.vqa.decoding.choices",
            "[yes, no]",
            "tasks.vqa.decoding.choices: got true; that is how YAML reads a bare yes, on or true; "
            'give text: write it in quotes, like "yes"',
        ),
        ("tasks", "{1: {class_path: VQA}}", "tasks: got the name 1; give text: write it in quotes"),
        ("optimizer", "adamw", "optimizer: got 'adamw'; give a mapping of keys, like {learning_r"),
        ("config", "nofile.yaml", "no such file: nofile.yaml; check the path"),
        ("config", "recipes/none.yaml", "no such file: recipes/none.yaml; vlds brings: recipes/"),
    ],
)
def test_mistakes_on_the_command_line(option: str, value: str, message: str, file: Path) -> None:
    assert message in recipe_complaint("--config", str(file), f"--{option}", value)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("output:", "outputs:", "unknown key 'outputs'; did you mean 'output'?"),
        ("output: runs/mine\n", "", "output is required; add it to the recipe, or"),
        ("output:", "training: {stepz: 3}\noutput:", "'training.stepz'; did you mean 'training.st"),
        ("output:", "training: {steps: many}\noutput:", "training.steps: got 'many'; give a whole"),
        ("output:", "training: {epochs: 0}\noutput:", "training.epochs: got 0.0; give a number"),
        (
            "output:",
            "training: {steps: 5, epochs: 2}\noutput:",
            "training.epochs: got 2.0, and steps 5 too; give one and set the other to null",
        ),
        ("output:", "a: [\noutput:", "recipe.yaml, line 3: not YAML: expected"),
        (RECIPE, "- 1\n", "recipe.yaml: a recipe has keys and values, like "),
        ("tasks: {vqa", "taskz: {vqa", "unknown key 'taskz'; did you mean 'tasks'?"),
        ("train: [a]", "trian: [a]", "tasks.vqa: unknown key 'trian'; did you mean 'train'? VQA"),
        ("VQA", "VQB", "tasks.vqa: 'VQB' is not a Task; did you mean 'VQA'? choose"),
        ("class_path: VQA, init_args: {train: [a], evaluate: [b]}", "train: [a]",
         "tasks.vqa: class_path is missing; write class_path: Caption, or "),
        ("methods: {adapter: {class_path: Adapter, init_args: {reduction: 4}}}",
         "methods: [Adapter]", "methods: got [Adapter]; give entries with a name each"),
        ("reduction: 4", "reduction: null", "methods.adapter.reduction: got null; give a value"),
        ("reduction: 4", "sharing: null", "methods.adapter.sharing: got null; give a value"),
        ("output: runs/mine", "output: x\nseed: null", "seed: got null; give a value, or le"),
        ("output: runs/mine", "output:", "recipe.yaml: output: got null; give a value"),
        ("output: runs/mine", "output: 5", 'output: got 5; give text: write it in quotes, like "'),
        ("evaluate: [b]", "prompt: no", "tasks.vqa.prompt: got false; that is how YAML reads"),
        ("{vqa:", "{yes:", "recipe.yaml: tasks: got the name true; that is how YAML reads a bare"),
        ("evaluate: [b]", "head: {class_path: LinearHead, init_args: {classes: [a, off]}}",
         "tasks.vqa.head.classes: got false; that is how YAML reads a bare no, off or false; give"),
        ("output:", "optimizer: {learning_rate: 0,001}\noutput:",
         "optimizer.1: 1 stands where a key belongs; keys are text, and the comma of a number"),
        ("output:", "\toutput:", "line 1: not YAML: found character '\\t' that cannot start"),
        ("runs/mine", '" "', "output: got ' '; name a folder"),
        ("runs/mine", '"a\\0b"', "output: got 'a\\x00b', which holds a NUL; leave it out"),
        ("runs/mine", f"x\nseed: 0x{'f' * 9000}", "seed: got a number of 36,000 bits; give a sm"),
        *(
            ("output:", f"{key}: {{{name}: {value}}}\noutput:", f"{key}.{name}: got {said}")
            for key, name, value, said in (
                ("training", "steps", "9223372036854775808", "9223372036854775808; give at m"),
                ("training", "collective_timeout", "1.0e+10", "10000000000.0; give a number fr"),
                ("data", "global_batch_size", "10000000000000000", "10000000000000000; give at mo"),
                ("optimizer", "warmup_ratio", "5", "5.0; give a number from 0 to 1"),
                ("optimizer", "decay_start", "1.5", "1.5; give a number from 0 to 1"),
                ("optimizer", "learning_rate", "1.0e+308", "1e+308; give at most 1,000,000,000,0"),
            )
        ),
        ("pieces.model", "pieces.model, extra_tokens: 1000000000",
         "model.backbone.extra_tokens: got 1000000000; give a number from 0 to 10,000"),
        ("output:", "optimizer: {betas: [0.9, 1]}\noutput:",
         "optimizer.betas: got 1.0; give 0 or"),
        ("train: [a]", "train: [a], decoding: {choices: []}",
         "tasks.vqa.decoding.choices: there are none; give some words, or set it to null"),
        ("train: [a]", "train: [a], decoding: {max_new_tokens: 9223372036854775808}",
         "tasks.vqa.decoding.max_new_tokens: got 9223372036854775808; give a number from 1 to"),
        ("train: [a]", "train: [a], max_prompt_tokens: 9223372036854775808",
         "tasks.vqa.max_prompt_tokens: got 9223372036854775808; give at most 1,000"),
        ("tasks: {vqa", "tasks: {no", "tasks: got the name false; that is how YAML reads"),
        ("methods: {adapter", "methods: {8", "methods: got the name 8; "),
        *(
            ("tasks: {vqa", f"tasks: {{{json.dumps(name)}", "cannot be a task's name, bec")
            for name in ("../../victim", "/tmp/victim", "a\\b", "", " ", "..", ".a", "a\0b", "a\nb",
                         "a\u202eb", "a" * 300)
        ),
    ],
)  # fmt: skip
def test_mistakes_in_the_file(old: str, new: str, message: str, file: Path) -> None:
    assert old in RECIPE
    file.write_text(RECIPE.replace(old, new))
    assert message in recipe_complaint("--config", str(file))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "--seed", "3"], "--output: no value follows; write --output VALUE"),
        (["--training.steps"], "--training.steps: no value follows; write --training.steps VALUE"),
        (["--bf16", "--seed", "3"], "unknown key 'bf16'; did you mean 'training.precision'?"),
        (["training.steps=5"], "'training.steps=5' is unexpected; did you mean --training.steps="),
        (["-seed", "3"], "'-seed' is unexpected; did you mean --seed VALUE? a recipe comes first"),
    ],
)
def test_words_without_their_form(words: list[str], message: str, file: Path) -> None:
    assert message in recipe_complaint("--config", str(file), *words)


def test_a_damaged_saved_recipe_is_named(file: Path, tmp_path: Path) -> None:
    saved = tmp_path / "seed-7.yaml"
    save_recipe(parse_recipe(["--config", str(file)]), saved)
    text = saved.read_text()
    for old, new, message in (
        ("steps: null", "steps: many", f"{saved}: training.steps: got 'many'; give a whole"),
        ("eps: 1.0e-06", "eps: 0", f"{saved}: optimizer.eps: got 0.0; give a number above 0"),
        ("seed: 0", "seed: [0", f"{saved}, line 3: not YAML: expected"),
    ):
        assert old in text
        saved.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"give|close") as error:
            load_recipe(saved)
        assert message in str(error.value)


def test_a_word_or_nothing(file: Path, tmp_path: Path) -> None:
    """The message lists the words, and null if nothing is a choice too."""
    model = f"{{class_path: ImageTextToText, init_args: {{path: {tmp_path}}}}}"
    text = (
        RECIPE.partition("model:")[0]
        + f"model: {model}\nmethods:"
        + RECIPE.partition("methods:")[2]
    )
    file.write_text(text)
    said = recipe_complaint("--config", str(file), "--model.bits", "3")
    assert said == "model.bits: got '3'; give one of 4, 8 or null"
    said = recipe_complaint("--config", str(file), "--training.precision", "fp8")
    assert said == "training.precision: got 'fp8'; give one of bf16, fp16, fp32"


def test_no_tasks(file: Path) -> None:
    tree: dict[str, Any] = yaml.safe_load(RECIPE)
    file.write_text(yaml.safe_dump(tree | {"tasks": {}}))
    assert "tasks: the recipe has none; give at least one" in recipe_complaint(
        "--config", str(file)
    )


def test_a_list_of_answers_is_a_file_or_itself(file: Path, tmp_path: Path) -> None:
    """Both forms survive saving and reading, even words that YAML reads as other types."""
    key = "--tasks.vqa.decoding.answers"
    for told, expected in (
        ("answers.json", "answers.json"),
        ('["yes", "no", "2"]', ("yes", "no", "2")),
    ):
        recipe = parse_recipe(["--config", str(file), key, told])
        assert recipe.tasks["vqa"].decoding.answers == expected
        save_recipe(recipe, tmp_path / "saved.yaml")
        assert load_recipe(tmp_path / "saved.yaml") == recipe
    with pytest.raises(ValueError, match=r"but answers already limits what may be generated"):
        parse_recipe(
            ["--config", str(file), key, "a.json", "--tasks.vqa.decoding.choices", "[a, b]"]
        )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "learning_rate"),
        ("r", "rank"),
        ("Lora", "LoRA"),
        ("step", "steps"),
        ("stepz", "steps"),
        ("learning_rates", "learning_rate"),
        ("zzz", None),
        ("", None),
    ],
)
def test_what_was_meant(name: str, meant: str | None) -> None:
    said = guess(name, ["rank", "steps", "learning_rate", "LoRA"])
    assert said == (f"did you mean '{meant}'? " if meant else "")


def test_keys_are_not_shortened_and_a_file_needs_no_option(file: Path) -> None:
    assert "unknown key 'training.step'; did you mean 'training.steps'?" in recipe_complaint(
        str(file), "--training.step", "3"
    )
    found = parse_recipe([str(file), "--training.steps", "3"])
    assert found == parse_recipe(["--config", str(file), "--training.steps", "3"])
    assert found.training.steps == 3


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words, out in (("--version", "vlds {}\n"), ("-v", "vlds {}\n"), ("help", "usage: vlds ")):
        with pytest.raises(SystemExit) as end:
            run_command([words])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(out.format(version("vlds")))


@pytest.mark.parametrize("command", ["train", "plan", "describe"])
def test_help_is_a_page_and_all_keys_are_there(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: vlds {command} RECIPE ")
    assert not split_words([command, "--help-all"]).starts_ranks
    with pytest.raises(SystemExit) as end:
        run_command([command, "--help-all"])
    assert end.value.code == 0
    keys = capsys.readouterr().out
    assert all(f"--{key}" in keys for key in ("optimizer.learning_rate", "data.window", "seed"))
    page = keys[keys.index("usage: ") :]  # libraries may have warned before
    assert max(map(len, page.splitlines())) <= 80
    assert "required" not in page
    assert page.replace("\n", "").isprintable()
    assert "Peak learning rate; a method's own `learning_rate`" in keys
    assert "default: 0.001" in keys
    with pytest.raises(SystemExit):
        run_command([command, "recipes/demo.yaml", "--help-all"])
    assert "--methods.adapter.reduction VALUE" in capsys.readouterr().out
