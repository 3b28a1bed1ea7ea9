"""Metrics as `evaluate` modules: files for `evaluate.load(path)`, each a few lines around `t5peft.evaluation.compute`."""
