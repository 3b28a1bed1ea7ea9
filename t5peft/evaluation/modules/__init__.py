"""Metrics as ``evaluate`` modules for ``evaluate.load(path)``, each around ``t5peft.evaluation.compute``."""
