"""Conditions of every test: no network, one thread, quiet libraries."""

from __future__ import annotations

import gc
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

# before anything imports transformers: tests need no network, and a hub call would only hang
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to the other workers
os.environ["T5PEFT_KERNELS"] = "onednn"  # what a measurement chooses differs between runs, and so does the rounding

import pytest
import torch
from tiny import GEOMETRIES, Geometry, tiny_t5, tiny_tokenizer
from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from cases import Case
    from laws import MakeBase


@pytest.fixture(autouse=True)
def same_conditions_for_every_test() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module", autouse=True)
def what_is_held_is_not_garbage() -> None:
    """Accelerate collects garbage before every training; without libraries and caches that takes a hundredth."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Geometry, Path]:
    """Folders with the tiny T5s and their tokenizer, for backbones that have to be loaded."""
    found: dict[Geometry, Path] = {}
    for geometry in GEOMETRIES:
        found[geometry] = tmp_path_factory.mktemp(geometry.replace(".", "_"))
        tiny_t5(geometry).save_pretrained(found[geometry])
        tiny_tokenizer().save_pretrained(found[geometry])
    return found


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    """A folder with a tiny T5 and its tokenizer, of this test only."""
    folder = tmp_path / "backbone"
    tiny_t5().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make_base(case: Case, geometry: Geometry, folders: dict[Geometry, Path]) -> MakeBase:
    """Make the backbone of the law's ``case`` anew, the same each time."""
    from cases import base_of

    from t5peft import METHODS

    if METHODS[case.method].quantize is not None and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    return partial(base_of, case, geometry, folders[geometry])
