"""A target has no start token where the tokenizer puts one before each text and the model starts its decoder by it."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from t5peft import Task
from t5peft.evaluation.ranking import candidate_ids

WORDS = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "a": 4, "good": 5, "bad": 6, "film": 7}


def tokenizer_of(form: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<bos>", 2), ("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


@pytest.mark.parametrize(
    ("form", "source", "target"),
    [
        ("<bos> $A", [2, 4, 7, 1], [5, 1]),  # Gemma
        ("<bos> $A <eos>", [2, 4, 7, 1], [2, 5, 1]),  # CodeT5, whose targets were so in its training
        ("$A <eos>", [4, 7, 1], [5, 1]),  # T5
    ],
)
@pytest.mark.parametrize("verbalizer", [None, {"0": "bad", "1": "good"}])
def test_targets_are_as_the_model_was_trained(
    form: str, source: list[int], target: list[int], verbalizer: dict[str, str] | None
) -> None:
    task = Task("films", "{text}", "{label}", verbalizer)
    record = {"text": "a film", "label": "good" if verbalizer is None else "1"}
    tokenizer = tokenizer_of(form)
    found = task.tokenize([record], tokenizer)[0]
    assert (found["input_ids"], found["labels"]) == (source, target)
    assert candidate_ids(["good"], 1, tokenizer) == {-1: [target]}
