"""What an operator asks of a replica is answered, also where its controller ends first: who waits holds up every later change."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.replica.conftest import Make
from tests.replica.stand_in import PATIENCE_S, ScriptEngine, StandIn, assignment

from gpuserved.core.events import EventKind
from gpuserved.core.state import NotAllowed, State
from gpuserved.host.deadline import within
from gpuserved.replica.controller import ReplicaController, ReplicaGone


@pytest.fixture
def services(top: Path) -> StandIn:
    return StandIn(top, ScriptEngine(top))


async def test_the_answer_is_the_state_it_led_to(services: StandIn, control: Make) -> None:
    assert await control(services).ask(EventKind.STOP) is State.STOPPED


async def test_what_the_state_does_not_know_is_refused(services: StandIn, control: Make) -> None:
    with pytest.raises(NotAllowed, match="STOPPED cannot drain"):
        await control(services).ask(EventKind.DRAIN)


async def test_who_asked_before_the_end_is_told_of_it(services: StandIn, control: Make) -> None:
    controller = control(services)
    asked = [asyncio.ensure_future(controller.ask(EventKind.STOP)) for _ in range(3)]
    asked[0].cancel()  # nobody waits for it any more, and it is in nobody's way
    leaving = asyncio.ensure_future(controller.detach())
    answers = await within(asyncio.gather(*asked, return_exceptions=True), PATIENCE_S)
    assert [type(answer) for answer in answers[1:]] == [ReplicaGone, ReplicaGone]
    await leaving


async def test_who_is_being_answered_at_the_end_is_told_of_it(
    services: StandIn, control: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller is cancelled in the middle of carrying the order out."""
    under_way = asyncio.Event()

    async def never(_controller: ReplicaController, _event: object) -> None:
        under_way.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ReplicaController, "_handle", never)
    controller = control(services)
    asked = asyncio.ensure_future(controller.ask(EventKind.STOP))
    await within(under_way.wait(), PATIENCE_S)
    await controller.detach()
    with pytest.raises(ReplicaGone):
        await within(asked, PATIENCE_S)


@pytest.mark.parametrize("began", [True, False])
async def test_who_asks_after_the_end_is_told_at_once(services: StandIn, *, began: bool) -> None:
    controller = ReplicaController(assignment(), services)
    if began:
        controller.begin()
    await controller.detach()
    with pytest.raises(ReplicaGone, match="left the fleet"):
        await within(controller.ask(EventKind.STOP), PATIENCE_S)


async def test_an_end_that_nobody_asked_for_is_told_too(
    services: StandIn, control: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the task, those who wait do not wait for ever."""

    async def broken(_controller: ReplicaController, _event: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(ReplicaController, "_handle", broken)
    controller = control(services)
    with pytest.raises(ReplicaGone):
        await within(controller.ask(EventKind.STOP), PATIENCE_S)
