"""Which method is served for which family of T5, from the two tables, as a table of Markdown."""

from __future__ import annotations

from t5peft.methods.registry import METHODS
from t5peft.models.families import FAMILIES


def is_served(family: str, method: str) -> bool:
    """Return whether a method is served for a family.

    Args:
        family: A model type of ``FAMILIES``.
        method: A name of ``METHODS``.
    """
    return METHODS[method].needs not in FAMILIES[family].lacks


def served_table() -> str:
    """Return what is served as two tables: methods by family, and what a family cannot have with the reason."""
    kinds: dict[tuple[bool, ...], list[str]] = {}
    for method in METHODS:
        kinds.setdefault(tuple(is_served(family, method) for family in FAMILIES), []).append(method)
    lines = [
        "| methods | " + " | ".join(row.title for row in FAMILIES.values()) + " |",
        "|---" * (len(FAMILIES) + 1) + "|",
    ]
    for served, methods in kinds.items():
        lines.append(f"| {', '.join(methods)} | " + " | ".join("yes" if one else "no" for one in served) + " |")
    lines += ["", "| not for | what | why |", "|---|---|---|"]
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in FAMILIES.values():
        for feature, reason in row.lacks.items():
            reasons.setdefault((feature, reason), []).append(row.title)
    lines += [f"| {', '.join(names)} | {feature} | {reason} |" for (feature, reason), names in reasons.items()]
    return "\n".join(lines)
