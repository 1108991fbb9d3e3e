"""The GPUs screen acts: a GPU is set aside and released, with what that costs said first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec
import pytest
from tests.tui.fleets import gpu, replica, status
from tests.tui.palette import offered
from textual.pilot import Pilot
from textual.widgets import Static

from gpuserve_tui import cells
from gpuserve_tui.app import FleetApp
from gpuserve_tui.model.actions import BY_ID, Situation, unavailable
from gpuserve_tui.model.changes import about_gpu
from gpuserve_tui.screens import dialogs
from gpuserve_tui.screens.dialogs import Confirm
from gpuserve_tui.view.gpus import gpu_rows, tree_rows
from gpuserve_tui.widgets.table import RowTable
from gpuserved.api.types import GpusRequest, GpuView, Status

Daemon: TypeAlias = Any  # tests/tui/conftest.py: ScriptedDaemon
Until: TypeAlias = Callable[[Pilot[int], Callable[[], object]], Awaitable[None]]
ASIDE = gpu(0, 0.0, None, state="QUARANTINED", reason="Xid 95 (uncontained memory error)")


@pytest.fixture(autouse=True)
def hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dialog takes keys at once."""
    monkeypatch.setattr(dialogs, "DEAF_S", 0.0)


async def on_gpu(app: FleetApp, pilot: Pilot[int], uuid: str) -> None:
    app.show_pane("gpus")
    await pilot.pause()
    app.main.query_one("#gpu-tree", RowTable).to(uuid)
    await pilot.pause()


def words(app: FleetApp) -> str:
    return " ".join(str(widget.visual) for widget in app.screen.query(Static))


async def test_a_gpu_is_set_aside_by_key(daemon: Daemon, fleet: Status, until: Until) -> None:
    """The GPU and the generation are those of the key press; what it costs is said first, and what came of it last."""
    said: list[str] = []
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        daemon.snapshot(fleet)
        await until(pilot, lambda: app.state.status is not None)
        app.notify = lambda text, **_: said.append(text)  # type: ignore[method-assign]
        await on_gpu(app, pilot, "GPU-0/qwen-0")
        await pilot.press("Q")
        await until(pilot, lambda: isinstance(app.screen, Confirm) and app.screen.focused)
        assert "Quarantine GPU 0?" in words(app)
        assert "qwen-0: drained" in words(app)
        daemon.snapshot(msgspec.structs.replace(fleet, generation=77))
        await pilot.press("y")
        await until(pilot, lambda: said)
    assert daemon.calls == [("quarantine", GpusRequest(gpus=["GPU-0"], generation=4))]
    assert said == ["GPU 0 QUARANTINED; qwen-0 waits for the release"]


async def test_a_gpu_is_released_by_palette(daemon: Daemon, fleet: Status, until: Until) -> None:
    aside = msgspec.structs.replace(fleet, gpus=[ASIDE, *fleet.gpus[1:]])
    app = FleetApp(daemon)
    async with app.run_test(size=(120, 36)) as pilot:
        daemon.snapshot(aside)
        await until(pilot, lambda: app.state.status is not None)
        await pilot.press("colon")
        await pilot.press(*"release GPU 0")
        await until(pilot, lambda: "release" in offered(app))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Confirm) and app.screen.focused)
        assert "uncontained memory error" in words(app)
        await pilot.press("y")
        await until(pilot, lambda: daemon.calls)
    assert daemon.calls == [("release", GpusRequest(gpus=["GPU-0"], generation=4))]


def test_the_last_ready_replica_wants_the_models_name() -> None:
    alone = status([gpu(0, 10.0, "qwen-0")], [replica(0)])
    asked = about_gpu(BY_ID["quarantine"], alone.gpus[0], alone)
    assert asked.typed == "qwen3-8b"
    assert "No other replica of qwen3-8b is ready" in " ".join(asked.lines)
    two = status([gpu(0, 10.0, "qwen-0")], [replica(0), replica(1)])
    assert about_gpu(BY_ID["quarantine"], two.gpus[0], two).typed is None


def test_what_is_not_possible_says_why() -> None:
    quarantine, release = BY_ID["quarantine"], BY_ID["release"]
    well = gpu(0, 10.0, None)
    assert unavailable(quarantine, Situation("gpus", gpu=well)) == ""
    assert unavailable(release, Situation("gpus", gpu=well)) == "Release: GPU 0 is OK"
    assert unavailable(quarantine, Situation("gpus", gpu=ASIDE)) == "Quarantine: GPU 0 is QUARANTINED"
    assert unavailable(quarantine, Situation("gpus")) == "Quarantine: no GPU is selected"
    lost = GpuView(index=1, uuid="GPU-1", name="H100", state="LOST")
    assert unavailable(release, Situation("gpus", gpu=lost)) == "Release: GPU 1 is LOST"


def test_state_and_reason_are_on_the_screen() -> None:
    (row, why, *_) = tree_rows([ASIDE], [], cells.ASCII)
    assert row.cells["about"][0].text == "QUARANTINED"
    assert why.cells["what"][0].text == " +- Xid 95 (uncontained memory error)"
    waiting = replica(0, state="FAILED", pid=None)
    for wide in (True, False):
        (row,) = gpu_rows([ASIDE], [waiting], cells.ASCII, wide=wide)
        assert row.cells["owner"][0].text.startswith("QUARANTINED qwen-0")
