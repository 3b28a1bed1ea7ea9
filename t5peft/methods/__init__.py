"""The tuning methods: one file each, and one table."""

from t5peft.compat.peft import resolve_base_names
from t5peft.methods.adalora import adalora_wrap as adalora_wrap
from t5peft.methods.bottleneck import bottleneck_wrap as bottleneck_wrap
from t5peft.methods.full import full_wrap as full_wrap
from t5peft.methods.ia3 import ia3_wrap as ia3_wrap
from t5peft.methods.ladder import ladder_wrap as ladder_wrap
from t5peft.methods.lora import lora_wrap as lora_wrap
from t5peft.methods.mam import mam_wrap as mam_wrap
from t5peft.methods.norm import norm_wrap as norm_wrap
from t5peft.methods.prefix import prefix_wrap as prefix_wrap
from t5peft.methods.prompt import prompt_wrap as prompt_wrap
from t5peft.methods.qlora import qlora_wrap as qlora_wrap
from t5peft.methods.registry import METHODS as METHODS
from t5peft.methods.registry import Method as Method
from t5peft.methods.registry import method_of as method_of
from t5peft.methods.registry import register_installed_methods
from t5peft.methods.registry import register_method as register_method
from t5peft.methods.served import served_table as served_table
from t5peft.models.embedded import backbone_name, resolve_backbone

# Adapters hold the name of the embedded backbone, and those of 0.1 its path on another machine.
resolve_base_names(lambda name: resolve_backbone(backbone_name(name)))

register_installed_methods()
