"""Metrics as `evaluate` modules for `evaluate.load(path)`, each a few lines around `t5peft.evaluation.compute`."""
