"""The embedded tokenizer."""

from __future__ import annotations

import pytest
from paths import ROOT
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def mini() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ROOT / "t5peft" / "mini")
