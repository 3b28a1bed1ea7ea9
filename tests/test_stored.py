"""Files that t5peft 0.1.0 stored still load and still mean the same: adapters, checkpoints, records, suites, tasks, studies.

``fixtures/v0_1/make.py`` says how it was made. The fixtures are never made anew by a later version.
"""

from __future__ import annotations

import copy
import csv
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from grids import sampled
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments, load_adapter, load_backbone
from t5peft.adapters import load_saved, quantization_of
from t5peft.benchmark.configs import base_configs
from t5peft.benchmark.records import RunConfig, RunRecords
from t5peft.benchmark.report import write_report
from t5peft.benchmark.runner import run
from t5peft.benchmark.schedule import Sweep, run_suite, sweeps
from t5peft.benchmark.suites import load_suite
from t5peft.cli.data import load_saved_task
from t5peft.deprecated import OPTIONS
from t5peft.training.train import TrainConfig

STORED = Path(__file__).parent / "fixtures" / "v0_1"

RENAMED: dict[str, str] = {**OPTIONS, "target_words": "verbalizer"}
"""Options, arguments and fields that have another name since 0.1.0, old to new."""


def renamed(content: Any) -> Any:
    """Return stored JSON with the keys of its mappings under their names of today."""
    if isinstance(content, Mapping):
        return {RENAMED.get(key, key): renamed(value) for key, value in content.items()}
    return [renamed(value) for value in content] if isinstance(content, list) else content


def renamed_in_text(text: str) -> str:
    """Tables, in which an option stands as ``method (name=value)``, with the names of today."""
    for old, new in RENAMED.items():
        text = re.sub(rf"(?<=[(, ]){old}=", f"{new}=", text)
    return text


def read(path: str | Path) -> Any:
    """The content of a stored JSON file, as it is."""
    return json.loads((STORED / path).read_text(encoding="utf-8"))


def as_stored(content: Any) -> Any:
    """Anything as it comes back from JSON: tuples are lists."""
    return json.loads(json.dumps(content))


def assert_holds(found: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Compare the fields that 0.1.0 stored; there may be more of them today."""
    expected = renamed(stored)
    found = as_stored(found)
    assert {name: found.get(name, "is missing") for name in expected} == expected


ADAPTERS: dict[str, dict[str, Any]] = read("adapters.json")
UNQUANTIZED = [name for name, entry in ADAPTERS.items() if not entry["quantize"]]
QUANTIZED = [name for name, entry in ADAPTERS.items() if entry["quantize"]]
LOADED_BY_PEFT = [name for name, entry in ADAPTERS.items() if not entry["tokens"]]  # the table has to grow before


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the fixtures as the working directory, to read from; its adapters name their backbone from there."""
    monkeypatch.chdir(STORED)
    return STORED


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixtures as the working directory, to write into."""
    shutil.copytree(STORED, tmp_path / "copied")
    monkeypatch.chdir(tmp_path / "copied")
    return tmp_path / "copied"


# --- adapters


def plain_backbone(entry: Mapping[str, Any]) -> PreTrainedModel:
    """The backbone of an adapter, in float32 on every machine."""
    if entry["quantize"]:
        pytest.importorskip("bitsandbytes")
    options = {name: entry[name] for name in ("quantize", "quantize_wo")}
    model, _ = load_backbone(entry["backbone"], num_labels=entry["labels"], dtype=torch.float32, **options)
    return model


READS_NF4_AS_STORED = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""0.1.0 ran with AVX-512, where bitsandbytes reads the weights of tiny models with wrong scales."""


def with_weights_by_hand(model: PeftModel) -> PeftModel:
    """Return a model whose 4-bit maps are plain ones, of weights that are computed here."""
    from bitsandbytes.functional import dequantize_blockwise
    from bitsandbytes.nn import Linear4bit

    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            state, packed = module.weight.quant_state, module.weight.data.view(torch.uint8).flatten()
            scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
            values = state.code[torch.stack([packed >> 4, packed & 15], 1).flatten().long()].view(-1, state.blocksize)
            plain = nn.Linear(module.in_features, module.out_features, bias=False)
            plain.weight = nn.Parameter((values * scales[:, None]).view(state.shape))
            model.set_submodule(name, plain)
    return model


def assert_logits_of(name: str, model: PeftModel) -> None:
    """Compare with what 0.1.0 computed: in float64, of which every processor makes the same, but for quantized weights."""
    tensors = load_file(STORED / "expected" / f"{name}.safetensors")
    expected = tensors.pop("logits")
    batch: dict[str, Tensor] = load_file(STORED / "expected" / "batch.safetensors") | tensors
    if ADAPTERS[name]["labels"]:
        del batch["labels"]
    quantized = ADAPTERS[name]["quantize"] is not None
    model = model.eval() if quantized else model.eval().double()
    with torch.no_grad():
        found = model(**batch).logits.float()
        if ADAPTERS[name]["quantize"] == "nf4" and not READS_NF4_AS_STORED:
            expected = with_weights_by_hand(model)(**batch).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if quantized else 1e-6)


@pytest.mark.parametrize("name", UNQUANTIZED)
def test_an_adapter_loads_by_the_name_of_its_backbone(name: str, stored: Path) -> None:
    model, _ = load_saved(Path("adapters") / name)
    assert_logits_of(name, model)


@pytest.mark.parametrize("name", [name for name in UNQUANTIZED if name in LOADED_BY_PEFT])
def test_an_adapter_loads_to_be_trained_on(name: str, stored: Path) -> None:
    model, _ = load_adapter(Path("adapters") / name, model=plain_backbone(ADAPTERS[name]), trainable=True)
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert_logits_of(name, model)


@pytest.mark.parametrize("name", QUANTIZED)
def test_an_adapter_loads_beside_quantized_weights(name: str, stored: Path) -> None:
    folder = Path("adapters") / name
    assert quantization_of(folder) == ADAPTERS[name]["quantize"]
    model, _ = load_adapter(folder, model=plain_backbone(ADAPTERS[name]))
    assert_logits_of(name, model)
    # In bfloat16 where the machine computes in it: only what stands where is compared.
    by_name, _ = load_adapter(folder, quantize=ADAPTERS[name]["quantize"])
    parts, expected = ([(at, type(part)) for at, part in each.named_modules()] for each in (by_name, model))
    assert parts == expected


@pytest.mark.parametrize("name", LOADED_BY_PEFT)
def test_an_adapter_loads_by_peft_alone(name: str, stored: Path) -> None:
    model = PeftModel.from_pretrained(plain_backbone(ADAPTERS[name]), f"adapters/{name}")
    assert_logits_of(name, model)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_was_damaged_is_refused(name: str, copied: Path) -> None:
    path = copied / "adapters" / "lora" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=name):
        load_adapter("adapters/lora")


# --- checkpoints


def test_a_run_goes_on_from_its_checkpoint(copied: Path) -> None:
    setup = read("checkpoint/setup.json")
    model, tokenizer = load_backbone(setup["backbone"])
    trainer = T5PeftTrainer(
        METHODS[setup["method"]].wrap(model, **renamed(setup["options"])),
        T5PeftTrainingArguments(**renamed(setup["arguments"])),
        train_dataset=read("checkpoint/features.json"),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=True)
    losses = {str(entry["step"]): entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    assert losses == pytest.approx(read("checkpoint/losses.json"), abs=1e-5)
    found = get_peft_model_state_dict(trainer.model, save_embedding_layers=False)
    torch.testing.assert_close(found, load_file(STORED / "checkpoint/final.safetensors"), rtol=0, atol=1e-5)


def test_the_arguments_of_a_checkpoint_load(stored: Path) -> None:
    arguments = torch.load("checkpoint/run/checkpoint-4/training_args.bin", weights_only=False)
    assert isinstance(arguments, T5PeftTrainingArguments)
    given = read("checkpoint/setup.json")["arguments"]
    # The trainer has made one batch of those of a step; transformers makes a list of what is reported to.
    given |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "report_to": []}
    assert_holds({name: getattr(arguments, name, "is missing") for name in renamed(given)}, given)


# --- records


def test_records_give_the_same_tables(stored: Path, tmp_path: Path) -> None:
    report = write_report(Path(), tmp_path, title="stored", about="records of 0.1.0", command="t5peft bench")
    for what, name in (("table", "report.md"), ("CSV", "report.csv")):
        expected = renamed_in_text((stored / "report" / name).read_text(encoding="utf-8"))
        expected = expected.replace("| mean accuracy |", "| mean |")  # of scores of any kind
        found = report.paths[what].read_text(encoding="utf-8")
        if what == "table":  # the advice below it follows other rules than that of 0.1.0
            found, expected = (
                "\n".join(line for line in text.splitlines() if line.startswith("|")) for text in (found, expected)
            )
            assert found == expected
        else:
            assert [list(map(cell, row)) for row in csv.reader(found.splitlines())] == [
                list(map(cell, row)) for row in csv.reader(expected.splitlines())
            ]


def cell(text: str) -> object:
    """A cell of a CSV, without the rounding of its last digits."""
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text


def test_records_load_and_are_found_by_their_configuration(stored: Path) -> None:
    for folder in (Path("records"), Path("suite/records")):
        records, paths = RunRecords(folder), sorted(folder.glob("*.json"))
        assert len(records.load()) == len(paths)
        for path in paths:
            record = records.find(RunConfig(**read(path)["config"]))
            assert record in records.load()
            assert_holds(record, read(path))


# --- suites


def grid() -> list[Sweep]:
    """The stored suite."""
    suite = load_suite("suite/suite.yaml")
    return sweeps(suite, base_configs(suite, "cpu"))


def test_a_suite_asks_for_the_same_runs(copied: Path) -> None:
    expected = read("suite/configs.json")
    asked: list[RunConfig] = []

    def execute(config: RunConfig) -> dict[str, Any]:
        asked.append(config)
        record = read(f"suite/records/{expected[len(asked) - 1]['file']}")
        return {name: value for name, value in record.items() if name not in ("schema", "config")}

    run_suite(grid(), RunRecords(copied / "empty"), execute)
    assert len(asked) == len(expected)
    for config, entry in zip(asked, expected, strict=True):
        assert_holds(asdict(config), entry["fields"])


def test_a_suite_finds_the_records_of_its_runs(copied: Path) -> None:
    def execute(config: RunConfig) -> dict[str, Any]:
        pytest.fail(f"There is a record of {config}, and it was not found.")

    found = run_suite(grid(), RunRecords(copied / "suite"), execute)
    for record, entry in zip(found, read("suite/configs.json"), strict=True):
        assert_holds(record, read(f"suite/records/{entry['file']}"))


METHODS_OF_THE_SUITE = yaml.safe_load((STORED / "suite/suite.yaml").read_text(encoding="utf-8"))["methods"]


@pytest.mark.parametrize("index", sampled(range(len(METHODS_OF_THE_SUITE)), every=2))
def test_a_run_of_a_suite_has_the_same_outcome(index: int, stored: Path) -> None:
    entry = METHODS_OF_THE_SUITE[index]
    if entry["method"] == "qlora":
        pytest.importorskip("bitsandbytes")
    record = read(f"suite/records/{file_of_the_first_run(entry)}")
    found = run(grid()[index].base, lambda step, steps: None)
    assert found["outcome"] == record["outcome"], found.get("reason")
    if record["outcome"] == "finished":
        assert found["parameters"]["trainable"] == record["parameters"]["trainable"]
        # Beside quantized weights the machine decides between bfloat16 and float32.
        tolerance = 0.05 if entry["method"] == "qlora" else 1e-4
        if entry.get("options", {}).get("quantize") == "nf4" and not READS_NF4_AS_STORED:
            pytest.skip("bitsandbytes computes 4 bits of a tiny model in another way on this processor")
        assert found["validation_loss"] == pytest.approx(record["validation_loss"], abs=tolerance)


def file_of_the_first_run(method: Mapping[str, Any]) -> str:
    """The record of the first run that 0.1.0 made by a method of the suite."""
    return next(
        entry["file"]
        for entry in read("suite/configs.json")
        if entry["fields"]["method"] == method["method"]
        and entry["fields"]["method_options"] == method.get("options", {})
    )


# --- tasks


def one_line(content: Any) -> Any:
    """Return texts as 0.1.0 read them: it lost line breaks and repeated spaces, which answers keep since 0.2."""
    if isinstance(content, str):
        return " ".join(content.split())
    return [one_line(part) for part in content] if isinstance(content, list | tuple) else content


@pytest.mark.parametrize("name", ["films", "descriptions", "plain"])
def test_a_task_makes_the_same_of_its_records(name: str, stored: Path) -> None:
    records, results = (read(f"tasks/{name}/{part}.json") for part in ("records", "results"))
    task = load_saved_task(Path("tasks") / name)
    _, tokenizer = load_backbone("backbone")
    each: dict[str, Callable[[Any], Any]] = {
        "sources": task.source,
        "contents": task.content,
        "targets": task.target_text,
        "answers": task.answers,
    }
    assert_holds(asdict(task), results["fields"])
    for what, make in each.items():
        assert one_line([make(record) for record in records]) == one_line(results[what]), what
    assert (list(task.columns), list(task.labels)) == (results["columns"], results["labels"])
    assert one_line([[text, task.read(text)] for text, _ in results["read"]]) == one_line(results["read"])
    assert as_stored(asdict(task.encode(records, tokenizer))) == results["encoded"]
    if results["labels"]:
        assert list(task.candidates) == results["candidates"]
        assert list(task.tokenize_for_head(records, tokenizer)["labels"]) == results["for_head"]


# --- searches


def test_a_search_goes_on(copied: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from t5peft.training.search import search

    before = read("search/found.json")
    recipe, splits = TrainConfig(**renamed(read("search/recipe.json"))), read("search/splits.json")
    task = load_saved_task("tasks/films")
    done = search(task, splits, recipe, "search", trials=2)
    assert (done.trials, done.value) == (2, pytest.approx(before["value"]))
    assert_holds(asdict(done.config), before["best"])
    assert search(task, splits, recipe, "search", trials=3).trials == 3
    study = optuna.load_study(study_name="films-lora", storage="sqlite:///search/study.db")
    first = [{"params": trial.params, "value": trial.value, "state": trial.state.name} for trial in study.trials[:2]]
    assert first == before["trials"]
    assert len(study.trials) == 3
