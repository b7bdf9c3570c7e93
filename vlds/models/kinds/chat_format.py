"""Prompts and answers as tokens, as a model's chat template writes them.

A template may be anybody's program. It is run apart, with limits of time and memory, and only to
learn what it writes around the texts of a conversation: others are put between these pieces.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import product
from typing import Any

from transformers import AddedToken

from vlds.models.kinds.chat_forms import (
    TRIMS,
    Around,
    Form,
    Said,
    Shape,
    Trim,
    Written,
    harmless,
    places_inside,
    type_of,
)
from vlds.runtime.limited import limited
from vlds.schema import SkipSample, Speaker, Turn

DAY = date(2024, 7, 26)
"""What templates read as today. Those of Llama 3 and SmolLM3 write the date into each prompt, and a
run that is resumed or evaluated tomorrow must read the prompts of today. The day is the one that
Llama's own template writes where it cannot ask."""
CODES = "aAbBcdHIjmMpSUwWxXyYZ"
"""Letters of `strftime`'s codes."""
CLOCK = "strftime_now"
"""The function that templates ask; Hugging Face defines it for all of them."""
QUESTION, MARKER = "vlds-marks-the-question", "vlds-marks-the-answer"
"""Stand for a question and its answer, to find what a template writes around them."""
MARK = re.compile("vlds-marks-text-([0-9]+)-here")
"""What stands for the texts of a conversation."""
SILENT = {"enable_thinking": False}
"""What tells a template that nothing is thought before an answer."""
TEXTS = ("\n  Is it  RED,\n50 % of\tthe {{ 'time' }} & <b>1</b>? \n", "\u00e9 " * 300 + "end")
"""Texts that a template must not change, except for blanks around them."""
LONGEST_END = 40
"""Characters of a prompt without special tokens that its answers are tokenized behind."""
MOST_FORMS = 4096
"""Shapes of conversations whose forms a process keeps."""
NUM_TRIED = 300
"""Tokens, spread over the vocabulary, that are read as questions."""
LEAST_TOLD = 3 / 4
"""Share of them that must lead to different prompts."""
WHAT: Mapping[Speaker, str] = {
    "system": "system message",
    "user": "question",
    "assistant": "answer before the question",
    "tool": "tool's output",
}
"""What a speaker says, for messages."""
Asked = tuple[Sequence[Mapping[str, Any]], Mapping[str, bool], bool]
"""A conversation, what the template is told beside it, and whether an answer is asked for."""
TOKEN = (str, AddedToken)
"""Types of the tokens that processors name."""


@dataclass(frozen=True)
class ChatFormat:
    """Prompt, answer, and the tail that ends an answer."""

    tokenizer: Any
    template: Any
    """What has `apply_chat_template`: a processor, or the tokenizer."""
    placeholder: str = ""
    """What stands for a picture where there is no template; "" if nothing does."""
    answers_apart: bool = False
    """True for encoder-decoders: an answer is a separate sequence with its own start token."""

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        processor: Any = None,
        placeholder: str = "",
        *,
        answers_apart: bool = False,
    ) -> ChatFormat:
        """The format of a tokenizer or processor: of its chat template, or else plain texts that
        end with the end-of-sequence token.

        Errors: ValueError if it has no such token, if answers do not follow its prompts, if prompts
        do not hold their questions, or if all questions lead to one prompt.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "its tokenizer has no end-of-sequence token, so that no answer would end; set "
                "eos_token in tokenizer_config.json"
            )
        template = tokenizer if processor is None else processor
        chat = cls(tokenizer, template, placeholder, answers_apart)
        if not chat.tail_ids:
            raise ValueError(
                f"its tokenizer reads {chat.tail!r}, which ends an answer, as no token; correct "
                "eos_token in tokenizer_config.json, or its tokenizer.json"
            )
        if chat.has_template and template is not tokenizer:
            assert chat.prompt("", 1)  # tries the template with a picture
        # A damaged tokenizer may read any text as its unknown token, or all letters as one. A whole
        # one reads few words alike, such as an old and a new form of a letter.
        ids = range(0, len(tokenizer), max(1, len(tokenizer) // NUM_TRIED))
        words = {tokenizer.decode([id], skip_special_tokens=True).strip() for id in ids}
        prompts = {tuple(chat.ids(chat.prompt(chat.plain(word)))) for word in words}
        if len(prompts) < max(2, LEAST_TOLD * len(words)):
            raise ValueError(
                f"its tokenizer reads {len(words)} different questions as {len(prompts)}; name the "
                "tokenizer that belongs to the model, or copy it again"
            )
        return chat

    # Prompts.

    @property
    def has_template(self) -> bool:
        return getattr(self.template, "chat_template", None) is not None

    def prompt(self, question: str, num_pictures: int = 0) -> str:
        """The text of a prompt, with a placeholder for each picture."""
        return self.write((Turn("user", ((None,) * num_pictures) + (question,)),)).text

    def write(self, turns: Sequence[Turn]) -> Written:
        """The text that asks for the next answer after these turns, with a placeholder for each
        picture.

        Errors: ValueError if there is no template and more than one turn, or if the template
        refuses such a conversation.
        """
        texts = [text for turn in turns for text in turn.texts]
        if not self.has_template:
            if len(turns) > 1 or turns[0].speaker != "user":
                raise ValueError(
                    "it has no chat template, which a conversation of several turns needs; add one "
                    "(chat_template.jinja), or choose another model"
                )
            content = turns[0].as_pictures.content
            # Each text becomes a mark, between which the pictures' places stand.
            marked = "".join(self.placeholder if p is None else "\0" for p in content)
            num = len(texts)
            return Form(tuple(marked.split("\0")), tuple(range(num)), (str,) * num).around(texts)
        shape = tuple((turn.speaker, tuple(map(type_of, turn.content))) for turn in turns)
        if (form := self.forms.pop(shape, None)) is None:
            form = self.form(shape)
            if len(self.forms) == MOST_FORMS:
                del self.forms[next(iter(self.forms))]
        self.forms[shape] = form  # the newest stands last
        return form.around(texts)

    @cached_property
    def forms(self) -> dict[Shape, Form]:
        """What the template writes around texts. `write` fills it."""
        return {}

    def form(self, shape: Shape) -> Form:
        """What the template writes around the texts of a conversation, learned from a few.

        Errors: ValueError if it fails, or leaves out or changes a text.
        """
        speakers = [speaker for speaker, types in shape for type in types if type == "text"]
        marks = [MARK.pattern.replace("([0-9]+)", str(n)) for n in range(len(speakers))]
        tried = [marks, *([text] * len(marks) for text in TEXTS)]
        found = self.rendered(
            [(self.messages(shape, texts), self.variables, True) for texts in tried]
        )
        # "USER: ", "0", " BOT: ", "1", "": pieces and numbers of texts in turns.
        split = MARK.split(found[0])
        pieces, numbers = tuple(split[::2]), tuple(map(int, split[1::2]))
        num_pictures = sum(len(types) - types.count("text") for _, types in shape)
        beside = f" beside {num_pictures} picture{'s' * (num_pictures > 1)}" if num_pictures else ""
        written = set(numbers)
        for number, speaker in enumerate(speakers):
            what = WHAT[speaker]
            if number not in written:
                raise ValueError(
                    f"its chat template leaves out the {what}{beside} (each prompt would be "
                    f"{found[0][:80]!r}); let its chat_template write the content of each message"
                )
        # A template may strip what a speaker says; TEXTS have blanks around them to tell how. Four
        # ways for each of at most four speakers: to try all costs no call of the template.
        present = list(dict.fromkeys(speakers))
        for trims in product(TRIMS, repeat=len(present)):
            of = dict(zip(present, trims, strict=True))
            form = Form(pieces, numbers, tuple(of[speaker] for speaker in speakers))
            if [form.around(texts).text for texts in tried] == found:
                return form
        raise ValueError(
            f"its chat template changes the {WHAT[speakers[-1]]}{beside} ({TEXTS[0]!r} becomes "
            f"{found[1][:160]!r}); let its chat_template write the content of each message as it "
            "is, at most without blanks around it"
        )

    def messages(self, shape: Shape, texts: Sequence[str]) -> list[dict[str, Any]]:
        """A conversation of this shape with these texts, as templates take it: those of tokenizers
        want a text for each turn, those of processors a list."""
        lists = self.template is not self.tokenizer and self.reads_lists
        return self.as_messages(shape, texts, lists)

    def as_messages(self, shape: Shape, texts: Sequence[str], lists: bool) -> list[dict[str, Any]]:
        """`lists`: all contents are lists, not only those with pictures."""
        unread = iter(texts)
        messages: list[dict[str, Any]] = []
        for speaker, types in shape:
            content: Any = [
                {"type": "text", "text": next(unread)} if type == "text" else {"type": type}
                for type in types
            ]
            if not lists and set(types) <= {"text"}:
                content = "".join(part["text"] for part in content)
            messages.append({"role": speaker, "content": content})
        return messages

    @cached_property
    def reads_lists(self) -> bool:
        """True if the template reads contents that are lists without pictures too. That of GLM-4.1V
        wants an answer as a text."""
        shape: Shape = (("user", ("text",)), ("assistant", ("text",)))
        talk = self.as_messages(shape, (QUESTION, MARKER), lists=True)
        with suppress(ValueError):
            return MARKER in self.rendered([(talk, {}, False)])[0]
        return False

    def rendered(self, asked: Sequence[Asked]) -> list[str]:
        """Conversations as the template writes them, on the same day whenever it is asked.

        Errors: ValueError if the template fails, or takes too much time or memory.
        """

        # All of them in one process, since starting one takes longer than running a template.
        def write() -> str:
            return json.dumps(
                [
                    self.template.apply_chat_template(
                        turns,
                        chat_template=self.template_text,
                        tokenize=False,
                        add_generation_prompt=prompts,
                        **variables,
                    )
                    for turns, variables, prompts in asked
                ]
            )

        try:
            texts: list[str] = json.loads(limited(write))
        except ValueError as error:
            raise ValueError(
                f"its chat template fails: {error}; correct its chat_template"
            ) from error
        return texts

    @cached_property
    def template_text(self) -> str:
        """The chat template itself; of several, the one that is called default. If it asks for the
        date, a macro in front answers with `DAY`.

        Errors: ValueError if there are several and none is, or if it is not text.
        """
        found = self.template.chat_template
        named = found if isinstance(found, Mapping) else {"default": found}
        if "default" not in named:
            raise ValueError(
                f"it has the chat templates {', '.join(named)}, and none is called default; name "
                "one of them so"
            )
        if not isinstance(text := named["default"], str):
            raise ValueError(f"its chat_template is {text!r:.80}; give a text")
        if CLOCK not in text:
            return text
        # %-d, a number without a leading zero, is not in every C library's strftime.
        days = {"%-d": str(DAY.day), "%-m": str(DAY.month)}
        days |= {f"%{code}": DAY.strftime(f"%{code}") for code in CODES}
        steps = "".join(f'.replace("{code}", "{day}")' for code, day in days.items())
        # Jinja drops the line break behind the macro.
        return f"{{% macro {CLOCK}(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}\n{text}"

    @cached_property
    def variables(self) -> Mapping[str, bool]:
        """What the template is told beside the turns: nothing, or not to think if answers do not
        follow their prompts otherwise, as in Qwen3's."""
        if "enable_thinking" not in self.template_text or self.around_marker({}).follows:
            return {}
        return SILENT

    def prompt_ids(self, question: str, limit: int) -> list[int]:
        """Tokens of the user's turn, whose text is cut to `limit` tokens."""
        return self.turn_ids((Turn("user", (question,)),), limit).ids

    def turn_ids(self, turns: Sequence[Turn], limit: int) -> Said:
        """Tokens of the text that asks for the next answer; limits and errors as in
        `write_learned`. At least one, from which the answer's first token is predicted. For
        templates of tokenizers, which know no pictures."""
        text, places, pictures = self.write_learned(turns, limit)
        if not self.has_template:
            ids = list(self.tokenizer(text)["input_ids"])
            end = self.tokenizer.eos_token_id
            ids = (ids[:-1] if ids[-1:] == [end] else ids) or [end]
            return Said(ids, [False] * len(ids), [len(pictures)] * len(ids))
        if not places and not pictures:
            ids = self.ids(text)
            return Said(ids, [False] * len(ids), [0] * len(ids))
        ids, stretches = self.stretches(text, [*places, *((place, place) for place in pictures)])
        learned = [False] * len(ids)
        for first, behind in stretches[: len(places)]:
            learned[first:behind] = [True] * (behind - first)
        begins = sorted(first for first, _ in stretches[len(places) :])
        return Said(ids, learned, [bisect_right(begins, number) for number in range(len(ids))])

    def write_learned(
        self, turns: Sequence[Turn], limit: int
    ) -> tuple[str, list[tuple[int, int]], list[int]]:
        """The text that asks for the next answer after these turns, whose last question is cut to
        `limit` tokens; where in it the learned answers stand, with their ends; and where pictures
        do of which the text says nothing, as in templates of tokenizers.

        Control words inside the turns are text, also those that the template joins of several
        pieces. Errors: SkipSample for a conversation that the template refuses.
        """
        *before, last = (
            turn._replace(
                content=tuple(self.plain(p) if isinstance(p, str) else p for p in turn.content)
            )
            for turn in turns
        )
        left = limit - self.turns_length(before)
        if before and left <= 0:
            raise SkipSample(
                f"a conversation whose system message leaves no room for a question in {limit} "
                "tokens (max_prompt_tokens)"
            )
        pieces, is_alone = list(last.content), len(last.texts) == 1
        for place, piece in enumerate(pieces):
            if isinstance(piece, str):
                pieces[place] = self.cut(piece, max(0, left))
                # Most questions are one text: to count it again would cost as much as the cut.
                left -= 0 if is_alone else len(self.ids(piece))
        turns = [*before, last._replace(content=tuple(pieces))]
        inside: list[list[int]] = []
        if self.template is self.tokenizer:  # it knows no pictures
            inside = [places_inside(turn) for turn in turns]
            turns = [turn._replace(content=("".join(turn.texts),)) for turn in turns]
        try:
            text, places = self.write(turns)
        except ValueError as error:
            if len(turns) == 1:
                raise
            raise SkipSample(f"a conversation of {len(turns)} turns: {error}") from error
        owners = [turn for turn in turns for _ in turn.texts]
        # Of a text that the template repeats, the first place counts.
        first = {number: (start, end) for number, start, end in reversed(places)}
        learned = []
        for number, (start, end) in sorted(first.items()):
            if owners[number].learned:
                if self.lead and text[:start].endswith(self.lead):
                    start -= len(self.lead)
                # Some templates write another end before the next question, or none.
                if text.startswith(self.tail, end):
                    end += len(self.tail)
                learned.append((start, end))
        pictures = []
        for number, of_turn in enumerate(inside):
            start, end = first[number]
            # What the template has dropped are blanks before the text, or behind it.
            dropped = turns[number].texts[0].find(text[start:end])
            pictures += [min(max(start, start + place - dropped), end) for place in of_turn]
        text, blanks = harmless(text, self.control_words, [place[1:] for place in places])
        if not self.has_template:
            return text, [], [0] * len(pictures)
        moved = [(a + bisect_right(blanks, a), b + bisect_right(blanks, b)) for a, b in learned]
        return text, moved, [place + bisect_right(blanks, place) for place in pictures]

    def stretches(
        self, text: str, places: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a text without special ones around it; and for each place of the text, its
        first token and the one behind it."""
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts, ends = (
            zip(*tokens["offset_mapping"], strict=True) if tokens["input_ids"] else ((), ())
        )
        # The first token is the one that holds the first character, perhaps with a blank before it.
        found = [(bisect_right(ends, start), bisect_left(starts, end)) for start, end in places]
        return list(tokens["input_ids"]), found

    def turns_length(self, turns: Sequence[Turn]) -> int:
        """Tokens of the texts of these turns, without what the template writes."""
        return sum(len(self.ids(text)) for turn in turns for text in turn.texts)

    def num_around(self, num_turns: int) -> int:
        """Tokens that the template writes around so many turns of user and assistant, the last one
        the user's; around a question if it takes no conversations."""
        # Turns of one letter, less the letters.
        asked, told = Turn("user", ("a",)), Turn("assistant", ("a",))
        turns = (*(asked, told) * (num_turns // 2), asked)
        try:
            said = self.turn_ids(turns, self.turns_length(turns))
        except SkipSample:
            return self.num_around(1)
        return len(said.ids) - self.turns_length(turns)

    def has_start(self, text: str) -> bool:
        """True if a template has written the start token, which must not be there twice."""
        start = self.tokenizer.bos_token
        return bool(self.has_template and start and text.startswith(start))

    def cut(self, question: str, limit: int) -> str:
        words = self.ids(question)
        if len(words) <= limit:
            return question
        # A cut may go through a character of several bytes, whose part decodes to U+FFFD.
        text: str = self.tokenizer.decode(words[:limit], clean_up_tokenization_spaces=False)
        return text.rstrip("\ufffd")

    def plain(self, text: str) -> str:
        """A question or an answer without control words: neither can begin a turn, end one, or ask
        for a picture."""
        return harmless(text, self.control_words, [(0, len(text))])[0]

    @cached_property
    def control_words(self) -> tuple[str, ...]:
        """Texts of special tokens, and what stands for pictures. Other tokens that were added, such
        as line breaks or tags, are text."""
        words = {*self.tokenizer.all_special_tokens, self.placeholder.strip(), *self.special_words}
        # Processors name the tokens of pictures in attributes such as image_token.
        if self.template is not self.tokenizer:
            named = {n: str(v) for n, v in vars(self.template).items() if isinstance(v, TOKEN)}
            words |= {text.strip() for name, text in named.items() if name.endswith("_token")}
        return tuple(sorted(words - {""}))

    @property
    def special_words(self) -> list[str]:
        """Texts of the special tokens that were added to the vocabulary."""
        tokens = self.tokenizer.added_tokens_decoder.values()
        return [token.content for token in tokens if token.special]

    # Answers.

    def answer_ids(self, answer: str, limit: int | None = None) -> list[int]:
        """Tokens of an answer and the tail; those of the answer are cut if both are more than
        `limit`. Control words inside the answer are text."""
        ids = [*self.start_ids, *self.behind_prompt(self.said(answer) + self.tail)]
        if limit is None or len(ids) <= limit:
            return ids
        # The tail stays, so that the model learns to end its answers.
        return [*ids[: max(0, limit - len(self.tail_ids))], *self.tail_ids]

    def first_ids(self, answer: str) -> list[int]:
        """Tokens of an answer behind those of `start_ids`, without its tail."""
        return self.behind_prompt(self.said(answer))

    def said(self, answer: str) -> str:
        """An answer as the template writes it, without control words."""
        return self.lead + self.answer_trim(self.plain(answer))

    @cached_property
    def answer_trim(self) -> Trim:
        """What the template does with blanks around an answer, as far as it writes conversations
        that go on."""
        shape: Shape = (("user", ("text",)), ("assistant", ("text",)), ("user", ("text",)))
        with suppress(ValueError):
            if self.has_template:
                return self.form(shape).trims[1]
        return str

    def behind_prompt(self, text: str) -> list[int]:
        """Tokens of a text behind a prompt: some tokenizers begin a text that stands alone with a
        blank."""
        if self.answers_apart:
            return self.ids(text)
        before, ids = self.end_of_prompt
        together = self.ids(before + text)
        return together[len(ids) :] if together[: len(ids)] == ids else self.ids(text)

    @cached_property
    def end_of_prompt(self) -> tuple[str, list[int]]:
        """What a prompt ends with, from its last special token on, and the tokens of it."""
        if not self.has_template:
            return "", []
        prompt = self.around_marker(self.variables).prompt
        begin = max((prompt.rfind(word) for word in self.special_words), default=-1)
        end = prompt[begin:] if begin >= 0 else prompt[-LONGEST_END:]
        return end, self.ids(end)

    @cached_property
    def start_ids(self) -> list[int]:
        """Tokens before the first real one of an answer that stands apart."""
        if not self.answers_apart:
            return []
        # What the tokenizer writes around nothing, such as BART's <s>.
        return [id for id in self.tokenizer("")["input_ids"] if id != self.tokenizer.eos_token_id]

    @property
    def lead(self) -> str:
        """Blanks that the template writes between prompt and answer."""
        return self.around_answer[0]

    @property
    def tail(self) -> str:
        """What follows an answer, up to the token that ends it."""
        return self.around_answer[1]

    @cached_property
    def tail_ids(self) -> tuple[int, ...]:
        return tuple(self.ids(self.tail))

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return sorted({self.tail_ids[-1], self.tokenizer.eos_token_id})

    @property
    def pad_id(self) -> int:
        """The token of padding; no model reads it."""
        pad: int | None = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, without special tokens around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def around_answer(self) -> tuple[str, str]:
        """What a chat template writes before an answer, blanks at most, and behind it, up to the
        first special token; the end-of-sequence token if there is none.

        The prompt may be another than what stands before the answer of a finished conversation:
        GLM-4.1V's begins a thought there. Answers stand behind the prompt, as generation asks for
        them. Errors: ValueError if the template writes no answer behind a question.
        """
        if not self.has_template:
            return "", str(self.tokenizer.eos_token)
        prompt, before, after = around = self.around_marker(self.variables)
        if not around.follows and QUESTION not in before:
            raise ValueError(
                "its chat template writes a conversation's answer elsewhere than behind the "
                f"question ({(before + MARKER + after)[-120:]!r}); let its chat_template write the "
                "content of each message"
            )
        # `follows` has compared them without blanks: what `before` has more can only be blanks.
        lead = before.removeprefix(prompt) if around.follows else ""
        lead = "" if lead == before else lead
        ends = [after.index(text) + len(text) for text in self.special_words if text in after]
        return lead, after[: min(ends)] if ends else str(self.tokenizer.eos_token)

    @property
    def prompt_note(self) -> str:
        """What a run says where prompts end otherwise than what stands before a conversation's
        answers; "" elsewhere."""
        if not self.has_template or (around := self.around_marker(self.variables)).follows:
            return ""
        return (
            f"its chat template asks for an answer behind {around.prompt[-80:]!r}, and writes "
            f"finished ones behind {around.before[-80:]!r}; answers are learned where it asks"
        )

    def around_marker(self, variables: Mapping[str, bool]) -> Around:
        """How the template writes an answer."""
        talk = self.messages((("user", ("text",)), ("assistant", ("text",))), (QUESTION, MARKER))
        prompt, whole = self.rendered([(talk[:1], variables, True), (talk, variables, False)])
        before, _, after = whole.rpartition(MARKER)
        return Around(prompt, before, after)
