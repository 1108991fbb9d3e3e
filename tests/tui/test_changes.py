"""From a key to a request: what is frozen, what is asked, what is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec
import pytest
from tests.tui.fleets import replica, status
from textual.pilot import Pilot
from textual.widgets import Button, Input, Static

from gpuserve_tui.app import FleetApp
from gpuserve_tui.model.actions import BY_ID
from gpuserve_tui.model.changes import replica_intent
from gpuserve_tui.screens import dialogs
from gpuserve_tui.screens.dialogs import Confirm
from gpuserved.api.errors import Conflict
from gpuserved.api.types import ReplicasRequest, ScaleRequest, Status

Daemon: TypeAlias = Any  # tests/tui/conftest.py: ScriptedDaemon
Until: TypeAlias = Callable[[Pilot[int], Callable[[], object]], Awaitable[None]]


@pytest.fixture
def app(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> FleetApp:
    monkeypatch.setattr(dialogs, "DEAF_S", 0.0)
    return FleetApp(daemon)


async def begin(
    app: FleetApp, pilot: Pilot[int], daemon: Daemon, fleet: Status, until: Until, row: str
) -> None:
    daemon.snapshot(fleet)
    await until(pilot, lambda: app.state.status is not None and app.profiles.profiles)
    app.overview.replicas.to(row)
    await pilot.pause()


def words(app: FleetApp) -> str:
    return " ".join(str(widget.visual) for widget in app.screen.query(Static))


async def ask(app: FleetApp, pilot: Pilot[int], key: str, until: Until) -> str:
    await pilot.press(key)
    await until(pilot, lambda: isinstance(app.screen, Confirm) and app.screen.is_attached)
    await pilot.pause()
    return words(app)


async def test_target_and_generation_are_those_of_the_key_press(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until
) -> None:
    """While the dialog stands, the table is sorted anew, the replica starts again and the fleet moves on."""
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-0")
        assert "Restart qwen-0" in await ask(app, pilot, "r", until)
        moved = [msgspec.structs.replace(r, generation=9, in_flight=0) for r in fleet.replicas]
        daemon.snapshot(msgspec.structs.replace(fleet, generation=77, replicas=moved[::-1]))
        await until(pilot, lambda: app.state.status is not None and app.state.status.generation == 77)
        await pilot.press("y")
        await until(pilot, lambda: daemon.calls)
    assert daemon.calls == [
        ("restart", ReplicasRequest(replicas=["qwen-0"], generation=4, replica_generations={"qwen-0": 3}))
    ]


async def test_a_refusal_is_told_and_the_replica_can_be_acted_on_again(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until
) -> None:
    daemon.answer = Conflict("qwen-0 was started again since; nothing was done", "look again, then repeat")
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-0")
        await ask(app, pilot, "r", until)
        await pilot.press("y")
        await until(pilot, lambda: any("nothing was done" in str(n.message) for n in app._notifications))
        assert not app.state.view.busy


async def test_a_stop_says_what_is_lost_and_offers_to_drain(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until
) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-5")
        text = await ask(app, pilot, "S", until)
        assert "14 waiting requests" in text
        assert "Drain instead" in text
        await pilot.press("d")
        await until(pilot, lambda: daemon.calls)
        assert daemon.calls[0][0] == "drain"


async def test_the_last_ready_replica_wants_its_name(app: FleetApp, daemon: Daemon, until: Until) -> None:
    alone = status([], [replica(0), replica(1, state="FAILED")])
    async with app.run_test(size=(100, 30)) as pilot:
        await begin(app, pilot, daemon, alone, until, "qwen-0")
        assert "No other replica of qwen3-8b is ready" in await ask(app, pilot, "S", until)
        assert app.screen.query_one("#accept", Button).disabled
        await pilot.press("y")
        await pilot.pause()
        assert isinstance(app.screen, Confirm)
        app.screen.query_one("#typed", Input).focus()
        await pilot.press(*"qwen-1", "enter")
        assert daemon.calls == []
        app.screen.query_one("#typed", Input).value = ""
        await pilot.press(*"qwen-0", "enter")
        await until(pilot, lambda: daemon.calls)
        assert daemon.calls[0][0] == "stop"


async def test_marked_rows_are_acted_on_together(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until
) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-0")
        await pilot.press("space", "space", "o")
        await until(pilot, lambda: app.state.arrangement.marked == {"qwen-0", "qwen-1"})
        text = await ask(app, pilot, "d", until)
        assert "Drain 2 replicas?" in text
        assert "qwen-0, qwen-1" in text
        await pilot.press("y")
        await until(pilot, lambda: daemon.calls and not app.state.arrangement.marked)
        assert daemon.calls[0][1].replica_generations == {"qwen-0": 3, "qwen-1": 3}


async def test_a_key_that_was_on_its_way_does_not_answer(daemon: Daemon, fleet: Status, until: Until) -> None:
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-0")
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        assert isinstance(app.screen, Confirm)
        app.screen._opened += 3600  # a dialog that has just opened, however slow this machine is
        app.screen.action_answer("accept")
        await pilot.pause()
        assert isinstance(app.screen, Confirm)
        assert daemon.calls == []


async def test_a_second_press_while_the_first_is_under_way_asks_nothing(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until
) -> None:
    daemon.hold.clear()
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-7")
        await pilot.press("s")
        await until(pilot, lambda: "starting 0s" in app.overview.replicas.text)
        await pilot.press("s", "s")
        await pilot.pause()
        daemon.hold.set()
        await until(pilot, lambda: not app.state.view.busy)
    assert len(daemon.calls) == 1


async def test_an_event_from_before_our_change_does_not_make_the_next_key_stale(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until
) -> None:
    """The answer to our own drain says generation 5; figures of generation 4 were still on their way."""
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-0")
        await ask(app, pilot, "d", until)
        await pilot.press("y")
        await until(pilot, lambda: app.state.status is not None and app.state.status.generation == 5)
        daemon.telemetry(msgspec.structs.replace(fleet, replicas=[replica(0, state="DRAINING")]))
        await until(pilot, lambda: app.state.status is not None and len(app.state.status.replicas) == 1)
        await pilot.press("D")
        await until(pilot, lambda: len(daemon.calls) == 2)
    assert daemon.calls[1][1].generation == 5


async def test_a_change_by_somebody_else_brings_its_generation(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until
) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-0")
        daemon.replica(replica(0, state="DRAINING"), previous="READY", generation=6)
        await until(pilot, lambda: app.state.status is not None and app.state.status.generation == 6)
        await pilot.press("D")
        await until(pilot, lambda: daemon.calls)
    assert daemon.calls[0][1].generation == 6


async def test_a_new_connection_begins_with_the_daemons_own_generation(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until
) -> None:
    """A fleet that was forgotten counts from the beginning."""
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-0")
        app.state.end(replica_intent(BY_ID["drain"], fleet, []), 9)
        daemon.cut()
        await until(pilot, lambda: app.state.lost is not None)
        daemon.snapshot(msgspec.structs.replace(fleet, generation=1))
        await until(pilot, lambda: app.state.lost is None)
    assert app.state.status is not None
    assert app.state.status.generation == 1


async def test_a_connection_lost_behind_the_dialog_changes_nothing(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until
) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-0")
        await ask(app, pilot, "r", until)
        daemon.cut()
        await until(pilot, lambda: app.state.lost is not None)
        await pilot.press("y")
        await pilot.pause()
    assert daemon.calls == []


@pytest.mark.parametrize(("key", "count"), [("plus", 9), ("minus", 7)])
async def test_scale(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until, key: str, count: int
) -> None:
    async with app.run_test(size=(120, 36)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-0")
        assert f"Scale qwen from 8 to {count}" in await ask(app, pilot, key, until)
        await pilot.press("y")
        await until(pilot, lambda: daemon.calls)
    assert daemon.calls == [("scale", ScaleRequest(profile="qwen", replicas=count, generation=4))]


async def test_apply_shows_what_it_would_do_and_wants_the_name_where_something_stops(
    app: FleetApp, daemon: Daemon, fleet: Status, until: Until
) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        await begin(app, pilot, daemon, fleet, until, "qwen-0")
        await pilot.press("6")
        await until(pilot, lambda: "+replicas = 6" in app.profiles.diff.text)
        assert "-replicas = 8" in app.profiles.diff.text
        text = await ask(app, pilot, "P", until)
        assert "stop    qwen-7" in text
        await pilot.press("y")
        await pilot.pause()
        assert daemon.calls == []
        app.screen.query_one("#typed", Input).focus()
        await pilot.press(*"qwen", "enter")
        await until(pilot, lambda: daemon.calls)
    assert daemon.calls[0][0] == "apply qwen"
    assert daemon.calls[0][1].generation == 4
