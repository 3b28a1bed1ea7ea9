"""Tasks: what a record becomes, what an answer means, and what every wrong input is told."""

from __future__ import annotations

import gzip
import json
import logging
import lzma
import os
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, T5Tokenizer

from t5peft.tasks import Task, load_aligned, load_records
from t5peft.tasks.fitting import special_ids, without_special_tokens
from t5peft.tasks.template import Template

REPOSITORY = Path(__file__).parent.parent
REAL = Path(os.environ.get("T5PEFT_DATA", REPOSITORY.parent / "shared" / "data"))
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="no real data: set T5PEFT_DATA to their folder")

SENTIMENT = Task(
    "sentiment",
    "sentence: {sentence}",
    "{label}",
    {"0": "negative", "1": "positive"},
    metrics=("accuracy",),
)
SUMMARY = Task("summary", "summarize: {text} end", "{title}", max_source_length=24, max_target_length=8)


@pytest.fixture(scope="module")
def mini() -> PreTrainedTokenizerBase:
    return T5Tokenizer.from_pretrained(REPOSITORY / "t5peft" / "mini")


@pytest.fixture(scope="module", params=["mini", "t5", "byt5"])
def tokenizer(request: pytest.FixtureRequest, mini: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if request.param == "mini":
        return mini
    if request.param == "byt5":
        return ByT5Tokenizer()
    if not REAL.is_dir():
        pytest.skip("no real data: set T5PEFT_DATA to their folder")
    return T5Tokenizer.from_pretrained(REAL / "t5_vocab")


# What a record becomes


def test_source_and_target_are_the_templates_over_the_columns() -> None:
    record = {"sentence": "a fine film", "label": 1}
    assert SENTIMENT.source(record) == "sentence: a fine film"
    assert SENTIMENT.target_text(record) == "positive"


def test_a_template_may_hold_braces_and_columns_with_spaces() -> None:
    task = Task("json", '{{"text": "{the text}"}}', "{n}")
    assert task.source({"the text": "a"}) == '{"text": "a"}'
    assert task.target_text({"n": 2.5}) == "2.5"


def test_an_answer_is_read_as_its_label_and_else_as_itself_on_one_line() -> None:
    assert SENTIMENT.read(" positive ") == "1"
    assert SENTIMENT.read("so  so\n") == "so so"
    assert SENTIMENT.answers({"label": 0}) == ["0"]


def test_a_cloze_target_is_read_with_and_without_its_sentinel() -> None:
    task = Task("cloze", "{text} It was <extra_id_0>.", "<extra_id_0> {label}", {"0": "bad", "1": "good"})
    assert task.candidates == ("<extra_id_0> bad", "<extra_id_0> good")
    assert task.read("<extra_id_0> good") == task.read("good") == "1"


def test_references_are_the_answers_where_there_are_several() -> None:
    task = Task("text", "{mr}", "{text}", references="texts")
    assert task.answers({"mr": "x", "text": "a", "texts": ["a", " b  c"]}) == ["a", "b c"]
    assert task.answers({"mr": "x", "text": "a", "texts": []}) == ["a"]


def test_tokenized_records_end_in_end_of_sequence_and_hold_no_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = SENTIMENT.tokenize([{"sentence": "a fine film", "label": 1}, {"sentence": "no", "label": 0}], tokenizer)
    assert dataset.column_names == ["input_ids", "labels"]
    for row in dataset:
        for ids in (row["input_ids"], row["labels"]):
            assert ids[-1] == tokenizer.eos_token_id
            assert ids.count(tokenizer.eos_token_id) == 1
            assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(dataset[0]["labels"], skip_special_tokens=True) == "positive"


def test_a_data_set_and_a_list_of_records_become_the_same(mini: PreTrainedTokenizerBase) -> None:
    records = [{"sentence": "a fine film", "label": 1}, {"sentence": "no", "label": 0}]
    from_list = SENTIMENT.tokenize(records, mini)
    from_dataset = SENTIMENT.tokenize(Dataset.from_list(records), mini)
    assert from_list.to_list() == from_dataset.to_list()


# Special tokens in a user's text (STACK D3)

SPELLED = ["a </s> b", "a</s>b", "＜/s＞ b", "<extra_id_0> and <pad>", "<<//s>s> </s", "< /s>"]


@pytest.mark.parametrize("text", ["a </s> b", "<extra_id_0> and <pad>"])
@pytest.mark.parametrize("split_special_tokens", [False, True])
@pytest.mark.xfail(strict=True, reason="the tokenizer makes special tokens of text that spells them, split or not")
def test_the_plain_tokenizer_keeps_special_tokens_out_of_text(
    text: str, split_special_tokens: bool, mini: PreTrainedTokenizerBase
) -> None:
    ids = mini(text, split_special_tokens=split_special_tokens, add_special_tokens=False)["input_ids"]
    assert not set(ids) & special_ids(mini)


@pytest.mark.parametrize("text", SPELLED)
def test_text_that_spells_special_tokens_never_becomes_them(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    task = Task("echo", "say: {text} now", "{text}")
    row = task.tokenize([{"text": text}], tokenizer)[0]
    for ids in (row["input_ids"], row["labels"]):
        assert ids[-1] == tokenizer.eos_token_id
        assert not set(ids[:-1]) & special_ids(tokenizer)
    assert len(row["labels"]) > 2


def test_what_is_broken_up_is_reported_and_the_rest_is_untouched(
    mini: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"text": "plain words", "title": "x"}, {"text": "words </s> more", "title": "x"}]
    with caplog.at_level(logging.WARNING):
        SUMMARY.tokenize(records, mini)
    assert "special tokens spelled out in 1 of 2 sources were broken up" in caplog.text
    assert SUMMARY.sources(records, mini) == ["summarize: plain words end", "summarize: words < /s> more end"]


def test_special_tokens_that_the_template_writes_stay(mini: PreTrainedTokenizerBase) -> None:
    sentinel = mini.convert_tokens_to_ids("<extra_id_0>")
    task = Task("cloze", "{text} It was <extra_id_0>.", "<extra_id_0> {label}", {"0": "bad", "1": "good"})
    row = task.tokenize([{"text": "fine <extra_id_0>", "label": 1}], mini)[0]
    assert row["input_ids"].count(sentinel) == 1
    assert row["labels"][0] == sentinel


def test_a_special_token_half_in_the_template_and_half_in_the_column_is_refused(mini: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="together spell a special token in '</s>'; put a space between"):
        Task("odd", "<{text}>", "{text}").tokenize([{"text": "/s"}], mini)


def test_breaking_up_leaves_other_text_alone(mini: PreTrainedTokenizerBase) -> None:
    assert without_special_tokens("a < b and c > d", mini) == "a < b and c > d"


# Long sources and targets


def test_a_long_column_is_cut_and_the_template_is_whole(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"text": "one two three four five " * 20, "title": "a"}, {"text": "x", "title": "long words " * 9}]
    with caplog.at_level(logging.WARNING):
        dataset = SUMMARY.tokenize(records, tokenizer)
    source = tokenizer.decode(dataset[0]["input_ids"], skip_special_tokens=True)
    assert source.startswith("summarize: one tw"[:17])
    assert source.endswith(" end")
    assert 20 <= len(dataset[0]["input_ids"]) <= 24
    assert len(dataset[1]["labels"]) <= 8
    assert dataset[1]["labels"][-1] == tokenizer.eos_token_id
    assert "1 of 2 sources were longer than 24 tokens; their columns were cut, not the template" in caplog.text
    assert "1 of 2 targets were longer than 8 tokens" in caplog.text


def test_the_longest_column_is_cut_first(mini: PreTrainedTokenizerBase) -> None:
    task = Task("qa", "question: {question} context: {context}", "{answer}", max_source_length=32)
    record = {"question": "who came here", "context": "many people came there and here " * 20, "answer": "x"}
    (source,) = task.sources([record], mini)
    assert source.startswith("question: who came here context: many people")


@pytest.mark.parametrize("words", range(1, 60, 7))
def test_a_cut_source_is_as_long_as_the_limit_allows(words: int, mini: PreTrainedTokenizerBase) -> None:
    text = " ".join(f"word{i}" for i in range(words))
    (source,) = SUMMARY.sources([{"text": text}], mini)
    kept = source.removeprefix("summarize: ").removesuffix(" end")
    assert text.startswith(kept)
    assert len(mini(source)["input_ids"]) <= 24
    if kept != text:
        template = Template.parse(SUMMARY.template)
        one_more = template.render({"text": text[: len(kept) + 1]})
        assert len(mini(source)["input_ids"]) == 24 or len(mini(one_more)["input_ids"]) > 24


# Wrong input, by its text


def text_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    return str(error.value)


def test_a_template_that_names_a_missing_column_lists_those_there(mini: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="names the column 'sentence', which is not in rows 0, 1") as error:
        SENTIMENT.tokenize([{"text": "a", "label": 1}] * 2, mini)
    assert "the columns there are: 'text', 'label'" in text_of(error)


def test_a_label_outside_the_target_words_names_its_rows_and_the_labels(mini: PreTrainedTokenizerBase) -> None:
    records = [{"sentence": "a", "label": label} for label in (0, 2, 1, 2)]
    with pytest.raises(ValueError, match="the label '2' in rows 1, 3 has no target word; the labels are: '0', '1'"):
        SENTIMENT.tokenize(records, mini)
    with pytest.raises(ValueError, match="the label '2' in row 0 has no target word"):
        SENTIMENT.target_text(records[1])


def test_target_words_that_collide_after_tokenisation_are_refused(mini: PreTrainedTokenizerBase) -> None:
    task = Task("emoji", "{text}", "{label}", {"sad": "\U0001f641", "glad": "\U0001f642"})
    with pytest.raises(ValueError, match="the target words of labels 'sad', 'glad' are the same tokens"):
        task.tokenize([{"text": "a", "label": "sad"}], mini)


def test_a_template_that_would_be_truncated_is_refused(mini: PreTrainedTokenizerBase) -> None:
    task = Task("long", "a very long instruction that says much and then: {text}", "{title}", max_source_length=6)
    with pytest.raises(ValueError, match="fills max_source_length=6 tokens and leaves no room") as error:
        task.tokenize([{"text": "words", "title": "x"}], mini)
    assert "it would be truncated. Raise max_source_length, or shorten the template" in text_of(error)


@pytest.mark.parametrize("nothing", ["", "  \n\t"])
def test_empty_sources_and_targets_are_named_together(nothing: str, mini: PreTrainedTokenizerBase) -> None:
    records = [{"text": nothing, "title": "x"}, {"text": "a", "title": nothing}]
    with pytest.raises(ValueError, match="the source is empty in row 0") as error:
        SUMMARY.tokenize(records, mini)
    assert "the target is empty in row 1 (columns: title), so its labels would be nothing but padding" in text_of(error)


def test_no_records_are_refused(mini: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="there are no records; the file or the split is empty"):
        SENTIMENT.tokenize([], mini)


def test_a_column_that_holds_no_text_is_named_with_its_kind(mini: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="the column 'text' holds NoneType in row 1; text or a number was expected"):
        SUMMARY.tokenize([{"text": "a", "title": "b"}, {"text": None, "title": "b"}], mini)


def test_all_contradictions_of_a_task_are_raised_at_once() -> None:
    with pytest.raises(ValueError, match="its name is empty") as error:
        Task("", "{text", "no column", metrics=(), max_source_length=1, num_beams=0)
    for part in ("cannot be read", "names no column", "no metric", "max_source_length is 1", "num_beams is 0"):
        assert part in text_of(error)


@pytest.mark.parametrize("template", ["{}", "{a!r}", "{a:>3}"])
def test_fields_that_are_not_plain_columns_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="not the plain name of a column"):
        Task("x", template, "{b}")


def test_labels_that_share_a_word_are_refused() -> None:
    with pytest.raises(ValueError, match="labels '0', '1' share the target word 'yes'; give each its own"):
        Task("x", "{a}", "{b}", {"0": "yes", "1": " yes"})


def test_target_words_need_a_target_of_one_column() -> None:
    with pytest.raises(ValueError, match="names b, c"):
        Task("x", "{a}", "{b} {c}", {"0": "no", "1": "yes"})


# YAML


def test_a_yaml_file_keeps_labels_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ntemplate: 'is it: {text}'\ntarget: '{label}'\nmetrics: [accuracy, f1]\nmax_source_length: 64\n"
        "target_words:\n  0: no\n  true: yes\n"
    )
    task = Task.from_yaml(path)
    assert task.target_words == {"0": "no", "true": "yes"}
    assert task.metrics == ("accuracy", "f1")
    assert task.max_source_length == 64


def test_a_yaml_file_with_wrong_fields_names_them_all(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\ntemplat: x\nnum_beams: many\n")
    with pytest.raises(ValueError, match="it has no field 'templat'") as error:
        Task.from_yaml(path)
    assert "'template' is missing" in text_of(error)
    assert "num_beams is 'many'; a whole number was expected" in text_of(error)


def test_a_task_that_is_neither_file_nor_name_lists_the_names() -> None:
    with pytest.raises(FileNotFoundError, match="no task 'nothing': neither a YAML file nor one of"):
        Task.from_yaml("nothing")


# Files

ROWS = [{"text": 'a "b", c', "label": "0"}, {"text": "d\u2028e", "label": "1"}]


def write(path: Path) -> Path:
    kind = path.name.split(".")[1]
    if kind == "csv":
        content = 'text,label\n"a ""b"", c",0\nd\u2028e,1\n'
    elif kind == "tsv":
        content = 'text\tlabel\na "b", c\t0\nd\u2028e\t1\n'
    elif kind == "jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    else:
        content = json.dumps({"data": ROWS})
    data = content.encode()
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(data))
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz", "a.jsonl.xz"])
def test_every_kind_of_file_gives_the_same_records(name: str, tmp_path: Path) -> None:
    assert load_records(write(tmp_path / name)) == ROWS


def test_parquet_gives_the_same_records(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    assert load_records(tmp_path / "a.parquet") == ROWS


def test_windows_line_ends_and_a_byte_order_mark_leave_no_trace(tmp_path: Path) -> None:
    for name, separator in (("a.csv", b","), ("a.tsv", b"\t")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + separator.join([b"x", b"y"]) + b"\r\n1" + separator + b"2\r\n")
        assert load_records(tmp_path / name) == [{"x": "1", "y": "2"}]


def test_a_table_without_a_header_takes_names(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x\t1\ny\t0\n")
    assert load_records(tmp_path / "a.tsv", header=["text", "label"])[0] == {"text": "x", "label": "1"}


def test_a_spreadsheets_tsv_is_read_with_its_quotation_marks(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"two\nlines"\t1\n')
    assert load_records(tmp_path / "a.tsv", quoted=True) == [{"text": "two\nlines", "label": "1"}]


def test_a_folder_is_read_by_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    assert load_records(tmp_path, "train") == ROWS
    with pytest.raises(FileNotFoundError, match="no file of split 'test'; it has train"):
        load_records(tmp_path, "test")


def test_aligned_files_become_columns(tmp_path: Path) -> None:
    (tmp_path / "en.gz").write_bytes(gzip.compress(b"a\x0cb\nc\n"))
    (tmp_path / "de.txt").write_text("x\n\n")
    both = {"english": tmp_path / "en.gz", "german": tmp_path / "de.txt"}
    assert load_aligned(both) == [{"english": "a\x0cb", "german": "x"}, {"english": "c", "german": ""}]
    (tmp_path / "de.txt").write_text("x\n")
    with pytest.raises(ValueError, match=r"must have as many lines each: .*en.gz has 2, .*de.txt has 1"):
        load_aligned(both)


def test_a_missing_file_is_told_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*trian.csv; .* has train.csv"):
        load_records(tmp_path / "trian.csv")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere either"):
        load_records(tmp_path / "nowhere" / "a.csv")


@pytest.mark.parametrize(("name", "content"), [("a.csv", ""), ("a.csv", "text,label\n"), ("a.jsonl", "\n")])
def test_an_empty_file_is_told(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"is empty: it has no (bytes|records)"):
        load_records(tmp_path / name)


def test_a_missing_column_is_told_with_those_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no columns 'sentence', 'gold'; it has 'text', 'label'"):
        load_records(write(tmp_path / "a.csv"), required=["sentence", "label", "gold"])


def test_all_broken_lines_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1\n2,3\n4,5,6\n")
    with pytest.raises(ValueError, match="line 2 has 1 cells, expected 2\n  - line 4 has 3 cells, expected 2"):
        load_records(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{x}\n[1]\n')
    with pytest.raises(ValueError, match=r"line 2 is not JSON .*\n  - line 3 holds list, expected an object"):
        load_records(tmp_path / "a.jsonl")


def test_the_wrong_encoding_and_a_broken_archive_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("x\né\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"is not utf-8 .* often encoding='latin-1'"):
        load_records(tmp_path / "a.csv")
    assert load_records(tmp_path / "a.csv", encoding="latin-1") == [{"x": "é"}]
    (tmp_path / "a.csv.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        load_records(tmp_path / "a.csv.gz")


def test_an_unknown_ending_is_told_with_those_known(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"no ending that says what it is; expected .csv, .tsv"):
        load_records(tmp_path / "a.xlsx")


def test_a_hub_data_set_without_a_network_names_local_files() -> None:
    with pytest.raises(RuntimeError, match=r"'nyu-mll/glue' is no file here.* Without a network give a local file"):
        load_records("nyu-mll/glue", "train", config="sst2")
