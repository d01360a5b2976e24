"""The Hugging Face Hub as the registry needs it: a base's files at one commit, and the hub's errors in ours.

Tokens are the hub's own affair (HF_TOKEN, or its login); nothing here reads, keeps or prints one.
"""

from __future__ import annotations

import re
from pathlib import Path

from inlay.errors import InlayError, InputError, StoreBusy
from inlay.registry.printable import printable

BASE_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""What is downloaded of a base: no pickles, no code."""

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_ADDRESS = re.compile(r"https?://\S+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST = 160  # characters of the hub's own words that an error repeats


def is_repo_id(text: str) -> bool:
    """Whether `text` could be a repository of the hub: `name` or `owner/name`, no path."""
    return _REPO.fullmatch(text) is not None and not {"--", ".."} & {
        text[i : i + 2] for i in range(len(text))
    }


def snapshot(repo_id: str, revision: str | None = None) -> tuple[Path, str | None]:
    """(folder, commit) of a base's files at `revision`, downloaded where they are not there yet.

    Offline, what the hub's cache holds is used. The commit is None where the hub's cache does not tell.
    Raises InputError where it is no hub id, is not there or has no such revision, StoreBusy where the hub
    cannot be reached.
    """
    if not is_repo_id(repo_id):
        raise InputError(
            f"there is no folder {repo_id!r}", fix="give a model's folder or a hub id like org/name"
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(BASE_FILES)))
    except Exception as error:
        raise explained(error, f"there is no folder {repo_id!r}, and the hub did not give it") from None
    return folder, folder.name if _COMMIT.fullmatch(folder.name) else None


def explained(error: Exception, what: str) -> InlayError:
    """The hub's error as ours, one line that begins with `what`.

    InputError (a name, a revision, a right, a setting) or StoreBusy (network, the hub's own faults: try
    again). What is neither of the hub nor of the network nor of the disk is raised as it is.
    """
    from huggingface_hub import constants, errors

    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the hub's "Error while uploading" hides why
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    unreachable = f"{what}: the hub cannot be reached ({type(error).__name__})"
    network = "check the network and HF_ENDPOINT, try again; what has arrived is kept"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InputError(f"{what}: HF_HUB_OFFLINE is set", fix="unset it")
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{what}: it is no hub id", fix="write it like org/name")
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{what}: its owner must let you in first", fix=f"ask on its page, then {log_in}")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{what}: it has no such revision", fix="name a branch, a tag or a commit of it")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"{what}: there is no such repository, or it is private", fix=f"check the id, or {log_in}"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _answered(
            error.response.status_code, f"{what}: the hub answered", error.server_message, log_in
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return InputError(
                f"{what}: HF_HUB_OFFLINE is set, and the hub's cache has it not",
                fix="check it, or unset that",
            )
        return StoreBusy(unreachable, fix=network)
    if isinstance(error, errors.HTTPError | ConnectionError | TimeoutError):
        return StoreBusy(unreachable, fix=network)
    if isinstance(error, OSError):
        said = printable(error.strerror or str(error))[:_LONGEST]
        return StoreBusy(f"{what}: {said}", fix="check the disk, try again")
    if isinstance(error, ValueError | KeyError):
        return InputError(f"{what}: {_said(str(error)).strip(' ()')}", fix="check HF_ENDPOINT")
    raise error


def _answered(status: int, what: str, words: str | None, log_in: str) -> InlayError:
    said = f"{what} {status}{_said(words)}"
    if status == 401:
        return InputError(said, fix=log_in)
    if status == 403:
        return InputError(said, fix="use a token with that right, or ask the repository's owner")
    if status in (409, 412):
        return StoreBusy(said, fix="somebody changed it at the same time, try again")
    if status in (408, 425, 429) or status >= 500:
        return StoreBusy(said, fix="try again later")
    return InputError(said)


def _said(message: str | None) -> str:
    """The first line of the server's words, cut; without addresses, which may carry signatures."""
    first = next((line.strip() for line in (message or "").splitlines() if line.strip()), "")
    first = printable(_ADDRESS.sub("…", redacted(first)))
    return f" ({first[:_LONGEST]}{'…' if len(first) > _LONGEST else ''})" if first else ""


def redacted(text: str) -> str:
    """`text` without the hub's token, should a server repeat it."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "…") if token else text
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "…", text)
