"""Writes a run as one folder: the text backbone in Hugging Face's layout, and everything else; and
uploads it to the hub, which HF_ENDPOINT may name.

    OUT/config.json, model.safetensors, tokenizer files
                            `AutoModelForSeq2SeqLM.from_pretrained(OUT)` opens these, or
                            `AutoModelForCausalLM`
        vision.safetensors (CLIP: vision/), visual_embedding.safetensors or
        projector.safetensors
        weights.safetensors methods that are not folded into the backbone
        README.md           the model card
        recipe.yaml, artifact.json, manifest.json
                            with these, `vlds.artifact.load_run(OUT)` opens the whole

The folder may move: its recipe names files relative to it. Another recipe's `backbone.path`,
`vision.weights` and `visual_embedding.weights` may name them: that is how one run's model becomes
the next run's frozen one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors.torch import save_file
from torch import Tensor, nn

from vlds.artifact import LoadedRun, load_run, own_tensors, read_recipe, write_description
from vlds.convert.card import Address, describe, write_model_card
from vlds.convert.output import new_output, say
from vlds.convert.verify import Verification, all_tasks
from vlds.models.build import build_model
from vlds.models.loading.gate import open_checked
from vlds.models.loading.quantised import check_writable_whole
from vlds.models.methods.base import Method
from vlds.models.methods.host import is_own
from vlds.models.model import Sources
from vlds.runtime.artifact_files import WEIGHTS, artifact_folder, check_changes
from vlds.runtime.json_files import write_manifest
from vlds.runtime.terminal import shell_command

Result = TypeVar("Result")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def convert_run(
    run: Path,
    out: Path,
    *,
    merge: bool,
    verification: Verification | None = None,
    changes: Sequence[str] = (),
    hub_name: str | None = None,
) -> None:
    """Write `out`, which must not exist. `changes` to the run's recipe are words of a command line.
    `hub_name`: what the model will be called on the hub.

    Errors: ValueError if it exists, where `merge` is asked for and a method cannot be folded, or
    if the model's weights are packed.
    """
    # Before the run is opened, which takes long.
    check_changes(changes)
    check_writable_whole(read_recipe(artifact_folder(run), changes).model.packed_bits)
    with new_output(out, "folder") as partial:
        say(f"opening {run}")
        loaded = load_run(run, changes=changes)
        described = describe(run, loaded.model.count_parameters())
        if merge:
            loaded = fold_methods(loaded)
        say(f"writing {out}")
        written = write_hf(loaded, partial)
        # Not in the manifest: who edits the card damages no model.
        write_model_card(partial, described, written, Address.of(out, hub_name))
        if verification is not None:
            # Opened again: folding has changed the first one in place.
            expected = all_tasks(load_run(run, changes=changes))
            verification.compare(expected, load_run(partial))


def write_hf(loaded: LoadedRun, folder: Path) -> LoadedRun:
    """Fill an empty folder: the model's parts, the rest of its weights, a recipe that finds
    everything in this folder, and the hashes. Returns the run that it holds."""
    model, recipe = loaded.model, loaded.recipe
    # What came before training, alignment and meta-learning, is in the weights by now.
    left = {name: method.after_export() for name, method in recipe.methods.items()}
    recipe = replace(
        recipe,
        model=recipe.model.export(model, folder),
        methods={name: method for name, method in left.items() if method is not None},
        alignment=None,
        meta=None,
    )
    # An artifact keeps what its recipe trains, whatever its sources hold.
    with torch.device("meta"):
        shapes = build_model(recipe.model_setup, list(recipe.tasks), torch.float32, None)
    exported = {name for name, _ in model.unique_state() if is_own(name)}
    kept = shapes.moving_names() | shapes.changed
    model.sources = Sources(names=frozenset(exported - kept))
    save_file(own_tensors(model), folder / WEIGHTS)
    write_description(folder, recipe, loaded.trained_on)
    write_manifest(folder)
    return replace(loaded, recipe=recipe)


def read_back(folder: Path, auto_class: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors that a class of transformers reads from a folder that `write_hf` has filled."""
    opener = getattr(transformers, auto_class)
    opened: nn.Module = open_checked(opener, folder, "--out", dtype=dtype)
    return opened.state_dict()


def fold_methods(loaded: LoadedRun) -> LoadedRun:
    """The same run with every method folded into the weights, or made plainer.

    Errors: ValueError if neither can be done.
    """
    model, recipe = loaded.model, loaded.recipe
    left: dict[str, Method] = {}
    for name, method in recipe.methods.items():
        part = model.get_submodule(model.parts[method.part].path)
        try:
            plainer = method.merge(name, part, list(recipe.tasks))
        except ValueError as error:
            raise ValueError(f"methods.{name}: {error}") from None
        if taken := plainer.keys() & (recipe.methods.keys() - {name}):
            raise ValueError(
                f"methods.{name}: merging makes a method {taken.pop()} of it, and the recipe has "
                "one of this name; give one of them another name"
            )
        left.update(plainer)
    return replace(loaded, recipe=replace(recipe, methods=left))


def check_push(repo: str, *, private: bool) -> None:
    """Check, before any long work, that a model can be uploaded under this name.

    Errors: ValueError if the name or the login is wrong, or the hub does not answer.
    """
    try:
        validate_repo_id(repo)
        parts = repo.split("/")
    except HFValidationError:
        parts = []
    if len(parts) != 2:
        raise ValueError(
            f"--push: got {repo!r}; give OWNER/NAME, each of letters, digits, '-', '_' and '.'"
        )
    if constants.is_offline_mode():
        raise ValueError(f"--push: {repo}, but HF_HUB_OFFLINE forbids it; unset it")
    if get_token() is None:
        raise ValueError(f"--push: {repo} needs a login to the hub; {LOG_IN}")
    login: dict[str, Any] = attempt(HfApi().whoami, f"--push: {repo}")
    if login.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(
            f"--push: {repo}, but the token of {login.get('name')} can only read; {LOG_IN}, with "
            "a token that can write"
        )

    def is_public() -> bool:
        try:
            return not HfApi().model_info(repo).private
        except RepositoryNotFoundError:
            return False

    if private and attempt(is_public, f"--push: {repo}"):
        raise ValueError(
            f"--private: {repo} exists and is public; make it private in its settings on the hub, "
            "or give another name"
        )


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload all files of a folder as one commit; the model's address.

    Errors: ValueError that says how to try again.
    """
    again = shell_command("hf", "upload", repo, str(folder), ".", *["--private"] * private)

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
    # The last cause is the most exact one: an HTTP library wraps the system's error several times.
    causes = [error]
    while (deeper := causes[-1].__cause__) is not None:
        causes.append(deeper)
    answers = [each for each in causes if isinstance(each, HfHubHTTPError)]
    if answers:
        status = answers[-1].response.status_code
        cure = "check the name"
        if status == 401:
            cure = f"the token is not valid: {LOG_IN}"
        elif status == 403:
            cure = "the token may not write there: check the owner's name and the token's rights"
        elif status >= 500 or status == 429:
            cure = "wait a little"
        return f"the hub answers HTTP {status}; {cure}"
    said = str(causes[-1]).strip().split("\n")[0] or type(causes[-1]).__name__
    if isinstance(error, ValueError):  # the hub's library does not like what the hub says
        return f"{said}; check the folder"
    return f"no answer from {constants.ENDPOINT} ({said}); check the network"
