"""What every test shares: no network, one thread, quiet libraries."""

from __future__ import annotations

import os

# before anything imports transformers: tests need no network, and a hub call would only hang
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers.utils import logging as transformers_logging


@pytest.fixture(autouse=True)
def same_conditions_for_every_test() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
