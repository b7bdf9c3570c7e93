"""A run as harnesses ask it, without any harness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vlds
from tests.toys.films import film
from tests.toys.kinds import kind_recipe
from tests.toys.recipes import with_model
from tests.toys.trained_runs import talkative_run
from tests.toys.world import COLOURS, picture, world_recipe, write_world
from vlds.evaluation.evaluator import question_batch
from vlds.harness.asked import AskedRun, Message, Settings, Video
from vlds.schema import Clip, Decoding
from vlds.tasks import Chat, MultipleChoice

PICTURES = [picture(colour, index) for index, colour in enumerate(COLOURS)]
TEXT = "what colour is it ?"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    write_world(folder / "world")
    recipe = world_recipe(folder / "world", folder / "run")
    # Words for letters, which the world's tokenizer does not know.
    choose = MultipleChoice(max_prompt_tokens=12, decoding=Decoding(choices=("red", "now")))
    talkative_run(replace(recipe, tasks={**recipe.tasks, "choose": choose}))
    return folder


def user(*parts: str | bytes | Video) -> list[Message]:
    return [Message("user", parts)]


def test_answers_are_those_of_the_run(home: Path) -> None:
    asked, model = AskedRun(home / "run", "vqa"), vlds.load(home / "run")
    questions = [asked.read(user(data, TEXT)) for data in PICTURES]
    expected = [answer.text for answer in model.answer_many(
        ((data, TEXT) for data in PICTURES), task="vqa"
    )]  # fmt: skip
    assert asked.answers(questions, batch_size=2) == expected
    (longest,) = asked.answers(questions[:1], Settings.of({"max_new_tokens": 2}))
    assert len(longest) < len(expected[0])
    assert expected[0].startswith(longest)
    stop = expected[0][3]
    (cut,) = asked.answers(questions[:1], Settings.of({"until": ["", stop]}))
    assert cut == expected[0].partition(stop)[0]
    # Choices are named in the words of who asks.
    chosen = AskedRun(home / "run", "choose")
    letters = chosen.answers([chosen.read(user(data, "is it a or b")) for data in PICTURES])
    assert set(letters) <= {"red", "now"}


def test_likelihoods_are_the_losses_of_the_model(home: Path) -> None:
    # The task's own limit would cut the third text.
    asked = AskedRun(home / "run", "vqa", {"tasks.vqa.max_target_tokens": 60})
    question = asked.read(user(PICTURES[0], TEXT))
    texts = ["red", " red ", "it is blue and nothing but dark"]
    for limited in (asked, AskedRun(home / "run", "vqa")):
        found = limited.likelihoods([(question, text) for text in texts], batch_size=2)
        for text, each in zip(texts, found, strict=True):
            row = question._replace(example=replace(question.example, target=text.strip()))
            batch = question_batch(asked._loaded, "vqa", [row])
            with torch.no_grad():
                logits = asked._loaded.model.logits(batch)[0]
            assert batch.labels is not None
            labels = batch.labels[0]
            nll = torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            is_greedy = bool((logits.argmax(-1) == labels).all())
            assert each == (pytest.approx(nll, rel=1e-5), len(labels), is_greedy)


def test_settings_that_ask_for_samples_are_refused() -> None:
    assert Settings.of({"do_sample": False, "temperature": 0.7}).unknown == ()
    assert Settings.of({"temperature": 0, "do_sample": True}).num_beams is None
    assert Settings.of({"max_gen_toks": 9, "num_beams": 3, "image_aspect_ratio": 1}) == Settings(
        9, 3, unknown=("image_aspect_ratio",)
    )
    for given in ({"do_sample": True}, {"temperature": 0.2}):
        with pytest.raises(ValueError, match="set do_sample to False"):
            Settings.of(given)


def test_what_is_asked_wrongly_is_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="several tasks, say which: vqa, caption, choose"):
        AskedRun(home / "run")
    with pytest.raises(ValueError, match="frames: got 0; give a whole number"):
        AskedRun(home / "run", "vqa", frames=0)
    asked = AskedRun(home / "run", "vqa")
    with pytest.raises(ValueError, match="task: vqa reads one question, got 2 messages"):
        asked.read([*user(TEXT), Message("assistant", ["red"])])
    with pytest.raises(ValueError, match=r"task: vqa reads pictures, got the clip clip.mp4"):
        asked.read(user(Video(Path("clip.mp4")), TEXT))
    with pytest.raises(ValueError, match="got 3, and the task vqa takes 1 to 2"):
        asked.read(user(*PICTURES, TEXT))
    long = [asked.read(user(PICTURES[0], TEXT * 9)), asked.read(user(PICTURES[1], TEXT * 9))]
    asked.answers(long, Settings(unknown=("top",)), batch_size=1)
    told = capsys.readouterr().err
    assert told.count("vlds: a question is longer than tasks.vqa.max_prompt_tokens (12)") == 1
    assert "the setting top is asked for" in told


@pytest.mark.slow
def test_a_conversation_has_its_pictures_and_clips_in_place(tmp_path: Path) -> None:
    write_world(tmp_path / "world")
    recipe = kind_recipe("image_text", tmp_path / "world", tmp_path / "run")
    chat = Chat(max_prompt_tokens=200, decoding=Decoding(max_new_tokens=6))
    recipe = with_model(replace(recipe, tasks={"chat": chat}), num_images=4)
    run, clip = talkative_run(recipe), film(tmp_path / "clip.mp4", 3)
    with pytest.raises(
        ValueError, match=r"read as 8 pictures; image: got 8, .* takes 0 to 4; give"
    ):
        AskedRun(run).read(user(Video(clip)))
    asked = AskedRun(run, frames=3)
    question = asked.read(
        [
            Message("system", ["Be brief."]),
            *user("what is", PICTURES[0], "?"),
            Message("assistant", ["red"]),
            *user(Video(clip), "and this?"),
        ]
    )
    system, first, answer, last = question.example.turns
    assert (system.content, first.content) == (("Be brief.",), ("what is", None, "?"))
    assert (answer.content, answer.learned) == (("red",), False)
    shown, words = last.content
    assert isinstance(shown, Clip)
    assert (len(shown.times), words) == (3, "and this?")
    assert len(question.pictures) == 4
    first_answer, second_answer = asked.answers([question, question])
    assert first_answer == second_answer
