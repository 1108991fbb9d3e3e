"""What the feed tells, taken into the app: connection, figures, events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

from gpuserve_tui.link import Arrived, Attached, Feed, Lost, Told

if TYPE_CHECKING:
    from gpuserve_tui.app import FleetApp


@dataclass
class News(Message):
    """The feed has told something; it comes from another thread."""

    told: Told


class Intake:
    """Belongs to the app."""

    def __init__(self, app: FleetApp, feed: Feed) -> None:
        self._app = app
        self._feed = feed

    def begin(self) -> None:
        """Listen, from what was told before on."""
        self._feed.start()
        self._feed.listen(lambda told: self._app.post(News(told)))

    def close(self) -> None:
        """Listen no longer."""
        self._feed.close()

    def refresh(self) -> None:
        """Ask for everything now."""
        self._feed.refresh()

    def take(self, told: Told) -> None:
        """One thing that was told."""
        if isinstance(told, Attached):
            self._attached(told)
        elif isinstance(told, Lost):
            self._lost(told)
        else:
            assert isinstance(told, Arrived)
            self._arrived()

    def _attached(self, told: Attached) -> None:
        """Connected. The daemon says whether this user may change anything."""
        app = self._app
        app.lost = None
        app.connected = True
        app.board.attached()
        if not app.read_only and not told.version.may_operate:
            app.read_only = "this user may only look"
        app.fetch_profiles()

    def _arrived(self) -> None:
        """New data; it is drawn at the pace of the screen."""
        app = self._app
        inbox = self._feed.take()
        app.board.noticed(inbox.past, read=True)
        app.board.noticed(inbox.events, read=app.pane == "events")
        if inbox.status is not None:
            app.lost = None
            app.heard_at = app.monotonic()
            if inbox.fresh:
                app.board.arrived(inbox.status)
            else:
                app.board.known(inbox.status)
        app.drawing.wanted(fresh=inbox.fresh)

    def _lost(self, told: Lost) -> None:
        """The data on the screen stays, marked as old."""
        self._app.lost = told
        self._app.connected = False
        self._app.draw()
