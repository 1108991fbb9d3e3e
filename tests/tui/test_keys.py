"""Each key of the action table in each state of the screen."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec
import pytest
from tests.tui.fleets import replica
from tests.tui.palette import offered
from tests.tui.stopwatch import Stopwatch
from textual.pilot import Pilot
from textual.widgets import Button

from gpuserve_tui.app import FleetApp
from gpuserve_tui.model.actions import ACTIONS, BY_ID, PANES, Action, Grade, Situation, key_name, unavailable
from gpuserve_tui.screens import dialogs
from gpuserve_tui.screens.dialogs import Confirm
from gpuserve_tui.settings import Settings
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.types import Status

Daemon: TypeAlias = Any  # tests/tui/conftest.py: ScriptedDaemon
Until: TypeAlias = Callable[[Pilot[int], Callable[[], object]], Awaitable[None]]
# What a replica must be for an action to be possible on it.
FITTING = {"start": "qwen-7", "undrain": "qwen-6", "quarantine": "GPU-0", "release": "GPU-3"}
LEAVES = {"quit"}


def test_no_key_means_two_things_and_every_action_is_carried_out() -> None:
    keys = [key for action in ACTIONS for key in action.keys]
    assert len(keys) == len(set(keys))
    assert len(BY_ID) == len(ACTIONS)
    app = FleetApp(None)  # type: ignore[arg-type]  # nothing is asked
    for action in ACTIONS:
        for pane in action.panes:
            assert action.id in app.commands.keys() | app.panes[pane].commands.keys()
    carried_out = {*app.commands, *(name for pane in app.panes.values() for name in pane.commands)}
    assert {action.id for action in ACTIONS} == carried_out


def test_what_changes_the_fleet_is_an_upper_case_key_or_asks_first() -> None:
    for action in ACTIONS:
        if action.grade is Grade.NONE:
            assert action.id in {"start", "undrain"}, "only what adds capacity is done at once"


async def ready(app: FleetApp, pilot: Pilot[int], daemon: Daemon, fleet: Status, until: Until) -> None:
    daemon.snapshot(fleet)
    await until(pilot, lambda: app.state.status is not None and app.profiles.profiles)


async def disconnected(app: FleetApp, pilot: Pilot[int], daemon: Daemon, fleet: Status, until: Until) -> None:
    await ready(app, pilot, daemon, fleet, until)
    daemon.cut()
    await until(pilot, lambda: app.state.lost is not None)


async def place(app: FleetApp, pilot: Pilot[int], action: Action) -> None:
    """On a screen where the action exists, with the cursor on a row that knows it."""
    while len(app.screen_stack) > 1:
        app.pop_screen()
    pane = next((pane for pane in ("overview", *PANES) if pane in action.panes), "overview")
    app.show_pane(pane)
    await pilot.pause()
    if pane == "overview":
        app.overview.replicas.to(FITTING.get(action.id, "qwen-0"))
        await pilot.pause()
    if action.needs == "gpu":
        app.main.query_one("#gpu-tree", RowTable).to(FITTING[action.id])
        await pilot.pause()


@pytest.mark.parametrize("state", ["read-only", "may-not-operate", "disconnected", "stale"])
async def test_keys_where_nothing_may_be_changed(
    daemon: Daemon, fleet: Status, until: Until, state: str
) -> None:
    """No key asks the daemon for a change, none fails, and what is impossible says why."""
    monotonic = Stopwatch()
    app = FleetApp(daemon, read_only=state == "read-only", monotonic=monotonic)
    daemon.may_operate = state != "may-not-operate"
    said: list[str] = []
    async with app.run_test(size=(120, 36)) as pilot:
        prepare = disconnected if state == "disconnected" else ready
        await prepare(app, pilot, daemon, fleet, until)
        if state == "stale":
            monotonic.advance(6000)
            app.draw()
        app.notify = lambda text, **_: said.append(text)  # type: ignore[method-assign]
        # The daemon's word comes with the connection and is kept as `--read-only` is: the keys that look are the same.
        tried = [a for a in ACTIONS if a.id not in LEAVES and (a.mutates or state != "may-not-operate")]
        for action in tried:
            for key in action.keys:
                await place(app, pilot, action)
                before = len(said)
                await pilot.press(key)
                await pilot.pause()
                assert daemon.calls == [], f"{key} asked for a change"
                assert not isinstance(app.screen, Confirm), f"{key} offers what cannot be done"
                if action.mutates:
                    assert said[before:], f"{key} does not say why nothing happens"
                    assert said[-1].startswith(action.label)
        assert app.is_running


async def test_keys_where_everything_is_possible(
    daemon: Daemon, fleet: Status, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What adds capacity is done at once; whatever else changes something asks, and enter on the question changes nothing."""
    monkeypatch.setattr(dialogs, "DEAF_S", 0.0)
    aside = msgspec.structs.replace(fleet.gpus[3], state="QUARANTINED", reason="fan is loud")
    fleet = msgspec.structs.replace(fleet, gpus=[*fleet.gpus[:3], aside, *fleet.gpus[4:]])
    app = FleetApp(
        daemon, monotonic=Stopwatch()
    )  # a loaded machine takes longer over the keys than data stays fresh
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(app, pilot, daemon, fleet, until)
        for action in (a for a in ACTIONS if a.id not in LEAVES):
            for key in action.keys:
                await place(app, pilot, action)
                daemon.calls.clear()
                await pilot.press(key)
                await pilot.pause()
                if action.grade is Grade.NONE:
                    await until(pilot, lambda: daemon.calls)
                    assert daemon.calls[0][0] == action.id
                    await until(pilot, lambda: not app.state.view.busy)
                elif action.mutates:
                    await until(pilot, lambda: isinstance(app.screen, Confirm) and app.screen.focused)
                    assert app.screen.focused is app.screen.query_one("#cancel", Button)
                    await pilot.press("enter")
                    await until(pilot, lambda: not isinstance(app.screen, Confirm))
                    assert daemon.calls == []
                else:
                    assert daemon.calls == [], f"{key} changed something"


async def test_q_leaves_and_stops_nothing(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(app, pilot, daemon, fleet, until)
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert app.is_running
        await pilot.press("q")
    assert app.return_value == 0
    assert daemon.calls == []


async def test_keys_can_be_changed(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon, settings=Settings(keys={"stop": ("ctrl+k", "K")}))
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(app, pilot, daemon, fleet, until)
        await pilot.press("S")
        await pilot.pause()
        assert not isinstance(app.screen, Confirm)
        await pilot.press("ctrl+k")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        foot = str(app.main.query_one("#foot").render())
        assert "^k Stop" in foot


async def test_help_is_made_from_the_keys_in_force(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon, read_only=True, settings=Settings(keys={"help": ("f1",)}))
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(app, pilot, daemon, fleet, until)
        await pilot.press("f1")
        await until(pilot, lambda: len(app.screen_stack) > 1)
        text = app.screen.query_one("TextLines").text  # type: ignore[attr-defined]
        for action in ACTIONS:
            assert re.search(rf"{re.escape(action.label)}\s+{re.escape(action.help)}", text)
        assert re.search(r"^\s+f1 +Help", text, re.MULTILINE)
        assert re.search(r"^\s+S +Stop .*attached read-only", text, re.MULTILINE)


async def test_the_palette_acts_on_replicas_by_name(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(app, pilot, daemon, fleet, until)
        await pilot.press("colon")
        await pilot.press(*"start qwen-7")
        await until(pilot, lambda: "start qwen-7" in offered(app))
        await pilot.press("enter")
        await until(pilot, lambda: daemon.calls)
        assert daemon.calls[0][0] == "start"
        assert daemon.calls[0][1].replicas == ["qwen-7"]


def test_the_reasons_are_words_for_an_operator() -> None:
    stop = BY_ID["stop"]
    one = (replica(0),)
    assert unavailable(stop, Situation(targets=one)) == ""
    assert unavailable(stop, Situation(targets=())) == "Stop: no replica is selected"
    assert (
        unavailable(stop, Situation(targets=one, busy=frozenset({"qwen-0"})))
        == "Stop: qwen-0 is being acted on"
    )
    down = (msgspec.structs.replace(one[0], state="STOPPED"),)
    assert unavailable(stop, Situation(targets=down)) == "Stop: qwen-0 is STOPPED"
    assert "not on this screen" in unavailable(stop, Situation(pane="logs", targets=one))
    assert key_name("ctrl+p") == "^p"
