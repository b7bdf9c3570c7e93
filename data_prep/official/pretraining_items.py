"""What VL-T5's pre-training takes of one picture in LXMERT's aggregate: which sentences, and which
answers.

Rules of VL-T5's preprocessing (github.com/j-min/VL-T5, MIT), but for two: answers that become one
name add up here, where there the last one replaces the others; and a question without answers is
left out, where there it would be a caption.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from data_prep.json_rows import JsonRow, clean, shown

CAPTIONS = ("mscoco", "vg")
QUESTIONS = ("vqa", "gqa", "visual7w")
MOST_WORDS_LEFT_OUT = 2
TOO_SHORT = f"{MOST_WORDS_LEFT_OUT} words or fewer"
REPEATED = "the same sentence was said of the picture before"
NO_ANSWER = "no answer of the list"
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ANSWER_NAMES = {word: str(number) for number, word in enumerate(NUMBERS, 1)} | {"grey": "gray"}
ARTICLES = ("a ", "an ", "the ")


class Sentence(NamedTuple):
    """A sentence about a picture."""

    id: str
    source: str
    text: str
    label: Mapping[str, float]
    """Of a question: answer -> score; empty for a caption."""
    fault: str = ""
    """Why it is left out; "" if it is used."""


def sentences_of(row: JsonRow, answers: Collection[str]) -> Iterator[Sentence]:
    """The sentences about a picture in the file's order. `answers`: those that may be learnt.

    Errors: ValueError for an unknown source, or labels that do not fit the sentences.
    """
    image_id, labels = row.id("img_id"), row.object("labelf")
    seen = set[str]()
    for source, texts in row.object("sentf").items():
        if source not in (*CAPTIONS, *QUESTIONS):
            known = ", ".join((*CAPTIONS, *QUESTIONS))
            raise ValueError(f"{row.place}: unknown source {source!r}; known are {known}")
        of_source = labels.get(source, [{}] * len(texts))
        if not isinstance(texts, list) or len(texts) != len(of_source):
            raise ValueError(
                f"{row.place}: {source} has {len(of_source)} labels for {shown(texts)}; expected "
                "one for each sentence"
            )
        for number, (text, raw) in enumerate(zip(texts, of_source, strict=True)):
            if not isinstance(text, str) or not isinstance(raw, dict):
                raise ValueError(
                    f"{row.place}: {source} {number} is {shown(text)} with label {shown(raw)}; "
                    "expected text and an object of answers"
                )
            sentence = clean(text)
            label = converted_label(raw, answers) if source in QUESTIONS else {}
            fault = ""
            if len(sentence.split()) <= MOST_WORDS_LEFT_OUT:
                fault = TOO_SHORT
            elif sentence in seen:
                fault = REPEATED
            elif source in QUESTIONS and not label:
                fault = NO_ANSWER
            else:
                seen.add(sentence)
            yield Sentence(f"{image_id}_{source}_{number:03d}", source, sentence, label, fault)


def converted_label(raw: Mapping[str, float], answers: Collection[str]) -> dict[str, float]:
    """Answer -> score, of the answers that may be learnt. Scores of answers that become one name
    add up to at most 1, as votes do: "a man" and "man" are given by different people."""
    label: dict[str, float] = {}
    for given, score in raw.items():
        if (answer := converted_answer(given)) in answers:
            label[answer] = min(label.get(answer, 0.0) + score, 1.0)
    return label


def converted_answer(text: str) -> str:
    """An answer as it is learnt: lower case, without article and full stop, digits up to ten."""
    text = text.lower()
    if text.endswith("."):
        text = text[:-1].strip()
    for article in ARTICLES:
        if text.startswith(article):
            text = text.removeprefix(article).strip()
    return ANSWER_NAMES.get(text, text)
