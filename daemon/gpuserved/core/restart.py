"""Restart decisions: back off, give up, or try again later. Values in, values out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpuserved.core.cause import Cause, Healing
from gpuserved.core.profile import RestartPolicy


@dataclass(frozen=True)
class RestartHistory:
    """What a replica's past says about its next start."""

    crashes_in_a_row: int = 0
    """Crashes since the last `stable_s` of READY or the last operator's START."""
    restarts: int = 0
    """Starts that replaced a lost process; the figure `status` shows."""
    first_cause: Cause | None = None
    """What began the present row of crashes: later ones are often its echo."""
    last_cause: Cause | None = None
    """What the present process replaced; None after an operator's START."""


@dataclass(frozen=True)
class Backoff:
    """Start again after `delay_s`."""

    delay_s: float
    reason: str


@dataclass(frozen=True)
class GiveUp:
    """FAILED. `retry_s` None: waits for the operator."""

    retry_s: float | None
    reason: str


def record_crash(history: RestartHistory, cause: Cause) -> RestartHistory:
    """The history after one more crash."""
    return replace(
        history,
        crashes_in_a_row=history.crashes_in_a_row + 1,
        first_cause=history.first_cause or cause,
        last_cause=cause,
    )


def forgive(history: RestartHistory) -> RestartHistory:
    """The history after `stable_s` of READY, or an operator's START."""
    return replace(history, crashes_in_a_row=0, first_cause=None)


def decide(
    history: RestartHistory, cause: Cause, policy: RestartPolicy, *, last_of_model: bool, jitter: float
) -> Backoff | GiveUp:
    """What follows a crash that `history` already counts.

    :param last_of_model: no other replica of this model serves or may come back by itself.
    :param jitter: a draw from [-1, 1].
    """
    if cause.healing is Healing.NEVER:
        return GiveUp(None, f"{cause.message} (will not heal by itself)")
    if cause.healing is Healing.ON_RELEASE:
        return GiveUp(None, cause.message)
    row = history.crashes_in_a_row
    if row >= policy.budget:
        first = history.first_cause or cause
        reason = f"{row} crashes in a row, first: {first.message}"
        keep_trying = last_of_model or cause.healing is Healing.BY_ITSELF
        return GiveUp(policy.retry_s if keep_trying else None, reason)
    doublings = min(row - 1, 64)  # beyond any sensible cap, and a float still holds it
    exact = min(policy.backoff_s * 2**doublings, policy.backoff_max_s)
    return Backoff(max(0.0, exact * (1 + policy.jitter * jitter)), cause.message)
