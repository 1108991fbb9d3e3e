"""Test files share `tests.core.simulated`."""

from __future__ import annotations

import sys
from pathlib import Path

# Under --import-mode=importlib the repository is not on the path by itself.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
