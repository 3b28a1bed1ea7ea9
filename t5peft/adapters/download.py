"""Find the folder of an adapter by its name on the hub, by huggingface_hub's own client."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from t5peft.adapters.manifest import CONFIG, OLD_WEIGHTS
from t5peft.compat.paths import as_path

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def local_adapter(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder of an adapter: ``name`` itself if it exists, else a download from the hub in the cache.

    Args:
        name: A folder, or a repository on the hub, such as ``"user/reviews"``.
        revision: A branch, tag or commit of the repository.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: The hub has no such repository or revision, or cannot be reached.
        ValueError: ``revision`` was given with a folder.
    """
    path = as_path(name)
    if path.exists() or not REPO_ID.fullmatch(str(name)):
        if revision is not None:
            raise ValueError(
                f"Got revision={revision!r} with {name}, which is not a name on the hub; expected a revision only with a hub name."
            )
        return path
    try:
        patterns = ["*.json", "*.safetensors", "*.yaml", "*.model", OLD_WEIGHTS, "README.md"]
        return Path(
            snapshot_download(str(name), revision=revision, allow_patterns=patterns, ignore_patterns=["checkpoint-*"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        at = "" if revision is None else f" at the revision {revision!r}"
        raise FileNotFoundError(
            f"Got {str(name)!r}, which is not a folder and holds no adapter{at} on the hub ({first_line(error)}); expected "
            f"{CONFIG} and its weights, as save_adapter writes them. Check the path, or the name and the network."
        ) from error


def first_line(error: Exception) -> str:
    """Return the class and the first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
