"""Augmentation: only the source's words change, the same way every time, and the report says how many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from paths import ROOT
from tiny import tiny_t5, tiny_tokenizer

from t5peft.data import Task, embedded_task
from t5peft.data.augmentation import augment
from t5peft.data.back_translation import BackTranslation, Checkpoint, Translator
from t5peft.data.rewording import Rewording, Synonyms, Thesaurus, WordDropout, WordSwap

TASK = Task("t", "say: {text} and {more}", "{label}", {"0": "no", "1": "yes"})
TEXTS = ["The big film was not good at all", "A small cat and a big dog", "One two three four five six seven"]
RECORDS = [{"text": text, "more": f"big words {i}", "label": i % 2, "other": text} for i, text in enumerate(TEXTS)]
REWORDINGS: dict[str, Rewording] = {
    "synonyms": Synonyms(Thesaurus._of('{"big": ["large", "huge"], "film": ["movie"]}', "test"), rate=0.9),
    "dropout": WordDropout(0.4),
    "swap": WordSwap(0.5),
    "back": BackTranslation(
        lambda texts: [text[::-1] for text in texts], lambda texts: [t.upper() for t in texts], "x"
    ),
}


def synonyms(entries: dict[str, list[str]], rate: float = 1.0) -> Synonyms:
    return Synonyms(Thesaurus._of(json.dumps(entries), "test"), rate=rate)


def said(rewording: Rewording, text: str, seed: int = 0) -> str:
    return rewording.reword([text], [Random(seed)])[0]


@pytest.mark.parametrize("name", REWORDINGS)
def test_targets_other_columns_and_originals_stay(name: str, tmp_path: Path) -> None:
    augmented = augment(RECORDS, TASK, REWORDINGS[name], copies=3, cache_folder=tmp_path, columns=["text"])
    rows = augmented.dataset.to_list()
    assert len(rows) > len(RECORDS)
    for row in rows:
        original = RECORDS[row["row"]]
        assert {key: row[key] for key in ("more", "label", "other")} == {
            key: original[key] for key in ("more", "label", "other")
        }
        assert (row["text"] == original["text"]) == (row["copy"] == 0)
        assert TASK.source(row).startswith("say: ")
        assert TASK.source(row).endswith(f" and {original['more']}")


def test_columns_that_the_first_record_lacks_stay(tmp_path: Path) -> None:
    records = [RECORDS[0], RECORDS[1] | {"references": ["x", "y"]}]
    rows = augment(records, TASK, REWORDINGS["swap"], cache_folder=tmp_path, columns=["text"]).dataset.to_list()
    assert {(row["row"], tuple(row["references"] or ())) for row in rows} == {(0, ()), (1, ("x", "y"))}


@pytest.mark.parametrize("name", REWORDINGS)
def test_the_same_seed_gives_the_same_and_rows_do_not_depend_on_each_other(name: str, tmp_path: Path) -> None:
    many = RECORDS * 400
    first = augment(many, TASK, REWORDINGS[name], seed=1, cache_folder=tmp_path / "a").dataset.to_list()
    again = augment(many, TASK, REWORDINGS[name], seed=1, cache_folder=tmp_path / "b").dataset.to_list()
    assert first == again
    alone = augment(many[:2], TASK, REWORDINGS[name], seed=1, cache_folder=tmp_path / "c").dataset.to_list()
    by_number = {(row["row"], row["copy"]): row for row in first}
    assert all(by_number[row["row"], row["copy"]] == row for row in alone)
    if name != "back":
        other = augment(many, TASK, REWORDINGS[name], seed=2, cache_folder=tmp_path / "d").dataset.to_list()
        assert other != first


def test_numbers_of_a_target_stay_as_they_are_told(tmp_path: Path) -> None:
    task = Task("score", "{text}", "{score}", metrics=("accuracy",))
    rows = [{"text": "a big film", "score": 5, "other": 1}, {"text": "a big play", "score": 2.5, "other": 2}]
    augmented = augment(rows, task, REWORDINGS["synonyms"], cache_folder=tmp_path)
    assert {task.target_text(row) for row in augmented.dataset} == {"5", "2.5"}
    assert set(augmented.dataset["other"]) == {1, 2}


def test_another_translator_in_the_same_folder_is_another_one(tmp_path: Path) -> None:
    def identity() -> str:
        return BackTranslation.of_checkpoints(str(tmp_path), "a/hub-name").identity

    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = identity()
    assert identity() == first
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert identity() != first


def test_copies_that_say_nothing_new_are_left_out_and_counted(tmp_path: Path) -> None:
    records = [{"text": "big", "more": "-", "label": 0}, {"text": "unknown", "more": "-", "label": 1}]
    augmented = augment(records, TASK, synonyms({"big": ["large"]}), copies=3, cache_folder=tmp_path)
    assert [row["text"] for row in augmented.dataset] == ["big", "unknown", "large"]
    assert (augmented.report.added, augmented.report.left_out) == (1, 5)


def test_the_report_counts_changed_words(tmp_path: Path) -> None:
    records = [{"text": "a big red dog", "more": "x y", "label": 0}]
    report = augment(records, TASK, synonyms({"big": ["large"]}), cache_folder=tmp_path).report
    assert report.changed_words == {"text": 0.25, "more": 0.0}
    assert str(report) == (
        "Augmentation: 1 records and 1 reworded copies (0 said nothing new and were left out); changed in the copies: "
        "25.0 % of the words of text, 0.0 % of the words of more."
    )


def test_a_cached_result_is_read_and_not_made_again(tmp_path: Path) -> None:
    calls = []

    def translate(texts: list[str]) -> list[str]:
        calls.append(len(texts))
        return [f"{text} indeed" for text in texts]

    rewording = BackTranslation(translate, translate, "counted")
    first = augment(RECORDS, TASK, rewording, cache_folder=tmp_path, columns=["text"])
    made = len(calls)
    second = augment(RECORDS, TASK, rewording, cache_folder=tmp_path, columns=["text"])
    assert made == len(calls) == 2
    assert first.dataset.to_list() == second.dataset.to_list()
    assert first.report == second.report
    augment(RECORDS, TASK, rewording, cache_folder=tmp_path, columns=["text"], seed=1)
    augment(RECORDS[:2], TASK, rewording, cache_folder=tmp_path, columns=["text"])
    augment(RECORDS, TASK, BackTranslation(translate, translate, "other"), cache_folder=tmp_path, columns=["text"])
    assert len(calls) == 8


@pytest.mark.processes
def test_another_process_finds_the_cached_result(tmp_path: Path) -> None:
    words = tmp_path / "words.json"
    words.write_text('{"big": ["large"], "cat": ["kitten", "puss"]}')
    code = f"""
from t5peft.data import Task
from t5peft.data.augmentation import augment
from t5peft.data.rewording import Synonyms, Thesaurus
task = Task("t", "{{text}}", "{{label}}")
records = [{{"label": str(i), "text": "A big cat"}} for i in range(9)]
augmented = augment(records, task, Synonyms(Thesaurus.load({str(words)!r})), cache_folder={str(tmp_path)!r})
print(augmented.dataset._fingerprint, [row["text"] for row in augmented.dataset])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    (cached,) = tmp_path.glob("*.arrow")
    written = cached.stat().st_mtime_ns
    records = [{"text": "A big cat", "label": str(i)} for i in range(9)]
    task = Task("t", "{text}", "{label}")
    here = augment(records, task, Synonyms(Thesaurus.load(words)), cache_folder=tmp_path).dataset
    assert done.stdout.strip() == f"{here._fingerprint} {[row['text'] for row in here]}"
    assert list(tmp_path.glob("*.arrow")) == [cached]
    assert cached.stat().st_mtime_ns == written


# Rewordings


def test_synonyms_take_the_case_of_the_word() -> None:
    rewording = synonyms({"big": ["large"]})
    assert said(rewording, "Big BIG big, bigger big-hearted") == "Large LARGE large, bigger big-hearted"


def test_the_article_follows_the_synonym_only_where_it_must() -> None:
    rewording = synonyms({"big": ["enormous", "enormous"], "odd": ["strange"]})
    assert said(rewording, "A big dog, an odd cat; a, big") == "An enormous dog, a strange cat; a, enormous"
    assert said(rewording, "an hour and a union") == "an hour and a union"


def test_the_rate_is_that_of_words_with_a_synonym() -> None:
    text = said(synonyms({"big": ["large"]}, rate=0.3), "big dog " * 4000)
    assert text.count("large") == pytest.approx(1200, abs=90)  # standard deviation 29


def test_dropout_leaves_negations_punctuation_and_at_least_a_word() -> None:
    text = "it isn't good , not at all , nor cheap"
    for seed in range(30):
        words = said(WordDropout(1.0), text, seed).split()
        assert words == ["isn't", ",", "not", ",", "nor"]
    assert said(WordDropout(1.0), "good film !") == "good film !"
    assert said(WordDropout(0.2), "word " * 5000).count("word") == pytest.approx(4000, abs=90)


def test_swapping_keeps_the_words_and_what_stands_between_them() -> None:
    for seed in range(20):
        text = said(WordSwap(0.5), "one, two three; four", seed)
        assert sorted(text.replace(",", "").replace(";", "").split()) == ["four", "one", "three", "two"]
        assert [character for character in text if not character.isalnum()] == [",", " ", " ", ";", " "]
    assert said(WordSwap(1.0), "a b c d e") == "b a d c e"


def test_a_text_that_comes_back_empty_stays() -> None:
    rewording = BackTranslation(lambda texts: texts, lambda texts: ["" for _ in texts], "empty")
    assert said(rewording, "words") == "words"


def test_a_translator_that_loses_texts_is_told() -> None:
    rewording = BackTranslation(lambda texts: texts[:-1], lambda texts: texts, "short")
    with pytest.raises(ValueError, match=r"1 translations of 2 texts, and 1 texts back; expected one for each"):
        rewording.reword(["a", "b"], [Random(0), Random(1)])


def checkpoint(folder: Path, ends: bool) -> str:
    """A tiny T5 whose targets end at the limit, or run over it."""
    model, tokenizer = tiny_t5("v1.0"), tiny_tokenizer()
    model.generation_config.forced_eos_token_id = tokenizer.eos_token_id if ends else None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def checkpoint_of(translate: Callable[[list[str]], list[str]]) -> Checkpoint:
    assert isinstance(translate, Translator)
    return translate.checkpoint


def translation(folder: str) -> BackTranslation:
    both = BackTranslation.of_checkpoints(folder, folder, forward_prefix="to: ", backward_prefix="from: ")
    assert checkpoint_of(both.forward) is checkpoint_of(both.backward)
    return replace(both, **{name: replace(getattr(both, name), max_new_tokens=6) for name in ("forward", "backward")})


def test_back_translation_runs_through_checkpoints(tmp_path: Path) -> None:
    both = translation(checkpoint(tmp_path, ends=True))
    texts = both.reword(["some words", "more"], [Random(0), Random(1)])
    assert len(texts) == 2
    assert texts[0] != "some words"
    assert texts[1] != "more"
    assert texts == both.reword(["some words", "more"], [Random(2), Random(3)])
    assert both.reword([], []) == []


def test_a_text_stays_where_its_translation_would_be_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    both = translation(checkpoint(tmp_path, ends=False))
    assert both.reword(["some words"], [Random(0)]) == ["some words"]
    assert "1 of 1 texts have no translation" in caplog.text


def test_a_text_stays_where_it_would_be_cut_itself(tmp_path: Path) -> None:
    both = translation(checkpoint(tmp_path, ends=True))
    checkpoint_of(both.forward).loaded[1].model_max_length = 20
    long = "some words " * 20
    kept, changed = both.reword([long, "more"], [Random(0), Random(1)])
    assert kept == long
    assert changed != "more"


def test_a_checkpoint_that_is_not_there_is_told_only_when_it_is_needed(tmp_path: Path) -> None:
    rewording = BackTranslation.of_checkpoints(str(tmp_path / "no"), str(tmp_path / "no"))
    with pytest.raises(FileNotFoundError, match="no sequence-to-sequence checkpoint under"):
        rewording.reword(["a"], [Random(0)])


# Thesauri


def test_the_packages_thesaurus_serves_the_embedded_data(tmp_path: Path) -> None:
    task, splits = embedded_task("support_intent")
    augmented = augment(splits["train"], task, Synonyms(rate=1.0), cache_folder=tmp_path)
    assert augmented.report.added > len(splits["train"]) / 2


def test_wordnet_is_used_where_its_data_is_and_else_says_how_to_get_it() -> None:
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("corpora/wordnet")
    except LookupError:
        with pytest.raises(FileNotFoundError, match=r"Got no WordNet .* nltk.downloader wordnet"):
            Thesaurus.wordnet()
    else:
        assert "automobile" in Thesaurus.wordnet().look_up("car")


def test_wordnets_lemmas_are_those_of_the_first_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = pytest.importorskip("nltk.corpus")

    class Sense:
        def __init__(self, *names: str) -> None:
            self.names = names

        def lemma_names(self) -> list[str]:
            return list(self.names)

    class WordNet:
        def get_version(self) -> str:
            return "3.0"

        def synsets(self, word: str) -> list[Sense]:
            return [Sense("car", "auto", "motor_car"), Sense("railcar")] if word == "car" else []

    monkeypatch.setattr(corpus, "wordnet", WordNet())
    thesaurus = Thesaurus.wordnet()
    assert thesaurus.name == "WordNet 3.0"
    assert thesaurus.look_up("car") == ("auto", "motor car")
    assert thesaurus.look_up("xyz") == ()


def test_a_wrong_thesaurus_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no thesaurus"):
        Thesaurus.load(tmp_path / "no.json")
    path = tmp_path / "t.json"
    for content, message in (
        ("{", "is not JSON"),
        ("[1]", "holds list; expected a mapping from word to synonyms"),
        ('{"a": "b", "c": [], "d": ["e"]}', r"without synonyms for 'a', 'c' \(2 in all\)"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Thesaurus.load(path)


# Wrong use


def test_columns_of_the_target_are_never_reworded(tmp_path: Path) -> None:
    copied = Task("copy", "copy: {text} to {name}", "{text}")
    with pytest.raises(ValueError, match="'text' is part of its target, which is never reworded"):
        augment(RECORDS, copied, WordSwap(), columns=["text"], cache_folder=tmp_path)
    records = [{"text": "one two three four", "name": "five six seven eight"}]
    rows = augment(records, copied, WordSwap(1.0), cache_folder=tmp_path).dataset.to_list()
    assert {row["text"] for row in rows} == {"one two three four"}
    assert rows[1]["name"] == "six five eight seven"
    with pytest.raises(ValueError, match="there is nothing to reword"):
        augment(RECORDS, Task("echo", "{text}", "{text}"), WordSwap(), cache_folder=tmp_path)


def test_what_cannot_be_augmented_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'label' is not a column of its source; those are 'text', 'more'"):
        augment(RECORDS, TASK, WordSwap(), columns=["label"], cache_folder=tmp_path)
    records = [{"text": 1, "more": "x", "label": 0, "copy": 3}]
    with pytest.raises(ValueError, match=r"copies is 0; .* holds no text in row 0 .* augmentation adds \(copy\)"):
        augment(records, TASK, WordSwap(), copies=0, cache_folder=tmp_path)
    with pytest.raises(ValueError, match=r"Record 0 is 'text'; a mapping .*DataFrame"):
        augment(cast(Any, dict.fromkeys(("text", "more", "label"))), TASK, WordSwap(), cache_folder=tmp_path)
    with pytest.raises(ValueError, match=r"The column 'more' contains half of a character"):
        augment([{"text": "a b", "more": "\ud83d", "label": 0}], TASK, WordSwap(), cache_folder=tmp_path)
    with pytest.raises(ValueError, match="Got rate=2; expected a fraction of the words"):
        WordSwap(2)
