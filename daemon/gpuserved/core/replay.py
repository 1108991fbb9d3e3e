"""When a request whose replica failed may be sent to another one. Pure; DESIGN.md "Data plane" is the source."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

BODY_MAX_BYTES = 8 * 1024 * 1024
"""Larger bodies are not sent twice."""
DEATHS_MAX = 3
"""One request may be in flight at no more deaths than this; then it is blocked."""
BUDGET_RATIO = 0.1
BUDGET_MIN_PER_S = 3.0
BUDGET_BURST = 30.0
"""Ten seconds of the minimum: what one bad moment may use up."""


class Failure(str, Enum):
    """How one try ended without an answer for the client."""

    CONNECT = "connect"
    """Nothing was sent: no connection."""
    DEATH = "death"
    """Sent, and the replica's death is proven."""
    EOF = "eof"
    """Sent, the connection ended, the replica lives."""
    SERVER_ERROR = "5xx"
    """Answered 5xx, or a stream whose first event is an error, by a replica that lives."""


@dataclass(frozen=True)
class Decision:
    """What to do with the request."""

    replay: bool
    draws: bool = False
    """Only if the retry budget has room."""
    serial: bool = False
    """Alone among its model's suspects, which bounds it: it draws on no budget, else the budget would fail its neighbours."""
    why: str = ""


def decide(
    failure: Failure,
    *,
    begun: bool,
    body_bytes: int,
    stored: bool,
    deaths: int,
    other_ready: bool,
    time_left_s: float,
) -> Decision:
    """May this request be sent again?

    :param begun: the client has seen a byte of an answer.
    :param stored: the engine may keep a result of it (background or stored response).
    :param deaths: proven deaths this request was in flight at, this one included.
    :param other_ready: a replica that has not failed this request is in rotation.
    """
    if begun:
        return Decision(False, why="the answer has begun")
    if time_left_s <= 0:
        return Decision(False, why="the deadline has passed")
    if failure is Failure.CONNECT:
        return Decision(True, serial=deaths > 1)
    if stored:
        return Decision(False, why="the engine may have stored a result")
    if body_bytes > BODY_MAX_BYTES:
        return Decision(False, why="the body is too large to be sent twice")
    if failure is Failure.DEATH:
        if deaths >= DEATHS_MAX:
            return Decision(False, why=f"{deaths} replicas died while they served it")
        return Decision(True, serial=deaths > 1)
    if not other_ready:
        return Decision(False, why="no other replica is ready")
    return Decision(True, draws=True, serial=deaths > 1)


class RetryBudget:
    """Tokens for replays: a tenth of the requests, never less than three a second."""

    __slots__ = ("_at", "tokens")

    def __init__(self, now: float) -> None:
        self.tokens = BUDGET_BURST
        self._at = now

    def _refill(self, now: float, more: float) -> None:
        passed_s = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self.tokens = min(BUDGET_BURST, self.tokens + passed_s * BUDGET_MIN_PER_S + more)

    def deposit(self, now: float) -> None:
        """One more request came in at `now` (monotonic seconds)."""
        self._refill(now, BUDGET_RATIO)

    def withdraw(self, now: float) -> bool:
        """Take one replay; False: the budget is spent."""
        self._refill(now, 0.0)
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
