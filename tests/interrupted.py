"""Ctrl-C and `kill` of a long run: what it started ends before it does."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """One of the signals came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _raise(number: int, _frame: FrameType | None) -> None:
    # Once: what follows is cleaning up. (Not SIG_IGN, which commands that are run for that would inherit.)
    for each in SIGNALS:
        signal.signal(each, lambda *_: None)
    print(
        f"\n{signal.Signals(number).name}: ending what was started, within a minute",
        file=sys.stderr,
        flush=True,
    )
    raise Interrupted(number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Around a program: the first signal is an exception in its main thread, and its exit code then 128 and the signal's number."""
    for each in SIGNALS:
        signal.signal(each, _raise)
    try:
        yield
    except Interrupted as end:
        sys.exit(128 + end.number)
