"""Names of 0.1 still work, with a warning that says what to use."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
from paths import ROOT
from tiny import tiny_t5

from t5peft import T5PeftTrainingArguments, lora_wrap, prefix_wrap
from t5peft.data import preset_task
from t5peft.deprecated import MODULES, MOVED, OPTIONS, RENAMED, current_options

# Module to names: what 0.1.0 had in the ``__all__`` of its packages, and what its README and examples imported.
NAMES_OF_0_1 = json.loads((ROOT / "tests" / "fixtures" / "names_0_1.json").read_text())


@pytest.mark.parametrize("module", sorted(NAMES_OF_0_1))
def test_every_public_name_of_0_1_can_be_imported_from_where_it_was(module: str) -> None:
    if module in MODULES:
        sys.modules.pop(module, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = import_module(module)
    told = [warning for warning in caught if f"The module {module} is deprecated" in str(warning.message)]
    assert len(told) == (module in MODULES)
    missing = [name for name in NAMES_OF_0_1[module] if not hasattr(found, name)]
    assert missing == []


def test_the_tables_name_only_what_is_there() -> None:
    for module in MODULES.values():
        import_module(module)
    for (module, name), new in RENAMED.items():
        assert hasattr(import_module(MOVED.get((module, name), MODULES.get(module, module))), new), (module, name)


@pytest.mark.processes
def test_a_name_imported_from_an_old_package_is_the_new_one() -> None:
    code = (
        "from t5peft.tasks import FAMILIES; from t5peft.data import PRESETS; assert FAMILIES is PRESETS; print('same')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(ROOT), timeout=300, check=False
    )
    assert done.stdout == "same\n", done.stderr


def test_old_arguments_do_what_the_new_ones_do(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="argument targets of lora_wrap is deprecated.*use target_modules"):
        model = lora_wrap(tiny_t5(), rank=2, targets=["k"])  # type: ignore[call-arg]
    assert model.peft_config["default"].to_dict()["target_modules"] == {"k"}
    with pytest.warns(DeprecationWarning, match="reparametrise"):
        prefix_wrap(tiny_t5(), length=2, reparametrise=4)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="cut_by_length"):
        args = T5PeftTrainingArguments(str(tmp_path), cut_by_length=False)  # type: ignore[call-arg]
    assert not args.bucket_by_length


def test_stored_options_are_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert current_options({"targets": "all-linear", "rank": 8}) == {"target_modules": "all-linear", "rank": 8}
    assert set(OPTIONS.values()).isdisjoint(OPTIONS)
    assert not recwarn.list


def test_a_preset_has_its_old_name_too() -> None:
    records = [{"article": "a long text", "summary": "text"}]
    with pytest.warns(DeprecationWarning, match="The preset summarisation is deprecated .* use summarization"):
        old = preset_task("summarisation", records)
    assert old == preset_task("summarization", records)
