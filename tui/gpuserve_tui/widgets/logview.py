"""A log as a virtual view: only visible lines are drawn, however many arrive. One log may have several views."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.cells import cell_len, chop_cells
from rich.style import Style
from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from gpuserve_tui.cells import Cell, fit
from gpuserve_tui.model.logbuffer import LEVELS, Lines, LogLine, compact, when
from gpuserve_tui.theme import Look
from gpuserve_tui.widgets.lines import LineView

_LEVEL_ROLES = {0: "dim", 1: "", 2: "warn", 3: "err"}


class LogView(LineView):
    """Shows a log. At its end it follows; anywhere else it stays where the reader is."""

    class EndWanted(Message):
        """To the end, which is not in the buffer any more."""

    def __init__(self, look: Look, lines: Lines, *, id: str, small: bool = False) -> None:  # noqa: A002 - Textual's name
        """:param small: vLLM's prefixes shortened, no cursor."""
        super().__init__(look, id=id)
        self._lines = lines
        self._following = True
        self._unseen = 0
        self._wrap = self._times = self._numbers = False
        self._find: Callable[[str], bool] | None = None
        self._small = small
        self._cursor: int | None = None
        self._parts: list[tuple[int, int]] = []
        """With wrap: (position in `shown`, part) of each row."""

    @property
    def following(self) -> bool:
        return self._following

    @property
    def unseen(self) -> int:
        """Lines that came while the reader was elsewhere."""
        return self._unseen

    @property
    def wrap(self) -> bool:
        return self._wrap

    @property
    def count(self) -> int:
        return len(self._parts) if self._wrap else len(self._lines.shown)

    @property
    def current(self) -> LogLine | None:
        """The line at the cursor; the last visible one while following."""
        row = self._cursor if self._cursor is not None else min(self.count, self._top + self.size.height) - 1
        return self._lines.line(self._lines.shown[self._position(row)]) if 0 <= row < self.count else None

    @property
    def text(self) -> str:
        """The visible lines, for copying and for tests."""
        rows = range(self._top, min(self.count, self._top + self.size.height))
        return "\n".join("".join(cell.text for cell in self._cells(row)) for row in rows)

    @property
    def _top(self) -> int:
        """The first visible row. Following, it is counted from the end: the scroll offset comes after a change of size."""
        return max(0, self.count - self.size.height) if self._following else self.scroll_offset.y

    def _position(self, row: int) -> int:
        return self._parts[row][0] if self._wrap else row

    def grown(self, trimmed: int, added: int) -> None:
        """The buffer has more lines at its end, and fewer at its beginning."""
        if self._wrap:
            self._rewrap()
        if self._following:
            self._resize()
            self.scroll_to(y=self.count, animate=False, force=True, immediate=True)
            self.refresh()
            return
        self._unseen += added
        self._shift(-trimmed)

    def prepended(self, added: int) -> None:
        """The buffer has more lines before its first."""
        if self._wrap:
            self._rewrap()
        self._shift(added)

    def _shift(self, rows: int) -> None:
        if self._cursor is not None:
            self._cursor = min(max(0, self._cursor + rows), max(0, self.count - 1))
        top = max(0, self._top + rows)
        self._resize()
        if rows:
            self.scroll_to(y=top, animate=False, force=True, immediate=True)
            self.refresh()

    def toggle_wrap(self) -> None:
        self._wrap = not self._wrap
        self.changed()

    def toggle_times(self) -> None:
        self._times = not self._times
        self.changed()

    def toggle_numbers(self) -> None:
        self._numbers = not self._numbers
        self.changed()

    def highlight(self, find: Callable[[str], bool] | None) -> None:
        """Highlight the lines that it finds; None: none."""
        self._find = find
        self.refresh()

    def changed(self) -> None:
        """The filter, the source or the way of showing has changed."""
        if self._wrap:
            self._rewrap()
        self._cursor = None if self._following else min(self._cursor or 0, max(0, self.count - 1))
        self._resize()
        if self._following:
            self.scroll_to(y=self.count, animate=False, force=True, immediate=True)
        self.refresh()

    def _resize(self) -> None:
        self.virtual_size = Size(self.size.width, self.count)

    def on_resize(self) -> None:
        self.changed()

    def follow(self, *, on: bool) -> None:
        """Follow the end, or stay."""
        if on and self._lines.detached:
            self.post_message(self.EndWanted())
            return
        top = self._top
        self._following = on
        if on:
            self._unseen, self._cursor = 0, None
        else:
            self.scroll_to(y=top, animate=False, force=True, immediate=True)
            self._cursor = max(0, min(self.count, top + self.size.height) - 1)
        self.changed()

    def move(self, rows: int) -> bool:
        """Move the cursor. True: it wanted to go beyond the first row."""
        if self._following and rows < 0:
            self.follow(on=False)
        at = self._cursor if self._cursor is not None else self.count - 1
        return self.to(at + rows)

    def to(self, row: int) -> bool:
        """Put the cursor on a row; the last one follows again. True: there is no such row before the first."""
        if self.count == 0:
            return row < 0
        if row >= self.count - 1 and not self._lines.detached:
            self.follow(on=True)
            return False
        row = min(row, self.count - 1)
        if self._following:
            self.follow(on=False)
        self._cursor = max(0, row)
        if self._cursor < self._top:
            self.scroll_to(y=self._cursor, animate=False, force=True, immediate=True)
        elif self._cursor >= self._top + self.size.height:
            self.scroll_to(y=self._cursor - self.size.height + 1, animate=False, force=True, immediate=True)
        self.refresh()
        return row < 0

    def to_edge(self, *, end: bool) -> bool:
        """To the end, which follows, or to the first line. True: it was there already."""
        if end:
            self.follow(on=True)
            return False
        already = self._cursor == 0
        self.to(0)
        return already

    def match(self, *, forward: bool) -> bool:
        """To the next line that holds what is searched. False: there is none in that direction."""
        if self._find is None:
            return False
        at = self._cursor if self._cursor is not None else self.count
        rows = range(at + 1, self.count) if forward else range(min(at, self.count) - 1, -1, -1)
        for row in rows:
            if self._find(self._lines.line(self._lines.shown[self._position(row)]).text):
                if self._following:
                    self.follow(on=False)
                self._cursor = row
                middle = max(0, row - self.size.height // 2)
                self.scroll_to(y=middle, animate=False, force=True, immediate=True)
                self.refresh()
                return True
        return False

    def _rewrap(self) -> None:
        width = max(8, self.size.width)
        parts: list[tuple[int, int]] = []
        for position, number in enumerate(self._lines.shown):
            line = self._lines.line(number)
            length = len(line.text) if line.text.isascii() else cell_len(line.text)
            length += len(self._lead(line, position))
            parts += [(position, part) for part in range(max(1, -(-length // width)))]
        self._parts = parts

    def _lead(self, line: LogLine, position: int) -> str:
        lead = f"{position + 1:>6} " if self._numbers else ""
        if self._times:
            stamp = time.strftime("%H:%M:%S", time.localtime(line.at)) if line.at else when(line)
            lead += f"{stamp:8} "
        if self._lines.merged:
            lead += f"{fit(line.source or 'daemon', 14)} "
        return lead

    def _cells(self, row: int) -> list[Cell]:
        position = self._position(row)
        line = self._lines.line(self._lines.shown[position])
        if line.gap:
            return [Cell(line.text, "warn")]
        text = compact(line) if self._small else line.text
        role = _LEVEL_ROLES.get(line.level if line.level is not None else 1, "")
        if self._find is not None and self._find(line.text):
            role = "match"
        lead = self._lead(line, position)
        if self._wrap:
            width = max(8, self.size.width)
            pieces = chop_cells(lead + text, width)
            part = self._parts[row][1]
            return [Cell(pieces[part] if part < len(pieces) else "", role)]
        word = LEVELS[line.level] if line.level is not None else ""
        if role in {"warn", "err"}:
            return [Cell(lead, "dim"), *_level_word(text, word, role)]
        return [Cell(lead, "dim"), Cell(text, role)]

    def render_line(self, y: int) -> Strip:
        row = y + self._top
        if row >= self.count:
            return self.strip([], self.size.width)
        over = None
        if row == self._cursor and not self._small:
            over = Style(bgcolor=self.app.current_theme.panel)
        return self.strip(self._cells(row), self.size.width, over)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel moves the cursor, so that following stops."""
        event.stop()
        self.move(-3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.move(3)


def _level_word(text: str, word: str, role: str) -> list[Cell]:
    """Colour on the level's word alone: a line about errors is no error."""
    at = text.find(word[:4])
    if at < 0 or not word:
        return [Cell(text, role)]
    end = at + len(word) if text.startswith(word, at) else at + 4
    return [Cell(text[:at]), Cell(text[at:end], role), Cell(text[end:])]
