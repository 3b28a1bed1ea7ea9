"""Candidates share the decoder's positions in families with rotary positions too: scores are those of each by itself."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_tokenizer
from tiny_families import GEMMAS, OTHERS, Other, tiny_other, tiny_other_classifier

from t5peft import prompt_wrap
from t5peft.evaluation.ranking import classify, rank
from t5peft.models.backbone import correct_config


@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("family", OTHERS)
def test_scores_are_those_of_each_candidate_by_itself(family: Other, with_prompt: bool) -> None:
    model, tokenizer = tiny_other(family), tiny_tokenizer()
    correct_config(model)
    if with_prompt:
        model = prompt_wrap(model, length=3).eval()
    sources, candidates = ["a text", "another, longer text"], ["yes", "yesterday", "no", "not at all", "none"]
    found = rank(model, tokenizer, sources, candidates).log_probabilities
    for row, source in enumerate(sources):
        ids = tokenizer(source, return_tensors="pt")
        for column, candidate in enumerate(candidates):
            labels = tokenizer(candidate, return_tensors="pt").input_ids
            with torch.no_grad():
                logits = model(**ids, labels=labels).logits[0].log_softmax(-1)
            expected = logits[torch.arange(labels.shape[1]), labels[0]].sum()
            assert float(found[row, column]) == pytest.approx(float(expected), abs=2e-4)


@pytest.mark.parametrize("family", GEMMAS)
def test_classes_do_not_depend_on_the_other_sources(family: Other) -> None:
    """The head reads the state behind the last token, for which the longest source of a batch has no column by itself."""
    model, tokenizer = tiny_other_classifier(family), tiny_tokenizer()
    correct_config(model)
    sources = ["a text", "another, longer text", "one"]
    together = classify(model, tokenizer, sources).probabilities
    for row, source in enumerate(sources):
        torch.testing.assert_close(
            classify(model, tokenizer, [source]).probabilities[0], together[row], rtol=0, atol=1e-5
        )
