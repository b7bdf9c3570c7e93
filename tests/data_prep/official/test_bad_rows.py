"""Official files with a wrong value: one line that names file, row and field, and shows it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.official_sets import aokvqa_row, refcoco_ref, scienceqa_problem

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANSWERS = "v2_mscoco_val2014_annotations.json"
ASKED = {"question_id": 10, "image_id": 1, "question": "what?"}
TEN = [{"answer": "yes", "answer_id": number} for number in range(10)]


def vqa(question: dict[str, Any], answers: Any = TEN) -> dict[str, Any]:
    labelled = {"question_id": 10, "image_id": 1, "answers": answers}
    return {
        QUESTIONS: {"questions": [ASKED | {"question_id": 9}, ASKED | question]},
        ANSWERS: {"annotations": [{"question_id": 9, "answers": TEN}, labelled]},
    }


def typed(**wrong: Any) -> dict[str, Any]:
    files = vqa({})
    files[ANSWERS]["annotations"][1] |= wrong
    return files


VQA = [
    (vqa({"question": None}), f"{QUESTIONS}, question 10: 'question' is null; expected text"),
    (vqa({}, None), f"{ANSWERS}, question 10: 'answers' is null; expected a list"),
    (typed(answer_type=None), f"{ANSWERS}, question 10: 'answer_type' is null; expected text"),
    (vqa({}, ["yes"]), 'question 10, answer 0: expected an object {...}, found "yes"'),
    ({QUESTIONS: {"questions": None}}, f"{QUESTIONS}: 'questions' is null; expected a list"),
]


def karpathy(sentence: Any = None, **wrong: Any) -> dict[str, Any]:
    told = [{"sentid": 1, "raw": "A dog."} | (sentence or {})]
    row = {"split": "val", "cocoid": 1, "filename": "a.jpg", "sentences": told} | wrong
    return {"dataset_coco.json": {"images": [row]}}


KARPATHY = [
    (karpathy({"raw": None}), "coco.json, image 0, sentence 0: 'raw' is null; expected text"),
    (karpathy(sentences=[{"raw": "x"}]), "image 0, sentence 0: no field 'sentid'; it has raw"),
]


def vg(entry: Any, file: str = "question_answers.json", part: str = "qas") -> dict[str, Any]:
    return {file: [{"id": 1, part: entry}]}


VG_QUESTIONS = [
    (vg([{"qa_id": 1, "answer": "x"}]), "picture 0, qas 0: no field 'question'; it has qa_id"),
    (vg([{"question": "x", "answer": "y"}]), '{"question": "x", "answer": "y"} has no qa_id'),
    ({"question_answers.json": {"a": 1}}, 'question_answers.json is {"a": 1}; expected a list'),
]


def how2qa(**wrong: Any) -> dict[str, Any]:
    row = {"qid": 5, "q": "Who?", "a0": "x", "ts": "0-1", "vid_name": "s1", "answer_idx": 0}
    return {"ann/how2qa_val_release.jsonl": row | wrong, "ann/how2_subtitles.jsonl": ""}


def spoken(sub: Any) -> dict[str, Any]:
    return how2qa() | {"ann/how2_subtitles.jsonl": {"vid_name": "s1", "sub": sub}}


HOW2QA = [
    (how2qa(q=None), "release.jsonl, line 1, question 5: 'q' is null; expected text"),
    (how2qa(answer_idx="x"), "question 5: 'answer_idx' is \"x\"; expected a whole number"),
    (spoken(None), "how2_subtitles.jsonl, line 1: 'sub' is null; expected a list"),
]  # fmt: skip


def aokvqa(**wrong: Any) -> dict[str, Any]:
    return {"aokvqa_v1p0_val.json": [aokvqa_row(0, 3, ["cab"] * 10) | wrong]}


AOKVQA_ID = "aokvqa_v1p0_val.json, question 22MexNkBPpdZGX6sxbxVB0"
AOKVQA = [
    (aokvqa(choices=["a", 1]), f"{AOKVQA_ID}: entry 1 of 'choices' is 1; expected text"),
    (aokvqa(choices=["a"]), f"{AOKVQA_ID}: 'choices' has 1 entries; expected 2 to 5"),
    (aokvqa(correct_choice_idx=4), '"cab"]; expected a number from 0 to 3'),
    (aokvqa(direct_answers="['cab']"), "'direct_answers' is \"['cab']\"; expected a list"),
    ({"aokvqa_v1p0_val.json": {"a": 1}}, 'aokvqa_v1p0_val.json is {"a": 1}; expected a list'),
]


def textvqa(words: Any = None, **wrong: Any) -> dict[str, Any]:
    row = {"question_id": 5, "image_id": "ab", "question": "what?", "answers": ["x"] * 10} | wrong
    read = {"image_id": "ab", "ocr_tokens": []} | (words or {})
    return {
        "TextVQA_0.5.1_val.json": {"data": [row]},
        "TextVQA_Rosetta_OCR_v0.2_val.json": {"data": [read]},
    }


TEXTVQA = [
    (textvqa(answers=["x"] * 9), "question 5: 'answers' has 9 entries; expected 10"),
    (textvqa({"ocr_tokens": [3]}), "v0.2_val.json, picture 0: entry 0 of 'ocr_tokens' is 3"),
    (textvqa({"image_id": "b"}),
     "v0.2_val.json: it lacks 1 of 1 pictures of TextVQA_0.5.1_val.json, the first is ab; give"),
]  # fmt: skip


def scienceqa(splits: Any = None, **wrong: Any) -> dict[str, Any]:
    splits = splits or {"test": ["1"]}
    return {"problems.json": {"1": scienceqa_problem(1) | wrong}, "pid_splits.json": splits}


SCIENCEQA = [
    (scienceqa(answer=3), "problems.json, question 1: 'answer' is 3, and 'choices' is [\"West"),
    (scienceqa(grade="grade13"), "question 1: 'grade' is 'grade13'; expected grade1 to grade12"),
    (scienceqa(choices=["a"] * 6), "question 1: 'choices' has 6 entries; expected 2 to 5"),
    (scienceqa({"test": ["7"]}), "pid_splits.json: test names question 7, which "),
    (scienceqa({"train": []}), "pid_splits.json: no field 'test'; it has train"),
]


def refcoco(refs: Any = None, **wrong: Any) -> dict[str, Any]:
    """`wrong` fields of the thing in instances.json."""
    thing = {"id": 10, "image_id": 501, "bbox": [1, 2, 3, 4]} | wrong
    image = {"id": 501, "file_name": "a.jpg", "width": 40, "height": 24}
    refs = [refcoco_ref(0, "testA", 10, "a man")] if refs is None else refs
    return {
        "refcoco/refs(unc).p": refs if isinstance(refs, bytes) else pickle.dumps(refs, 2),
        "refcoco/instances.json": {"images": [image], "annotations": [thing]},
    }


REFCOCO = [
    (refcoco(bbox=[1, 2, 3]),
     "annotation 0: 'bbox' is [1, 2, 3]; expected [left, top, width, heig"),
    (refcoco(bbox=[1, 2, 3, 0]), "with a width and height above 0"),
    (refcoco(id=11), "refs(unc).p, ref 0: 'ann_id' is 10, which "),
    (refcoco({"a": 1}), "refs(unc).p holds dict; expected a list of expressions"),
    (refcoco(pickle.dumps([{1, 2}], 4)),
     "refs(unc).p is not a pickle of plain values: the instruction EMPTY_SET"),
    (refcoco(b"\x80\x02]q\x00"), "refs(unc).p is not a pickle of plain values: "),
    (refcoco(b""), "refs(unc).p is not a pickle of plain values: KeyError"),
]  # fmt: skip


COMMANDS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "aokvqa --split val": AOKVQA,
    "textvqa --split val": TEXTVQA,
    "scienceqa --split test": SCIENCEQA,
    "refcoco --split testA": REFCOCO,
    "vqav2 --split val": VQA,
    "coco-karpathy --split val": KARPATHY,
    "vg --what questions": VG_QUESTIONS,
    "value-how2qa --split val": HOW2QA,
}
CASES = [(command, files, told) for command, cases in COMMANDS.items() for files, told in cases]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("command", "files", "told"), CASES)
def test_a_wrong_value_is_named_with_its_place(
    command: str, files: dict[str, Any], told: str, tmp_path: Path, refused: Any
) -> None:
    for name, content in files.items():
        write(tmp_path / name, content)
    out = tmp_path / "out"
    error = refused(main([*command.split(), "--src", str(tmp_path), "--out", str(out)]), told)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_pickle_runs_no_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "ran"

    class Touch:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {mark}",)

    path = write(tmp_path / "refs(unc).p", pickle.dumps([Touch()]))
    write(tmp_path / "instances.json", {"images": [], "annotations": []})
    given = ["--src", str(tmp_path), "--split", "val", "--out", str(tmp_path / "out")]
    assert main(["refcoco", *given]) == 2
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # The file would have run it.
    assert mark.exists()
