"""Push a saved adapter to the hub, by huggingface_hub's own client.

``HF_ENDPOINT`` names another hub and ``HF_TOKEN`` the account.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from t5peft.adapters.card import CARD, PLACE, is_hub_name, write_card
from t5peft.adapters.download import REPO_ID, first_line
from t5peft.adapters.load import base_of, ensure_intact
from t5peft.adapters.manifest import CONFIG, MANIFEST, OLD_WEIGHTS
from t5peft.compat.paths import as_path
from t5peft.models.embedded import is_embedded
from t5peft.models.folders import ADAPTER_FILES
from t5peft.models.manifest import read_manifest, write_manifest_file

FOLDER_PREFIX = "folder:"


def push_adapter(
    folder: str | Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Push a saved adapter to the hub in one commit. The repository is created if it does not exist.

    The commit contains the weights, the model card, the task and the scores. Checkpoints and other files are not pushed.

    Args:
        folder: A folder from ``save_adapter`` or ``t5peft train``.
        repo_id: The repository, such as ``"user/reviews"``. ``"folder:PATH"`` writes the same files to a new folder instead.
        base_model: The name of the backbone on the hub, if the adapter was trained on a local folder.
        private: Whether a new repository is private; None for the account's default.
        revision: The branch, created if it does not exist; None for the main branch.
        message: The commit message.
        token: An access token; None for the token of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The URL of the commit, or the folder.

    Raises:
        FileNotFoundError: ``folder`` does not contain an adapter.
        FileExistsError: The folder of ``"folder:PATH"`` exists and is not empty.
        ValueError: The adapter is damaged, ``repo_id`` is not the name of a repository, or the backbone is a local folder.
        OSError: The hub rejected the push.
    """
    folder = as_path(folder)
    target = _check_repo(repo_id)
    ensure_intact(folder)
    _check_base(str(folder), base_model or base_of(folder))
    with tempfile.TemporaryDirectory() as temporary:
        staging = Path(temporary) / "adapter"
        _stage(folder, staging, base_model, repo_id if target is None else PLACE)
        if target is not None:
            shutil.copytree(staging, target, dirs_exist_ok=True)
            return str(target)
        api = HfApi(token=token, library_name="t5peft")
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=staging,
                revision=revision,
                commit_message=message or "Upload an adapter",
                delete_patterns=list(ADAPTER_FILES),  # of an earlier adapter, which this one may not have
            ).commit_url
        except Exception as error:  # the client raises classes of its HTTP library, and RuntimeError for a file
            raise OSError(
                f"Got no success from the hub with {repo_id!r} ({first_line(error)}); expected it to accept the adapter. Log in "
                "with `hf auth login` with a token that has write access, or set HF_TOKEN."
            ) from error


def check_push(repo_id: str, backbone: str, *, has_adapter: bool) -> None:
    """Refuse, before a training, what could not be pushed after it.

    Args:
        repo_id: As for ``push_adapter``.
        backbone: The name of the backbone.
        has_adapter: Whether the method trains an adapter.

    Raises:
        FileExistsError: The folder of ``"folder:PATH"`` exists and is not empty.
        ValueError: ``repo_id`` is not the name of a repository, the backbone is a folder, or there will be no adapter.
    """
    _check_repo(repo_id)
    if not has_adapter:
        raise ValueError(
            "Got a method without an adapter to push; expected one that trains an adapter. Push the folder of a whole model with "
            "`hf upload`."
        )
    _check_base(backbone, backbone)


def _check_repo(repo_id: str) -> Path | None:
    """Return the new folder of ``folder:PATH``, or None for the name of a repository."""
    if isinstance(repo_id, str) and repo_id.startswith(FOLDER_PREFIX):
        target = Path(repo_id.removeprefix(FOLDER_PREFIX))
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(f"Got {target} to write an adapter to, which exists; expected a new or empty folder.")
        return target
    if not (isinstance(repo_id, str) and REPO_ID.fullmatch(repo_id)):
        raise ValueError(f"Got repo_id={repo_id!r}; expected a name such as 'user/reviews', or 'folder:PATH'.")
    return None


def _check_base(adapter: str, base: str) -> None:
    """Raise ValueError where others would not find the backbone of the adapter."""
    if not is_embedded(base) and not is_hub_name(base):
        raise ValueError(
            f"Got {adapter} to push, whose backbone is {base or 'not named'!r}; expected a backbone that others can load. Push the "
            "backbone first, and pass its name: push_adapter(folder, repo_id, base_model=)."
        )


def _stage(folder: Path, staging: Path, base_model: str | None, name: str) -> None:
    """Copy what belongs to the adapter, and write the names of the repository and of the backbone into it."""
    manifest = read_manifest(folder)
    for file in dict.fromkeys([*ADAPTER_FILES, OLD_WEIGHTS, *(manifest.files if manifest else ())]):
        if (folder / file).is_file():
            (staging / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, staging / file)
    if base_model is not None:
        _rename_base(staging, base_model)
    if not (staging / CARD).is_file():
        write_card(staging)
    _replace(staging / CARD, PLACE, name)


def _rename_base(staging: Path, base_model: str) -> None:
    path = staging / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    old, config["base_model_name_or_path"] = config.get("base_model_name_or_path"), base_model
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    if (staging / CARD).is_file() and old:
        _replace(staging / CARD, old, base_model)
    if (staging / MANIFEST).is_file():
        content = json.loads((staging / MANIFEST).read_text(encoding="utf-8"))
        kept = {key: value for key, value in content.items() if key not in ("files", "saved", "checksum")}
        write_manifest_file(staging, kept, names=content["files"])


def _replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
