"""From a tuned adapter to one model that any T5 runtime reads."""

from t5peft.deploy.merge import Parity, merge

__all__ = ["Parity", "merge"]
