"""The tuning methods: one file each, and one table."""

from t5peft.compat.peft import resolve_base_names
from t5peft.methods.adalora import adalora_wrap
from t5peft.methods.bottleneck import bottleneck_wrap
from t5peft.methods.full import full_wrap
from t5peft.methods.ia3 import ia3_wrap
from t5peft.methods.ladder import ladder_wrap
from t5peft.methods.lora import lora_wrap
from t5peft.methods.mam import mam_wrap
from t5peft.methods.norm import norm_wrap
from t5peft.methods.prefix import prefix_wrap
from t5peft.methods.prompt import prompt_wrap
from t5peft.methods.qlora import qlora_wrap
from t5peft.methods.registry import METHODS, Method, method_of, register_installed_methods, register_method
from t5peft.methods.served import served_table
from t5peft.models.embedded import backbone_name, resolve_backbone

# Adapters hold the name of the embedded backbone, and those of 0.1 its path on another machine.
resolve_base_names(lambda name: resolve_backbone(backbone_name(name)))

__all__ = [
    "METHODS",
    "Method",
    "adalora_wrap",
    "bottleneck_wrap",
    "full_wrap",
    "ia3_wrap",
    "ladder_wrap",
    "lora_wrap",
    "mam_wrap",
    "method_of",
    "norm_wrap",
    "prefix_wrap",
    "prompt_wrap",
    "qlora_wrap",
    "register_method",
    "served_table",
]

register_installed_methods()
