"""The files of a split in a folder, as people, ``datasets`` and the hub lay them out.

Read are ``train.csv``; shards, ``train-00000-of-00002.parquet``; a folder of a split, ``train/0000.parquet``; each of these
also below ``data/`` or a folder of a configuration; what a hub repository's README says under ``configs``; a folder of the
hub's cache, with ``snapshots/``; and what ``save_to_disk`` wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, DatasetDict, load_from_disk

from t5peft.data.formats import ENDING

SHARD = re.compile(r"^(?P<name>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?$")
Found = dict[str, list[Path]]


def saved_dataset(folder: Path, split: str | None) -> Dataset | None:
    """Return the data set that ``save_to_disk`` wrote into a folder; ``None`` if it holds something else.

    Raises:
        FileNotFoundError: It has no such split.
        ValueError: It is damaged.
    """
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:  # a damaged file makes pyarrow and json raise whatever its bytes lead to
        raise ValueError(
            f"Got {folder}, which save_to_disk wrote and which cannot be read ({str(error) or type(error).__name__}); expected "
            "complete files. Save it again."
        ) from None
    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        raise _no_split(folder, split, list(loaded))
    return loaded[split]


def files_of_split(folder: Path, split: str | None, config: str | None = None) -> list[Path]:
    """Return the files of a split, shards in their order.

    Args:
        folder: The folder.
        split: Its name.
        config: The configuration, where the folder has several.

    Raises:
        FileNotFoundError: The folder has no such split.
        ValueError: It has several files of the split, or lacks shards.
    """
    folder = _snapshot(folder)
    found = _by_card(folder, config)
    if found is None:
        found = {}
        for place in _places(folder, config):
            found = _by_name(place)
            if found:
                break
    if not found and not config:
        configs = sorted(
            path.name for path in _subfolders(folder) if any(_by_name(place) for place in _places(path, None))
        )
        if configs:
            raise ValueError(
                f"Got {folder} with the configurations {', '.join(configs)}; expected one. Give one of these folders, or config=."
            )
    files = found.get(split or "", [])
    # The cache of datasets puts its own name before that of the split.
    if not files and split and (folder / "dataset_info.json").is_file():
        files = next((paths for name, paths in found.items() if name.endswith(f"-{split}")), [])
    if not files:
        raise _no_split(folder, split, sorted(found))
    return files


def _no_split(folder: Path, split: str | None, there: list[str]) -> FileNotFoundError:
    wanted = f"a folder with a file of the split {split!r}" if split else "a file, or a folder and a split"
    return FileNotFoundError(
        f"Got the folder {folder}, which has {', '.join(there) or 'no file of a known kind'}; expected {wanted}. Give the path of "
        "a file, or rename it."
    )


def _snapshot(folder: Path) -> Path:
    """Return the newest snapshot in a folder of the hub's cache, and any other folder as it is."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    return max(_subfolders(snapshots), key=lambda path: path.stat().st_mtime, default=folder)


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _places(folder: Path, config: str | None) -> Iterator[Path]:
    roots = [folder, folder / "data"]
    for root in [root / config for root in roots] if config else roots:
        if root.is_dir():
            yield root


def _by_name(place: Path) -> Found:
    """Return the files in a folder by the split that their names, or that of their folder, say."""
    groups: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(place.iterdir()):
        ending = ENDING.search(path.name)
        if path.is_dir() and path.name in ("train", "validation", "test"):
            inside = [file for file in sorted(path.iterdir()) if file.is_file() and ENDING.search(file.name)]
            if inside:
                groups.setdefault(path.name, {})[f"{path.name}/"] = inside
        elif ending and path.is_file():
            stem = path.name[: ending.start()]
            shard = SHARD.match(stem)
            family = f"{shard['name']}-of-{shard['count']}{ending[0]}" if shard else path.name
            groups.setdefault(shard["name"] if shard else stem, {}).setdefault(family, []).append(path)
    return {split: _one_family(place, split, families) for split, families in groups.items()}


def _one_family(place: Path, split: str, families: dict[str, list[Path]]) -> list[Path]:
    if len(families) > 1:
        listed = ", ".join(path.name for paths in families.values() for path in paths[:1])
        raise ValueError(
            f"Got {place} with several files of split {split!r}: {listed}; expected one. Give the path of one of them."
        )
    paths = next(iter(families.values()))
    shards = [shard for path in paths if (shard := SHARD.match(ENDING.sub("", path.name)))]
    if shards and (lacking := sorted(set(range(int(shards[0]["count"]))) - {int(shard["number"]) for shard in shards})):
        raise ValueError(
            f"Got {place} with {len(paths)} of {int(shards[0]['count'])} shards of split {split!r}; expected all, but number "
            f"{', '.join(map(str, lacking[:5]))} is not there. Download the folder again."
        )
    return paths


def _by_card(folder: Path, config: str | None) -> Found | None:
    """Return the files by split that the front matter of a README names; ``None`` where it names none."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        fields = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None
    given = fields.get("configs") if isinstance(fields, dict) else None
    configs = {c.get("config_name", "default"): c for c in given or () if isinstance(c, dict) and c.get("data_files")}
    if not configs:
        return None
    first = [name for name, one in configs.items() if one.get("default") or name == "default"]
    name = config or (first or list(configs))[0]
    if name not in configs or (not config and not first and len(configs) > 1):
        raise ValueError(
            f"Got {'the configuration ' + repr(config) if config else 'no configuration'} of {folder}; expected one of "
            f"{', '.join(map(str, configs))}. Give load_records config=, or the path of a file."
        )
    return {
        split: paths
        for split, patterns in _patterns(configs[name]["data_files"])
        if (paths := _matching(folder, patterns))
    }


def _patterns(data_files: Any) -> Iterator[tuple[str, list[str]]]:
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        path, split = (entry.get("path"), entry.get("split", "train")) if isinstance(entry, dict) else (entry, "train")
        yield str(split), [str(one) for one in (path if isinstance(path, list) else [path])]


def _matching(folder: Path, patterns: list[str]) -> list[Path]:
    inside = [pattern for pattern in patterns if ".." not in Path(pattern).parts and not Path(pattern).is_absolute()]
    return [path for pattern in inside for path in sorted(folder.glob(pattern)) if ENDING.search(path.name)]
