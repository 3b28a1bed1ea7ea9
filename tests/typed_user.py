"""Errors that a type checker must show to a user. ``make types`` reads this file: an unneeded ignore is an error there."""

from __future__ import annotations

from t5peft import T5PeftTrainingArguments, load_backbone, lora_wrap, prefix_wrap
from t5peft import no_such_name as missing  # type: ignore[attr-defined]  # noqa: F401

model, tokenizer = load_backbone("mini")
lora_wrap(model, rank=16, target_modules="all-linear").print_trainable_parameters()
lora_wrap(model, rnk=16)  # type: ignore[call-arg]
lora_wrap(model, rank="16")  # type: ignore[arg-type]
prefix_wrap(model, lenght=20)  # type: ignore[call-arg]
T5PeftTrainingArguments("runs", pack=None, tokens_per_microbatch=4096)  # type: ignore[call-arg]
