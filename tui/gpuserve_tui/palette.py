"""The command palette: every possible action, and what screens offer by name (`restart llama-3`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, cast

from rich.text import Text
from textual.command import DiscoveryHit, Hit, Hits, Provider


class Offer(NamedTuple):
    """One line of the palette, and what it sets going."""

    name: str
    help: str
    run: Callable[[], None]


class Offering(Protocol):
    """What the palette asks of the app."""

    def offers(self) -> Iterator[Offer]:
        """Everything that can be done now; what cannot is not offered."""


class FleetCommands(Provider):
    """Offers what the app does."""

    def _offers(self) -> Iterator[Offer]:
        return cast("Offering", self.app).offers()

    async def discover(self) -> Hits:
        for name, text, run in self._offers():
            yield DiscoveryHit(Text(name), run, text=name, help=Text(text).plain)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for name, text, run in self._offers():
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, Text(name), run, text=name, help=text)
