"""How many prompt tokens a replica was sent and has not computed yet, as far as the router can tell. Pure; the clock is an argument.

A stream's first byte says that its prompt is computed. An answer that comes in one piece says so only at its end, so an entry also
goes by itself when it should have been computed three times over at the pace this replica has shown.
"""

from __future__ import annotations

from dataclasses import dataclass

PACE_TOKENS_PER_S = 10_000.0
"""Until streams tell: an 8B model on one H100 computes 10k to 30k prompt tokens a second."""
PACE_MIN, PACE_MAX = 50.0, 1e6
NEWS_MIN_TOKENS = 256.0
"""A shorter queue says more about a step's overhead than about the pace."""
PATIENCE = 3.0


@dataclass(eq=False)
class Queued:
    """One prompt on its way."""

    tokens: float
    sent_at: float
    ahead: float
    """Tokens to compute until its answer begins, its own included."""
    until: float


class Prefill:
    """One replica's queue of prompts."""

    __slots__ = ("_noted", "_own", "_total", "pace")

    def __init__(self) -> None:
        self._own: dict[Queued, None] = {}
        self._noted: dict[Queued, None] = {}
        self._total = 0.0
        self.pace = PACE_TOKENS_PER_S
        """Tokens a second."""

    def sent(self, tokens: float, now: float) -> Queued:
        """A prompt of which so many tokens must be computed goes there."""
        ahead = self.tokens(now) + tokens
        entry = Queued(tokens, now, ahead, now + PATIENCE * ahead / self.pace)
        self._own[entry] = None
        self._total += tokens
        return entry

    def noted(self, tokens: float, sent_at: float, now: float) -> None:
        """Another router sent a prompt there at `sent_at`; nobody will say when its answer begins."""
        ahead = self.tokens(now) + tokens
        until = sent_at + ahead / self.pace
        if until > now:
            self._noted[Queued(tokens, sent_at, ahead, until)] = None
            self._total += tokens

    def begun(self, entry: Queued, now: float, *, streams: bool) -> None:
        """Its answer has begun, or it is over."""
        if streams and entry.ahead >= NEWS_MIN_TOKENS and now > entry.sent_at:
            pace = entry.ahead / (now - entry.sent_at)
            self.pace += (min(PACE_MAX, max(PACE_MIN, pace)) - self.pace) / 8
        self._drop(self._own, entry)

    def tokens(self, now: float) -> float:
        """Those not computed yet."""
        for entries in (self._own, self._noted):
            while entries:
                first = next(iter(entries))
                if first.until > now:
                    break
                self._drop(entries, first)
        return self._total

    def _drop(self, entries: dict[Queued, None], entry: Queued) -> None:
        if entry in entries:
            del entries[entry]
            self._total = self._total - entry.tokens if self._own or self._noted else 0.0
