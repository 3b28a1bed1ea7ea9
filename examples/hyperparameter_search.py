"""Search for hyper-parameters: learning rate, weight decay, label smoothing and rank of LoRA, with Optuna.

    python examples/hyperparameter_search.py        # needs optuna: pip install "t5peft[search]"

Each trial is a short run, scored on validation. A trial that does worse than most is stopped early. The study is a file. If you
run the example again, it is read; with more ``trials`` it continues. Delete runs/hyperparameter_search to start again.

Time: about 45 s on 2 cores.
Last line: trials 5, pruned 0, accuracy on validation 0.625, accuracy on test 0.631, most frequent sentiment 0.302
Promise: trials >= 5; accuracy on validation > 0.4; accuracy on test > most frequent sentiment

For T5 base and a data set of the hub change two lines:

    task, data = load_task("glue_sst2")
    config = TrainConfig(method="lora", backbone="google-t5/t5-base", options={"target_modules": "all-linear"}, steps=1000)
"""

from __future__ import annotations

from collections import Counter

from t5peft.data import load_task
from t5peft.training.search import search
from t5peft.training.train import TrainConfig, train_and_evaluate

task, data = load_task("finance")
config = TrainConfig(
    method="lora", options={"target_modules": "all-linear"}, learning_rate=3e-3, steps=25, evaluations=2
)

found = search(task, data, config, "runs/hyperparameter_search", trials=5)
best = found.config
print(f"\nbest: learning rate {best.learning_rate:.1e}, weight decay {best.weight_decay}, rank {best.options['rank']}")
print(f"picture: {found.picture}\nagain from the command line: {found.command('finance', 'runs/best')}")

tuned = train_and_evaluate(task, data, best, "runs/hyperparameter_search/best", overwrite=True)
labels = [task.target_text(record) for record in data["test"]]
frequent = Counter(task.target_text(record) for record in data["train"]).most_common(1)[0][0]
print(
    f"trials {found.trials}, pruned {found.pruned}, accuracy on validation {found.value:.3f}, "
    f"accuracy on test {tuned.scores['test']['accuracy']:.3f}, "
    f"most frequent sentiment {labels.count(frequent) / len(labels):.3f}"
)
