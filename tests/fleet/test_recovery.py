"""What a new daemon makes of what it finds: decisions on saved state and run folders, without a process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuserved.api.roots import from_environment
from gpuserved.core.assignment import Assignment
from gpuserved.core.cause import Cause, CauseKind
from gpuserved.core.events import EventKind
from gpuserved.core.profile import Profile
from gpuserved.core.recovery import adopted
from gpuserved.core.restart import RestartHistory
from gpuserved.core.state import Goal, State
from gpuserved.fleet.arranger import Arranger
from gpuserved.fleet.persistence import FleetRecord, ReplicaRecord, WantedRecord
from gpuserved.fleet.recovery import match, removals_that_go_on
from gpuserved.fleet.settings import CurrentSettings, Settings
from gpuserved.fleet.state import FleetState
from gpuserved.host import statefile
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.start_files import Start, StartNote


def found(generation: int, nonce: str = "0a") -> Start:
    return Start(Path("/r") / nonce, StartNote("a-0", "a", generation, nonce, "unix:/x"))


def record(state: State, generation: int = 3, goal: Goal = Goal.SERVE) -> ReplicaRecord:
    history = RestartHistory(crashes_in_a_row=1, restarts=4)
    return ReplicaRecord(
        id="a-0", profile="a", state=state, goal=goal, generation=generation, history=history,
        cause=Cause(CauseKind.EXITED, "was killed"), reason="was killed",
    )  # fmt: skip


@pytest.mark.parametrize("state", list(State))
def test_an_end_that_the_state_tells_of_is_not_told_again(state: State) -> None:
    """The folder of a crash goes after the crash is on disk; a daemon killed between the two must not count it twice."""
    ours, strays = match([found(3)], {"a-0": record(state)}, {"a-0"})
    over = state in {State.STOPPED, State.BACKOFF, State.FAILED}
    assert (list(ours), len(strays)) == (([], 1) if over else (["a-0"], 0))


def test_the_latest_start_is_the_replica() -> None:
    ours, strays = match([found(4, "0a"), found(5, "0b")], {"a-0": record(State.READY)}, {"a-0"})
    assert ours["a-0"].note.generation == 5
    assert [each.note.generation for each in strays] == [4]


@pytest.mark.parametrize("goal", [Goal.STOP, Goal.RESTART, Goal.REPLACE, Goal.SERVE])
@pytest.mark.parametrize("state", [State.DRAINING, State.STOPPING])
def test_what_was_on_its_way_out_goes_on_with_it(state: State, goal: Goal) -> None:
    """Never back into rotation on the way; and one that had crashed (goal serve) is not restarted as if somebody had asked."""
    r = adopted(record(state, goal=goal).replica(), 3)
    assert (r.state, r.goal, r.history.restarts) == (state, goal, 4)


@pytest.mark.parametrize("state", [State.READY, State.UNHEALTHY])
def test_what_served_serves(state: State) -> None:
    assert adopted(record(state).replica(), 3).state is State.READY


@pytest.mark.parametrize("state", list(State))
def test_a_start_later_than_the_state_is_a_start(state: State) -> None:
    r = adopted(record(state).replica(), 4)
    assert (r.state, r.goal, r.generation, r.history.restarts) == (State.STARTING, Goal.SERVE, 4, 4)


class Resting(ReplicaController):
    """A controller that has not begun: what it is told is kept here."""

    def __init__(self, top: Path) -> None:
        around: Any = SimpleNamespace(roots=from_environment({"GPUSERVE_ROOT": str(top)}, uid=0))
        super().__init__(Assignment("a-0", Profile("a", "org/m", "m")), around)
        self.heard: list[EventKind] = []

    def post(self, kind: EventKind, **_more: object) -> None:
        self.heard.append(kind)


ORDERED = [
    (None, EventKind.START),
    (record(State.STOPPED, generation=0, goal=Goal.SERVE), EventKind.START),
    (record(State.BACKOFF, goal=Goal.REPLACE), EventKind.REPLACE),
    (record(State.STARTING, goal=Goal.REPLACE), EventKind.REPLACE),
    (record(State.BACKOFF), EventKind.BACKOFF_ELAPSED),
    (record(State.FAILED), EventKind.BACKOFF_ELAPSED),
]


@pytest.mark.parametrize(("saved", "order"), ORDERED)
def test_an_order_that_was_saved_and_not_read_is_carried_out_however_many_daemons_end_before_it(
    tmp_path: Path, saved: ReplicaRecord | None, order: EventKind
) -> None:
    """What a daemon saves before its owners have read anything leads the next one to the same order."""
    for _ in range(3):
        owner = Resting(tmp_path)
        owner.resume(saved.replica() if saved is not None else None)
        assert owner.heard == [order]
        saved = record(owner.r.state, generation=owner.r.generation, goal=owner.r.goal)


def test_what_somebody_has_stopped_stays_so(tmp_path: Path) -> None:
    owner = Resting(tmp_path)
    owner.resume(record(State.STOPPED, generation=2, goal=Goal.STOP).replica())
    assert (owner.r.state, owner.r.goal, owner.r.generation, owner.heard) == (State.STOPPED, Goal.STOP, 2, [])


def test_a_removal_goes_on_where_its_profile_is_known_and_it_has_no_place() -> None:
    none: Any = None
    arranger = Arranger(FleetState(), CurrentSettings(Settings()), none, none, none, none, none, none)
    good = WantedRecord(name="a", text='model = "org/m"\nserved_name = "m"\n', source="a.toml")
    newer = WantedRecord(name="a", text='model = "org/m"\nwhat_is_this = 1\n', source="a.toml")
    saved = FleetRecord(let_go={"a-0": good, "a-1": good, "a-2": newer})
    found = removals_that_go_on(arranger, saved, placed={"a-0"})
    assert {name: each.profile.served_name for name, each in found.items()} == {"a-1": "m"}


def test_broken_off_writes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("fleet.json", ".hidden", ".exit.json.reserved", "a.1", ".b.12x")]
    broken = [tmp_path / name for name in (".fleet.json.123", ".3.crash.json.9")]
    for path in (*kept, *broken):
        path.write_text("x")
    (tmp_path / ".c.7").symlink_to(kept[0])
    statefile.discard_unfinished(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in broken)
    assert (tmp_path / ".c.7").is_symlink()
