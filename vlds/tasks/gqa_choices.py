"""GQA's files of the answers that are valid or plausible for a question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlds.runtime.json_record import parse_record
from vlds.runtime.regular_file import read_file

CURE = "name eval/val_choices.json or eval/train_choices of GQA's evaluation files"
KINDS = {"valid", "plausible"}
Choices = dict[str, dict[str, list[str]]]
"""Question -> kind -> answers."""


def find_choices(place: str) -> list[Path]:
    """The file, or the files of a folder (train_choices/).

    Errors: ValueError if there is neither.
    """
    path = Path(place).expanduser()
    if paths := [path] if path.is_file() else sorted(path.glob("*.json")):
        return paths
    raise ValueError(f"choices: {place} is neither a file of choices nor a folder of them; {CURE}")


def missing_choices(place: str) -> str | None:
    """What is wrong if the files are missing or invalid; None if they can be read."""
    try:
        read_choices(place, ids=())
    except ValueError as error:
        return str(error)
    return None


def load_choices(path: Path) -> Choices:
    """The content of one file.

    Errors: ValueError that names the file, and the question with invalid choices.
    """
    try:
        choices = parse_record(Choices, read_file(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"choices: {path}: {error}; {CURE}") from None
    for key, entry in choices.items():
        if missing := sorted(KINDS - entry.keys()):
            raise ValueError(f'choices: {path}: question {key} has no list "{missing[0]}"; {CURE}')
    return choices


def read_choices(place: str, ids: Sequence[str]) -> Choices:
    """The "valid" and "plausible" answers of each question.

    Errors: ValueError for a question that the files lack, and as for `load_choices`.
    """
    choices: Choices = {}
    wanted = set(ids)
    for path in find_choices(place):
        given = load_choices(path)
        choices |= {key: given[key] for key in wanted & given.keys()}
    if unknown := [key for key in ids if key not in choices]:
        raise ValueError(
            f"choices: {place} knows nothing of {len(unknown)} of {len(ids)} questions, such as "
            f"{unknown[0]}; name the file of the split that is evaluated"
        )
    return choices
