"""Tuning again on new data, with a third sentiment that the adapter in use has never seen.

    python examples/tune_again.py

The first version knows positive and negative headlines. The new records are all neutral. An adapter tuned only on them forgets
what it knew, and is refused. With replay of old records it learns the third class and may replace the version in use, which is
kept beside it. A third choice costs some accuracy on the old records; the tolerance allows it.

Time: about 35 s on 2 cores.
Last line: learned 0.889, forgotten 0.058, forgotten without replay 0.798
Promise: learned > 0.4; forgotten < 0.2; forgotten < forgotten without replay

For T5 base and a data set of the hub change two lines, and below "sentiment" to its column of labels and "neutral" to one of them:

    task, data = load_task("glue_sst2")
    config = TrainConfig(method="lora", backbone="google-t5/t5-base", options={"target_modules": "all-linear"}, steps=1000)
"""

from __future__ import annotations

from t5peft import save_adapter
from t5peft.data import load_task
from t5peft.training.continue_training import continue_training, replace
from t5peft.training.train import TrainConfig, train_and_evaluate

task, data = load_task("finance")
config = TrainConfig(
    method="lora", options={"target_modules": "all-linear"}, learning_rate=3e-3, steps=60, evaluations=2
)

new = {split: [record for record in records if record["sentiment"] == "neutral"] for split, records in data.items()}
old = {split: [record for record in records if record["sentiment"] != "neutral"] for split, records in data.items()}
first = train_and_evaluate(task, old, config, "runs/tune_again/first", overwrite=True)
in_use = save_adapter(first.model, "runs/tune_again/in_use", tokenizer=first.tokenizer)
print(f"first version: accuracy {first.scores['test']['accuracy']:.3f} on positive and negative headlines")

reports = {}
for name, replay in (("alone", 0.0), ("with_replay", 2.0)):
    reports[name] = continue_training(
        in_use,
        task,
        new["train"],
        old["train"],
        new_test=new["test"],
        old_test=old["test"],
        config=config,
        output=f"runs/tune_again/{name}",
        replay=replay,
        overwrite=True,
    )
    print(f"\ntuned again {name}: {reports[name]}")
    try:
        print(f"now in use: {replace(in_use, reports[name], tolerance=0.3)}")
    except ValueError as refusal:
        print(refusal)

alone, replayed = reports["alone"], reports["with_replay"]
print(
    f"learned {replayed.learned:.3f}, forgotten {replayed.forgotten:.3f}, forgotten without replay {alone.forgotten:.3f}"
)
