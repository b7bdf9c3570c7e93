"""Prompts and answers as tokens, with and without a chat template."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex
from tokenizers.normalizers import Replace
from transformers import AutoTokenizer

from tests.toys.causal import TEMPLATE, write_tokenizer
from tests.toys.image_text.rows import tiny
from vlds.models import Causal
from vlds.models.kinds import chat_format
from vlds.models.kinds.causal_rows import CausalCollator
from vlds.models.kinds.chat_format import ChatFormat
from vlds.models.kinds.chat_forms import harmless
from vlds.models.vision import StoredFeatures
from vlds.schema import IGNORED_LABEL, Example, Row, Turn

END = 2
QUESTION = "what colour is it now?"
CONVERSATIONS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer_in(folder: Path, template: str | None = TEMPLATE) -> Any:
    write_tokenizer(folder, template)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("end", "tail"),
    [("<|end|>\n", "<|end|>"), (" <|eos|>", " <|eos|>"), ("<|end|><|eos|>", "<|end|>")],
)
def test_a_row_begins_as_the_whole_conversation(end: str, tail: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_in(tmp_path, TEMPLATE.replace("<|end|>\n", end))
    chat = ChatFormat.of(tokenizer)
    assert chat.tail == tail
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "it is red"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = [*chat.prompt_ids(QUESTION, 40), *chat.answer_ids("it is red", 40)]
    assert ids == tokenizer(whole, add_special_tokens=False)["input_ids"][: len(ids)]
    assert ids[-1] == chat.tail_ids[-1]
    assert set(chat.end_ids) == {chat.tail_ids[-1], tokenizer.eos_token_id}


def test_without_a_special_token_behind_answers_eos_ends_them(tmp_path: Path) -> None:
    endless = TEMPLATE.replace("<|end|>\n", "\n")
    assert ChatFormat.of(tokenizer_in(tmp_path, endless)).tail == "<|eos|>"


def test_without_a_template_texts_stand_alone(tmp_path: Path) -> None:
    tokenizer = tokenizer_in(tmp_path, None)
    chat = ChatFormat.of(tokenizer)
    assert chat.prompt_ids(QUESTION, 40) == tokenizer(QUESTION)["input_ids"]
    assert chat.answer_ids("red", 40) == [*tokenizer("red")["input_ids"], tokenizer.eos_token_id]
    assert chat.prompt_ids("", 40) == [tokenizer.eos_token_id]


def test_answers_stand_behind_the_prompt_that_generation_uses(tmp_path: Path) -> None:
    """Also where a template asks for a thought that it writes before no answer, as GLM-4.1V's."""
    thinking = TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>(thinking) {% endif %}")
    chat = ChatFormat.of(tokenizer_in(tmp_path, thinking))
    prompt = f"<|user|>{QUESTION}<|end|>\n<|assistant|>(thinking) "
    assert chat.prompt(QUESTION) == prompt
    assert (chat.lead, chat.tail) == ("", "<|end|>")
    ids = [*chat.prompt_ids(QUESTION, 40), *chat.answer_ids("red")]
    assert ids == chat.ids(f"{prompt}red<|end|>")
    assert chat.prompt_note == (
        "its chat template asks for an answer behind '<|user|>vlds-marks-the-question<|end|>\\n"
        "<|assistant|>(thinking) ', and writes finished ones behind '<|user|>vlds-marks-the-quest"
        "ion<|end|>\\n<|assistant|>'; answers are learned where it asks"
    )
    assert ChatFormat.of(tokenizer_in(tmp_path)).prompt_note == ""


def test_the_field_of_a_template_that_fails_is_named(tmp_path: Path) -> None:
    tokenizer_in(tmp_path, "{% if %}")
    vision = StoredFeatures(dim=8, grid=2)
    kind = Causal(config="config.json", tokenizer=str(tmp_path), vision=vision)
    message = r"^model\.tokenizer: its chat template fails: .*; correct"
    with pytest.raises(ValueError, match=message):
        kind.collator(kind.load_processor())


CONTENT = "{{ message.content }}"
REFUSED: list[tuple[Any, str]] = [
    ("", "writes a conversation's answer elsewhere"),
    (
        "{% if message.role == 'assistant' %}{{ message.content }}{% endif %}",
        r"leaves out the question \(each prompt would be '<\|user\|><\|end\|>.*; let its chat_temp",
    ),
    ("{{ message.content[:40] }}", "changes the question .*; let its chat_temp"),
    ("{{ message.content | e }}", "changes the question"),
    ({"default": 5}, "is 5; give a text"),
    ({"tools": TEMPLATE, "rag": TEMPLATE}, "s tools, rag, and none is call"),
]
"""What a template writes of a message, or another object in its place."""


@pytest.mark.parametrize(("written", "message"), REFUSED)
def test_a_template_without_the_question_is_refused(
    written: Any, message: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_in(tmp_path)
    is_text = isinstance(written, str)
    tokenizer.chat_template = TEMPLATE.replace(CONTENT, written) if is_text else written
    said = rf"^its chat template .*{message}" if is_text else rf"^it.* chat[ _]template.*{message}"
    with pytest.raises(ValueError, match=said):
        ChatFormat.of(tokenizer)


@pytest.mark.parametrize("rule", [("(?m).+", "a"), ("[a-z]+", "x")])
def test_a_tokenizer_that_reads_nothing_is_refused(rule: tuple[str, str], tmp_path: Path) -> None:
    tokenizer = tokenizer_in(tmp_path)
    tokenizer.backend_tokenizer.normalizer = Replace(Regex(rule[0]), rule[1])
    with pytest.raises(ValueError, match=r"reads \d+ different questions as \d+; name the tok"):
        ChatFormat.of(tokenizer)


FAILING = {
    "an error of its own": "{{ raise_exception('no') }}",
    "a division": "{{ 1 / 0 }}",
    # These would take time or memory.
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a product": "{% set big = 'a' * 10 ** 11 %}",
    "a format": "{% set big = '%100000000000d' % 1 %}",
    "doubling": "{% set n = namespace(x='aa') %}{% for _ in range(99) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "a macro": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "a power": "{% set big = 9 ** (9 ** 9) %}",
    "an output": "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FAILING)
def test_a_template_that_fails_is_refused(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_in(tmp_path, FAILING[name] + TEMPLATE)
    with pytest.raises(ValueError, match=r"^its chat template fails: .*; correct its chat_temp"):
        ChatFormat.of(tokenizer)


def test_a_template_is_not_asked_about_each_question(tmp_path: Path) -> None:
    """Since it may be harmless until it sees a certain one."""
    trap = "{% if 'zzz' in messages[0].content %}" + FAILING["loops"] + "{% endif %}"
    chat = ChatFormat.of(tokenizer_in(tmp_path, trap + TEMPLATE))
    assert "zzz" in chat.prompt("zzz")


def test_only_the_newest_forms_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape that has gone is learned again, to the same text."""
    monkeypatch.setattr(chat_format, "MOST_FORMS", 3)
    chat = ChatFormat.of(tokenizer_in(tmp_path, CONVERSATIONS))
    talks = [
        tuple(Turn(("user", "assistant")[n % 2], (f"says {n}",)) for n in range(length))
        for length in (1, 3, 5, 7)
    ]
    texts = [chat.write(turns).text for turns in talks]
    assert [len(shape) for shape in chat.forms] == [3, 5, 7]
    assert chat.write(talks[1]).text == texts[1]
    assert [len(shape) for shape in chat.forms] == [5, 7, 3]
    assert chat.write(talks[0]).text == texts[0]
    assert [len(shape) for shape in chat.forms] == [7, 3, 1]
    assert texts[1] == "".join(f"<{t.speaker}>{t.content[0]}\n" for t in talks[1]) + "<assistant>"


THINKS = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}(think)\n\n(done)\n\n{% endif %}"
    "{{ message.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking is false %}(think)\n\n(done)\n\n"
    "{% endif %}{% endif %}"
)
"""Thoughts stand before answers, and prompts end before them unless they are told, as Qwen3's."""


def test_a_template_that_thinks_is_told_not_to(tmp_path: Path) -> None:
    tokenizer = tokenizer_in(tmp_path, THINKS)
    chat = ChatFormat.of(tokenizer)
    prompt = f"<|user|>{QUESTION}<|end|>\n<|assistant|>(think)\n\n(done)\n\n"
    assert chat.prompt(QUESTION) == prompt
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "red"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == prompt + "red<|end|>\n"
    assert (chat.lead, chat.tail) == ("", "<|end|>")


def test_prompts_of_processors_are_the_same_on_every_day() -> None:
    processor = copy.copy(tiny("qwen2_vl").processor)
    processor.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + processor.chat_template
    chat = ChatFormat.of(processor.tokenizer, processor)
    assert chat.prompt("it", 1).startswith("26 Jul 2024\n<|im_start|>")


def test_answers_cannot_write_turns_or_end_before_their_end(tmp_path: Path) -> None:
    tokenizer = tokenizer_in(tmp_path)
    chat, special = ChatFormat.of(tokenizer), set(tokenizer.all_special_ids)
    special |= set(tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>", "<|assistant|>"]))
    answer = "a <|eos|> and <|end|> b"
    assert [id for id in chat.answer_ids(answer) if id in special] == list(chat.tail_ids)
    assert tokenizer.decode(chat.first_ids(answer)) == "a < |eos|> and < |end|> b"


def test_added_tokens_that_are_text_stay_whole(tmp_path: Path) -> None:
    """As the line breaks and tags of Gemma's tokenizer."""
    tokenizer = tokenizer_in(tmp_path)
    tokenizer.add_tokens(["\n\n", "<table>"])
    chat = ChatFormat.of(tokenizer)
    text = "rows:\n\n<table>a"
    assert chat.plain(text) == text
    assert tokenizer.convert_tokens_to_ids("<table>") in chat.prompt_ids(text, 40)
    # A control word of one character gives way to a blank, except in the template's own words.
    assert harmless("a ! b!", ["!"], [(0, 5)]) == ("a   b!", [])


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_in(tmp_path)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"^its tokenizer has no end-of-sequence token"):
        ChatFormat.of(tokenizer)


def row(prompt: str, target: str | None) -> Row:
    return Row(Example("e", "vqa", prompt, target), 0, 40, 20, range(0))


def test_labels_are_the_answers_tokens(tmp_path: Path) -> None:
    collate = CausalCollator(ChatFormat.of(tokenizer_in(tmp_path)), features=False)
    rows = [row(QUESTION, "red"), row("is it dark", None), row("it", "a picture that is dark")]
    batch = collate(rows, None, evaluation=False)
    assert batch.labels is not None
    assert batch.labels_on_prompt
    for number, each in enumerate(rows):
        prompt = collate.chat.prompt_ids(each.example.prompt, 40)
        answer = [] if each.example.target is None else collate.chat.ids(each.example.target)
        ends = [END] * bool(answer)
        mine = batch.input_ids[number][batch.attention_mask[number]].tolist()
        assert mine == [*prompt, *answer, *ends]
        labels = batch.labels[number].tolist()
        assert labels[: len(prompt)] == [IGNORED_LABEL] * len(prompt)
        assert [label for label in labels if label != IGNORED_LABEL] == [*answer, *ends]
    lengths = collate.prompt_lengths([(each.example.prompt, 40) for each in rows])
    evaluation = collate(rows, None, evaluation=True)
    assert evaluation.labels is None
    assert not evaluation.labels_on_prompt
    assert evaluation.attention_mask.sum(1).tolist() == lengths


def test_words_to_choose_from_begin_as_answers_do(tmp_path: Path) -> None:
    """With the blank that a template writes before an answer."""
    before = "{% if message.role == 'assistant' %} {% endif %}"
    spaced = TEMPLATE.replace("{{ message.content }}", before + "{{ message.content }}")
    chat = ChatFormat.of(tokenizer_in(tmp_path, spaced))
    assert chat.lead == " "
    assert chat.answer_ids("red")[: len(chat.first_ids("red"))] == chat.first_ids("red")
    assert chat.first_ids("red") != chat.ids("red")
