"""The view state: one owner changes it, everybody else reads what cannot change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import msgspec
import pytest
from tests.tui.fleets import NOW, normal
from tests.tui.stopwatch import Stopwatch

from gpuserve_tui.model.actions import BY_ID, Selection
from gpuserve_tui.model.changes import replica_intent
from gpuserve_tui.model.filters import parse
from gpuserve_tui.model.state import View, ViewState


@pytest.fixture
def monotonic() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def state(monotonic: Stopwatch) -> ViewState:
    made = ViewState(pane="overview", read_only="", refresh_s=1.0, clock=lambda: NOW, monotonic=monotonic)
    made.attached(may_operate=True)
    made.heard(normal(), fresh=True)
    return made


def test_nobody_else_can_change_what_is_drawn(state: ViewState) -> None:
    view = state.view
    for thing in (view, view.arrangement, state.trend("")):
        for field in dataclasses.fields(thing):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(thing, field.name, None)
            value = getattr(thing, field.name)
            assert not isinstance(value, (list, dict, set)), field.name
    assert isinstance(view.busy, Mapping)
    assert not hasattr(view.busy, "__setitem__")
    for name in (name for name, value in vars(ViewState).items() if isinstance(value, property)):
        with pytest.raises(AttributeError):
            setattr(state, name, None)


def test_a_view_stays_as_it_was(state: ViewState) -> None:
    before = state.view
    state.show("events")
    state.sort_by("waiting")
    state.toggle_mark("qwen-1")
    state.filter_by(parse("state:ready"))
    assert before.arrangement.pane == "overview"
    assert before.arrangement.marked == frozenset()
    after = state.view
    assert after.arrangement.descending, "figures are looked at for their largest"
    assert [r.id for r in after.situation(Selection("qwen-7")).targets] == ["qwen-1"]
    assert {r.state for r in after.shown_replicas} == {"READY"}
    state.sort_by("waiting")
    assert not state.arrangement.descending
    state.sort_by("no such column")
    assert state.arrangement.sort == "waiting"


def test_a_change_under_way_is_shown_and_takes_no_other(state: ViewState, monotonic: Stopwatch) -> None:
    fleet = normal()
    intent = replica_intent(BY_ID["start"], fleet, fleet.replicas)
    state.begin(intent)
    monotonic.advance(3)
    assert state.view.busy == {"qwen-7": "starting 3s"}
    assert state.refusal(intent) == "qwen-7 is being acted on"
    state.end(intent, generation=9)
    state.heard(fleet, fresh=False)
    assert _generation(state.view) == 9, "an event from before the change does not move it back"
    assert state.refusal(intent) == ""


def test_nothing_is_decided_on_old_data(state: ViewState, monotonic: Stopwatch) -> None:
    fleet = normal()
    intent = replica_intent(BY_ID["restart"], fleet, fleet.replicas)
    monotonic.advance(606)
    assert state.refusal(intent) == "Restart: the data is 10m06s old"
    state.heard(msgspec.structs.replace(fleet, generation=5), fresh=True)
    assert state.refusal(intent) == ""
    state.disconnected("gone")
    assert state.refusal(intent) == "Restart: not connected to the daemon"
    state.attached(may_operate=False)
    assert state.refusal(intent) == "Restart: this user may only look"


def _generation(view: View) -> int | None:
    return view.status.generation if view.status else None
