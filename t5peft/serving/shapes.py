"""Whether the tensors of an adapter fit the modules of a backbone.

Letters: see ``adapter.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from t5peft.models.families import family_of

if TYPE_CHECKING:
    from t5peft.serving.adapter import AdapterWeights


def shape_problems(adapter: AdapterWeights, t5: PreTrainedModel) -> list[str]:
    """Return what in an adapter does not fit the shapes of a backbone.

    Args:
        adapter: The adapter.
        t5: The backbone.
    """
    config, family, problems = t5.config, family_of(t5.config), list[str]()
    modules = dict(t5.named_modules())
    for name, change in adapter.maps.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            problems.append(f"{name} is not a linear map of the model")
            continue
        inputs, outputs = module.in_features, module.out_features
        for vector, size in ((change.input_scale, inputs), (change.output_scale, outputs)):
            if vector is not None and vector.shape != (size,):
                problems.append(f"{name} has a scale of shape {tuple(vector.shape)}")
        if change.a is not None and change.b is not None:
            rank = len(change.a)
            if change.a.shape != (rank, inputs) or change.b.shape != (outputs, rank):
                problems.append(f"{name} has LoRA of shapes {tuple(change.a.shape)} and {tuple(change.b.shape)}")
    for name, weight in adapter.norms.items():
        if name not in modules or weight.shape != modules[name].weight.shape:
            problems.append(f"{name} has a norm of shape {tuple(weight.shape)}")
    for name, one in adapter.bottlenecks.items():
        size = len(one.down)
        shapes = [tuple(t.shape) for t in (one.down, one.down_bias, one.up, one.up_bias)]
        width = family.stack_of(config, name).d_model
        if name not in modules or shapes != [(size, width), (size,), (width, size), (width,)]:
            problems.append(f"{name} has a bottleneck of shapes {shapes}")
    for name, (key, value) in adapter.prefixes.items():
        stack = family.stack_of(config, name)
        expected = (stack.key_heads, key.shape[1] if key.dim() == 3 else 0, stack.d_kv)
        if name not in modules or key.shape != expected or value.shape != expected:
            problems.append(f"{name} has a prefix of shapes {tuple(key.shape)} and {tuple(value.shape)}")
    if adapter.prompt is not None and adapter.prompt.shape[1:] != (family.stacks(config)[0].d_model,):
        problems.append(f"its prompt has the shape {tuple(adapter.prompt.shape)}")
    return problems
