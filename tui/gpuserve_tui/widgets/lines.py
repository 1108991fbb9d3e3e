"""Widgets that draw lines of cells themselves: what is not visible costs nothing, and no text is ever markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Static

from gpuserve_tui.cells import Cell, Glyphs, plain
from gpuserve_tui.theme import Look


class LineView(ScrollView, can_focus=True, inherit_bindings=False):
    """A scrollable area of lines. It has no keys of its own."""

    DEFAULT_CSS = """
    LineView { scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0; overflow-x: hidden; }
    """

    def __init__(self, look: Look, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._look = look

    @property
    def glyphs(self) -> Glyphs:
        return self._look.glyphs

    def strip(self, cells: Iterable[Cell], width: int, over: Style | None = None) -> Strip:
        """A line of exactly `width` cells.

        :param over: laid over every cell's own style.
        """
        roles = self._look.roles
        empty = roles.get("", Style())
        segments = [
            Segment(text, roles.get(role, empty) + over if over else roles.get(role, empty))
            for text, role in cells
            if text
        ]
        strip = Strip(segments).adjust_cell_length(width, over or empty)
        return strip.apply_style(self.rich_style)


def styled(cells: Iterable[Cell], roles: Mapping[str, Style]) -> Text:
    """Cells as one line for a Static."""
    line = Text(no_wrap=True, overflow="crop", end="")
    for text, role in cells:
        line.append(text, style=roles.get(role, ""))
    return line


class Line(Static):
    """One line of cells. The same again costs nothing, and another text moves no widget."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id, classes=classes, markup=False)
        self._said: tuple[list[Cell], Mapping[str, Style]] | None = None

    def say(self, cells: Sequence[Cell], roles: Mapping[str, Style]) -> None:
        said = list(cells), roles
        if said != self._said:
            self._said = said
            self.update(styled(cells, roles), layout=False)


class TextLines(LineView):
    """Lines that are given once: details, a diff, help."""

    def __init__(self, look: Look, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(look, id=id)
        self._lines: list[list[Cell]] = []

    @property
    def text(self) -> str:
        """All of it, for copying and for tests."""
        return "\n".join("".join(cell.text for cell in line).rstrip() for line in self._lines)

    def show(self, lines: Sequence[Sequence[Cell] | str]) -> None:
        """Show `lines`, and nothing else."""
        self._lines = [[Cell(plain(line))] if isinstance(line, str) else list(line) for line in lines]
        self.virtual_size = Size(self.size.width, len(self._lines))
        self.refresh()

    def on_resize(self) -> None:
        """The height is that of the lines, whatever the width."""
        self.virtual_size = Size(self.size.width, len(self._lines))

    def render_line(self, y: int) -> Strip:
        number = y + self.scroll_offset.y
        line = self._lines[number] if number < len(self._lines) else []
        return self.strip(line, self.size.width)

    def move(self, lines: int) -> None:
        self.scroll_to(y=self.scroll_offset.y + lines, animate=False, immediate=True)

    def to_edge(self, *, end: bool) -> None:
        """Scroll to the first or the last line."""
        self.scroll_to(y=len(self._lines) if end else 0, animate=False, immediate=True)
