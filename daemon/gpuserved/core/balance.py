"""Which replicas are in rotation. Pure: the router owns counts and clocks. Which of them gets a request: `policy/`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

SERVER_ERRORS_MAX = 5
"""5xx answers in a row that take a living replica out of rotation (Envoy's consecutive_5xx default)."""

EJECTION_S = 5.0
EJECTION_MAX_S = 300.0
"""A living replica stays out for 5 s, and n times that the nth time, up to Envoy's max_ejection_time. Envoy's base of 30 s is
meant for fleets in which one host more or less does not matter.
"""
CALM_S = 60.0
"""So long in rotation without an ejection, and one ejection is forgotten."""


class Rotation(str, Enum):
    """May a replica be chosen?"""

    IN = "in"
    PROBATION = "probation"
    """Back after an ejection: one request at a time until one succeeds."""
    EJECTED = "ejected"
    OUT = "out"
    """The supervisor does not admit it; the machine below never leads here."""


class Signal(str, Enum):
    """What the router saw of a replica."""

    DEAD = "dead"
    """Proven: the shim said so, nobody listens on its socket, or its own health check answers 503."""
    UNREACHABLE = "unreachable"
    """No connection within the time allowed, but no proof of death."""
    CUT = "cut"
    """It closed a connection without an answer, or in the middle of one."""
    SERVER_ERROR = "server_error"
    PROBE_OK = "probe_ok"
    SUCCESS = "success"
    CALM = "calm"
    """`CALM_S` have passed without a failure that ejects."""


@dataclass(frozen=True)
class RotationRow:
    """The machine's memory of one replica."""

    state: Rotation = Rotation.IN
    server_errors: int = 0
    """5xx answers in a row."""
    ejections: int = 0
    """How often it was ejected alive, less what calm has made up for."""
    dead: bool = False
    """Ejected with proof of death; false in any other state."""

    @property
    def ejection_s(self) -> float:
        """How long it stays ejected before a probe may bring it back."""
        return 0.0 if self.dead else min(EJECTION_S * self.ejections, EJECTION_MAX_S)

    @property
    def doubtful(self) -> bool:
        """Ejected, but not proven dead: better than nothing where nothing else is left (panic rule)."""
        return self.state is Rotation.EJECTED and not self.dead


def rotate(row: RotationRow, signal: Signal, *, last: bool) -> RotationRow:
    """The row after `signal`.

    :param last: no other replica of some model it serves could take over. Such a replica is ejected only when dead:
        a doubtful answer is better than none.
    """
    if signal is Signal.DEAD:
        return RotationRow(Rotation.EJECTED, ejections=row.ejections, dead=True)
    if signal is Signal.SUCCESS:
        state = Rotation.IN if row.state is Rotation.PROBATION else row.state
        return replace(row, state=state, server_errors=0)
    if signal is Signal.PROBE_OK:
        if row.state is not Rotation.EJECTED:
            return row
        return RotationRow(Rotation.PROBATION, ejections=row.ejections)
    if signal is Signal.CALM:
        return replace(row, ejections=max(0, row.ejections - 1)) if row.state is Rotation.IN else row
    errors = row.server_errors + 1 if signal is Signal.SERVER_ERROR else row.server_errors
    enough = (
        signal is not Signal.SERVER_ERROR or row.state is Rotation.PROBATION or errors >= SERVER_ERRORS_MAX
    )
    if row.state is Rotation.EJECTED:
        return row
    if enough and not last:
        return RotationRow(Rotation.EJECTED, ejections=row.ejections + 1)
    return replace(row, server_errors=errors)
