"""A sample of the campaign of damage, and files that are made to fill the memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import damage

from t5peft.data import load_records


@pytest.mark.processes
def test_a_sample_of_damaged_inputs_is_refused_or_read_as_what_it_was(tmp_path: Path) -> None:
    found = damage.campaign(200, 5, seed=1, outcomes=tmp_path / "outcomes.jsonl")
    assert found["faults"] == []
    assert found["inputs"] == 200
    assert len(found["by_kind"]) > 12
    assert found["outcomes"]["refused"] > 150


def test_the_campaign_goes_on_where_it_ended(tmp_path: Path) -> None:
    outcomes = tmp_path / "outcomes.jsonl"
    outcomes.write_text(
        '{"number": 0, "kind": "csv", "outcome": "hang"}\n{"number": 1, "kind": "csv", "outcome": "died"}\n'
    )
    found = damage.campaign(2, 1, seed=1, outcomes=outcomes)
    assert [fault["outcome"] for fault in found["faults"]] == ["hang", "died"]


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)])
def test_a_packed_file_that_grows_without_end_is_refused_before_it_fills_the_memory(
    ending: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"data.csv.{ending}"
    path.write_bytes(pack(b"a" * (1 << 24)) * 32)  # 512 MiB, as streams one after another
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"grows to more than \d+ MiB, 200 times its size; expected text"):
        load_records(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 384 << 10  # KiB


def test_a_parquet_file_of_more_cells_than_fit_on_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "data.parquet"
    cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 400_000, pyarrow.int32()), ["a"])
    pyarrow.parquet.write_table(pyarrow.table({"text": cells}), path)
    assert path.stat().st_size < 1 << 14
    free = psutil.disk_usage(str(tmp_path))
    monkeypatch.setattr(psutil, "disk_usage", lambda _: free._replace(free=3 << 20))
    with pytest.raises(ValueError, match=r"whose 400,000 cells need more than the 3 MiB that are free on the disk"):
        load_records(path)
    monkeypatch.setattr(psutil, "disk_usage", lambda _: free._replace(free=4 << 20))
    assert len(load_records(path)) == 400_000
