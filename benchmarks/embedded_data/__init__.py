"""The grammars behind the generated data sets of ``t5peft/tasks/data``, one module a set.

Each module has one ``records() -> dict[str, list[dict]]``, which maps train, validation and test to their rows and gives the same
rows on every call.
"""
