"""Two annotations of each task's kind, with their labels or without."""

from __future__ import annotations

from typing import Any

from vlds.schema import Sample

ANNOTATIONS: dict[str, list[dict[str, Any]]] = {
    "vqa": [
        {"id": "q1", "question": "What color?", "answers": ["red"] * 10, "label": {"red": 1.0},
         "answer_type": "other", "question_type": "what color"},
        {"id": "q2", "question": "How many?", "answers": ["2"] * 6 + ["3"] * 4,
         "label": {"2": 1.0, "3": 1.0}, "answer_type": "number", "question_type": "how many"},
    ],
    "gqa": [
        {"id": "01", "question": "Is it red?", "answer": "yes", "balanced": True,
         "types": {"structural": "verify", "semantic": "attr"}},
        {"id": "02", "question": "What is left?", "answer": "dog", "balanced": True,
         "types": {"structural": "query", "semantic": "rel"}},
    ],
    "nlvr2": [
        {"id": "dev-1-0-0", "sentence": "Both are red.", "label": True},
        {"id": "dev-1-0-1", "sentence": "None is red.", "label": False},
    ],
    "entailment": [
        {"id": "1#0r1e", "hypothesis": "Animals.", "label": "entailment"},
        {"id": "1#0r1c", "hypothesis": "They sleep.", "label": "contradiction"},
    ],
    "image_class": [
        {"id": "cat/1.jpg", "label": "tabby cat"}, {"id": "dog/1.jpg", "label": "dog"},
    ],
    "refer": [
        {"id": "r1", "expression": "the red dot", "box": [0, 0, 10, 10]},
        {"id": "r2", "expression": "the dog", "box": [10, 10, 10, 10]},
    ],
    "multiple_choice": [
        {"id": "m1", "question": "What is he awaiting?", "choices": ["a cab", "a train"],
         "answer_index": 1, "answers": ["train"] * 10, "label": {"train": 1.0},
         "hint": "He has bags.", "groups": {"subject": "social science", "grades": "1-6"}},
        {"id": "m2", "question": "Who waits?", "choices": ["a man", "a dog", "none"],
         "answer_index": 0, "answers": ["man"] * 10, "label": {"man": 1.0},
         "groups": {"subject": "biology", "grades": "1-6"}},
    ],
    "chat": [
        {"id": "h1", "turns": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
         "answer": "A Dog."},
        {"id": "h2", "turns": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]},
            {"role": "assistant", "content": "Left"}, {"role": "user", "content": "Sure?"}],
         "answer": '{"Sure": true}'},
    ],
    "caption": [{"id": "c1", "caption": " a red circle "}, {"id": "c2", "caption": "a dot"}],
    "pair_text": [{"id": "t1", "text": "a red circle"}, {"id": "t2", "text": "two small dots"}],
    "regions": [
        {"id": "g1", "regions": ["red dot", "", "grey dog"]}, {"id": "g2", "regions": ["", "dot"]},
    ],
    "video_qa": [
        {"id": "7", "question": "Who sits?", "choices": ["Ann.", "Bob"], "answer_index": 1,
         "span": "0-2.5"},
        {"id": "8", "question": "Who waves?", "choices": ["Ann.", "Bob"], "answer_index": 0,
         "span": "2-4"},
    ],
    "video_caption": [{"id": "d1", "caption": "Ann waves."}, {"id": "d2", "caption": "A wave"}],
}  # fmt: skip


LABELS = ("answers", "label", "answer", "answer_index", "box", "caption", "regions")
EXTRA: dict[str, dict[str, Any]] = {
    "refer": {"proposals": [[0, 0, 10, 9], [11, 10, 9, 10]], "size": [[40, 20]]}
}


def sample_of(kind: str, labels: bool = True) -> Sample:
    annotations = [
        {key: value for key, value in annotation.items() if labels or key not in LABELS}
        for annotation in ANNOTATIONS[kind]
    ]
    extra = EXTRA.get(kind, {})
    return Sample("000000", "toy-val", "image-7", kind, (b"",), (), tuple(annotations), extra)
