"""Fields of a task: their types in YAML and in code, their old names, and what records of every type become."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, List, Value
from narrow import text
from paths import PUBLIC_DATA
from transformers import ByT5Tokenizer

from t5peft.cli.data import load_saved_task, save_task
from t5peft.data import Task, load_records, load_task, preset_task
from t5peft.data.augmentation import augment
from t5peft.data.files import load_records as read
from t5peft.data.lint import lint
from t5peft.data.registry import with_validation
from t5peft.data.rewording import WordSwap
from t5peft.data.splits import fingerprint_of_data
from t5peft.evaluation.scores import EvaluationSet

FIELDS: dict[str, Any] = {
    "name": "mine",
    "template": "say: {text}",
    "target": "{label}",
    "verbalizer": {"0": "no", "1": "yes"},
    "metrics": ["accuracy"],
    "max_source_length": "64",
    "max_target_length": "16",
    "num_beams": "1",
}
VALUES: list[Any] = [["a"], {"a": "b"}, [["a"]], {"a": ["b"]}, [], {}, [{"a": "b"}]]
TAKEN = {"metrics": (["a"],), "verbalizer": ()}


def write(folder: Path, fields: dict[str, Any]) -> Path:
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.mark.parametrize("field", [*FIELDS, "references", "list_separator"])
@pytest.mark.parametrize("value", VALUES)
def test_a_field_of_another_type_is_named_beside_every_other_problem(field: str, value: Any, tmp_path: Path) -> None:
    if value in TAKEN.get(field, ()):
        return
    path = write(tmp_path, FIELDS | {field: value, "num_beams": ["two"] if field != "num_beams" else value})
    with pytest.raises(ValueError, match="Got problems with task") as error:
        Task.from_yaml(path)
    assert field in str(error.value)
    assert "num_beams is [" in str(error.value) or field == "num_beams"


def test_problems_of_every_kind_come_together(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"name": ["a"], "templat": "x", "metrics": {"a": "b"}, "num_beams": "x", "verbalizer": "yes"}
    )
    with pytest.raises(ValueError, match=r"Got problems with task \['a'\]; expected none") as error:
        Task.from_yaml(path)
    for part in (
        "no field 'templat'",
        "'template' is missing",
        "name is ['a']",
        "metrics is {",
        "num_beams is 'x'",
        "verbalizer is 'yes'",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("content", [b"- a\n", b"a: [\n", b"\xff\xfe", b"", b"text", b"a: \x00\n", b"[" * 5000])
def test_a_file_that_is_not_a_mapping_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"Got .*task.yaml, which"):
        Task.from_yaml(tmp_path / "task.yaml")


@pytest.mark.parametrize(
    "data",
    [
        "x", ["a"], {}, {"files": "a.csv"}, {"files": {"train": ["a"]}}, {"files": {"train": {}}}, {"hub": ["a"], "splits": {}},
        {"hub": "a/b"}, {"hub": "a/b", "splits": ["train"]}, {"hub": "a/b", "splits": {"train": ["a"]}}, {"embedded": {"a": "b"}},
        {"hub": "a/b", "splits": {"train": "train"}, "first": "text"}, {"files": {"train": {"en": ["a"]}}}, {"benchmark": []},
        {"files": {"dev": "a.csv"}}, {"files": {}, "hub": "a/b"},
        {"hub": "a/b", "splits": {"train": "train"}, "config": {"a": "b"}},
    ],
)  # fmt: skip
def test_data_of_another_type_are_named(data: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Got problems with task 'mine'; expected none:\n  - .*data"):
        load_task(write(tmp_path, FIELDS | {"data": data}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": None}, "name is None; text was expected"),
        ({"max_source_length": "64"}, "max_source_length is '64'; a whole number was expected"),
        ({"num_beams": True}, "num_beams is True; a whole number"),
        ({"num_beams": 1.5}, "num_beams is 1.5; a whole number"),
        ({"metrics": None}, "metrics is None; a list of names"),
        ({"metrics": (1,)}, r"metrics is \(1,\); a list of names"),
        ({"verbalizer": ["no", "yes"]}, "a mapping from label to word"),
        ({"references": 3}, "references is 3; text was expected"),
        ({"list_separator": ", "}, "a verbalizer, which selects one label, and a list_separator"),
    ],
)
def test_the_same_in_code(fields: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "name": "t",
        "template": "{a}",
        "target": "{b}",
        "verbalizer": {0: "no", 1: "yes"},
    } | fields
    with pytest.raises(ValueError, match=message):
        Task(**given)


def test_one_metric_may_be_given_as_text() -> None:
    assert Task("t", "{a}", metrics="accuracy, f1").metrics == ("accuracy", "f1")  # type: ignore[arg-type]


# The verbalizer's old name


def test_target_words_are_the_verbalizer_in_files_without_a_warning(tmp_path: Path) -> None:
    words = {"0": "no", "1": "yes"}
    fields = {key: value for key, value in FIELDS.items() if key != "verbalizer"} | {"target_words": words}
    assert Task.from_yaml(write(tmp_path, fields)) == Task.from_mapping(FIELDS)
    (tmp_path / "task.yaml").write_text((tmp_path / "task.yaml").read_text())
    assert load_saved_task(tmp_path).verbalizer == words
    save_task(Task.from_mapping(fields), tmp_path)
    assert "verbalizer" in yaml.safe_load((tmp_path / "task.yaml").read_text())


def test_target_words_are_the_verbalizer_in_code_with_a_warning() -> None:
    words = {"0": "no", "1": "yes"}
    with pytest.warns(DeprecationWarning, match="target_words of Task.__init__ is deprecated .* use verbalizer"):
        task = Task("t", "{text}", "{label}", target_words=words)  # type: ignore[call-arg]
    assert task == Task("t", "{text}", "{label}", words)
    with pytest.warns(DeprecationWarning, match="use Task.verbalizer"):
        assert task.target_words == words
    with pytest.warns(DeprecationWarning, match="target_words of preset_task is deprecated"):
        made = preset_task("classification", [{"text": "a", "label": 0}], target_words=words)  # type: ignore[call-arg]
    assert made.verbalizer == words


@pytest.mark.skipif(not PUBLIC_DATA.is_dir(), reason="no real data: set T5PEFT_DATA to their folder")
def test_data_have_the_fingerprint_that_0_1_stored() -> None:
    splits = {
        "train": read(PUBLIC_DATA / "sst2_glue" / "train.tsv"),
        "test": read(PUBLIC_DATA / "sst2_glue" / "dev.tsv"),
    }
    task = preset_task("classification", splits["train"], name="sst2_glue", columns={"text": "sentence"})
    assert fingerprint_of_data(task, with_validation(task, dict(splits))) == "fc56d7500aca998f"


# Cells


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (datetime.date(2024, 1, 5), "2024-01-05"),
        (datetime.datetime(2024, 1, 5, 10, 30), "2024-01-05 10:30:00"),
        (datetime.time(10, 30), "10:30:00"),
    ],
)
def test_dates_are_text(cell: Any, text: str, tmp_path: Path) -> None:
    Dataset.from_list([{"text": "a", "when": cell}]).to_parquet(tmp_path / "a.parquet")
    record = load_records(tmp_path / "a.parquet")[0]
    assert Task("t", "{text} {when}", "{when}").source(record) == f"a {text}"
    assert Task("t", "{text}", "{when}").answers(record) == [text]


def test_a_missing_date_is_named() -> None:
    import pandas as pd

    with pytest.raises(ValueError, match="The column 'when' holds NaTType in row 0"):
        Task("t", "{when}").source({"when": pd.NaT})


def test_a_list_is_text_where_the_task_says_what_separates_it() -> None:
    record = {"text": ["a", 2, "c"], "target": []}
    assert Task("t", "of: {text}", list_separator=" | ").source(record) == "of: a | 2 | c"
    with pytest.raises(ValueError, match=r"The column 'text' holds list in row 0; .* give the task a list_separator"):
        Task("t", "of: {text}").source(record)
    with pytest.raises(ValueError, match="The column 'text' holds list in row 0"):
        Task("t", "of: {text}", list_separator=", ").source({"text": ["a", None]})


@pytest.mark.parametrize(("cells", "target"), [([[1, 2], [3]], "1, 2"), ([["art", "war"], "sea"], "art, war")])
def test_lists_of_labels_are_several_labels(cells: list[Any], target: str) -> None:
    records = [{"text": "a", "label": cell} for cell in cells]
    task = preset_task("classification", records)
    assert (task.verbalizer, task.metrics) == (None, ("accuracy", "token_f1"))
    assert task.target_text(records[0]) == target
    assert len(task.tokenize(records, ByT5Tokenizer())) == 2
    with pytest.raises(ValueError, match="Got lists of labels in the column 'label' and a verbalizer"):
        preset_task("classification", records, verbalizer={"1": "a", "2": "b"})


# Names of labels

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
LABELED = [{"text": "a", "label": 1}, {"text": "b", "label": 1}]


@pytest.mark.parametrize("family", ["classification", "recommendation", "sentence_pairs"])
@pytest.mark.parametrize("door", ["Dataset", "file"])
def test_the_names_of_labels_are_their_words(family: str, door: str, tmp_path: Path) -> None:
    features = Features(FEATURES | {"premise": Value("string"), "hypothesis": Value("string")})
    dataset = Dataset.from_list([row | {"premise": "a", "hypothesis": "b"} for row in LABELED], features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    records = dataset if door == "Dataset" else load_records(tmp_path / "a.parquet")
    columns = {"history": "text", "item": "label"} if family == "recommendation" else None
    task = preset_task(family, records, columns=columns)
    assert task.verbalizer == {"0": "negative", "1": "positive"}
    assert [task.target_text(record) for record in records] == ["positive", "positive"]
    assert len(task.tokenize(records, ByT5Tokenizer())) == 2


def test_words_may_be_given_by_the_names_of_labels() -> None:
    dataset = Dataset.from_list(LABELED, features=FEATURES)
    for words in ({"negative": "bad", "positive": "good"}, {"0": "bad", "1": "good"}, {"negative": "bad", "1": "good"}):
        assert preset_task("classification", dataset, verbalizer=words).verbalizer == {"0": "bad", "1": "good"}


def test_names_of_labels_may_be_numbers() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["1", "0"])})
    task = preset_task("classification", Dataset.from_list(LABELED, features=features))
    assert task.verbalizer == {"0": "1", "1": "0"}


@pytest.mark.parametrize("door", ["Dataset", "file"])
def test_lists_of_labels_are_trained_by_their_names(door: str, tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["art", "war"]))})
    dataset = Dataset.from_list([{"text": "a", "label": [1, 0]}], features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    records = dataset if door == "Dataset" else load_records(tmp_path / "a.parquet")
    task = preset_task("classification", records)
    assert decoded_targets(task, records) == ["war, art"]


def decoded_targets(task: Task, records: Any) -> list[str]:
    tokenizer = ByT5Tokenizer()
    return [text(tokenizer.decode(row["labels"][:-1])) for row in task.tokenize(records, tokenizer)]


@pytest.mark.parametrize("door", ["Dataset", "file"])
def test_a_free_target_writes_the_names_of_labels(door: str, tmp_path: Path) -> None:
    features = Features(FEATURES | {"kind": ClassLabel(names=["news", "film"])})
    rows = [{"text": "a", "label": 1, "kind": 0}, {"text": "b", "label": 0, "kind": 1}]
    dataset = Dataset.from_list(rows, features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    records = dataset if door == "Dataset" else load_records(tmp_path / "a.parquet")
    tokenizer = ByT5Tokenizer()
    free = Task("free", "{kind}: {text}", "it is {label}", metrics=("accuracy",))
    assert decoded_targets(free, records) == ["it is positive", "it is negative"]
    assert free.sources(records, tokenizer) == ["news: a", "film: b"]
    assert EvaluationSet(free, records, tokenizer).references == [["it is positive"], ["it is negative"]]
    assert "bytes" not in str(lint(free, records, tokenizer))
    reworded = augment(records, free, WordSwap(), columns=["text"], cache_folder=tmp_path).dataset.to_list()
    assert set(decoded_targets(free, reworded)) == {"it is positive", "it is negative"}
    verbalized = Task("verbalized", "{kind}: {text}", "{label}", {"0": "bad", "1": "good"})
    assert decoded_targets(verbalized, records) == ["good", "bad"]
    assert verbalized.sources(records, tokenizer) == ["news: a", "film: b"]


def test_a_held_out_share_keeps_the_names_of_labels() -> None:
    dataset = Dataset.from_list([{"text": f"t{i}", "label": i % 2} for i in range(8)], features=FEATURES)
    task = Task("free", "{text}", "{label}")
    splits = with_validation(task, {"train": dataset})
    assert len(splits["train"]) + len(splits["validation"]) == 8
    targets = {split: set(decoded_targets(task, splits[split])) for split in splits}
    assert targets["train"] == {"negative", "positive"}
    assert targets["validation"] <= {"negative", "positive"}


def test_a_missing_label_is_told() -> None:
    dataset = Dataset.from_list([{"text": "a", "label": -1}], features=FEATURES)
    with pytest.raises(ValueError, match="The column 'label' holds NoneType in row 0"):
        Task("free", "{text}", "{label}").tokenize(dataset, ByT5Tokenizer())


def test_too_many_names_of_labels_are_told() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(num_classes=201)})
    with pytest.raises(ValueError, match="Got 201 different values in the column 'label'"):
        preset_task("classification", Dataset.from_list(LABELED, features=features))


# Where a problem is


def test_an_error_names_the_file_the_row_and_the_column(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": None, "label": "y"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = preset_task("classification", load_records(tmp_path / "a.jsonl"))
    with pytest.raises(
        ValueError, match=r"a.jsonl \(its first row is row 0\).*\n  - The column 'text' holds NoneType in row 1"
    ):
        task.tokenize(load_records(tmp_path / "a.jsonl"), ByT5Tokenizer())


def test_references_may_have_a_name_of_their_own() -> None:
    records = [{"mr": "a", "ref": "b", "others": ["b", "c"]}]
    task = preset_task("data_to_text", records, references="others")
    assert task.answers(records[0]) == ["b", "c"]
