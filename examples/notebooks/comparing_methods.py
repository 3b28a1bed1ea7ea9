# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Comparing methods
#
# Which method should you take for your table? This notebook trains four of them on the same records and compares them with
# full fine-tuning, record by record. It takes about four minutes on two cores. `t5peft bench` does the same for more methods and
# seeds, with a report.

# %%
import tempfile
from pathlib import Path

from t5peft import METHODS
from t5peft.data import load_task
from t5peft.evaluation import EvaluationSet
from t5peft.training.train import TrainConfig, train

task, data = load_task("finance")
RUNS = Path(tempfile.mkdtemp())
STEPS = 100
METHODS_HERE = ["full", "lora-all", "prefix", "ia3"]
# Rates for the embedded backbone, which is small; METHODS[name].learning_rate is where to start for larger ones.
RATES = {"full": 1e-3, "lora-all": 3e-3, "prefix": 5e-2, "ia3": 3e-2}
{name: METHODS[name].learning_rate for name in METHODS_HERE}

# %% [markdown]
# ## Train
#
# Every run sees the same examples in the same order.

# %%
scores, trained = {}, {}
for name in METHODS_HERE:
    config = TrainConfig(method=name, learning_rate=RATES[name], steps=STEPS, evaluations=4)
    splits = {"train": data["train"], "validation": data["validation"]}
    model, tokenizer = train(task, splits, config, RUNS / name)
    scores[name] = EvaluationSet(task, data["test"], tokenizer).score(model).per_example
    trained[name] = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    print(f"{name}: accuracy {sum(scores[name]) / len(scores[name]):.3f}, {trained[name]:,} trained weights")

# %% [markdown]
# ## Compare record by record
#
# Two methods answer the same records. The difference is clear where its interval excludes zero.

# %%
import numpy as np

from t5peft.benchmark.statistics import paired_bootstrap

reference = 100 * np.array([scores["full"]])  # points
for name in METHODS_HERE[1:]:
    difference = paired_bootstrap((100 * np.array([scores[name]]), reference))
    verdict = "clearly different" if difference.clear else "level"
    print(f"{name} against full: {difference} points, {verdict}")

# %% [markdown]
# One seed covers the chance of the test records, and not that of training. Repeat with several seeds before you decide:
# `t5peft bench --task finance --methods full lora-all prefix ia3 --seeds 0 1 2`.
