"""List what is overridden and read of transformers' Trainer that it does not offer for that."""

from __future__ import annotations

from transformers import Seq2SeqTrainer, TrainingArguments

from t5peft.compat.private import PrivateUse

PRIVATE = (
    PrivateUse(
        Seq2SeqTrainer,
        "_save_checkpoint",
        ("self", "model", "trial"),
        "A checkpoint counts when its manifest is written, and only then may an older one go. The Trainer deletes older ones "
        "before any callback hears of the new one.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_save",
        ("self", "output_dir", "state_dict"),
        "peft asks the hub whether the embeddings were resized unless it is told not to save them; no argument reaches it.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_load_best_model",
        ("self",),
        "The Trainer loads the adapter called `default`, whichever is trained, and does so after the last callback.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_load_from_checkpoint",
        ("self", "resume_from_checkpoint", "model"),
        "Of several active adapters the Trainer loads the first, and leaves only that one active.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_issue_warnings_after_load",
        ("self", "load_result"),
        "The Trainer reports tied weights as missing, which a checkpoint holds under one of their names.",
        overridden=True,
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_get_output_dir",
        ("self", "trial"),
        "The folder of a trial of a search is known before its checkpoint is saved only here.",
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_prepare_inputs",
        ("self", "inputs"),
        "Micro-batches are made in the step itself and have to be moved to the device as batches of a loader are.",
    ),
    PrivateUse(
        Seq2SeqTrainer,
        "_gen_kwargs",
        None,
        "`evaluate` and `predict` keep the arguments of `generate` here for `prediction_step`.",
    ),
    PrivateUse(
        TrainingArguments,
        "_n_gpu",
        None,
        "Several devices in one process would be torch's DataParallel, which cannot share a step out exactly.",
    ),
)
"""Each private touch of transformers, with the reason."""
