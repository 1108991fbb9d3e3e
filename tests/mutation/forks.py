"""Processes that are forked for one piece of work each, and what became of it."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NoReturn, TypeVar

T = TypeVar("T")

KILLED, SURVIVED, BROKEN = 1, 0, 70
"""Exit codes of a child that tried a mutant; BROKEN: the trial itself failed."""
SAID_MAX = 4096
"""Characters; a pipe holds so much without a reader."""
_LIMIT_SIGNALS = {signal.SIGPROF, signal.SIGALRM}


class Outcome(str, Enum):
    """What became of a mutant."""

    KILLED = "killed"
    TIMEOUT = "timeout"
    """Killed too: a test that passes in time did not end."""
    SURVIVED = "survived"
    UNREACHED = "not reached"
    """Survived: no test runs the line."""
    BROKEN = "broken"
    """It could not be tried."""


Act = Callable[[T, Callable[[str], object]], int]
"""Does the work in the child, may say which test it was, and returns an exit code."""


def limit(cpu_s: float) -> None:
    """From now on the process may use this much processor time, and what that takes on the busiest machine; then it is ended."""
    for each in _LIMIT_SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.alarm(300 + int(100 * cpu_s))


def in_child(work: Callable[[], str]) -> str:
    """What `work` returns in a forked process whose output goes nowhere.

    :raises RuntimeError: it ended without an answer.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(lambda: _write(writing, work()), writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"a forked run ended with status {status}: {answer[-2000:]}")
    return answer


def pool(work: Iterable[T], act: Act[T], jobs: int) -> Iterator[tuple[T, Outcome, str]]:
    """Each piece in a fork of this process, `jobs` at a time; as they end: the piece, its outcome, and what its child said."""
    running: dict[int, tuple[T, int]] = {}
    pieces = iter(work)
    while True:
        while len(running) < jobs and (piece := next(pieces, None)) is not None:
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                _try(act, piece, writing)
            os.close(writing)
            running[pid] = piece, reading
        if not running:
            return
        pid, status = os.waitpid(-1, 0)
        if pid not in running:
            continue
        piece, reading = running.pop(pid)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read().decode("utf-8", "replace")
        yield piece, _outcome(status), said


def _try(act: Act[T], piece: T, writing: int) -> NoReturn:
    _child(lambda: act(piece, lambda text: _write(writing, text[:SAID_MAX])), writing)


def _child(work: Callable[[], int], writing: int) -> NoReturn:
    code = BROKEN
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        code = work()
    except BaseException:
        _write(writing, traceback.format_exc(limit=-8)[-SAID_MAX:])
    finally:
        os._exit(code)


def _write(writing: int, text: str) -> int:
    """All of it; the exit code of a child that has done so."""
    data = text.encode()
    while data:
        data = data[os.write(writing, data) :]
    return 0


def _outcome(status: int) -> Outcome:
    if os.WIFSIGNALED(status):
        return Outcome.TIMEOUT if os.WTERMSIG(status) in _LIMIT_SIGNALS else Outcome.KILLED
    code = os.WEXITSTATUS(status)
    return {KILLED: Outcome.KILLED, SURVIVED: Outcome.SURVIVED}.get(code, Outcome.BROKEN)
