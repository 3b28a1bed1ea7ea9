"""Every metric against its reference library, on outputs as varied as those of a real model, empty ones included."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import PUBLIC_DATA

from t5peft.data import PRESETS, Task
from t5peft.evaluation import (
    METRICS,
    classification_report,
    compute,
    confusion_matrix,
    confusion_picture,
)

TEXT = "the a cat dog sat on mat quickly, brown fox jumped over lazy river. Was it? Yes! running runs 3,000 U.S. it's"
WORDS = TEXT.split()


def sentences(count: int, seed: int, longest: int = 25) -> list[str]:
    """Sentences of 0 to ``longest`` words; the first two are empty."""
    draw = random.Random(seed)
    return ["", "", *(" ".join(draw.choices(WORDS, k=draw.randint(0, longest))) for _ in range(count - 2))]


def spoilt(texts: list[str], seed: int) -> list[str]:
    """The texts with words lost, doubled and swapped, so that every overlap between none and all occurs."""
    draw = random.Random(seed)
    changed = []
    for text in texts:
        words = [word for word in text.split() for _ in range(draw.choice((0, 1, 1, 1, 2)))]
        if len(words) > 2 and draw.random() < 0.5:
            i = draw.randrange(len(words) - 1)
            words[i], words[i + 1] = words[i + 1], words[i]
        changed.append(" ".join(words))
    return changed


REFERENCES = sentences(60, seed=1)
SECOND_REFERENCES = spoilt(REFERENCES, seed=2)
PREDICTIONS = spoilt(REFERENCES, seed=3)
PREDICTIONS[5] = ""
BOTH = [list(pair) for pair in zip(REFERENCES, SECOND_REFERENCES, strict=True)]
UNEVEN = [pair if i % 3 else pair[:1] for i, pair in enumerate(BOTH)]


def label_sets() -> list[tuple[list[str], list[str]]]:
    draw = random.Random(0)
    binary = ["0", "1"]
    several = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    return [
        (draw.choices(binary, k=50), draw.choices(binary, [9, 1], k=50)),
        (draw.choices([*several, "nonsense", ""], k=300), draw.choices(several, k=300)),
        (["HUM"] * 40, draw.choices(several, k=40)),
        (several, several),
        (["a"] * 7, ["a"] * 7),
    ]


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")  # scikit-learn's, on the set of one label
@pytest.mark.parametrize(("predictions", "references"), label_sets())
def test_label_scores_equal_those_of_scikit_learn(predictions: Any, references: Any) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    ours = compute("f1", predictions, references)
    assert compute("accuracy", predictions, references)["accuracy"] == sklearn.accuracy_score(references, predictions)
    for average in ("macro", "micro", "weighted"):
        assert ours[f"f1_{average}"] == pytest.approx(
            sklearn.f1_score(references, predictions, average=average), abs=1e-12
        )
    labels = sorted({*references, *predictions})
    per_class = sklearn.f1_score(references, predictions, average=None, labels=labels)
    assert [ours[f"f1/{label}"] for label in labels] == pytest.approx(per_class.tolist(), abs=1e-12)
    expected = float(sklearn.matthews_corrcoef(references, predictions))
    assert compute("matthews", predictions, references)["matthews"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")  # scikit-learn's, on the set of one label
@pytest.mark.parametrize(("predictions", "references"), label_sets())
def test_the_report_and_the_confusion_matrix_equal_those_of_scikit_learn(predictions: Any, references: Any) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, counts = confusion_matrix(predictions, references)
    assert np.array_equal(counts, sklearn.confusion_matrix(references, predictions, labels=labels))
    report = classification_report(predictions, references)
    expected = sklearn.classification_report(references, predictions, output_dict=True, zero_division=0)
    for i, label in enumerate(report.labels):
        row = [report.precision[i], report.recall[i], report.f1[i], report.support[i]]
        assert row == pytest.approx(list(expected[label].values()), abs=1e-12)
    assert list(report.macro()) == pytest.approx(list(expected["macro avg"].values())[:3], abs=1e-12)
    assert list(report.weighted()) == pytest.approx(list(expected["weighted avg"].values())[:3], abs=1e-12)


def test_the_report_prints_a_table_with_the_given_classes_first() -> None:
    report = classification_report(["neg", "pos", "odd"], ["neg", "neg", "pos"], labels=["pos", "neg"])
    lines = str(report).splitlines()
    assert lines[0].split() == ["precision", "recall", "F1", "count"]
    assert lines[1].split() == ["pos", "0.0000", "0.0000", "0.0000", "1"]
    assert lines[2].split() == ["neg", "1.0000", "0.5000", "0.6667", "2"]
    assert lines[3].split() == ["odd", "0.0000", "0.0000", "0.0000", "0"]
    assert lines[4].split() == ["accuracy", "0.3333", "3"]
    assert len({len(line) for line in lines}) == 1


def test_the_confusion_picture_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = confusion_picture(["neg", "pos", "odd"], ["neg", "neg", "pos"], tmp_path / "confusion.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 5000


def test_a_label_score_refuses_several_labels_for_one_example() -> None:
    with pytest.raises(
        ValueError, match=r"1 of 2 examples without exactly one label, the first of them example 1: \['b', 'c'\]"
    ):
        compute("f1", ["a", "b"], [["a"], ["b", "c"]])


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews", "exact_match"])
def test_labels_may_be_whole_numbers(name: str) -> None:
    predictions, references = [1, 0, 2, 2], [1, 0, 1, 2]
    as_text = compute(name, ["1", "0", "2", "2"], ["1", "0", "1", "2"])
    assert compute(name, predictions, references) == as_text
    assert compute(name, np.array(predictions), ["1", "0", "1", "2"]) == as_text
    assert compute(name, ["1", "0", "2", "2"], [[label] for label in references]) == as_text


@pytest.mark.parametrize(("predictions", "references"), [([1.0], ["1"]), (["1"], [None]), (["1"], [["1", 0.5]])])
def test_what_is_neither_text_nor_a_whole_number_is_no_label(predictions: Any, references: Any) -> None:
    with pytest.raises(ValueError, match=r"the metric 'accuracy' cannot take: .*the first of them example 0"):
        compute("accuracy", predictions, references)


def test_what_is_missing_is_no_word() -> None:
    with pytest.raises(
        ValueError, match="predictions such as None, the first of them example 0, expected texts or whole numbers"
    ):
        compute("accuracy", [None, "a"], ["None", "a"])
    with pytest.raises(ValueError, match=r"predictions such as \['a'\], the first"):
        compute("accuracy", [["a"]], ["a"])
    references: list[list[str | None]] = [[None, "a"], ["a"]]
    assert compute("accuracy", ["None", "a"], references) == {"accuracy": 0.5}
    several: list[Any] = [[None], (), None]
    for nothing in several:
        with pytest.raises(ValueError, match="1 examples without a reference, the first of them example 0"):
            compute("bleu", ["a"], [nothing])


def test_elements_of_a_tensor_are_labels() -> None:
    torch = pytest.importorskip("torch")
    assert compute("accuracy", torch.tensor([1, 0]), torch.tensor([1, 1])) == {"accuracy": 0.5}


def test_f1_binary_is_scikit_learns_of_label_1_and_refuses_other_labels() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    predictions, references = label_sets()[0]
    expected = sklearn.f1_score(references, predictions, pos_label="1")
    assert compute("f1_binary", predictions, references) == {"f1_binary": pytest.approx(expected)}
    assert compute("f1_binary", ["0"], ["0"]) == {"f1_binary": 0.0}
    with pytest.raises(ValueError, match=r"Got the labels \['no', 'yes'\] for f1_binary; expected 0 and 1. Take f1"):
        compute("f1_binary", ["yes"] * 2, ["yes", "no"])


def test_references_may_be_arrays() -> None:
    assert compute("rouge", ["the cat"], [np.array(["a dog", "the cat"])])["rougeL"] == 1.0
    truths = np.array([True, False])
    assert compute("accuracy", truths, truths) == compute("accuracy", [True, False], list(truths)) == {"accuracy": 1.0}


@pytest.mark.parametrize("kind", [list, np.array])
def test_the_report_and_the_confusion_matrix_take_whole_numbers_as_labels(kind: Callable[[Any], Any]) -> None:
    predictions, references = kind([0, 1, 1]), kind([0, 1, 0])
    names, counts = confusion_matrix(predictions, references, labels=[1, 0])
    assert (names, counts.tolist()) == (["1", "0"], [[1, 0], [1, 1]])
    assert str(classification_report(predictions, references)) == str(classification_report("011", "010"))
    with pytest.raises(ValueError, match="1 of 3 examples without exactly one label, the first of them example 2"):
        confusion_matrix([0, 1, None], references)


def test_references_that_hold_columns_of_their_own_are_no_answers() -> None:
    with pytest.raises(ValueError, match=r"references such as \{'text': \['Bob'\]\}, the first of them example 1"):
        compute("token_f1", ["Bob", "Bob"], [["Bob"], {"text": ["Bob"]}])  # type: ignore[arg-type]


def test_accuracy_takes_any_of_several_accepted_labels() -> None:
    assert compute("accuracy", ["a", "b", "x"], [["a"], ["b", "c"], ["c"]]) == {"accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("The  Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("in Paris, France", ["Paris", "London"], 0.0, 0.5),
        ("a an the", [""], 1.0, 1.0),
        ("", ["Paris"], 0.0, 0.0),
        ("Paris", [""], 0.0, 0.0),
        ("the cat the cat", ["cat"], 0.0, 2 / 3),
        ("theatre and another", ["theatre another"], 0.0, 0.8),
        ("don't", ["dont"], 1.0, 1.0),
        ("x y", ["x y z", "y x"], 0.0, 1.0),
    ],
)
def test_answers_are_compared_after_the_normalisation_of_squad(
    prediction: str, references: Any, exact: float, f1: float
) -> None:
    assert compute("exact_match", [prediction], [references])["exact_match"] == exact
    assert compute("token_f1", [prediction], [references])["token_f1"] == pytest.approx(f1)


def lines_of(text: str) -> str:
    """One sentence a line, by hand: after each word that ends a sentence."""
    return "".join(word + ("\n" if word[-1] in ".!?" else " ") for word in text.split()).strip()


@pytest.mark.parametrize("references", [[[one] for one in REFERENCES], BOTH, UNEVEN])
def test_rouge_equals_rouge_score(references: Any) -> None:
    from rouge_score import rouge_scorer

    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=True)
    totals = dict.fromkeys(kinds, 0.0)
    for prediction, accepted in zip(PREDICTIONS, references, strict=True):
        for kind in kinds:
            scores = [scorer.score(lines_of(answer), lines_of(prediction))[kind] for answer in accepted]
            totals[kind] += max(score.fmeasure for score in scores)
    ours = compute("rouge", PREDICTIONS, references)
    assert ours == pytest.approx({kind: total / len(PREDICTIONS) for kind, total in totals.items()}, abs=1e-12)
    assert ours["rougeLsum"] != pytest.approx(ours["rougeL"], abs=1e-3)


@pytest.mark.parametrize("text", ["Привет, мир! Как дела?", "हिन्दी में लिखा", "我 喜欢 猫", "Μια γάτα."])
def test_rouge_reads_words_of_every_script(text: str) -> None:
    assert set(compute("rouge", [text], [text]).values()) == {1.0}
    assert compute("rouge", [f"{text} 1"], [f"2 {text}"])["rouge1"] > 0.5
    assert compute("rouge", ["Совсем другое"], [text])["rouge1"] == 0.0


def test_rouge_splits_no_word_at_a_letter_outside_ascii_and_stems_the_others() -> None:
    assert compute("rouge", ["Die schöne Größe"], ["Die schne Gre"])["rouge1"] == pytest.approx(1 / 3)
    assert compute("rouge", ["running to the café"], ["runs to the Café"])["rougeL"] == 1.0


def test_rouge_keeps_line_breaks_that_are_there() -> None:
    # With both sentences on one line each, order between lines does not count.
    swapped = compute("rouge", ["b c\nd e f"], ["d e f\nb c"])
    assert swapped["rougeLsum"] == 1.0
    assert swapped["rougeL"] == pytest.approx(0.6)


@pytest.mark.parametrize("references", [REFERENCES, BOTH, UNEVEN])
def test_bleu_and_chrf_equal_sacrebleu(references: Any) -> None:
    import sacrebleu

    lists = [[one] if isinstance(one, str) else one for one in references]
    streams = [[one[i] if i < len(one) else None for one in lists] for i in range(max(map(len, lists)))]
    assert compute("bleu", PREDICTIONS, references)["bleu"] == sacrebleu.corpus_bleu(PREDICTIONS, streams).score
    assert compute("chrf", PREDICTIONS, references)["chrf"] == sacrebleu.corpus_chrf(PREDICTIONS, streams).score


@pytest.mark.parametrize("references", [REFERENCES, BOTH, UNEVEN])
def test_google_bleu_equals_gleu_of_nltk(references: Any) -> None:
    gleu_score = pytest.importorskip("nltk.translate.gleu_score")
    lists = [[one.split()] if isinstance(one, str) else [text.split() for text in one] for one in references]
    expected = gleu_score.corpus_gleu(lists, [prediction.split() for prediction in PREDICTIONS])
    assert compute("google_bleu", PREDICTIONS, references)["google_bleu"] == pytest.approx(expected, abs=1e-12)
    for prediction, reference, split in list(zip(PREDICTIONS, references, lists, strict=True))[:20]:
        expected = gleu_score.sentence_gleu(split, prediction.split())
        assert compute("google_bleu", [prediction], [reference])["google_bleu"] == pytest.approx(expected, abs=1e-12)


def test_gleu_of_one_sentence_is_the_formula_by_hand() -> None:
    source = "she go to the sea every days"
    reference = "she goes to the sea every day"
    hypothesis = "she goes to the sea every days"
    # 1-grams: 6 shared, "days" is left as it was: 5 of 7. 2-grams: 5 shared, "every days" left: 4 of 6.
    # 3-grams: 4 shared, "sea every days" left: 3 of 5. 4-grams: 3 shared, "the sea every days" left: 2 of 4.
    expected = (5 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25
    assert compute("gleu", [hypothesis], [reference], sources=[source])["gleu"] == pytest.approx(expected, abs=1e-12)
    # Where the source is right already nothing is taken off; one word too few costs exp(1 - r / c).
    expected = math.exp(1 - 7 / 6)
    short = "she goes to the sea every"
    assert compute("gleu", [short], [reference], sources=[reference])["gleu"] == pytest.approx(expected, abs=1e-12)


def test_a_sentence_is_scored_alone_by_the_orders_it_is_long_enough_for() -> None:
    from sacrebleu.metrics import BLEU

    bleu, gleu = METRICS["bleu"].sentence, METRICS["gleu"].sentence
    assert bleu is not None
    assert gleu is not None
    assert (bleu("the red car", ["the red car"]), gleu("I am here", ["I am here"], "I is here")) == (
        pytest.approx(100),
        pytest.approx(1),
    )
    assert (bleu("a b", ["the red car"]), gleu("a b c", ["I am here"], "I is here"), gleu("", ["a"], "b")) == (0, 0, 0)
    text, references = "the cat sat on the mat today", ["the cat sat on a mat", "a cat sat there"]
    assert bleu(text, references) == BLEU(effective_order=True).sentence_score(text, references).score
    # With every order among the hits it is GLEU itself; with none of an order, half a hit, then a quarter.
    source, reference, hypothesis = (
        "she go to the sea every days",
        "she goes to the sea every day",
        "she goes to the sea every days",
    )
    whole = compute("gleu", [hypothesis], [reference], sources=[source])["gleu"]
    assert gleu(hypothesis, [reference, reference], source) == pytest.approx(whole)
    assert gleu("she was at sea", ["she goes to sea"], "") == pytest.approx(
        (2 / 4 * 0.5 / 3 * 0.25 / 2 * 0.125) ** 0.25
    )


def test_no_metric_of_corrections_takes_a_missing_comma_for_a_correction() -> None:
    for metrics in (
        PRESETS["correction"].metrics,
        Task.from_yaml("correction").metrics,
        Task.from_yaml("jfleg").metrics,
    ):
        for name in metrics:
            scores = compute(name, ["Yes I saw cat."], ["Yes, I saw a cat."], sources=["Yes I saw cat."])
            assert max(scores.values()) < 0.5


def test_gleu_rewards_the_correction_and_not_the_copy() -> None:
    sources = ["he go home by the bus every morning", "i likes to read book in the evening"]
    references = [["he goes home by bus every morning"], ["I like to read books in the evening"]]
    right = compute("gleu", [one[0] for one in references], references, sources=sources)["gleu"]
    copied = compute("gleu", sources, references, sources=sources)["gleu"]
    assert right == pytest.approx(1.0)
    assert copied < 0.2
    assert compute("gleu", ["", ""], references, sources=sources)["gleu"] == 0.0


@pytest.mark.parametrize(("split", "published"), [("dev", 38.21), ("test", 40.54)])
def test_gleu_of_uncorrected_jfleg_is_the_published_figure(split: str, published: float) -> None:
    folder = PUBLIC_DATA / "jfleg"
    if not folder.exists():
        pytest.skip(f"no JFLEG in {folder}; set T5PEFT_DATA")
    sources = (folder / f"{split}.src").read_text(encoding="utf-8").splitlines()
    columns = [(folder / f"{split}.ref{i}").read_text(encoding="utf-8").splitlines() for i in range(4)]
    score = compute("gleu", sources, [list(row) for row in zip(*columns, strict=True)], sources=sources)["gleu"]
    assert round(100 * score, 2) == published


def test_perplexity_is_taken_over_tokens_and_not_over_examples() -> None:
    nats, tokens = [2 * math.log(3), 6 * math.log(5)], [2, 6]
    assert compute("perplexity", nats, tokens)["perplexity"] == pytest.approx((3**2 * 5**6) ** (1 / 8))
    with pytest.raises(ValueError, match="Got 0 target tokens; expected at least one"):
        compute("perplexity", [0.0], [0])


@pytest.mark.parametrize("name", [name for name in METRICS if name != "perplexity"])
def test_every_metric_is_at_its_best_on_its_own_references(name: str) -> None:
    texts = ["0", "1", "1"] if name == "f1_binary" else [text for text in REFERENCES if len(text.split()) > 4]
    scores = compute(name, texts, texts, sources=texts)
    assert scores[METRICS[name].lead] == pytest.approx(METRICS[name].highest)


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("perplexity", "f1", "matthews")])
def test_empty_predictions_score_nothing(name: str) -> None:
    texts = ["0", "1"] if name == "f1_binary" else [text for text in REFERENCES if text]
    assert compute(name, [""] * len(texts), texts, sources=texts)[METRICS[name].lead] == 0.0


def test_compute_says_everything_that_is_wrong_at_once() -> None:
    with pytest.raises(ValueError, match="Got the metric 'blue'; expected one of accuracy, f1"):
        compute("blue", ["a"], ["a"])
    with pytest.raises(ValueError) as caught:
        compute("gleu", ["a", "b"], [["a"], [], ["c"]])
    text = str(caught.value)
    assert "2 predictions and 3 references, expected equal numbers" in text
    assert "1 examples without a reference, the first of them example 1" in text
    assert "expected the uncorrected texts as sources=" in text
    with pytest.raises(ValueError, match="no predictions, expected at least one"):
        compute("rouge", [], [])


@pytest.mark.parametrize("name", ["accuracy", "f1", "rouge", "perplexity"])
def test_one_text_or_a_mapping_is_no_list_of_answers_and_an_iterator_is(name: str) -> None:
    answers: list[Any] = [1, 2] if name == "perplexity" else ["a", "b"]
    given: list[tuple[Any, str]] = [
        ("ab", "one text as {}, 'ab'"),
        ({"a": 1, "b": 2}, "builtins.dict as {}"),
        (2, "builtins.int as {}"),
    ]
    for wrong, message in given:
        for side, (predictions, references) in {
            "predictions": (wrong, answers),
            "references": (answers, wrong),
        }.items():
            with pytest.raises(ValueError, match=f"Got {message.format(side)}"):
                compute(name, predictions, references)
    assert compute(name, iter(answers), iter(answers)) == compute(name, answers, answers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metric 'perplexity' cannot take: 'a', expected numbers"):
        compute("perplexity", ["a"], [2])
