"""The restart budget under a fake clock: whatever a replica crashes of and however long it loads, serves and waits between,
it is started again exactly when the books that are kept here say so.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.core.simulated import Owner

from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import EventKind, Timer
from gpuserved.core.profile import RestartPolicy
from gpuserved.core.state import Context, State

HEALS_PERHAPS = (CauseKind.EXITED, CauseKind.KILLED, CauseKind.ENGINE_DIED)
HEALS_BY_ITSELF = (CauseKind.OUT_OF_MEMORY, CauseKind.PORT_IN_USE, CauseKind.HUB_UNREACHABLE)
WAITS_FOR_SOMEBODY = (CauseKind.BAD_FLAG, CauseKind.MODEL_MISSING, CauseKind.GPU_QUARANTINED)
CAUSES = (*HEALS_PERHAPS * 2, *HEALS_BY_ITSELF, *WAITS_FOR_SOMEBODY)
LITTLE_S = 1e-3
POLICIES = (
    RestartPolicy(),
    RestartPolicy(budget=8, stable_s=30.0, backoff_s=1.0, backoff_max_s=10.0, retry_s=60.0),
    RestartPolicy(budget=1, stable_s=10.0, backoff_s=0.5, backoff_max_s=5.0, jitter=0.0, retry_s=10.0),
    RestartPolicy(budget=3, stable_s=60.0, backoff_s=5.0, backoff_max_s=12.0, jitter=0.5, retry_s=600.0),
)


class RestartBudget(RuleBasedStateMachine):
    """The books: crashes in a row, since when it serves, and what was promised at the last crash."""

    @initialize(policy=st.sampled_from(POLICIES))
    def begin(self, policy: RestartPolicy) -> None:
        self.policy = policy
        self.owner = Owner(Context(restart=self.policy))
        self.owner.tell(EventKind.START)
        self.in_a_row, self.restarts = 0, 0
        self.first = ""
        self.serves_since: float | None = None
        self.due: tuple[float, float] | None = None
        """Between which times the next start was promised; None: it waits for somebody."""

    @property
    def state(self) -> State:
        return self.owner.replica.state

    @rule(last=st.booleans(), jitter=st.floats(-1, 1))
    def others_come_and_go(self, last: bool, jitter: float) -> None:
        self.owner.context = Context(restart=self.policy, last_of_model=last, jitter=jitter)

    @rule(load_s=st.floats(0, 590), seconds=st.floats(0, 700))
    def loads_and_serves(self, load_s: float, seconds: float) -> None:
        """However long it loads, that is not time spent READY."""
        if self.state in {State.BACKOFF, State.FAILED}:
            self.waits(0.5)
        if self.state is State.STARTING:
            self.owner.pass_time(load_s)
            self.owner.tell(EventKind.PROBE_UP)
            self.serves_since = self.owner.now_s
        if self.state is State.READY:
            self.serves(seconds)

    def serves(self, seconds: float) -> None:
        self.owner.pass_time(seconds)
        assert self.serves_since is not None
        served = self.owner.now_s - self.serves_since
        if served >= self.policy.stable_s + LITTLE_S:
            self.in_a_row, self.first = 0, ""
        elif served > self.policy.stable_s - LITTLE_S:  # too near to say which of the two came first
            self.in_a_row = self.owner.replica.history.crashes_in_a_row

    @precondition(lambda self: self.state is State.READY)
    @rule(seconds=st.floats(0, 80))
    def falters(self, seconds: float) -> None:
        """A failed probe that heals begins the time of READY anew."""
        self.owner.tell(EventKind.PROBE_DOWN)
        self.owner.pass_time(seconds)
        self.owner.tell(EventKind.PROBE_UP)
        self.serves_since = self.owner.now_s

    @rule(kinds=st.lists(st.sampled_from(CAUSES), min_size=1, max_size=6))
    def crash_loops(self, kinds: list[CauseKind]) -> None:
        """One after the other, as far as it is started again by itself."""
        for kind in kinds:
            if self.state in {State.BACKOFF, State.FAILED}:
                self.waits(0.5)
            if self.state in {State.STARTING, State.READY}:
                self.crashes(kind)

    def crashes(self, kind: CauseKind) -> None:
        self.in_a_row += 1
        self.first = self.first or f"{kind.value} {self.in_a_row}"
        self.owner.exit(Cause(kind, f"{kind.value} {self.in_a_row}"))
        self.due = self.promised(kind)
        if self.state is State.FAILED and kind not in WAITS_FOR_SOMEBODY:
            assert self.owner.replica.reason == f"{self.in_a_row} crashes in a row, first: {self.first}"

    def promised(self, kind: CauseKind) -> tuple[float, float] | None:
        """DESIGN.md's rules, in other words than the code's."""
        now, policy, context = self.owner.now_s, self.policy, self.owner.context
        if kind in WAITS_FOR_SOMEBODY:
            return None
        if self.in_a_row < policy.budget:
            delay = policy.backoff_s
            for _ in range(self.in_a_row - 1):
                delay = min(policy.backoff_max_s, 2 * delay)
            delay = min(policy.backoff_max_s, delay)
            return now + delay * (1 - policy.jitter), now + delay * (1 + policy.jitter)
        if context.last_of_model or kind in HEALS_BY_ITSELF:
            return now + policy.retry_s, now + policy.retry_s
        return None

    @precondition(lambda self: self.state in {State.BACKOFF, State.FAILED})
    @rule(part=st.floats(0, 1))
    def waits(self, part: float) -> None:
        """Not a moment before it was promised; and where nothing was, not within a week."""
        starts = len(self.owner.spawns)
        if self.due is None:
            self.owner.pass_time(7 * 24 * 3600.0)
            assert len(self.owner.spawns) == starts
            return
        early, late = self.due
        self.owner.pass_time(max(0.0, part * (early - LITTLE_S - self.owner.now_s)))
        assert len(self.owner.spawns) == starts
        self.owner.pass_time(max(0.0, late + LITTLE_S - self.owner.now_s))
        assert len(self.owner.spawns) == starts + 1
        assert early - LITTLE_S <= self.owner.spawns[-1] <= late + LITTLE_S
        self.restarts += 1
        self.due = None

    @precondition(lambda self: self.state in {State.BACKOFF, State.FAILED})
    @rule()
    def an_operator_starts_it(self) -> None:
        self.owner.tell(EventKind.START)
        self.in_a_row, self.first, self.due = 0, "", None

    @invariant()
    def the_books_agree(self) -> None:
        history = self.owner.replica.history
        assert (history.crashes_in_a_row, history.restarts) == (self.in_a_row, self.restarts)
        if self.state is State.BACKOFF:
            assert 0 < self.in_a_row < self.policy.budget

    @invariant()
    def the_last_of_a_model_that_may_heal_never_gives_up(self) -> None:
        """At the time of its crash; and never does it wait for longer than the larger of the two caps."""
        waiting = [
            at for timer, (at, _) in self.owner.timers.items() if timer in {Timer.BACKOFF, Timer.RETRY}
        ]
        assert (self.due is not None) == bool(waiting)
        most = max(self.policy.retry_s, self.policy.backoff_max_s * (1 + self.policy.jitter))
        assert all(at - self.owner.now_s <= most + LITTLE_S for at in waiting)


TestRestartBudget = RestartBudget.TestCase
TestRestartBudget.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)
