"""Commands that write, on tiny models: what they are given, how a user goes on after an interruption, and what they leave."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import tiny_t5, tiny_tokenizer

from t5peft.cli import main

# What differs between two runs of the same command: times, speed, memory, and what is hashed of these.
_VARYING = {
    "saved", "checksum", "started", "seconds", "memory", "latency", "tokens_per_second", "number", "curve", "time",
    "total_flos", "versions", "commit", "machine", "environment", "files", "package_versions",
}  # fmt: skip
_LEFT_OUT = {".png", ".html", ".lock", ".md", ".log", ".txt"}


@dataclass(frozen=True)
class Scenario:
    """A command.

    Attributes:
        words: The words of the command, of the folder of inputs and the place of its output.
        output: What it writes, below its place.
        again: Words that a user adds to go on.
        before: Gives the words of an earlier command into the same place; None for a new place.
        load: Reads what it wrote, and returns the weights.
    """

    words: Callable[[Path, Path], list[str]]
    output: str
    again: tuple[str, ...] = ()
    before: Callable[[Path, Path], list[str]] | None = None
    load: Callable[[Path], dict[str, torch.Tensor]] | None = None


def _train(inputs: Path, place: Path, *more: str, table: str = "reviews.csv") -> list[str]:
    return [
        "train", "--task", "classification", "--train", str(inputs / table), "--test", str(inputs / "test.csv"),
        "--column", "text=review", "--column", "label=stars", "--target-word", "0=bad", "--target-word", "1=good",
        "--backbone", str(inputs / "backbone"), "--output", str(place / "run"), "--steps", "4", "--batch-size", "4",
        "--evaluations", "2", "--method", "lora", "--rank", "2", *more,
    ]  # fmt: skip


def _overwrite(words: Callable[..., list[str]]) -> Callable[[Path, Path], list[str]]:
    return lambda inputs, place: [*words(inputs, place), "--overwrite"]


def _full(inputs: Path, place: Path) -> list[str]:
    words = _train(inputs, place)
    return [*words[: words.index("--method")], "--method", "full"]


def _merge(inputs: Path, place: Path, adapter: str = "adapter") -> list[str]:
    return ["merge", str(inputs / adapter), "--output", str(place / "merged")]


def _export(inputs: Path, place: Path, to: str, adapter: str = "adapter") -> list[str]:
    return ["export", str(inputs / adapter), "--to", to, "--output", str(place / "exported")]


def _bench(inputs: Path, place: Path) -> list[str]:
    return [
        "bench", "--task", "classification", "--train", str(inputs / "reviews.csv"), "--test", str(inputs / "test.csv"),
        "--source-column", "review", "--label-column", "stars", "--backbone", str(inputs / "backbone"), "--methods", "ia3",
        "--steps", "2", "--seeds", "0", "--output", str(place / "bench"), "--threads", "1",
    ]  # fmt: skip


def _search(inputs: Path, place: Path) -> list[str]:
    words = _train(inputs, place, "--trials", "3")
    words[0] = "search"
    words[words.index("--evaluations") + 1] = "1"
    return words


def _pretrain(inputs: Path, place: Path) -> list[str]:
    return [
        "pretrain", "--text", str(inputs / "notes.txt"), "--held-out", str(inputs / "held_out.txt"), "--output",
        str(place / "pretrained"), "--d-model", "16", "--d-ff", "16", "--layers", "1", "--heads", "2", "--d-kv", "8",
        "--vocabulary", "480", "--vocabulary-share", "1", "--source-tokens", "32", "--rows", "4", "--log-every", "1",
        "--eval-every", "2", "--save-every", "2", "--steps", "5", "--embeddings", "random",
    ]  # fmt: skip


def _predict(inputs: Path, place: Path, ending: str) -> list[str]:
    return [
        "predict",
        str(inputs / "adapter"),
        "--data",
        str(inputs / "many.csv"),
        "--output",
        str(place / f"answers{ending}"),
    ]


def _continue(inputs: Path, place: Path) -> list[str]:
    files = {"train": "reviews.csv", "test": "test.csv", "old-train": "old.csv", "old-test": "test.csv"}
    words = [word for name, file in files.items() for word in (f"--{name}", str(inputs / file))]
    options = ["--output", str(place / "new"), "--steps", "4", "--batch-size", "4", "--evaluations", "2"]
    return ["continue", str(inputs / "adapter"), *words, *options]


def _copy(inputs: Path, place: Path) -> list[str]:
    return ["copy", str(inputs / "adapter"), str(place / "adapters" / "one")]


def _pool(inputs: Path, place: Path) -> list[str]:
    return ["pool", str(inputs / "backbone"), str(place / "adapters")]


def _read_pool(backbone: str, adapters: str) -> int:
    """Load an adapter into a pool, and once more after an error that says so."""
    from t5peft.serving.pool import AdapterPool
    from t5peft.serving.requests import UnusableAdapterError

    pool = AdapterPool(backbone, adapters)
    try:
        pool.acquire("one")
    except UnusableAdapterError as error:
        clear = "Got " in str(error) and "/one" in str(error)
        print(error)
        if not clear:
            return 1
    pool.acquire("one")
    return 0


Load = Callable[[Path], dict[str, torch.Tensor]]


def _adapter(name: str) -> Load:
    def load_it(place: Path) -> dict[str, torch.Tensor]:
        from t5peft import load_adapter

        model = load_adapter(place / name)[0]
        return {key: value for key, value in model.state_dict().items() if "lora" in key}

    return load_it


def _model(name: str) -> Load:
    def load_it(place: Path) -> dict[str, torch.Tensor]:
        from t5peft import load_backbone

        return dict(load_backbone(place / name)[0].state_dict())

    return load_it


def _exported(name: str) -> Load:
    def load_it(place: Path) -> dict[str, torch.Tensor]:
        from t5peft.serving.export import load_exported

        answers = load_exported(place / name).predict(["good film", "bad"], max_new_tokens=4)
        return {"answers": torch.tensor(list(" ".join(answers).encode()))}

    return load_it


SCENARIOS: dict[str, Scenario] = {
    "train": Scenario(_train, "run/adapter", ("--resume",), load=_adapter("run/adapter")),
    "train full": Scenario(_full, "run", ("--resume",), load=_model("run")),
    "train over": Scenario(
        _overwrite(_train), "run/adapter", before=partial(_train, table="old.csv"), load=_adapter("run/adapter")
    ),
    "continue": Scenario(_continue, "new", ("--overwrite",), load=_adapter("new")),
    "merge": Scenario(_merge, "merged", ("--overwrite",), load=_model("merged")),
    "merge over": Scenario(_overwrite(_merge), "merged", before=partial(_merge, adapter="old"), load=_model("merged")),
    "export": Scenario(partial(_export, to="transformers"), "exported", ("--overwrite",), load=_exported("exported")),
    "export over": Scenario(
        _overwrite(partial(_export, to="transformers")), "exported", before=partial(_export, to="transformers", adapter="old"),
        load=_exported("exported")
    ),
    "export ct2": Scenario(partial(_export, to="ct2"), "exported", ("--overwrite",), load=_exported("exported")),
    "export onnx": Scenario(partial(_export, to="onnx"), "exported", ("--overwrite",), load=_exported("exported")),
    "bench": Scenario(_bench, "bench"),
    "search": Scenario(_search, "run"),
    "pretrain": Scenario(_pretrain, "pretrained", load=_model("pretrained/model")),
    "pool": Scenario(_pool, "adapters", before=_copy),  # which only reads
    "predict jsonl": Scenario(partial(_predict, ending=".jsonl"), "answers.jsonl"),
    "predict csv": Scenario(partial(_predict, ending=".csv"), "answers.csv"),
    "predict parquet": Scenario(partial(_predict, ending=".parquet"), "answers.parquet"),
}  # fmt: skip


def run(words: Sequence[str]) -> int:
    """Run a command in this process, with small spans of ``predict``, and with the runs of ``bench`` in this process."""
    from t5peft.benchmark import process
    from t5peft.cli import predict

    def in_this_process(self: Any, config: Any) -> Any:
        return self.worker(config, self.on_progress)

    # Assigned by name: this process is one of the campaign.
    setattr(process.RunProcesses, "__call__", in_this_process)  # noqa: B010
    predict.TOKENS_AT_ONCE = 200
    if words[0] == "copy":
        shutil.copytree(words[1], words[2])
        return 0
    return _read_pool(*words[1:]) if words[0] == "pool" else main(words)


def load(scenario: Scenario, place: Path, target: Path) -> int:
    """Read what a scenario wrote into a hash of its weights, in ``target``; a refusal is told there too."""
    assert scenario.load is not None
    try:
        target.write_text(_hash_tensors(scenario.load(place)))
    except (ValueError, OSError) as error:
        target.write_text(f"refused: {error}")
    return 0


def import_all() -> None:
    """Import what the commands import when they run, so that forked processes need not."""
    import importlib

    for name in (
        "matplotlib.figure", "matplotlib.backends.backend_agg", "optuna", "sqlalchemy.dialects.sqlite", "ctranslate2", "onnx",
        "onnxruntime", "torch.onnx", "pyarrow.parquet", "t5peft.benchmark.report", "t5peft.benchmark.runner",
        "t5peft.benchmark.schedule", "t5peft.benchmark.suites", "t5peft.benchmark.html_report", "t5peft.evaluation",
        "t5peft.pretraining.pretrainer", "t5peft.pretraining.tokenizer", "t5peft.pretraining.embeddings",
        "t5peft.serving.export", "t5peft.training.continue_training", "t5peft.training.search", "optuna.storages._rdb.models",
        *(
            f"t5peft.cli.{name}"
            for name in ("train", "continue_training", "merge", "export", "bench", "search", "pretrain", "predict")
        ),
    ):  # fmt: skip
        try:
            importlib.import_module(name)
        except ImportError:
            continue


def make_inputs(folder: Path) -> None:
    """Write what the commands read; all but the adapter, which ``train`` writes."""
    folder.mkdir(parents=True)
    tiny_t5(dropout_rate=0.1).save_pretrained(folder / "backbone")
    tiny_tokenizer().save_pretrained(folder / "backbone")
    for name, count, shift in (("reviews", 20, 0), ("test", 6, 100), ("old", 12, 200), ("many", 12, 300)):
        rows = [f"{'good' if i % 2 else 'bad'} film {i + shift},{i % 2}" for i in range(count)]
        (folder / f"{name}.csv").write_text("\n".join(["review,stars", *rows]))
    text = "\n\n".join(
        f"The {i} quick brown foxes jump over {i * 7} lazy dogs and cats near river {i}." for i in range(60)
    )
    (folder / "notes.txt").write_text(text)
    (folder / "held_out.txt").write_text(text.replace("dogs", "cows"))


def content(place: Path, scenario: Scenario) -> dict[str, str]:
    """Return a hash of each file that a command has left, apart from times, logs and checkpoints."""
    path = place / scenario.output
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    found = {}
    for file in files:
        name = file.relative_to(place).as_posix()
        if (
            "checkpoint-" in name
            or file.suffix in _LEFT_OUT
            or file.name.endswith(".lock")
            or file.name in ("report.csv", "training_args.bin")
        ):
            continue
        found[name] = _hash_file(file)
    return found


def clear(place: Path) -> None:
    """Delete a place, and the one it was moved to."""
    for path in (place, place.with_name(f"{place.name}.gone")):
        shutil.rmtree(path, ignore_errors=True)


def _hash_file(path: Path) -> str:
    if path.suffix == ".safetensors":
        return _hash_tensors(load_file(path))
    if path.suffix == ".pt":
        return _hash_tensors(torch.load(path, weights_only=True))
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return _digest(json.dumps([_plain(json.loads(line)) for line in lines]))
    if path.suffix == ".db":
        with closing(sqlite3.connect(path)) as database:
            query = (
                "SELECT trials.state, param_name, param_value, value FROM trials JOIN trial_params USING (trial_id) "
                "LEFT JOIN trial_values USING (trial_id) WHERE trials.state IN ('COMPLETE', 'PRUNED') ORDER BY trial_id, param_name"
            )
            return _digest(repr(database.execute(query).fetchall()))
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in sorted(value.items()) if key not in _VARYING}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _hash_tensors(value: Any) -> str:
    parts: list[str] = []

    def walk(one: Any) -> None:
        if isinstance(one, torch.Tensor):
            parts.append(
                hashlib.sha256(one.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
            )
        elif isinstance(one, dict):
            for key in sorted(one, key=str):
                parts.append(str(key))
                walk(one[key])
        elif isinstance(one, (list, tuple)):
            for inner in one:
                walk(inner)
        else:
            parts.append(repr(one))

    walk(value)
    return _digest("|".join(parts))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
