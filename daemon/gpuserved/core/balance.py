"""Which replicas are in rotation. Pure: the router owns counts and clocks. Which of them gets a request: `policy/`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

SERVER_ERRORS_MAX = 5
"""5xx answers in a row that take a living replica out of rotation (Envoy's consecutive_5xx default)."""


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


@dataclass(frozen=True)
class RotationRow:
    """The machine's memory of one replica."""

    state: Rotation = Rotation.IN
    server_errors: int = 0
    """5xx answers in a row."""


def rotate(row: RotationRow, signal: Signal, *, last: bool) -> RotationRow:
    """The row after `signal`.

    :param last: no other replica of some model it serves could take over. Such a replica is ejected only when dead:
        a doubtful answer is better than none.
    """
    if signal is Signal.DEAD:
        return RotationRow(Rotation.EJECTED)
    if signal is Signal.SUCCESS:
        state = Rotation.IN if row.state is Rotation.PROBATION else row.state
        return RotationRow(state)
    if signal is Signal.PROBE_OK:
        return RotationRow(Rotation.PROBATION) if row.state is Rotation.EJECTED else row
    errors = row.server_errors + 1 if signal is Signal.SERVER_ERROR else row.server_errors
    enough = (
        signal is not Signal.SERVER_ERROR or row.state is Rotation.PROBATION or errors >= SERVER_ERRORS_MAX
    )
    if row.state is Rotation.EJECTED or (enough and not last):
        return RotationRow(Rotation.EJECTED)
    return RotationRow(row.state, errors)
