"""What there is room for: the columns of a table in a width, the parts of the Overview in a height."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len

from gpuserve_tui.cells import Cell, fit


@dataclass(frozen=True)
class Column:
    """One column. `rank`: the highest ranks go first where there is no room; 0 always stays."""

    key: str
    label: str
    width: int
    right: bool = False
    rank: int = 0
    grow: int = 0
    """Cells it may take beyond `width`, from what is left over."""


@dataclass(frozen=True)
class Row:
    """One row of a table. `tail` stands in place of the columns from `tail_from` on."""

    key: str
    cells: dict[str, tuple[Cell, ...]]
    tail: Cell | None = None
    tail_from: str = ""
    tail_to: str = ""
    """The first column after the tail; empty: the tail goes to the end."""


def choose(columns: Sequence[Column], room: int) -> list[Column]:
    """The columns that fit into `room` cells with one blank between them, grown where they may."""
    kept = list(columns)
    while len(kept) > 1 and _total(kept) > room and max(column.rank for column in kept) > 0:
        worst = max(kept, key=lambda column: column.rank)
        kept.remove(worst)
    left = max(0, room - _total(kept))
    grown = []
    for column in kept:
        more = min(left, column.grow)
        left -= more
        grown.append(Column(column.key, column.label, column.width + more, column.right, column.rank))
    return grown


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width + 1 for column in columns) - 1


def header_cells(columns: Sequence[Column], sorted_by: str = "", arrow: str = "") -> list[Cell]:
    """The header's pieces; the sorted column carries an arrow."""
    pieces: list[Cell] = []
    for column in columns:
        label = f"{column.label}{arrow}" if column.key == sorted_by else column.label
        pieces.append(Cell(fit(label, column.width, right=column.right) + " ", "head"))
    return pieces


def row_cells(row: Row, columns: Sequence[Column], width: int) -> list[Cell]:
    """A row's pieces, in exactly the columns' widths."""
    pieces: list[Cell] = []
    hidden, used = False, 0
    for position, column in enumerate(columns):
        if row.tail is not None and column.key == row.tail_from and not hidden:
            hidden = True
            room = width - used
            later = [c for c in columns[position:] if c.key == row.tail_to]
            if later:
                start = columns.index(later[0])
                room = sum(c.width + 1 for c in columns[position:start])
            pieces.append(Cell(fit(row.tail.text, max(0, room - 1)) + " ", row.tail.role))
            used += room
        if hidden and column.key == row.tail_to:
            hidden = False
        if hidden:
            continue
        pieces += _column(row.cells.get(column.key, ()), column)
        used += column.width + 1
    return pieces


def _column(cells: tuple[Cell, ...], column: Column) -> list[Cell]:
    if len(cells) == 1:
        return [Cell(fit(cells[0].text, column.width, right=column.right) + " ", cells[0].role)]
    text = "".join(cell.text for cell in cells)
    missing = column.width - cell_len(text)
    pieces = list(cells)
    if missing > 0:
        blank = Cell(" " * missing)
        pieces = [blank, *pieces] if column.right else [*pieces, blank]
    return [*pieces, Cell(" ")]


WIDE = 100
"""From this many columns on there are rulers, bars and every column."""


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
