"""A rolling change over replicas with their whole lifecycle, under one fake clock: what `core/rollout.py` decides from what
`core/replica.py` makes of the orders, of crashes, slow starts, failed canaries and operators.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.core.simulated import Owner

from gpuserved.core.events import EventKind, Spawn
from gpuserved.core.rollout import Direction, Outcome, Replace, Rollout, Seen, TurnBack, decide
from gpuserved.core.state import Context, Goal, NotAllowed, State

GONE = {State.STOPPED, State.BACKOFF, State.FAILED}
LEAVES = {State.DRAINING, State.STOPPING, State.UNHEALTHY}


class Rolled(Owner):
    """An owner that reads its orders late, in the order they came, and starts what was assigned last."""

    def __init__(self, runs: str) -> None:
        self.assigned = self.runs = runs
        self.inbox: list[EventKind] = []
        super().__init__(Context())

    def _spawn(self, effect: Spawn) -> None:
        super()._spawn(effect)
        self.runs = self.assigned

    def read(self) -> None:
        """What is in the inbox; before anything newer."""
        while self.inbox:
            try:
                self.tell(self.inbox.pop(0))
            except NotAllowed:
                pass  # the operator is told

    @property
    def shown(self) -> Seen:
        r = self.replica
        return Seen(r.state, r.goal, r.generation, r.reason)


class RollingReplicas(RuleBasedStateMachine):
    """Replicas of one model, of which some are new with the change."""

    @initialize(
        count=st.integers(1, 4),
        added=st.integers(0, 2),
        reversible=st.booleans(),
        down=st.sets(st.integers(0, 3)),
    )
    def begin(self, count: int, added: int, reversible: bool, down: set[int]) -> None:
        self.fleet = {f"m-{n}": Rolled("old") for n in range(count)}
        for n, owner in enumerate(self.fleet.values()):
            owner.tell(EventKind.START)
            owner.tell(EventKind.PROBE_UP)
            if n in down:
                owner.exit()
        self.added = tuple(f"m-{count + n}" for n in range(added))
        self.fleet |= {name: Rolled("new") for name in self.added}
        self.rollout = Rollout(tuple(self.fleet), self.added, reversible=reversible)
        self.by_hand: set[str] = set()
        self.step()

    def step(self) -> None:
        """As the fleet does after everything that happens."""
        for _ in range(100):
            before = self.rollout
            seen = {name: owner.shown for name, owner in self.fleet.items()}
            self.rollout, action = decide(before, seen)
            if isinstance(action, TurnBack):
                for name in action.stop:
                    self.fleet[name].inbox.append(EventKind.STOP)
                for name, owner in self.fleet.items():
                    if name not in self.added and name not in self.rollout.pending:
                        owner.assigned = "old"
            elif action is not None:
                back = self.rollout.direction is Direction.BACK
                self.fleet[action.replica].assigned = "old" if back else "new"
                if isinstance(action, Replace):
                    self.ordered(action.replica)
            if self.rollout == before:
                return
        raise AssertionError("it never comes to rest")

    def ordered(self, name: str) -> None:
        """The promises, at the one place where a change could break them."""
        mine = self.fleet[name]
        for other, owner in self.fleet.items():
            if other == name:
                continue
            assert EventKind.REPLACE not in owner.inbox, f"{name} and {other} at once"
            assert owner.replica.goal is not Goal.REPLACE, f"{name} and {other} at once"
            if mine.admitted and owner.replica.goal not in {Goal.STOP, Goal.HOLD}:
                assert owner.admitted, f"{name} is taken away while {other} is {owner.replica.state}"
        mine.inbox.append(EventKind.REPLACE)

    def drawn(self, data: st.DataObject, *states: State) -> Rolled | None:
        """One of the replicas in these states, its orders read; None: those have changed it."""
        there = [name for name, owner in self.fleet.items() if owner.replica.state in states]
        if not there:
            return None
        owner = self.fleet[data.draw(st.sampled_from(there))]
        owner.read()
        return owner if owner.replica.state in states else None

    @precondition(lambda self: any(owner.inbox for owner in self.fleet.values()))
    @rule(data=st.data())
    def reads_its_orders(self, data: st.DataObject) -> None:
        unread = [name for name, owner in self.fleet.items() if owner.inbox]
        self.fleet[data.draw(st.sampled_from(unread))].read()
        self.step()

    @precondition(lambda self: self.rollout.current is not None)
    @rule(well=st.integers(0, 3))
    def the_present_replacement_ends(self, well: int) -> None:
        """All of it at once; one in four fails its canary."""
        owner = self.fleet[self.rollout.current or ""]
        owner.read()
        if owner.replica.state is State.DRAINING and owner.replica.goal is not Goal.HOLD:
            owner.tell(EventKind.DRAINED)
        if owner.replica.state is State.STOPPING:
            owner.exit()
        if owner.replica.state is State.STARTING:
            self.starts(owner, well=bool(well))
        self.step()

    def starts(self, owner: Rolled, *, well: bool) -> None:
        if well:
            owner.tell(EventKind.PROBE_UP)
        elif owner.replica.goal is Goal.REPLACE:
            owner.tell(EventKind.CANARY_FAILED)
            assert not owner.admitted, "nothing that failed its canary takes requests"
            owner.exit()
        else:
            owner.exit()

    @rule(data=st.data(), load_s=st.floats(0, 500), well=st.integers(0, 4))
    def comes_up(self, data: st.DataObject, load_s: float, well: int) -> None:
        """One start in five fails: its canary, where it is on trial, or by a crash."""
        if owner := self.drawn(data, State.STARTING):
            owner.pass_time(load_s)
            self.starts(owner, well=bool(well))
        self.step()

    @rule(data=st.data())
    def moves_on(self, data: st.DataObject) -> None:
        """The next thing that happens by itself to one that is to end."""
        if owner := self.drawn(data, State.DRAINING, State.STOPPING):
            if owner.replica.state is State.STOPPING:
                owner.exit()
            else:
                owner.tell(EventKind.DRAINED)
        self.step()

    @rule(data=st.data())
    def crashes(self, data: st.DataObject) -> None:
        if owner := self.drawn(data, State.READY, State.UNHEALTHY, State.DRAINING):
            owner.exit()
        self.step()

    @rule(data=st.data())
    def falters(self, data: st.DataObject) -> None:
        if owner := self.drawn(data, State.READY, State.UNHEALTHY):
            up = owner.replica.state is State.UNHEALTHY
            owner.tell(EventKind.PROBE_UP if up else EventKind.PROBE_DOWN)
        self.step()

    @rule(seconds=st.floats(0, 400))
    def time_passes(self, seconds: float) -> None:
        for owner in self.fleet.values():
            owner.read()
            owner.pass_time(seconds)
        self.step()

    @precondition(lambda self: self.rollout.outcome is None)
    @rule(
        data=st.data(),
        kind=st.sampled_from([EventKind.STOP, EventKind.START, EventKind.DRAIN, EventKind.UNDRAIN]),
    )
    def an_operator(self, data: st.DataObject, kind: EventKind) -> None:
        """Beside the change, and as late as its own orders are read."""
        name = data.draw(st.sampled_from(list(self.fleet)))
        self.fleet[name].inbox.append(kind)
        self.by_hand.add(name)
        self.step()

    @invariant()
    def an_end_is_a_whole_one(self) -> None:
        """What still runs otherwise is on its way out, whoever wanted that."""
        outcome, reversible = self.rollout.outcome, self.rollout.reversible
        if outcome is Outcome.STOPPED:
            assert self.rollout.reason
            assert not reversible or "with the former settings" in self.rollout.reason
        if outcome in {Outcome.DONE, Outcome.ROLLED_BACK}:
            wanted = "new" if outcome is Outcome.DONE else "old"
            for name, owner in self.fleet.items():
                if name in self.added and wanted == "old":
                    assert (
                        name in self.by_hand
                        or EventKind.STOP in owner.inbox
                        or owner.replica.goal is Goal.STOP
                    )
                    continue
                assert owner.assigned == wanted, name
                assert owner.runs == wanted or owner.replica.state in GONE | LEAVES or owner.inbox, name

    @invariant()
    def the_first_failure_is_the_last(self) -> None:
        """A new process that did not come up is not started again and again: the change turns, or stops."""
        current = self.fleet.get(self.rollout.current or "")
        if current is not None and current.replica.generation > self.rollout.since_generation:
            assert current.replica.state not in {State.BACKOFF, State.FAILED}

    def teardown(self) -> None:
        """Left alone, with nobody's hand on a replica and starts that succeed, every change ends."""
        for name in self.by_hand:
            self.fleet[name].read()
            if self.fleet[name].replica.goal is Goal.HOLD:
                self.fleet[name].tell(EventKind.UNDRAIN)
        for _ in range(300):
            self.step()
            if self.rollout.outcome is not None:
                break
            for owner in self.fleet.values():
                owner.read()
                if owner.replica.state in {State.STARTING, State.UNHEALTHY}:
                    owner.tell(EventKind.PROBE_UP)
                elif owner.replica.state is State.DRAINING:
                    owner.tell(EventKind.DRAINED)
                elif owner.replica.state is State.STOPPING:
                    owner.exit()
                owner.pass_time(1.0)
        assert self.rollout.outcome is not None, self.rollout
        self.an_end_is_a_whole_one()


TestRollingReplicas = RollingReplicas.TestCase
TestRollingReplicas.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
