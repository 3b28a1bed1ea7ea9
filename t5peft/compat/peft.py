"""What peft does not offer to be extended."""

from __future__ import annotations

from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method


def register(name: str, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Register ``tuner`` and its ``config`` with peft under ``name`` (lower case).

    ``PeftType`` is an enum, and peft looks every method up in it. So this adds a member to it, which is not meant to be extended.
    """
    value = name.upper()
    if value not in PeftType.__members__:
        member = str.__new__(PeftType, value)
        member._name_ = value
        member._value_ = value
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
        type.__setattr__(PeftType, value, member)
    register_peft_method(name=name, config_cls=config, model_cls=tuner, prefix=tuner.prefix)


def replace_tuner(name: str, tuner: type[BaseTuner]) -> None:
    """Let peft use ``tuner``, a subclass of its own, for the method ``name`` (upper case) of peft."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType(name)] = tuner
