"""A customer-support bot that finds similar messages, names the intent, answers, and hands over when unsure.

    python examples/customer_support_bot.py        # needs bm25s: pip install "t5peft[retrieval]"

BM25 finds five similar past messages. T5 reads their intents beside the message and gives each intent a probability. Among the
replies to similar messages of this intent, the bot takes the one that T5 finds most probable. A person answers if the
probability is below a limit; on validation, four of five answers above the limit are right.

Time: about 35 s on 2 cores.
Last line: answered 0.528, right where answered 0.803, right on all 0.604, intent of the most similar message 0.500
Promise: right where answered > right on all; right on all > 0.4; answered > 0.1

Over all messages, tf-idf with logistic regression is right more often: 0.780 (t5peft/data/embedded/support/README.md).
For T5 base and a data set of the hub with the columns message, intent and reply change two lines:

    intents, data = load_task("mine.yaml")  # as t5peft/data/definitions/glue_sst2.yaml, with the name of the data set
    backbone, tokenizer = load_backbone("google-t5/t5-base")
"""

from __future__ import annotations

from dataclasses import replace

import bm25s
from transformers import set_seed

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, load_backbone, lora_wrap
from t5peft.data import Mixture, load_task
from t5peft.evaluation import fit_temperature, rank

set_seed(0)
intents, data = load_task("support_intent")
replies = load_task("support_reply")[0]
past = data["train"]
index = bm25s.BM25()
index.index(bm25s.tokenize([record["message"] for record in past], show_progress=False), show_progress=False)
for split, records in data.items():
    queries = bm25s.tokenize([record["message"] for record in records], show_progress=False)
    for record, places in zip(records, index.retrieve(queries, k=6, show_progress=False)[0], strict=True):
        found = [int(place) for place in places if split != "train" or past[place] is not record][:5]
        record |= {"places": found, "similar": " ".join(past[place]["intent"] for place in found)}

task = replace(intents, template="similar: {similar} message: {message}")
backbone, tokenizer = load_backbone("mini")
model = lora_wrap(backbone, target_modules="all-linear")
both = {"intent": task.tokenize(past, tokenizer), "reply": replies.tokenize(past, tokenizer)}
train = Mixture(both, {"intent": 0.75, "reply": 0.25}).dataset(120 * 16)
arguments = T5PeftTrainingArguments(
    "runs/support_bot", max_steps=120, per_device_train_batch_size=16, learning_rate=3e-3, disable_tqdm=True
)
T5PeftTrainer(model, arguments, train_dataset=train, processing_class=tokenizer).train()

held, test = data["validation"], data["test"]
ranking = rank(model, tokenizer, task.sources(held, tokenizer), task.candidates)
truth = [task.labels.index(record["intent"]) for record in held]
temperature = fit_temperature(ranking.log_probabilities, truth)
sure = ranking.at_temperature(temperature).probabilities.max(dim=1).values.tolist()
for limit in (percent / 100 for percent in range(101)):
    kept = [best == label for best, label, p in zip(ranking.best, truth, sure, strict=True) if p >= limit]
    if sum(kept) >= 0.8 * len(kept):
        break

ranking = rank(model, tokenizer, task.sources(test, tokenizer), task.candidates).at_temperature(temperature)
sure = ranking.probabilities.max(dim=1).values.tolist()
right = [task.labels[best] == record["intent"] for best, record in zip(ranking.best, test, strict=True)]
for record, best, confidence in list(zip(test, ranking.best, sure, strict=True))[:4]:
    print(f"\n{record['message']}\n  {task.labels[best]} ({confidence:.0%})", end=": ")
    fitting = [past[place]["reply"] for place in record["places"] if past[place]["intent"] == task.labels[best]]
    if confidence < limit or not fitting:
        print("handed over to a person")
    else:
        print(fitting[rank(model, tokenizer, replies.sources([record], tokenizer), fitting).best[0]])

answered = [hit for hit, confidence in zip(right, sure, strict=True) if confidence >= limit]
nearest = sum(past[record["places"][0]]["intent"] == record["intent"] for record in test) / len(test)
print(
    f"\nanswered {len(answered) / len(test):.3f}, right where answered {sum(answered) / max(1, len(answered)):.3f}, "
    f"right on all {sum(right) / len(test):.3f}, intent of the most similar message {nearest:.3f}"
)
