# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # From a CSV to an answer
#
# A table of headlines with their sentiment becomes a model that labels new headlines. It takes about two minutes on two cores.
# Open it as a notebook by `jupytext --to ipynb from_a_csv_to_an_answer.py`.

# %% [markdown]
# ## Read the table
#
# The headlines come with the package. Replace `DATA` by your own files.

# %%
import csv
import tempfile
from pathlib import Path

from t5peft.data import hold_out, lint, load_records, load_task, preset_task

DATA = Path(tempfile.mkdtemp())
for split, records in load_task("finance")[1].items():
    with (DATA / f"{split}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["headline", "sentiment"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)

records, test = load_records(DATA / "train.csv"), load_records(DATA / "test.csv")
train, validation = hold_out(records, key=lambda record: record["headline"])
print(len(train), len(validation), len(test))
train[0]

# %% [markdown]
# ## Make a task of it
#
# The preset finds the columns by their names and reads the labels.

# %%
from t5peft import load_backbone

task = preset_task("classification", records)
backbone, tokenizer = load_backbone("mini")
print(task.template, task.labels)
print(lint(task, [*train, *test], tokenizer))

# %% [markdown]
# ## Train LoRA

# %%
from transformers import set_seed

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, lora_wrap

set_seed(0)
model = lora_wrap(backbone, target_modules="all-linear")
arguments = T5PeftTrainingArguments(
    str(DATA / "run"),
    max_steps=100,
    per_device_train_batch_size=16,
    learning_rate=3e-3,
    eval_strategy="steps",
    eval_steps=25,
    save_steps=25,
    load_best_model_at_end=True,
    logging_steps=25,
    report_to="none",
    disable_tqdm=True,
)
trainer = T5PeftTrainer(
    model,
    arguments,
    train_dataset=task.tokenize(train, tokenizer),
    eval_dataset=task.tokenize(validation, tokenizer),
    processing_class=tokenizer,
)
trainer.train()

# %% [markdown]
# ## Score it beside the most frequent label

# %%
from collections import Counter

from t5peft.evaluation import EvaluationSet
from t5peft.training.card import interval

scored = EvaluationSet(task, test, tokenizer)
result = scored.score(model)
frequent = Counter(record["sentiment"] for record in train).most_common(1)[0][0]
baseline = scored.score_answers([frequent] * len(test)).scores["accuracy"]
low, high = interval(result.per_example)
print(f"accuracy {result.scores['accuracy']:.3f} [{low:.3f}, {high:.3f}], most frequent label {baseline:.3f}")
assert low > baseline

# %% [markdown]
# ## Ask it

# %%
from t5peft import rank

new = [{"headline": "Harbor Foods doubles its profit"}, {"headline": "Regulator fines Oakline Rail over safety lapses"}]
ranking = rank(model, tokenizer, task.sources(new, tokenizer), task.candidates)
for record, probabilities in zip(new, ranking.probabilities.tolist(), strict=True):
    print(record["headline"], dict(zip(task.labels, (round(p, 2) for p in probabilities), strict=True)))

# %% [markdown]
# ## Save it

# %%
from t5peft import load_adapter, save_adapter

folder = save_adapter(model, DATA / "adapter")
task.to_yaml(folder / "task.yaml")
load_adapter(folder)
print(sorted(path.name for path in folder.iterdir()))
