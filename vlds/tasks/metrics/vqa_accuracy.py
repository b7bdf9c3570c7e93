"""VQA accuracy, as the official evaluation of VQA v2 computes it.

For each of the ten annotators, the prediction scores min(1, matches among the other nine / 3); the
mean of the ten is the question's accuracy. All oddities of the official script
(https://github.com/GT-Vision-Lab/VQA) are kept: a number that differs from it could not be compared
with published ones.

Four sets of rules are in use. "official" is the script's version of 2021: if the ten answers
differ, it normalises both sides alike, and neither if they agree. "legacy" is the version before,
which VL-T5 and VL-Adapter copied: it always normalises the prediction; the annotators' answers lose
their punctuation if they differ, and keep their articles, number words and case.

"textvqa" is for TextVQA (https://github.com/facebookresearch/mmf, mmf/utils/m4c_evaluators.py): it
always normalises both sides, after it has removed commas and question marks and parted 's from its
word. "direct" is for A-OKVQA's direct answers (https://github.com/allenai/aokvqa,
evaluation/eval_predictions.py): min(1, matches among all ten / 3), and nothing is normalised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from vlds.tasks.metrics.plain_scores import mean

# fmt: off
CONTRACTIONS = {
    "aint": "ain't", "arent": "aren't", "cant": "can't", "couldve": "could've",
    "couldnt": "couldn't", "couldn'tve": "couldn't've", "couldnt've": "couldn't've",
    "didnt": "didn't", "doesnt": "doesn't", "dont": "don't", "hadnt": "hadn't",
    "hadnt've": "hadn't've", "hadn'tve": "hadn't've", "hasnt": "hasn't", "havent": "haven't",
    "hed": "he'd", "hed've": "he'd've", "he'dve": "he'd've", "hes": "he's", "howd": "how'd",
    "howll": "how'll", "hows": "how's", "Id've": "I'd've", "I'dve": "I'd've", "Im": "I'm",
    "Ive": "I've", "isnt": "isn't", "itd": "it'd", "itd've": "it'd've", "it'dve": "it'd've",
    "itll": "it'll", "let's": "let's", "maam": "ma'am", "mightnt": "mightn't",
    "mightnt've": "mightn't've", "mightn'tve": "mightn't've", "mightve": "might've",
    "mustnt": "mustn't", "mustve": "must've", "neednt": "needn't", "notve": "not've",
    "oclock": "o'clock", "oughtnt": "oughtn't", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at", "shant": "shan't", "shed've": "she'd've", "she'dve": "she'd've",
    "she's": "she's", "shouldve": "should've", "shouldnt": "shouldn't",
    "shouldnt've": "shouldn't've", "shouldn'tve": "shouldn't've", "somebody'd": "somebodyd",
    "somebodyd've": "somebody'd've", "somebody'dve": "somebody'd've", "somebodyll": "somebody'll",
    "somebodys": "somebody's", "someoned": "someone'd", "someoned've": "someone'd've",
    "someone'dve": "someone'd've", "someonell": "someone'll", "someones": "someone's",
    "somethingd": "something'd", "somethingd've": "something'd've",
    "something'dve": "something'd've", "somethingll": "something'll", "thats": "that's",
    "thered": "there'd", "thered've": "there'd've", "there'dve": "there'd've",
    "therere": "there're", "theres": "there's", "theyd": "they'd", "theyd've": "they'd've",
    "they'dve": "they'd've", "theyll": "they'll", "theyre": "they're", "theyve": "they've",
    "twas": "'twas", "wasnt": "wasn't", "wed've": "we'd've", "we'dve": "we'd've", "weve": "we've",
    "werent": "weren't", "whatll": "what'll", "whatre": "what're", "whats": "what's",
    "whatve": "what've", "whens": "when's", "whered": "where'd", "wheres": "where's",
    "whereve": "where've", "whod": "who'd", "whod've": "who'd've", "who'dve": "who'd've",
    "wholl": "who'll", "whos": "who's", "whove": "who've", "whyll": "why'll", "whyre": "why're",
    "whys": "why's", "wont": "won't", "wouldve": "would've", "wouldnt": "wouldn't",
    "wouldnt've": "wouldn't've", "wouldn'tve": "wouldn't've", "yall": "y'all",
    "yall'll": "y'all'll", "y'allll": "y'all'll", "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've", "youd": "you'd", "youd've": "you'd've",
    "you'dve": "you'd've", "youll": "you'll", "youre": "you're", "youve": "you've",
}
# fmt: on
"""Word without apostrophe -> word with it: the table of the official evaluation, quirks included.
"somebody'd" loses its apostrophe, "let's" and "she's" stay as they are, and the four keys with a
capital can never match, because answers are lower-cased before the look-up."""

Rules = Literal["official", "legacy", "textvqa", "direct"]
NUM_ANNOTATORS = 10
"""The accuracy is defined for the answers of ten people."""

PUNCTUATION = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@",
               "`", ",", "?", "!")  # fmt: skip
"""Without apostrophe and colon, which stay."""

NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip

ARTICLES = frozenset({"a", "an", "the"})

COMMA_IN_NUMBER = re.compile(r"(\d)(,)(\d)")

# The official pattern is "(?!<=\d)(\.)(?!\d)". Its first group was meant as a look-behind, but it
# looks ahead for the text "<=", which never stands where a period matches.
PERIOD = re.compile(r"\.(?!\d)")

# The official call passes re.UNICODE, whose value is 32, as the maximum number of replacements.
MAX_PERIODS = 32


def accuracy_name(rules: Rules) -> str:
    """The name of the score, which says by which rules: "vqa_accuracy_legacy"."""
    return "vqa_accuracy" if rules == "official" else f"vqa_accuracy_{rules}"


def clean_white_space(text: str) -> str:
    """Line feeds and tabs become blanks; none stay at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def process_punctuation(text: str) -> str:
    """Delete punctuation or replace it by blanks, decided by the original text."""
    # As the official script: one number like 1,000 anywhere turns all blanks into deletions.
    delete_all = COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_blank or delete_all else " ")
    return PERIOD.sub("", result, count=MAX_PERIODS)


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """The form that is compared if the annotators differ: no punctuation, lower case, number words
    as digits, no articles, apostrophes put back."""
    # Cached: the same few thousand answers recur.
    words = [NUMBER_WORDS.get(word, word) for word in process_punctuation(text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 16)
def normalise_textvqa(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalise(clean_white_space(text))


def compared(
    prediction: str, answers: Sequence[str], rules: Rules = "official"
) -> tuple[str, list[str]]:
    """The prediction and the annotators' answers in the forms that are compared.

    If all annotators agree, the official rules normalise nothing, not even case: "Yes" is wrong
    against ten times "yes".
    """
    if rules == "direct":
        return prediction, list(answers)
    if rules == "textvqa":
        return normalise_textvqa(prediction), list(map(normalise_textvqa, answers))
    prediction = clean_white_space(prediction)
    # The two sides get different forms, as in the old script: only the prediction loses its case,
    # articles and number words.
    if rules == "legacy":
        differ = len(set(answers)) > 1
        shown = [process_punctuation(answer) if differ else answer for answer in answers]
        return normalise(prediction), shown
    answers = [clean_white_space(answer) for answer in answers]
    if len(set(answers)) > 1:
        return normalise(prediction), [normalise(answer) for answer in answers]
    return prediction, answers


def question_accuracy(prediction: str, answers: Sequence[str], rules: Rules = "official") -> float:
    """Accuracy of one prediction, in 0..1, against the raw answers of all annotators.

    The official script prints the mean over questions, and over those of a type, as
    round(100 * x, 2).
    """
    if not answers:
        raise ValueError("answers: got none; VQA accuracy needs the annotators' raw answers")
    prediction, answers = compared(prediction, answers, rules)
    matches = sum(answer == prediction for answer in answers)
    if rules == "direct":
        return min(1.0, matches / 3)
    # Each annotator is left out once: one who gave this answer does not vote for it.
    scores = [min(1.0, (matches - (answer == prediction)) / 3) for answer in answers]
    return mean(scores)
