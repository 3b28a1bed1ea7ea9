"""Tasks by name and their records: public data sets as published, the hub's, embedded ones, a user's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from paths import PUBLIC_DATA, ROOT
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from t5peft.data import Task, embedded_task, hold_out, load_task, preset_task, real_task, task_names
from t5peft.data.definition import definition_names, read_definition
from t5peft.data.public import load_benchmark

needs_real_data = pytest.mark.skipif(not PUBLIC_DATA.is_dir(), reason="no real data: set T5PEFT_DATA to their folder")


@pytest.fixture(scope="module")
def mini() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ROOT / "t5peft" / "mini")


# Held-out records


def test_copies_that_differ_in_white_space_alone_are_held_out_together() -> None:
    records = [{"text": f"word{' ' * (1 + copy)}{number}"} for number in range(40) for copy in range(3)]
    rest, held = hold_out(records, lambda record: record["text"], share=0.25)
    assert (len(rest), len(held)) == (90, 30)
    assert not {record["text"].split()[1] for record in rest} & {record["text"].split()[1] for record in held}


def test_holding_out_keeps_equal_sources_together_and_ignores_the_order_of_the_file() -> None:
    records = [{"mr": f"m{i % 40}", "text": f"t{i}"} for i in range(100)]
    rest, held = hold_out(records, lambda record: record["mr"])
    assert len({record["mr"] for record in held}) == 4
    assert not {record["mr"] for record in held} & {record["mr"] for record in rest}
    assert sorted(record["text"] for record in [*rest, *held]) == sorted(record["text"] for record in records)
    backwards = hold_out(records[::-1], lambda record: record["mr"])
    assert [record["text"] for record in backwards[1]] == [record["text"] for record in held][::-1]


def test_holding_out_of_one_source_is_refused() -> None:
    with pytest.raises(ValueError, match="Got 2 records with 1 different keys; expected at least two"):
        hold_out([{"a": "x"}, {"a": "x"}], lambda record: record["a"])


# Definitions and their records


@pytest.mark.parametrize("name", definition_names())
def test_every_definition_is_a_task_of_its_own_name_with_metrics_that_exist(name: str) -> None:
    from t5peft.evaluation import METRICS

    task = Task.from_yaml(name)
    assert task.name == name
    assert set(task.metrics) <= set(METRICS)


@pytest.mark.parametrize("name", definition_names())
def test_every_definition_says_where_its_records_come_from(name: str) -> None:
    data = read_definition(name)["data"]
    assert len({"embedded", "benchmark", "hub", "files"} & set(data)) == 1
    if "hub" in data:
        assert data["hub"].count("/") == 1
        assert {"train", "test"} <= set(data["splits"])


HUB_COLUMNS = {
    "glue_cola": "sentence label",
    "glue_sst2": "sentence label",
    "glue_mrpc": "sentence1 sentence2 label",
    "glue_qqp": "question1 question2 label",
    "glue_mnli": "premise hypothesis label",
    "glue_qnli": "question sentence label",
    "glue_rte": "sentence1 sentence2 label",
    "glue_wnli": "sentence1 sentence2 label",
    "superglue_boolq": "question passage label",
    "superglue_cb": "premise hypothesis label",
    "superglue_copa": "premise choice1 choice2 question label",
    "superglue_multirc": "paragraph question answer label",
    "superglue_rte": "premise hypothesis label",
    "superglue_wic": "word sentence1 sentence2 label",
    "squad": "context question answers.text",
    "samsum": "dialogue summary",
    "cnn_dailymail": "article highlights",
    "wmt16_en_de": "translation.en translation.de",
}


@pytest.mark.parametrize("name", task_names("hub"))
def test_hub_definitions_work_on_records_with_the_hubs_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, mini: PreTrainedTokenizerBase
) -> None:
    columns = HUB_COLUMNS[name].split()
    nested: dict[str, object] = {}
    for column in columns:
        outer, _, inner = column.partition(".")
        value: object = "words" if inner != "text" else ["words", "more"]
        nested.setdefault(outer, {}).update({inner: value}) if inner else nested.update({outer: value})  # type: ignore[attr-defined]
    rows = [nested | ({"label": i % 2} if "label" in columns else {}) | {"idx": i} for i in range(2)]
    asked = []

    def load(path: str, config: str | None, split: str) -> Dataset:
        asked.append((path, config, split))
        return Dataset.from_list([{**row, first_text(row): f"{split} {i} words"} for i, row in enumerate(rows)])

    def first_text(row: dict[str, object]) -> str:
        return next((key for key, value in row.items() if isinstance(value, str)), "id")

    monkeypatch.setattr("t5peft.data.files.load_dataset", load)
    if name == "wmt16_en_de":
        monkeypatch.setattr("t5peft.data.registry.hold_out", lambda records, key: (records, records))
    task, splits = load_task(name)
    assert set(splits) == {"train", "validation", "test"}
    assert {path for path, _, _ in asked} == {read_definition(name)["data"]["hub"]}
    for records in splits.values():
        row = task.tokenize(records, mini)[0]
        assert len(row["labels"]) >= 2


def test_a_users_yaml_file_brings_its_own_files(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"text {i}", "label": i % 2}) + "\n" for i in range(20))
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "task.yaml").write_text(
        "name: mine\ntemplate: '{text}'\ntarget: '{label}'\ntarget_words: {0: no, 1: yes}\n"
        "data:\n  files: {train: train.jsonl, test: train.jsonl}\n"
    )
    task, splits = load_task(tmp_path / "task.yaml")
    assert {split: len(records) for split, records in splits.items()} == {"train": 18, "validation": 2, "test": 20}
    assert task.target_text(splits["test"][1]) == "yes"


def test_a_missing_cell_of_a_users_file_is_named_by_its_row(tmp_path: Path) -> None:
    rows = [json.dumps({"text": None if i in (7, 9) else f"text {i}", "label": "a"}) for i in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "task.yaml").write_text(
        "name: mine\ntemplate: '{text}'\ntarget: '{label}'\ndata:\n  files: {train: train.jsonl}\n"
    )
    with pytest.raises(ValueError, match="The column 'text' holds NoneType in rows 7, 9; text or a number"):
        load_task(tmp_path / "task.yaml")


def test_a_split_of_another_name_is_refused_and_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("name: mine\ntemplate: '{text}'\ndata:\n  files: {train: a.csv, dev: b.csv}\n")
    with pytest.raises(ValueError, match=r"name the splits \['dev'\]; expected train, validation, test"):
        load_task(tmp_path / "task.yaml")


def test_a_users_yaml_file_brings_aligned_files(tmp_path: Path) -> None:
    (tmp_path / "train.en").write_text("".join(f"one {i}\n" for i in range(10)))
    (tmp_path / "train.de").write_text("".join(f"eins {i}\n" for i in range(10)))
    (tmp_path / "task.yaml").write_text(
        "name: mine\ntemplate: 'translate English to German: {en}'\ntarget: '{de}'\n"
        "data:\n  files:\n    train: {en: train.en, de: train.de}\n"
    )
    task, splits = load_task(tmp_path / "task.yaml")
    assert {split: len(records) for split, records in splits.items()} == {"train": 9, "validation": 1}
    record = splits["train"][0]
    assert task.target_text(record) == "eins" + task.source(record)[-2:]


def test_a_definition_without_data_or_a_task_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("name: mine\ntemplate: '{text}'\n")
    with pytest.raises(ValueError, match="must name the source of its records under 'data', as one of"):
        load_task(tmp_path / "task.yaml")
    with pytest.raises(ValueError, match="no task 'sst2' with embedded data; expected one of"):
        embedded_task("sst2")


def test_missing_public_data_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T5PEFT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="Set the environment variable T5PEFT_DATA to it"):
        real_task("sst2")
    monkeypatch.setenv("T5PEFT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no folder .*sst2_glue; put the data set sst2 there"):
        real_task("sst2")


@needs_real_data
def test_the_folder_of_public_data_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("T5PEFT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="Set the environment variable T5PEFT_DATA"):
        real_task("rte")
    assert len(real_task("rte", PUBLIC_DATA)[1]["test"]) == 277
    with pytest.raises(FileNotFoundError, match=r"no folder .*rte_glue; put the data set rte there"):
        real_task("rte", tmp_path)


@pytest.mark.parametrize("name", task_names("embedded"))
def test_embedded_tasks_tokenize_without_a_cut_template_or_an_unknown_label(
    name: str, mini: PreTrainedTokenizerBase
) -> None:
    folder = read_definition(name)["data"]["embedded"]
    if not (ROOT / "t5peft" / "data" / "embedded" / folder / "test.jsonl").is_file():
        pytest.skip(f"the embedded data set {folder} is not there")
    task, splits = embedded_task(name)
    assert list(splits) == ["train", "validation", "test"]
    for records in splits.values():
        encoded = task.encode(records, mini)
        assert not encoded.sources.cut
        assert not encoded.targets.cut
    if task.verbalizer:
        assert {task.answers(record)[0] for record in splits["train"]} == set(task.labels)


REAL_ROWS = {
    "sst2": (66346, 1003, 872),
    "trec": (4906, 546, 500),
    "rte": (2241, 249, 277),
    "cola": (7697, 854, 1043),
    "boolq": (2221, 241, 808),
    "phrasebank": (1625, 181, 452),
    "e2e": (4174, 55, 630),
    "aeslc": (14436, 1960, 1906),
    "dialogsum": (449, 51, 500),
    "multi30k": (29000, 1014, 1000),
    "jfleg": (2716, 75, 747),
}


@needs_real_data
@pytest.mark.parametrize("name", task_names("benchmark"))
def test_public_data_sets_are_read_whole_and_held_out_sources_are_not_in_train(
    name: str, mini: PreTrainedTokenizerBase
) -> None:
    task, splits = real_task(name)
    assert tuple(map(len, splits.values())) == REAL_ROWS[name]
    train, validation = (
        {" ".join(task.source(record).split()) for record in splits[split]} for split in ("train", "validation")
    )
    if name not in ("multi30k", "aeslc"):  # parted by their authors, who left one source on both sides
        assert not train & validation
    for records in splits.values():
        encoded = task.encode(records[:200], mini)
        assert len(encoded.targets.cut) <= 0.03 * len(encoded.targets.texts)


SEVERAL = {"e2e": 7.4, "aeslc": 4.0, "dialogsum": 3.0, "jfleg": 4.0}


@needs_real_data
@pytest.mark.parametrize("name", SEVERAL)
def test_generation_sets_have_the_references_that_their_authors_wrote(name: str) -> None:
    task, splits = real_task(name)
    answers = [task.answers(record) for record in splits["test"]]
    assert sum(map(len, answers)) / len(answers) == pytest.approx(SEVERAL[name], abs=0.06)
    assert all(task.read(task.target_text(record)) == task.answers(record)[0] for record in splits["test"])


@needs_real_data
def test_the_test_attributes_of_e2e_are_not_in_its_train() -> None:
    _, splits = real_task("e2e")
    assert not {record["mr"] for record in splits["train"]} & {record["mr"] for record in splits["test"]}
    assert sum(len(record["references"]) for record in splits["test"]) == 4693


@needs_real_data
def test_the_broken_line_of_the_phrasebank_is_left_out_and_every_label_is_known() -> None:
    _, splits = real_task("phrasebank")
    records = [record for split in splits.values() for record in split]
    assert len({record["sentence"] for record in records}) == len(records) == 2258
    assert {record["label"] for record in records} == {"negative", "neutral", "positive"}


@pytest.mark.parametrize(
    ("load", "name", "meant"),
    [
        (load_task, "finanse", "finance"),
        (Task.from_yaml, "support_intents", "support_intent"),
        (embedded_task, "suport_intent", "support_intent"),
        (real_task, "sst-2", "sst2"),
        (load_benchmark, "sst22", "sst2"),
        (lambda name: preset_task(name, [{"text": "a", "label": "b"}]), "clasification", "classification"),
    ],
)
def test_an_unknown_name_gets_the_nearest_as_a_suggestion(load: Any, name: str, meant: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{name}.* Did you mean '{meant}'\?"):
        load(name)
    with pytest.raises((ValueError, FileNotFoundError), match=r"zzzzzz.*\.$"):
        load("zzzzzz")
