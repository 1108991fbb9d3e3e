"""The policy of a name."""

from __future__ import annotations

from gpuserved.core.policy.base import Policy
from gpuserved.core.policy.least_inflight import LeastInflight
from gpuserved.core.policy.prefix import Prefix
from gpuserved.core.policy.round_robin import RoundRobin
from gpuserved.core.policy.session import LOAD_FACTOR, Session


def make_policy(name: str, *, load_factor: float = LOAD_FACTOR) -> Policy:
    """A fresh one. A name from a newer version becomes `least_inflight`: a choice is better than none."""
    if name == "prefix":
        return Prefix()
    if name == "session":
        return Session(load_factor)
    if name == "round_robin":
        return RoundRobin()
    return LeastInflight()
