"""The benchmark of exports goes on where one is refused, and shows the refusal."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from cases import stir
from tiny import tiny_t5, tiny_tokenizer

from t5peft import Task, load_backbone, lora_wrap
from t5peft.adapters import save_adapter
from t5peft.serving import parity

pytest.importorskip("ctranslate2")
pytest.importorskip("rouge_score")
ROOT = Path(__file__).parents[2]


def test_a_refused_export_is_a_row_and_the_others_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    exports = importlib.import_module("exports")
    tiny_t5("v1.1").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    save_adapter(stir(lora_wrap(load_backbone(tmp_path / "base")[0], rank=4)), tmp_path / "adapter")
    refused, written = "CTranslate2, int8", "CTranslate2"
    monkeypatch.setattr(exports, "EXPORTS", [one for one in exports.EXPORTS if one[0] in (refused, written)][::-1])
    monkeypatch.setitem(parity.TOLERANCES, "int8", 0.0)
    task = Task("own", "{text}", "{label}", max_target_length=4)
    rows = exports.run(task, [{"text": "a film", "label": "good"}], tmp_path, 2)
    assert list(rows) == ["t5peft predict", refused, written]
    assert set(rows[refused]) == {"parity", "refused"}
    assert rows[refused]["refused"] is True
    assert max(rows[refused]["parity"].values()) > 0
    assert len(rows[written]["seconds"]) == 2
    assert not (tmp_path / refused).exists()
    record = {"rows": rows, "records": 1, "machine": {"name": "a processor"}}
    head, _, ours, first, second, _, summary = (line.split(" | ") for line in exports.table(record).splitlines())
    assert first[0] == f"| {refused}"
    assert first[1] == "refused"
    assert float(first[-1].rstrip(" |")) == pytest.approx(max(rows[refused]["parity"].values()), rel=0.06)
    assert float(second[1]) >= 0
    assert summary == ["1 records, a processor"]
    assert len({len(line) for line in (head, ours, first, second)}) == 1
