"""The table of families is what methods find their modules by: a family is a row."""

from __future__ import annotations

import re

import pytest
from tiny import tiny_t5

from t5peft.methods.bottleneck import BottleneckConfig
from t5peft.methods.norm import NormConfig
from t5peft.methods.prefix import PrefixConfig
from t5peft.models.families import FAMILIES, Family

OTHER = Family(
    "other",
    "Other",
    attention=("query", "key", "value", "out"),
    self_attention=("Own",),
    cross_attention=("Cross",),
    feed_forward="Mlp",
    norms=("rms",),
    final_norm="last_rms",
)


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        (lambda: BottleneckConfig(placement="pfeiffer"), r".*\.DenseReluDense"),
        (lambda: BottleneckConfig(placement="houlsby"), r".*\.(DenseReluDense|SelfAttention\.o)"),
        (lambda: BottleneckConfig(placement="parallel"), r".*\.DenseReluDense"),
        (NormConfig, r".*\.(layer_norm|final_layer_norm)"),
        (
            PrefixConfig,
            r"((.*\.)?encoder\..*\.SelfAttention)|((.*\.)?decoder\..*\.SelfAttention)|(.*\.EncDecAttention)",
        ),
    ],
)
def test_in_a_t5_the_patterns_find_the_modules_that_those_of_earlier_versions_found(config: type, pattern: str) -> None:
    names = [name for name, _ in tiny_t5("wide").named_modules()]
    found = [name for name in names if re.fullmatch(config().target_modules, name)]
    assert found == [name for name in names if re.fullmatch(pattern, name)] != []


@pytest.mark.parametrize(
    ("config", "names", "others"),
    [
        (lambda: BottleneckConfig(placement="pfeiffer"), ["DenseReluDense", "Mlp"], ["SelfAttention.o", "Own.out"]),
        (lambda: BottleneckConfig(placement="houlsby"), ["SelfAttention.o", "Own.out", "Mlp"], ["Own.query", "Own"]),
        (NormConfig, ["layer_norm", "rms", "last_rms"], ["Own"]),
        (PrefixConfig, ["SelfAttention", "Own", "EncDecAttention", "Cross"], ["Mlp", "DenseReluDense"]),
    ],
)
def test_a_family_with_names_of_its_own_is_a_row(
    config: type, names: list[str], others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "other", OTHER)
    pattern = config().target_modules
    assert all(re.fullmatch(pattern, f"encoder.block.0.layer.0.{name}") for name in names)
    assert not any(re.fullmatch(pattern, f"encoder.block.0.layer.0.{name}") for name in others)
