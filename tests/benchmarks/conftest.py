"""The benchmarks use modules of the examples, which are scripts: these are found where they stand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
