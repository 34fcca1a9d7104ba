"""The benchmarks are scripts: their modules, and those of the examples that they use, are found where they stand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("benchmarks", "examples")]
