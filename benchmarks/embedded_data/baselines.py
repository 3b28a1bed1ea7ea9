"""What simple rules reach on the test splits of the embedded data; the data cards quote these lines.

python benchmarks/make_embedded_data.py --baselines
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import sacrebleu
from nltk.translate.gleu_score import corpus_gleu
from rouge_score.rouge_scorer import RougeScorer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline

from .splits import jaccard, token_set

Rows = Sequence[dict]


def finance(train: Rows, test: Rows) -> list[str]:
    labels = [row["sentiment"] for row in test]
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit([row["headline"] for row in train], [row["sentiment"] for row in train])
    guesses = model.predict([row["headline"] for row in test])
    most_common = Counter(row["sentiment"] for row in train).most_common(1)[0][0]
    return [
        f"most frequent sentiment of train ({most_common}): accuracy {labels.count(most_common) / len(labels):.3f}",
        f"tf-idf with logistic regression: accuracy {accuracy_score(labels, guesses):.3f}, "
        f"macro F1 {f1_score(labels, guesses, average='macro'):.3f}",
    ]


def restaurants(train: Rows, test: Rows) -> list[str]:
    nearest = _nearest(train, test, "mr", "text")
    return [
        f"text of the most similar training representation: BLEU {_bleu(nearest, [row['references'] for row in test]):.1f}"
    ]


def correction(train: Rows, test: Rows) -> list[str]:
    same = sum(row["text"] == row["corrected"] for row in test) / len(test)
    gleu = corpus_gleu([[row["corrected"].split()] for row in test], [row["text"].split() for row in test])
    return [f"text left as it is: exact match {same:.3f}, GLEU (nltk, words) {gleu:.3f}"]


def passages(train: Rows, test: Rows) -> list[str]:
    answer, _ = Counter(row["answer"] for row in train).most_common(1)[0]
    share = sum(row["answer"] == answer for row in test) / len(test)
    return [f'most frequent answer of train ("{answer}"): exact match {share:.3f}']


def subjects(train: Rows, test: Rows) -> list[str]:
    first = [re.split(r"(?<=[.?!]) ", row["body"])[0] for row in test]
    return [
        f"first sentence: ROUGE-L {_rouge(first, test):.3f}",
        f"five longest words: ROUGE-L {_rouge([_longest_words(row['body']) for row in test], test):.3f}",
    ]


def phrases(train: Rows, test: Rows) -> list[str]:
    references = [[row["german"]] for row in test]
    nearest = _nearest(train, test, "english", "german")
    return [
        f"English left as it is: BLEU {_bleu([row['english'] for row in test], references):.1f}",
        f"German of the most similar training sentence: BLEU {_bleu(nearest, references):.1f}",
    ]


BASELINES: dict[str, Callable[[Rows, Rows], list[str]]] = {
    "finance": finance,
    "restaurants": restaurants,
    "correction": correction,
    "passages": passages,
    "subjects": subjects,
    "phrases": phrases,
}


def _nearest(train: Rows, test: Rows, source: str, target: str) -> list[str]:
    known = [(token_set(row[source]), row[target]) for row in train]
    return [max(known, key=lambda pair: jaccard(token_set(row[source]), pair[0]))[1] for row in test]


def _bleu(predictions: list[str], references: list[list[str]]) -> float:
    """Corpus BLEU with as many references a row as it has; sacrebleu takes None for those that are missing."""
    most = max(map(len, references))
    streams = [[row[index] if index < len(row) else None for row in references] for index in range(most)]
    return sacrebleu.corpus_bleu(predictions, streams).score


def _rouge(predictions: list[str], test: Rows) -> float:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [
        scorer.score(row["subject"], guess)["rougeL"].fmeasure for row, guess in zip(test, predictions, strict=True)
    ]
    return sum(scores) / len(scores)


def _longest_words(text: str) -> str:
    """Return the five longest words, in the order of the text."""
    found = list(dict.fromkeys(re.findall(r"\w+", text)))
    kept = set(sorted(found, key=len, reverse=True)[:5])
    return " ".join(word for word in found if word in kept)
