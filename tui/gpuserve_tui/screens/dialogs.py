"""What asks or tells beside the screens: a question before a change, a text to read, a line to type."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.events import Resize
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import Button, Input, Static

from gpuserve_tui.cells import Cell, plain
from gpuserve_tui.model.changes import Question
from gpuserve_tui.theme import Look
from gpuserve_tui.widgets.lines import TextLines

DEAF_S = 0.25
"""A key that was on its way when the dialog opened must not answer it."""


class OneSize(Screen[Any]):
    """A screen that is laid out for the size that the app has now, and no other.

    After a layout that changed its size, Textual's screen posts itself that size. Two different ones in its queue (a terminal that says
    0x0, TERM=dumb, a second change while the first is laid out) would answer each other for ever, before any key.
    """

    def post_message(self, message: Message) -> bool:
        if isinstance(message, Resize) and message.size != self.app.size:
            return False
        return super().post_message(message)


class Confirm(OneSize, ModalScreen[str | None]):
    """A question. Answers `accept`, `drain`, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,n", "answer('')", "Cancel"),
        ("y", "answer('accept')", "Accept"),
        ("d", "answer('drain')", "Drain instead"),
        ("left,shift+tab", "app.focus_previous", ""),
        ("right,tab", "app.focus_next", ""),
    ]

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question
        self._opened = time.monotonic()

    def compose(self) -> ComposeResult:
        asked = self.question
        with Vertical(id="dialog"):
            yield Static(Text(plain(asked.title), style="bold"), id="dialog-title")
            yield Static(Text("\n".join(plain(line) for line in asked.lines)), id="dialog-text")
            if asked.typed is not None:
                yield Static(Text(f"Type {plain(asked.typed)} to go on:"), id="dialog-typed")
                yield Input(id="typed", select_on_focus=False)
            with Horizontal(id="buttons"):
                yield Button(Text("Cancel (esc)"), id="cancel", compact=True)
                if asked.drain_instead:
                    yield Button(Text("Drain instead (d)"), id="drain", compact=True)
                yield Button(
                    Text(f"{asked.accept} (y)" if asked.typed is None else asked.accept), id="accept",
                    disabled=asked.typed is not None, compact=True,
                )  # fmt: skip

    def on_mount(self) -> None:
        """Enter means no."""
        self._opened = time.monotonic()
        self.query_one("#cancel", Button).focus()

    @property
    def deaf(self) -> bool:
        return time.monotonic() - self._opened < DEAF_S

    def on_input_changed(self, event: Input.Changed) -> None:
        """The right name makes it possible."""
        self.query_one("#accept", Button).disabled = event.value != self.question.typed

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in the field accepts the right name, and nothing else."""
        if event.value == self.question.typed:
            self.action_answer("accept")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        answer = event.button.id or ""
        self.action_answer("" if answer == "cancel" else answer)

    def action_answer(self, answer: str) -> None:
        """Close with an answer, if that is one of the possible ones."""
        possible = answer != "accept" or not self.query_one("#accept", Button).disabled
        if self.deaf or not possible or (answer == "drain" and not self.question.drain_instead):
            return
        self.dismiss(answer or None)


class Reading(OneSize, ModalScreen[None]):
    """Lines to scroll through."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,q,question_mark,enter", "close", "Close"),
        ("j,down", "move(1)", "Down"),
        ("k,up", "move(-1)", "Up"),
        ("pagedown,ctrl+d,space", "page(1)", "Page down"),
        ("pageup,ctrl+u", "page(-1)", "Page up"),
        ("g,home", "edge(0)", "Top"),
        ("G,end", "edge(1)", "Bottom"),
        ("y,Y", "copy", "Copy"),
    ]

    def __init__(self, look: Look, title: str, lines: Sequence[Sequence[Cell] | str]) -> None:
        super().__init__()
        self._heading = title
        self._lines = list(lines)
        self.body = TextLines(look, id="reading-body")

    def compose(self) -> ComposeResult:
        with Vertical(id="reading"):
            yield Static(Text(plain(self._heading), style="bold"), id="reading-title")
            yield self.body
            yield Static(Text("esc close   j k scroll   y copy", style="dim"), id="reading-foot")

    def on_mount(self) -> None:
        self.body.show(self._lines)
        self.body.focus()

    def action_close(self) -> None:
        self.dismiss()

    def action_move(self, lines: int) -> None:
        self.body.move(lines)

    def action_page(self, pages: int) -> None:
        self.body.move(pages * max(1, self.body.size.height - 1))

    def action_edge(self, end: int) -> None:
        self.body.to_edge(end=bool(end))

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.body.text)
        self.app.notify(
            f"{len(self.body.text.encode()):,} bytes sent to the terminal's clipboard", markup=False
        )


class Ask(OneSize, ModalScreen[str | None]):
    """One line to type; None: cancelled."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "cancel", "Cancel")]

    def __init__(self, title: str, value: str, hint: str = "") -> None:
        super().__init__()
        self._heading, self._value, self._hint = title, value, hint

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(Text(plain(self._heading), style="bold"), id="dialog-title")
            yield Input(self._value, id="answer", select_on_focus=False)
            yield Static(Text(plain(self._hint), style="dim"), id="dialog-text")

    def on_mount(self) -> None:
        self.query_one("#answer", Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_cancel(self) -> None:
        self.dismiss(None)


class Prompt(Input):
    """The line at the foot of the screen: a filter, or what to search for."""

    def __init__(self) -> None:
        super().__init__(id="prompt", compact=True)
        self._purpose: str | None = None

    @property
    def purpose(self) -> str | None:
        """What is asked for; None: nothing, and it is not shown."""
        return self._purpose

    def allow_focus(self) -> bool:
        return self._purpose is not None and super().allow_focus()

    def ask(self, purpose: str, value: str, hint: str) -> None:
        """Show it, ready to type."""
        self._purpose = purpose
        self.value = value
        self.placeholder = f"{purpose}: {hint}"
        self.styles.display = "block"
        self.focus()

    def close(self) -> None:
        self._purpose = None
        self.styles.display = "none"
