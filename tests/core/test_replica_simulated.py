"""The lifecycle under a fake clock: stories of crashes, and any order of wishes, probes, deaths and time."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.core.simulated import CRASH, Owner

from gpuserved.core.events import OPERATOR_EVENTS, EventKind, Timer
from gpuserved.core.profile import RestartPolicy
from gpuserved.core.replica import allowed
from gpuserved.core.state import Context, Goal, NotAllowed, State


def crash_after_load(owner: Owner, load_s: float) -> None:
    """One start that loads for `load_s`, is READY for a second, and crashes."""
    assert owner.replica.state is State.STARTING
    owner.pass_time(load_s)
    owner.tell(EventKind.PROBE_UP)
    owner.pass_time(1.0)
    owner.exit()


def crash_until_failed(owner: Owner, load_s: float) -> int:
    owner.tell(EventKind.START)
    crashes = 0
    while owner.replica.state is not State.FAILED:
        crash_after_load(owner, load_s)
        crashes += 1
        assert crashes <= 20, "the budget never tripped"
        if owner.replica.state is State.BACKOFF:
            owner.pass_time(owner.timers[Timer.BACKOFF][0] - owner.now_s)
    return crashes


def test_a_model_that_loads_for_100_s_and_then_crashes_trips_the_budget() -> None:
    """Five crashes are 510 s apart here; a window of minutes would never see five of them."""
    owner = Owner(Context())
    assert crash_until_failed(owner, load_s=100.0) == 5
    assert owner.replica.reason == "5 crashes in a row, first: EngineCore died"
    assert owner.now_s > 500
    assert owner.timers == {}, "nobody retries it while other replicas serve the model"


def test_a_load_longer_than_stable_s_trips_the_budget_too() -> None:
    """Time spent loading is not time spent READY."""
    owner = Owner(Context(restart=RestartPolicy(stable_s=60.0)))
    assert crash_until_failed(owner, load_s=500.0) == 5


def test_the_last_replica_of_a_model_is_retried_for_ever() -> None:
    owner = Owner(Context(last_of_model=True))
    crash_until_failed(owner, load_s=100.0)
    for _ in range(10):
        starts = len(owner.spawns)
        owner.pass_time(299.0)
        assert len(owner.spawns) == starts
        owner.pass_time(1.5)
        assert len(owner.spawns) == starts + 1
        crash_after_load(owner, 100.0)
        assert owner.replica.state is State.FAILED
    assert owner.replica.history.restarts == 4 + 10


def test_backoff_doubles_between_crashes_and_starts_over_after_stable_ready() -> None:
    owner = Owner(Context(restart=RestartPolicy(budget=10, stable_s=600.0)))
    owner.tell(EventKind.START)
    gaps = []
    for _ in range(4):
        crash_after_load(owner, 0.0)
        gaps.append(owner.timers[Timer.BACKOFF][0] - owner.now_s)
        owner.pass_time(gaps[-1])
    assert gaps == [1.0, 2.0, 4.0, 8.0]
    owner.tell(EventKind.PROBE_UP)
    owner.pass_time(600.0)
    owner.exit()
    assert owner.timers[Timer.BACKOFF][0] - owner.now_s == 1.0


def test_flapping_health_does_not_add_up_to_stable() -> None:
    """READY for 400 s twice with a failed probe between is not 600 s of READY."""
    owner = Owner(Context())
    owner.tell(EventKind.START)
    crash_after_load(owner, 0.0)
    owner.pass_time(1.0)
    owner.tell(EventKind.PROBE_UP)
    for _ in range(2):
        owner.pass_time(400.0)
        owner.tell(EventKind.PROBE_DOWN)
        owner.tell(EventKind.PROBE_UP)
    assert owner.replica.history.crashes_in_a_row == 1
    owner.pass_time(600.0)
    assert owner.replica.history.crashes_in_a_row == 0


class ReplicaMachine(RuleBasedStateMachine):
    """Any order of wishes, probes, deaths and time; the promises hold after each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = Owner(Context())

    @initialize(ready=st.booleans())
    def begin(self, ready: bool) -> None:
        self.owner.tell(EventKind.START)
        if ready:
            self.owner.tell(EventKind.PROBE_UP)

    @rule(last=st.booleans(), moves=st.booleans(), jitter=st.floats(-1, 1), budget=st.integers(1, 6))
    def world_changes(self, last: bool, moves: bool, jitter: float, budget: int) -> None:
        policy = RestartPolicy(budget=budget)
        self.owner.context = Context(last_of_model=last, moves=moves, jitter=jitter, restart=policy)

    @rule(kind=st.sampled_from(sorted(OPERATOR_EVENTS)))
    def operator(self, kind: EventKind) -> None:
        before = self.owner.replica
        try:
            self.owner.tell(kind)
        except NotAllowed:
            assert self.owner.replica == before
            assert kind not in allowed(before.state) or before.goal is not Goal.HOLD

    @precondition(lambda self: self.owner.process is not None)
    @rule(kind=st.sampled_from(["hung", "drained", "dying", "gpu_fault", "canary_failed"]))
    def observed(self, kind: str) -> None:
        self.owner.tell(EventKind(kind), CRASH)

    @precondition(lambda self: self.owner.process is not None)
    @rule(kinds=st.lists(st.sampled_from(["probe_up", "probe_down", "stalled"]), min_size=1, max_size=3))
    def probed(self, kinds: list[str]) -> None:
        for kind in kinds:
            self.owner.tell(EventKind(kind), CRASH)
            self.only_ready_is_in_rotation()

    @precondition(lambda self: self.owner.process is not None)
    @rule()
    def gone(self) -> None:
        self.owner.exit()

    @precondition(lambda self: self.owner.process is not None and self.owner.seen[-1] is State.STARTING)
    @rule()
    def never_came_to_be(self) -> None:
        self.owner.process = None
        self.owner.tell(EventKind.SPAWN_FAILED)

    @rule(kind=st.sampled_from(sorted(set(EventKind) - OPERATOR_EVENTS)), back=st.integers(1, 3))
    def late(self, kind: EventKind, back: int) -> None:
        before = self.owner.replica
        self.owner.tell(kind, CRASH, before.generation - back)
        assert self.owner.replica == before

    @rule(seconds=st.floats(0, 700))
    def time_passes(self, seconds: float) -> None:
        self.owner.pass_time(seconds)

    @invariant()
    def a_process_exists_exactly_in_the_states_that_say_so(self) -> None:
        alive = self.owner.replica.state not in {State.STOPPED, State.BACKOFF, State.FAILED}
        assert alive == (self.owner.process is not None)

    @invariant()
    def only_ready_is_in_rotation(self) -> None:
        assert self.owner.admitted == (self.owner.replica.state is State.READY)

    @invariant()
    def what_must_end_by_itself_has_a_timer(self) -> None:
        r, timers = self.owner.replica, self.owner.timers.keys()
        needed = {
            State.STARTING: Timer.START_STALL, State.UNHEALTHY: Timer.UNHEALTHY, State.STOPPING: Timer.KILL,
            State.BACKOFF: Timer.BACKOFF,
        }.get(r.state)  # fmt: skip
        assert needed is None or needed in timers
        if r.state is State.DRAINING:
            assert (Timer.DRAIN in timers) == (r.goal is not Goal.HOLD)

    @invariant()
    def a_replica_out_of_service_says_why(self) -> None:
        if self.owner.replica.state in {State.BACKOFF, State.FAILED, State.UNHEALTHY}:
            assert self.owner.replica.cause is not None
            assert self.owner.replica.reason

    def teardown(self) -> None:
        """From anywhere, STOP and the end of the process lead to STOPPED."""
        self.owner.tell(EventKind.STOP)
        self.owner.pass_time(10_000.0)
        if self.owner.process is not None:
            self.owner.exit()
        assert self.owner.replica.state is State.STOPPED
        assert not self.owner.timers


ReplicaMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_history = ReplicaMachine.TestCase
