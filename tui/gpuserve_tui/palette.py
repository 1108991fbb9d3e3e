"""The command palette: every possible action, and acts on each replica by name (`restart llama-3`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from rich.text import Text
from textual.command import DiscoveryHit, Hit, Hits, Provider

from gpuserve_tui.actions import ACTIONS, Situation, key_name, unavailable
from gpuserve_tui.view.cells import plain

if TYPE_CHECKING:
    from gpuserve_tui.app import FleetApp

_HIDDEN = {"interrupt", "palette", "up", "down"}


class FleetCommands(Provider):
    """What cannot be done now is not offered."""

    @property
    def _app(self) -> FleetApp:
        return cast("FleetApp", self.app)

    def commands(self) -> Iterator[tuple[str, str, Callable[[], None]]]:
        """Name, help, and what to run."""
        app = self._app
        now = app.situation
        for action in ACTIONS:
            if action.id not in _HIDDEN and not unavailable(action, now):
                keys = ", ".join(key_name(key) for key in app.settings.keys_of(action.id))
                yield action.label, f"{action.help} ({keys})", partial(app.action_run, action.id)
        yield from self._gpus()
        for replica in app.status.replicas if app.status else []:
            for action in ACTIONS:
                one = Situation(
                    "overview", now.live, now.why_not_live, now.read_only, (replica,), busy=now.busy
                )
                if action.verb is not None and not unavailable(action, one):
                    name = f"{action.id} {plain(replica.id)}"
                    yield name, action.help, partial(app.acting.replicas, action, (replica,))
            yield f"logs {plain(replica.id)}", "its log", partial(app.moving.logs_of, replica.id)
            yield (
                f"detail {plain(replica.id)}",
                "everything about it",
                partial(app.desktop.detail_of, replica.id),
            )

    def _gpus(self) -> Iterator[tuple[str, str, Callable[[], None]]]:
        app = self._app
        now = app.situation
        for gpu in app.status.gpus if app.status else []:
            one = Situation("gpus", now.live, now.why_not_live, now.read_only, gpu=gpu)
            for action in (each for each in ACTIONS if each.needs == "gpu" and not unavailable(each, one)):
                yield f"{action.id} GPU {gpu.index}", action.help, partial(app.acting.gpu, action, gpu)

    async def discover(self) -> Hits:
        """Before anything is typed."""
        for name, text, run in self.commands():
            yield DiscoveryHit(Text(name), run, text=name, help=Text(text).plain)

    async def search(self, query: str) -> Hits:
        """What matches."""
        matcher = self.matcher(query)
        for name, text, run in self.commands():
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, Text(name), run, text=name, help=text)
