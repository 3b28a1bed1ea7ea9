"""Long summaries with LongT5: a digest of an inbox, one subject line for each of eight e-mails.

    python examples/long_summaries.py

LongT5 attends within blocks in its encoder, so its memory grows with the length of a source and not with its square. This one has
the weights of the embedded T5, whose shapes are the same, and sees 63 tokens to each side. The same model on only the first 256
tokens of an inbox shows what the length is worth. The first three sentences are a simple baseline.

Time: about 100 s on 2 cores.
Last line: ROUGE-L X, first 256 tokens X, first three sentences X
Promise: ROUGE-L > first 256 tokens; ROUGE-L > first three sentences

For a published LongT5 and a data set of the hub change two lines (for short sources, google-t5/t5-base is cheaper):

    train, test = (load_records("ccdv/govreport-summarization", split) for split in ("train", "test"))
    backbone, tokenizer = load_backbone("google/long-t5-tglobal-base")
"""

from __future__ import annotations

from random import Random

from transformers import LongT5Config, LongT5ForConditionalGeneration, set_seed

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, Task, load_backbone, lora_wrap
from t5peft.data import load_task
from t5peft.evaluation import compute, predict

MAILS = 8


def long_t5_of_mini(folder: str) -> str:
    """Write a LongT5 with the weights of the embedded T5, and return the folder."""
    t5, tokenizer = load_backbone("mini")
    config = LongT5Config(**t5.config.to_diff_dict() | {"local_radius": 63, "encoder_attention_type": "local"})
    long = LongT5ForConditionalGeneration(config)
    long.load_state_dict(
        {
            name.replace("SelfAttention", "LocalSelfAttention") if name.startswith("encoder.") else name: weight
            for name, weight in t5.state_dict().items()
        }
    )
    long.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def inboxes(mails: list[dict[str, str]], count: int, random: Random) -> list[dict[str, str]]:
    """Return inboxes of random mails, each with its digest."""
    picked = [random.sample(mails, MAILS) for _ in range(count)]
    return [
        {"mails": "\n".join(mail["body"] for mail in one), "digest": "; ".join(mail["subject"] for mail in one)}
        for one in picked
    ]


set_seed(0)
random, mails = Random(0), load_task("subjects")[1]
train, test = inboxes(mails["train"], 480, random), inboxes(mails["test"], 30, random)
task = Task("digest", "digest: {mails}", "{digest}", max_source_length=1024, max_target_length=160)
backbone, tokenizer = load_backbone(long_t5_of_mini("runs/long_summaries/longt5"))
model = lora_wrap(backbone, target_modules="all-linear")
arguments = T5PeftTrainingArguments(
    "runs/long_summaries",
    max_steps=120,
    per_device_train_batch_size=4,
    learning_rate=3e-3,
    logging_steps=20,
    save_strategy="no",
    disable_tqdm=True,
)
T5PeftTrainer(model, arguments, train_dataset=task.tokenize(train, tokenizer), processing_class=tokenizer).train()

sources = task.sources(test, tokenizer)
texts = {
    "whole": predict(model, tokenizer, sources, max_new_tokens=task.max_target_length),
    "start": predict(model, tokenizer, sources, max_new_tokens=task.max_target_length, max_source_length=256),
    "lead": [". ".join(record["mails"].split(". ")[:3]) for record in test],
}
print(f"\nwritten: {texts['whole'][0]}\nby hand: {test[0]['digest']}")
scores = {name: compute("rouge", found, [[r["digest"]] for r in test])["rougeL"] for name, found in texts.items()}
print(
    f"ROUGE-L {scores['whole']:.3f}, first 256 tokens {scores['start']:.3f}, first three sentences {scores['lead']:.3f}"
)
