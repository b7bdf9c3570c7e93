"""Uploads a written folder to the Hugging Face hub, which HF_ENDPOINT may name."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id

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
    with explained(f"--push: {repo}"):
        login = HfApi().whoami()
        check_login(login, repo)
        if private:
            check_private(repo)


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


def check_private(repo: str) -> None:
    """Errors: ValueError if everybody sees the model already."""
    try:
        is_private = HfApi().model_info(repo).private
    except RepositoryNotFoundError:
        return
    if not is_private:
        raise ValueError(
            f"--private: {repo} exists and is public; make it private in its settings on the hub, "
            "or give another name"
        )


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload all files of a folder as one commit; the model's address.

    Errors: ValueError that says how to try again.
    """
    again = shlex.join(["hf", "upload", repo, str(folder), ".", *["--private"] * private])
    with explained(f"--push: {folder} is written, but not uploaded to {repo}", f"; then `{again}`"):
        api = HfApi()
        # None: as the hub's settings say.
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload from vlds")
    return str(url)


@contextmanager
def explained(place: str, then: str = "") -> Iterator[None]:
    """Inside, errors of the hub's library are ValueErrors that say what to do.

    `then`: what to do after that.
    """
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ValueError(f"{place}: the hub answers HTTP {status}; {cure(status)}{then}") from None
    except OfflineModeIsEnabled:
        raise ValueError(f"{place}: HF_HUB_OFFLINE forbids it; unset it{then}") from None
    except ValueError:
        raise
    except Exception as error:  # its HTTP library may raise anything if the hub does not answer
        raise ValueError(
            f"{place}: no answer from {constants.ENDPOINT} ({cause(error)}); check the network"
            f"{then}"
        ) from None


def cure(status: int) -> str:
    """What to do about an HTTP status."""
    if status == 401:
        return f"the token is not valid: {LOG_IN}"
    if status == 403:
        return "the token may not write there: check the owner's name and the token's rights"
    if status >= 500 or status == 429:
        return "wait a little"
    return "check the name"


def cause(error: BaseException) -> str:
    """The first line of the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).split("\n")[0] or type(error).__name__
