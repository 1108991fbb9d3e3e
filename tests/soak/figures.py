"""What the kernel says of one process that is being soaked."""

from __future__ import annotations

import os
from pathlib import Path


def pss_bytes(pid: int) -> int:
    """Proportional set size."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def fd_count(pid: int) -> int:
    """Open file descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))
