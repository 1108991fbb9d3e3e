"""Which routers there are: those that take connections, those that come, those that go, and what is left of the gone."""

from __future__ import annotations

import msgspec

from gpuserved.api.routing import RouterStats
from gpuserved.routers.figures import added, of_the_past
from gpuserved.routers.link import RouterLink


class Generations:
    """Their links and, of all together, the figures."""

    def __init__(self, present: list[RouterLink]) -> None:
        self.present = present
        """Those that take connections."""
        self.fresh: list[RouterLink] = []
        """Of the next generation, until they serve."""
        self.former: list[RouterLink] = []
        """Of earlier generations, until they have ended."""
        self._past: RouterStats | None = None
        """Counters of those that have ended."""

    @property
    def links(self) -> list[RouterLink]:
        """Those that serve, then those that come and go."""
        return [*self.present, *self.fresh, *self.former]

    @property
    def newest(self) -> int:
        """The number of the latest generation."""
        return max(link.place.generation for link in self.links)

    @property
    def stats(self) -> RouterStats | None:
        """All figures together; None while a router does not answer: a sum without it would be a lie."""
        answered = [link.stats for link in self.present if link.stats is not None]
        if not answered or len(answered) != len(self.present):
            return None
        others = [link.stats for link in (*self.fresh, *self.former) if link.stats is not None]
        if self._past is not None:
            others.append(msgspec.structs.replace(self._past, table_generation=answered[0].table_generation))
        return added([*answered, *others])

    def in_flight(self, replica: str, generation: int) -> int | None:
        """Requests of one start in all routers, those that are being replaced too, as of the table pushed last; None until each
        has said so.
        """
        counts = [link.in_flight(replica, generation) for link in self.links]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def promote(self) -> list[RouterLink]:
        """The next generation is the present one; returns those that were, which go."""
        before, self.present, self.fresh = self.present, self.fresh, []
        self.former += before
        return before

    def back(self, count: int) -> list[RouterLink]:
        """The latest generation that was replaced is the present one again, where `count` of its routers still take connections and
        the present one does not serve; returns those that did not. Empty: nothing has changed.
        """
        latest = max((link.place.generation for link in self.former), default=0)
        able = [
            link
            for link in self.former
            if link.place.generation == latest and link.stats is not None and not link.stats.draining
        ]
        if self.present[0].serves or len(able) != count:
            return []
        broken, self.present = self.present, able
        self.former = [link for link in self.former if link not in able]
        return broken

    def gone(self, link: RouterLink) -> None:
        """One that was replaced has ended: its counters stay."""
        self.former.remove(link)
        if link.last_stats is not None:
            past = of_the_past(link.last_stats)
            self._past = past if self._past is None else added([self._past, past])
