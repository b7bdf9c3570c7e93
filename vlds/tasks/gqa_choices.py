"""GQA's own files of the answers that are valid or plausible for a question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlds.runtime.json_record import parse_record
from vlds.runtime.regular_file import read_file

CURE = "name eval/val_choices.json or eval/train_choices of GQA's evaluation files"
KINDS = {"valid", "plausible"}


def find_choices(place: str) -> list[Path]:
    """The file, or the files of a folder (train_choices/); none where there is neither."""
    path = Path(place).expanduser()
    return sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []


def missing_choices(place: str) -> str | None:
    """What to say where no file is there, or one that cannot be read."""
    paths = find_choices(place)
    try:
        for path in paths:
            load_choices(path)
    except ValueError as error:
        return str(error)
    return (
        None
        if paths
        else f"choices: {place} is neither a file of choices nor a folder of them; {CURE}"
    )


def load_choices(path: Path) -> dict[str, dict[str, list[str]]]:
    """All of one file.

    Errors: ValueError naming the file, and the question whose choices are not as they should be.
    """
    try:
        choices = parse_record(dict[str, dict[str, list[str]]], read_file(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"choices: {path}: {error}; {CURE}") from None
    for key, entry in choices.items():
        if missing := sorted(KINDS - entry.keys()):
            raise ValueError(f'choices: {path}: question {key} has no list "{missing[0]}"; {CURE}')
    return choices


def read_choices(place: str, ids: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """The "valid" and "plausible" answers of each question.

    Errors: ValueError for a question that the file does not know, and as above.
    """
    found: dict[str, dict[str, list[str]]] = {}
    wanted = set(ids)
    for path in find_choices(place):
        given = load_choices(path)
        found |= {key: given[key] for key in wanted & given.keys()}
    if unknown := [key for key in ids if key not in found]:
        raise ValueError(
            f"choices: {place} knows nothing of {len(unknown)} of {len(ids)} questions, such as "
            f"{unknown[0]}; name the file of the split that is evaluated"
        )
    return found
