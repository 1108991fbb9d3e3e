"""A table whose cursor and marks belong to rows, not to positions: sorting and refreshing move neither."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip

from gpuserve_tui.cells import Cell
from gpuserve_tui.theme import Look
from gpuserve_tui.view.layout import Column, Row, choose, header_cells, row_cells
from gpuserve_tui.widgets.lines import LineView


class RowTable(LineView):
    """Header, rows, and under them a line that never scrolls away. Only lines that changed are drawn again."""

    class Highlighted(Message):
        """The cursor is on another row."""

        def __init__(self, table: RowTable, key: str | None) -> None:
            super().__init__()
            self.table = table
            self.key = key

    class Opened(Message):
        """A row was clicked twice."""

    class HeaderClicked(Message):
        """A column's header was clicked."""

        def __init__(self, column: str) -> None:
            super().__init__()
            self.column = column

    def __init__(self, look: Look, *, id: str, empty: str = "") -> None:  # noqa: A002 - Textual's name
        super().__init__(look, id=id)
        self._cursor: str | None = None
        self._rows: list[Row] = []
        self._empty = empty
        self._spec: Sequence[Column] = ()
        self._columns: list[Column] = []
        self._sort = ("", "")
        self._pinned: list[Row] = []
        self._arranged = -1
        """The width that the columns were chosen for."""

    @property
    def cursor(self) -> str | None:
        return self._cursor

    @property
    def rows(self) -> Sequence[Row]:
        """The rows, without those that are pinned below them."""
        return self._rows

    @property
    def position(self) -> int:
        """The cursor's row; -1: there is none."""
        return next((n for n, row in enumerate(self._rows) if row.key == self._cursor), -1)

    @property
    def text(self) -> str:
        """What the table says, for copying and for tests."""
        lines = [header_cells(self._columns), *(row_cells(r, self._columns, self._room) for r in self._all())]
        return "\n".join("".join(cell.text for cell in line).rstrip() for line in lines)

    @property
    def _room(self) -> int:
        return max(1, self.size.width - 1)

    def _all(self) -> list[Row]:
        return [*self._rows, *self._pinned]

    def show(
        self,
        spec: Sequence[Column],
        rows: Sequence[Row],
        *,
        pinned: Sequence[Row] = (),
        sort: str = "",
        descending: bool = False,
    ) -> None:
        """Show exactly `rows`. The cursor stays on its row; where that is gone, on its place."""
        arrow = (self.glyphs.down if descending else self.glyphs.up) if sort else ""
        whole = spec is not self._spec or (sort, arrow) != self._sort or len(rows) != len(self._rows)
        whole = whole or len(pinned) != len(self._pinned)
        before, place = self._rows, self.position
        feet, self._pinned = self._pinned, list(pinned)
        self._spec, self._sort = spec, (sort, arrow)
        self._rows = list(rows)
        if self._rows and self.position < 0:
            self._cursor = self._rows[min(max(place, 0), len(self._rows) - 1)].key
            self.post_message(self.Highlighted(self, self._cursor))
        elif not self._rows and self._cursor is not None:
            self._cursor = None
            self.post_message(self.Highlighted(self, None))
        if whole:
            self._arrange()
            return
        top = self.scroll_offset.y
        for number, (old, new) in enumerate(zip(before, self._rows, strict=True)):
            if old != new and 0 <= number - top < self.size.height:
                self._redraw(number - top + 1)
        for up, (old, new) in enumerate(zip(reversed(feet), reversed(self._pinned), strict=True), 1):
            if old != new:
                self._redraw(self.size.height - up)

    def _redraw(self, y: int) -> None:
        self.refresh(Region(0, y, self.size.width, 1))

    def _arrange(self) -> None:
        self._columns = choose(self._spec, self._room)
        self._arranged = self.size.width
        height = len(self._rows) + 1 + len(self._feet)
        self.virtual_size = Size(self.size.width, height)
        self.refresh()

    def on_resize(self) -> None:
        """Other columns fit now, if the width is another: lines that came or went are drawn anyway."""
        if self.size.width != self._arranged:
            self._arrange()
        self._reveal()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def move(self, rows: int) -> None:
        """Move the cursor, not beyond the ends."""
        if self._rows:
            self.to(self._rows[min(max(self.position + rows, 0), len(self._rows) - 1)].key)

    def to_edge(self, *, end: bool) -> None:
        if self._rows:
            self.to(self._rows[-1 if end else 0].key)

    def to(self, key: str) -> None:
        """Put the cursor on a row, and show it."""
        if key == self._cursor:
            self._reveal()  # it may have been put there before there were lines to scroll
            return
        before, top = self.position, self.scroll_offset.y
        self._cursor = key
        self._reveal()
        if self.scroll_offset.y == top:
            for row in {before, self.position} - {-1}:
                self._redraw(row - top + 1)
        else:
            self.refresh()
        self.post_message(self.Highlighted(self, key))

    @property
    def page(self) -> int:
        """Rows that are visible at once."""
        return max(1, self.size.height - 1 - len(self._feet))

    @property
    def _feet(self) -> list[Row]:
        """The rows that never scroll away; the last of them where there is room for no more."""
        return self._pinned[-max(1, self.size.height - 2) :]

    def _reveal(self) -> None:
        position, top = self.position, self.scroll_offset.y
        if position < 0:
            return
        if position < top:
            self.scroll_to(y=position, animate=False, immediate=True)
        elif position >= top + self.page:
            self.scroll_to(y=position - self.page + 1, animate=False, immediate=True)

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y == 0:
            return self.strip([Cell(" "), *header_cells(self._columns, *self._sort)], width)
        feet = self._feet
        foot = y - (self.size.height - len(feet))
        if feet and foot >= 0:
            return self.strip([Cell(" "), *row_cells(feet[foot], self._columns, self._room)], width)
        number = y - 1 + self.scroll_offset.y
        if number >= len(self._rows):
            note = self._empty if not self._rows and y == 1 else ""
            return self.strip([Cell(f" {note}", "dim")], width)
        row = self._rows[number]
        here = row.key == self._cursor
        lead = Cell(self.glyphs.cursor if here else " ", "key" if self.has_focus else "dim")
        over = self._cursor_style() if here and self.has_focus else None
        return self.strip([lead, *row_cells(row, self._columns, self._room)], width, over)

    def _cursor_style(self) -> Style:
        theme = self.app.current_theme
        return Style(bgcolor=theme.panel, bold=True)

    def on_click(self, event: events.Click) -> None:
        """A row takes the cursor; a header sorts."""
        if event.y == 0:
            column = self._column_at(event.x - 1)
            if column is not None:
                self.post_message(self.HeaderClicked(column))
            return
        number = event.y - 1 + self.scroll_offset.y
        if number < len(self._rows) and event.y < self.size.height - len(self._feet):
            self.to(self._rows[number].key)
            if event.chain == 2:
                self.post_message(self.Opened())

    def _column_at(self, x: int) -> str | None:
        start = 0
        for column in self._columns:
            if start <= x < start + column.width + 1:
                return column.key
            start += column.width + 1
        return None
