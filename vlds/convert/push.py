"""Uploads a written folder to the Hugging Face hub, which HF_ENDPOINT may name."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

Result = TypeVar("Result")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def check_push(repo: str, *, private: bool) -> None:
    """Check, before any long work, that a model can be uploaded under this name.

    Errors: ValueError if the name or the login is wrong, or the hub does not answer.
    """
    check_name(repo)
    if constants.is_offline_mode():
        raise ValueError(f"--push: {repo}, but HF_HUB_OFFLINE forbids it; unset it")
    if get_token() is None:
        raise ValueError(f"--push: {repo} needs a login to the hub; {LOG_IN}")
    check_login(attempt(HfApi().whoami, f"--push: {repo}"), repo)
    if private and attempt(lambda: is_public_model(repo), f"--push: {repo}"):
        raise ValueError(
            f"--private: {repo} exists and is public; make it private in its settings on the hub, "
            "or give another name"
        )


def check_name(repo: str) -> None:
    """Errors: ValueError if a name does not have the form owner/name."""
    try:
        validate_repo_id(repo)
        parts = repo.split("/")
    except HFValidationError:
        parts = []
    if len(parts) != 2:
        raise ValueError(
            f"--push: got {repo!r}; give OWNER/NAME, each of letters, digits, '-', '_' and '.'"
        )


def check_login(login: dict[str, Any], repo: str) -> None:
    """Errors: ValueError if the token can only read."""
    role = login.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise ValueError(
            f"--push: {repo}, but the token of {login.get('name')} can only read; {LOG_IN}, with "
            "a token that can write"
        )


def is_public_model(repo: str) -> bool:
    """True if there is a model of this name that everybody sees."""
    try:
        return not HfApi().model_info(repo).private
    except RepositoryNotFoundError:
        return False


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload all files of a folder as one commit; the model's address.

    Errors: ValueError that says how to try again.
    """
    again = shlex.join(["hf", "upload", repo, str(folder), ".", *["--private"] * private])

    def upload() -> str:
        api = HfApi()
        # None: as the hub's settings say.
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload from vlds")
        return str(url)

    place = f"--push: {folder} is written, but not uploaded to {repo}"
    return attempt(upload, place, f"; then `{again}`")


def attempt(action: Callable[[], Result], place: str, then: str = "") -> Result:
    """What an action on the hub gives.

    `then`: what to do after the cure. Errors: ValueError that says what to do.
    """
    try:
        return action()
    except Exception as error:  # its HTTP library may raise anything if the hub does not answer
        said = reason(error)
    # Open progress bars, which the error held, write their last line when they go.
    gc.collect()
    raise ValueError(f"{place}: {said}{then}")


def reason(error: BaseException) -> str:
    """What is wrong, and what to do about it."""
    causes = [error]
    while (deeper := causes[-1].__cause__) is not None:
        causes.append(deeper)
    answers = [each for each in causes if isinstance(each, HfHubHTTPError)]
    if answers:
        status = answers[-1].response.status_code
        return f"the hub answers HTTP {status}; {cure(status)}"
    said = str(causes[-1]).strip().split("\n")[0] or type(causes[-1]).__name__
    if isinstance(error, ValueError):  # the hub's library does not like what the hub says
        return f"{said}; check the folder"
    return f"no answer from {constants.ENDPOINT} ({said}); check the network"


def cure(status: int) -> str:
    """What to do about an HTTP status."""
    if status == 401:
        return f"the token is not valid: {LOG_IN}"
    if status == 403:
        return "the token may not write there: check the owner's name and the token's rights"
    if status >= 500 or status == 429:
        return "wait a little"
    return "check the name"
