"""The screen: what runs, on which GPUs, and why something does not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Static

from gpuserve_tui import format as fmt
from gpuserve_tui.feed import Arrived, Feed, Lost, Source
from gpuserve_tui.widgets import GpuTable, ReplicaTable, headline, why
from gpuserved.api.types import ReplicaView, Status

SILENT_S = 5.0
"""A connected daemon sends figures every second or two; after this long without any the data is called old."""
SCREENSHOT_WAIT_S = 15.0


class Help(ModalScreen[None]):
    """The keys, from the bindings themselves."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,question_mark,q", "dismiss_help", "Close")]

    def compose(self) -> ComposeResult:
        """One box."""
        rows = [f"{', '.join(keys):<14} {what}" for what, keys in self._keys().items()]
        text = "\n".join(["Keys", "", *rows, "", "Leaving never stops the daemon: gpuserve down does."])
        with VerticalScroll(id="help"):
            yield Static(text, markup=False)

    def _keys(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for binding in self.app._bindings:  # noqa: SLF001 - Textual has no public list of an app's own keys
            if binding[1].show:
                found.setdefault(binding[1].description, []).append(self.app.get_key_display(binding[1]))
        found["Move"] = ["↑", "↓", "PgUp", "PgDn"]
        found["Next table"] = ["Tab"]
        return found

    def action_dismiss_help(self) -> None:
        """Back to the screen."""
        self.dismiss()


class FleetApp(App[int]):
    """One daemon on one screen. Its return value is the exit code."""

    TITLE = "gpuserve"
    ENABLE_COMMAND_PALETTE = False
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "detach", "Detach"),
        ("r", "refresh", "Refresh"),
        ("question_mark", "help", "Help"),
    ]

    def __init__(self, source: Source, *, read_only: bool = False, screenshot: Path | None = None) -> None:
        super().__init__()
        self.status: Status | None = None
        self._read_only = read_only
        self._picture = screenshot
        self._feed = Feed(source, self.post_message)
        self._heard_at = time.monotonic()
        self._lost: Lost | None = None
        self._notice = ""

    def compose(self) -> ComposeResult:
        """Headline, banner, the two tables, one line about the selected replica, keys."""
        yield Static(id="headline", markup=False)
        yield Static(id="banner", markup=False)
        yield Static("GPUs", classes="title", markup=False)
        yield Static("No GPU is visible to the daemon.", id="no-gpus", markup=False)
        yield GpuTable()
        yield Static("Replicas", classes="title", markup=False)
        yield ReplicaTable()
        yield Static(id="detail", markup=False)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Start listening."""
        self._draw()
        self.query_one(ReplicaTable).focus()
        self._feed.start()
        self.set_interval(1.0, self._draw_connection)
        if self._picture:
            self.set_timer(SCREENSHOT_WAIT_S, self._give_up)

    def on_unmount(self) -> None:
        """Nothing may be posted to a screen that is gone."""
        self._feed.close()

    def on_arrived(self, message: Arrived) -> None:
        """New data."""
        self.status = message.status
        self._heard_at = time.monotonic()
        self._lost = None
        self._notice = message.notice or self._notice
        self._draw()
        if self._picture:
            self.call_after_refresh(self._save_screenshot)

    def on_lost(self, message: Lost) -> None:
        """The data on the screen stays, marked as old."""
        self._lost = message
        self._draw_connection()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """The line below the tables follows the cursor."""
        if event.data_table.id == "replicas":
            self._draw_detail()

    def action_detach(self) -> None:
        """Leave; the daemon goes on."""
        self.exit(0)

    def action_refresh(self) -> None:
        """Ask for the whole status now."""
        self._feed.refresh()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def _draw(self) -> None:
        status = self.status
        main = self.screen_stack[0]
        gpus = status.gpus if status else []
        table = main.query_one(GpuTable)
        table.show(gpus)
        table.display = bool(gpus)
        main.query_one("#no-gpus").display = status is not None and not gpus
        main.query_one(ReplicaTable).show(status.replicas if status else [])
        main.query_one("#headline", Static).update(headline(status, read_only=self._read_only))
        self._draw_connection()
        self._draw_detail()

    def _draw_connection(self) -> None:
        main = self.screen_stack[0]
        banner = main.query_one("#banner", Static)
        text = self._connection(time.monotonic() - self._heard_at)
        banner.update(Text(text, no_wrap=True, overflow="ellipsis"))
        banner.display = bool(text)
        main.set_class(bool(text), "old")

    def _connection(self, since_s: float) -> str:
        """Why the data may be old; empty where it is not."""
        if self._lost:
            return f"disconnected, data is {fmt.age(since_s)} old: {fmt.plain(self._lost.why)}; trying again"
        if self.status and since_s > SILENT_S:
            return f"connected, but silent for {fmt.age(since_s)}"
        degraded = self.status.supervisor.degraded if self.status else None
        return f"degraded: {fmt.plain(degraded)}" if degraded else ""

    def _draw_detail(self) -> None:
        replica = self._selected()
        text = fmt.plain(self._notice)
        if replica:
            started = fmt.age(time.time() - replica.started_at) if replica.started_at else fmt.UNKNOWN
            facts = f"{replica.id}  {replica.model} on {replica.engine}, pid {replica.pid or fmt.UNKNOWN}, up {started}"
            text = fmt.plain("  ".join(part for part in (facts, why(replica)) if part))
        line = Text(text, no_wrap=True, overflow="ellipsis")
        self.screen_stack[0].query_one("#detail", Static).update(line)

    def _selected(self) -> ReplicaView | None:
        row = self.screen_stack[0].query_one(ReplicaTable).cursor_row
        replicas = self.status.replicas if self.status else []
        return replicas[row] if 0 <= row < len(replicas) else None

    def _save_screenshot(self) -> None:
        if self._picture:
            self._picture.write_text(self.export_screenshot(title="gpuserve-tui"), encoding="utf-8")
            self.exit(0)

    def _give_up(self) -> None:
        self.exit(
            3,
            message=f"no data from the daemon within {SCREENSHOT_WAIT_S:.0f} s; is it running? gpuserve status",
        )
