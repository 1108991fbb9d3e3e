"""How the lines of the Overview are shared out."""

from __future__ import annotations

from typing import NamedTuple

WIDE = 100
"""From this many columns on there are rulers, bars and every column."""
TABLE_MIN = 3
"""A table of fewer lines (its header among them) shows nothing."""


class Lines(NamedTuple):
    """Lines for each part; 0: not shown."""

    gpus: int
    replicas: int
    trends: int
    log: int


def share(height: int, width: int, gpus: int, replicas: int, totals: int = 1) -> Lines:
    """Share `height` lines. What has no room goes in this order: trends, log, GPUs; tables scroll before that.

    :param gpus: how many there are; the same for `replicas`. A table takes a header.
    :param totals: lines under the replicas: one for everything, and one for each model that is shown.
    """
    wide = width >= WIDE
    rule = int(wide)
    gpu_full = gpus + 1 + rule if gpus else 0
    replica_full = replicas + 1 + totals + rule
    trends = (3 if wide else 1) if height >= (26 if wide else 20) else 0
    log = (3 if wide else 1) if height >= 18 else 0
    if height < 15:
        gpu_full = 0
    room = height - trends - log
    if gpu_full + replica_full > room:
        half = room // 2
        gpu_lines = min(gpu_full, max(half, room - replica_full))
        replica_lines = min(replica_full, room - gpu_lines)
        gpu_lines = min(gpu_full, room - replica_lines)
    else:
        gpu_lines, replica_lines = gpu_full, replica_full
    left = room - gpu_lines - replica_lines
    return Lines(gpu_lines, replica_lines, trends, log + left)
