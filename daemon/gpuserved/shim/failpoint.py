"""Failpoints: named steps at which a test has this very process killed, as a power cut would. In use they cost a look-up in an
empty dictionary.

GPUSERVE_FAILPOINT holds `NAME` or `NAME@N` (the Nth time that the step is reached), several with commas between. The names are in
`gpuserved.host.failpoint`, which also refuses one that does not exist.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "GPUSERVE_FAILPOINT"

_left: dict[str, int] = {}
"""How often each armed step may still be reached before the process dies at it, that time included."""


def parse(text: str) -> dict[str, int]:
    """The steps that `text` names, and at which time each is meant.

    :raises ValueError: a number that is none; the message is the part with it.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, at, number = part.partition("@")
        if at and (not number.isdigit() or not int(number)):
            raise ValueError(part)
        found[name] = int(number) if at else 1
    return found


def arm(text: str) -> None:
    """Die at these steps from now on. What cannot be read was refused by the supervisor, and is nothing here."""
    _left.clear()
    try:
        _left.update(parse(text))
    except ValueError:
        return


def reach(name: str) -> None:
    """Say that this process has come to a step. It may not come any further."""
    if name not in _left:
        return
    _left[name] -= 1
    if not _left[name]:
        os.kill(os.getpid(), signal.SIGKILL)
