"""What helps after a crash: known failures as data, tried from the top; the first that matches names the lever.

Patterns are looked for in the cause's message; then the cause's kind counts, then the exceptions of the first tracebacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpuserved.core.cause import Cause, CauseKind


@dataclass(frozen=True)
class Known:
    """One known failure."""

    pattern: re.Pattern[str]
    advice: str


def known(pattern: str, advice: str) -> Known:
    """A failure whose message has this pattern."""
    return Known(re.compile(pattern), advice)


@dataclass(frozen=True)
class Levers:
    """The failures of one engine."""

    known: tuple[Known, ...]
    by_kind: Mapping[CauseKind, str]

    def of(self, cause: Cause, exceptions: Iterable[str]) -> str | None:
        """What helps; None: the failure is not a known one.

        :param exceptions: the last lines of the first tracebacks.
        """
        found = self._known(cause.message) or self.by_kind.get(cause.kind)
        if found is None and cause.kind in _MAY_BE_ANYTHING:
            found = next((advice for text in exceptions if (advice := self._known(text))), None)
        return found

    def _known(self, text: str) -> str | None:
        return next((each.advice for each in self.known if each.pattern.search(text)), None)


_MAY_BE_ANYTHING = frozenset({CauseKind.ENGINE_DIED, CauseKind.EXITED})
"""Kinds that say how it ended rather than why; a process that was killed from outside has no exception to read."""

NO_SPACE = known(
    r"No space left on device",
    "a disk is full (df -h): the model cache, the compile cache, or /dev/shm (docker run --shm-size)",
)
PORT_TAKEN = known(
    r"Address already in use|EADDRINUSE",
    "another process took the port between check and start; the next start takes another port",
)
ANY_ENGINE = Levers(
    (NO_SPACE, PORT_TAKEN),
    {
        CauseKind.OUT_OF_MEMORY: "memory ran out: fewer or smaller replicas on this host",
        CauseKind.HUNG: "a hung engine: the evidence file has the stacks",
        CauseKind.START_STALLED: "nothing happened for health.startup_stall_s: raise it for very slow storage",
        CauseKind.BAD_FLAG: "correct the flag in the profile, then gpuserve apply",
        CauseKind.MODEL_MISSING: "correct model in the profile, then gpuserve apply",
        CauseKind.DOES_NOT_FIT: "gpuserve plan shows what fits, and the smallest change that would",
        CauseKind.CANARY_FAILED: "healthy, and serves no token: compare the flags with those that served before",
        CauseKind.SHIM_LOST: "somebody killed the replica's shim; the kernel does so when host memory runs out",
    },
)
"""What holds whatever the engine is."""
