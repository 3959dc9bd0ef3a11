"""Uploading a folder to the model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import PublishError


def check_access(repo_id: str | None) -> None:
    """Checks before any work that an upload is possible.

    Raises:
        PublishError: without an id, for an invalid id, and without a token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if repo_id is None:
        raise PublishError("--push needs --repo-id, such as --repo-id NAME/MODEL")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"--repo-id {repo_id}: {error}") from error
    if not get_token():
        raise PublishError(
            "--push needs a token of the model hub with write access: log in with `hf auth login`, or set HF_TOKEN"
        )


def push(folder: Path, repo_id: str, private: bool) -> str:
    """Creates the repository, if it does not exist, and uploads all files of a folder in one commit.

    Args:
        folder: The folder to upload.
        repo_id: The repository.
        private: Whether to create the repository as private.

    Returns:
        The repository's address.

    Raises:
        PublishError: if the hub refuses or cannot be reached, and for an existing public repository with `private`.
        The folder is kept.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import enable_progress_bars

    enable_progress_bars()
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        repo_id = getattr(url, "repo_id", repo_id)
        if private and not api.repo_info(repo_id).private:
            raise PublishError(f"--private: {repo_id} exists already and is public; nothing was uploaded")
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Upload {folder.name}")
    except PublishError:
        raise
    except HfHubHTTPError as error:
        raise _failed(folder, repo_id, "the model hub refuses", error) from error
    except Exception as error:  # no connection, a time-out or offline mode; the exception depends on the HTTP client
        raise _failed(folder, repo_id, "the model hub cannot be reached", error) from error
    return str(url)


def _failed(folder: Path, repo_id: str, what: str, error: Any) -> PublishError:
    reason = " ".join(str(getattr(error, "server_message", None) or error).split()) or type(error).__name__
    return PublishError(f"{what}: {reason}. {folder} is complete; for later: hf upload {repo_id} {folder} .")
