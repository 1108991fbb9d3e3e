"""What became of one request, read from its reply."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

import msgspec

from gpuserved.bench.connection import Reply


class Outcome(str, Enum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"
    """429 or 503: told to come back later."""
    ERROR = "error"
    """Another status, or an error event in a stream."""
    LOST = "lost"
    """No connection, a cut answer, or no answer in time."""
    UNSENT = "unsent"
    """Too many were in flight already."""


@dataclass(frozen=True)
class Result:
    """Times in seconds. All of them but `itl_s` count from when the request was due, not from when it was sent: a request
    that had to wait in the client waited for the server ("coordinated omission" otherwise).
    """

    outcome: Outcome
    replica: str | None = None
    why: str = ""
    late_s: float = 0.0
    """From due to sent: the client's own delay."""
    ttft_s: float | None = None
    e2e_s: float | None = None
    itl_s: tuple[float, ...] = ()
    """Gaps between two events with text."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    """As the engine counted them; where it did not, the events with text."""

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first."""
        if self.ttft_s is None or self.e2e_s is None or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Part(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Part | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_EVENT = msgspec.json.Decoder(_Event)


def read(reply: Reply, *, due: float, sent: float, ended: float) -> Result:
    """The result of one reply.

    :param due, sent, ended: on the clock of the reply's events.
    """
    late_s = sent - due
    if not reply.whole:
        why = "the connection ended early" if reply.status else "no answer"
        return Result(Outcome.LOST, reply.replica, why, late_s)
    if reply.status != 200:
        kind = Outcome.REFUSED if reply.status in {429, 503} else Outcome.ERROR
        return Result(
            kind, reply.replica, f"{reply.status} {bytes(reply.body[:200]).decode(errors='replace')}", late_s
        )
    try:
        if reply.sse:
            return _stream(reply, due, late_s)
        event = _EVENT.decode(reply.body)
    except msgspec.DecodeError as error:
        return Result(Outcome.ERROR, reply.replica, f"no JSON: {error}", late_s)
    usage = event.usage or _Usage()
    return Result(
        Outcome.OK, reply.replica, late_s=late_s, e2e_s=ended - due, prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
    )  # fmt: skip


def _stream(reply: Reply, due: float, late_s: float) -> Result:
    times: list[float] = []
    usage = _Usage()
    ended = False
    for at, data in reply.events:
        if data == b"[DONE]":
            ended = True
            continue
        event = _EVENT.decode(data)
        if event.error is not None:
            return Result(Outcome.ERROR, reply.replica, f"error event: {event.error}"[:200], late_s)
        usage = event.usage or usage
        if any(
            c.delta and (c.delta.content or c.delta.reasoning_content or c.delta.reasoning)
            for c in event.choices
        ):
            times.append(at)
    if not ended:
        return Result(Outcome.LOST, reply.replica, "a stream without its end mark", late_s)
    return Result(
        Outcome.OK, reply.replica, late_s=late_s,
        ttft_s=times[0] - due if times else None,
        e2e_s=(times[-1] if times else reply.events[-1][0]) - due,
        itl_s=tuple(later - at for at, later in pairwise(times)),
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens if usage.completion_tokens is not None else len(times),
    )  # fmt: skip
