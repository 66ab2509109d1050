"""Folders of the Hugging Face Hub: fetched, and uploaded to."""

import pathlib
import types
from collections.abc import Sequence

from pixelflow_jax.errors import HubError

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
# What to do, by the class of huggingface_hub's exception: the first class of its line
# of ancestors that is listed here counts.
REMEDIES = {
    "GatedRepoError": f"accept its terms on its page, then {LOG_IN}.",
    "RepositoryNotFoundError": f"check the name; if it is private, {LOG_IN}.",
    "RevisionNotFoundError": "check the branch, tag or commit.",
    "HFValidationError": "names look like organisation/name.",
    "LocalEntryNotFoundError": "where there is no network, fetch the folder elsewhere "
    "with `hf download`, and give its path.",
    "OfflineModeIsEnabled": "unset HF_HUB_OFFLINE.",
    "HfHubHTTPError": f"{LOG_IN} as someone who may do this, or try again later.",
}
OTHERWISE = "check the network and the disk."


def fetch(
    name: str, patterns: Sequence[str], revision: str | None = None
) -> pathlib.Path:
    """The local copy of the files of the repository `name` that match `patterns`.

    `revision` is a branch, tag or commit (None: the main branch). Raises HubError.
    """
    package = _package(f"Downloading {name}")
    # The argument is left away where it says nothing.
    at = {"revision": revision} if revision else {}
    try:
        path = package.snapshot_download(name, allow_patterns=list(patterns), **at)
    except Exception as error:  # no common base: the network, the name, the disk
        raise HubError(_explained(f"{name} cannot be downloaded", error)) from error
    return pathlib.Path(path)


def upload(
    name: str,
    folder: pathlib.Path,
    *,
    private: bool | None,
    revision: str | None,
    message: str,
    token: str | None,
) -> str:
    """Upload a folder to the repository `name`, made where absent; returns its address.

    `private` holds for a new repository; `revision` is a branch, made where absent.
    Raises HubError.
    """
    package = _package(f"Uploading {name}")
    api = package.HfApi(token=token)
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, revision=revision, commit_message=message
        )
    except Exception as error:
        raise HubError(_explained(f"{name} cannot be uploaded", error)) from error
    return str(address)


def _package(purpose: str) -> types.ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            f"{purpose} needs the package huggingface_hub: pip install "
            "'pixelflow_jax[hub]'."
        ) from error
    return huggingface_hub


def _explained(failure: str, error: Exception) -> str:
    """The failure with its reason and what to do, in one line."""
    line = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    ancestors = [cls.__name__ for cls in type(error).__mro__]
    known = [REMEDIES[name] for name in ancestors if name in REMEDIES]
    return f"{failure} ({line}): {[*known, OTHERWISE][0]}"
