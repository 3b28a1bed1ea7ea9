"""``f1`` of t5peft as an ``evaluate`` module."""

from t5peft.evaluation.offline_modules import make_module

Module = make_module("f1")
