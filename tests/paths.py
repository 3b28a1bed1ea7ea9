"""Where the repository is, and where the public data sets are that some tests read."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Public data sets, one folder each, as ``t5peft.data.public`` reads them; tests that need one skip where it is absent.
PUBLIC_DATA = Path(os.environ.get("T5PEFT_DATA", ROOT / "public-data"))
