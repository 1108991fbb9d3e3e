"""What may be true once all is quiet, given what was asked and whether an answer came."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.failpoints.script import Ask
from tests.failpoints.world import A

READY, STOPPED, DRAINED = "READY", "STOPPED", "DRAINING"
_LEADS_TO = {"stop": STOPPED, "start": READY, "restart": READY, "drain": DRAINED, "undrain": READY}


@dataclass(frozen=True)
class Death:
    """A process that was killed, and nobody had asked its replica to end."""

    replica: str
    generation: int
    what: str
    """api, engine or shim."""


@dataclass
class Model:
    """Sets of what is possible: an answer leaves one, a supervisor that died before it answered leaves two."""

    counts: set[int] = field(default_factory=lambda: {2})
    """Replicas of profile A."""
    marks: set[str] = field(default_factory=lambda: {"1"})
    """Settings that profile A may run with."""
    turned_back: set[str] = field(default_factory=set)
    """Settings that profile A may run with again, where a replica dies in the middle of the last change."""
    states: dict[str, set[str]] = field(default_factory=dict)
    """By replica; absent: READY."""
    touched: set[str] = field(default_factory=set)
    """Replicas that somebody asked something of: their processes may be others than before."""
    deaths: list[Death] = field(default_factory=list)

    def possible(self, replica: str) -> set[str]:
        """States that the replica may be in."""
        return self.states.get(replica, {READY})

    def names(self) -> list[str]:
        """Every replica of profile A that may exist."""
        return [f"{A}-{n}" for n in range(max(self.counts))]

    def asked(self, ask: Ask, answered: str) -> None:
        """Take note of one thing that was asked.

        :param answered: done; refused; or nothing, where the supervisor died.
        """
        if ask.verb == "scale":
            self._scaled(ask.number, answered)
        elif ask.verb in {"change", "spoil"}:
            self.touched |= set(self.names())
            for name in [name for name in self.names() if STOPPED in self.possible(name)]:
                self.states[name] = self.possible(name) | {READY}  # where nothing serves, all is started anew
            if answered != "refused" and ask.verb == "change":
                self.turned_back |= self.marks
                self.marks = {str(ask.number)} if answered == "done" else {*self.marks, str(ask.number)}
        elif ask.verb in _LEADS_TO:
            self.touched.add(ask.replica)
            if answered == "refused":
                return
            end = {_LEADS_TO[ask.verb]}
            self.states[ask.replica] = end if answered == "done" else self.possible(ask.replica) | end

    def settled(self) -> None:
        """Nothing is under way, no change either."""
        self.turned_back.clear()

    def _scaled(self, number: int, answered: str) -> None:
        if answered == "refused":
            return
        before = self.counts
        self.counts = {number} if answered == "done" else self.counts | {number}
        for n in range(min(*before, number), max(*before, number)):
            self.touched.add(f"{A}-{n}")
        for n in range(number) if answered == "done" else ():
            if n >= min(before):  # it may not have been there: a new one is started
                self.states[f"{A}-{n}"] = {READY}

    def died(self, death: Death) -> None:
        """A process was killed. One that was drained comes back into rotation, as a new process."""
        self.deaths.append(death)
        if death.replica in self.names():
            self.marks |= self.turned_back
        if DRAINED in self.possible(death.replica):
            self.states[death.replica] = self.possible(death.replica) | {READY}
