"""Mutations are planned beside everything else, and decided in one go on the state that they were planned for."""

from __future__ import annotations

import asyncio

import pytest
from tests.fleet.conftest import KEY, SlowEngine, World, text

from gpuserved.api.errors import Conflict, Invalid
from gpuserved.api.routing import ApiKey, Tls
from gpuserved.api.types import ApplyRequest, ReplicasRequest, ScaleRequest
from gpuserved.fleet.settings import Settings

OTHER = ApiKey(name="second", sha256="1" * 64)


async def begun(engine: SlowEngine) -> None:
    await asyncio.wait_for(engine.asked.wait(), 60)


async def test_looks_and_other_mutations_go_on_while_a_diff_waits_for_its_engine(
    world: World, slow: SlowEngine
) -> None:
    """The engine answers only after all of the rest has been answered."""
    await world.apply(plain=text("plain"))
    (world.config / "profiles").mkdir()
    (world.config / "profiles" / "slow.toml").write_text(text("slow"))
    diff = asyncio.create_task(world.fleet.inspection.apply_profile("slow", dry_run=True, generation=None))
    await begun(slow)
    before = world.fleet.status().generation
    assert (
        await asyncio.wait_for(world.fleet.scale(ScaleRequest(profile="plain", replicas=0)), 60)
    ).generation > before
    again = await asyncio.wait_for(
        world.fleet.inspection.apply_profile("plain", dry_run=True, generation=None), 60
    )
    assert again.changes == []
    assert world.fleet.status().generation == before + 1
    assert not diff.done()
    slow.ready.set()
    assert (await asyncio.wait_for(diff, 60)).generation == before + 1
    assert "slow" not in {
        each.name for each in world.fleet.inspection.profiles().profiles if each.applied_text
    }


async def test_what_was_planned_on_an_older_state_is_planned_again(world: World, slow: SlowEngine) -> None:
    """Both profiles are wanted in the end: the second apply knows nothing of the first, and does not undo it."""
    apply = asyncio.create_task(world.apply(slow=text("slow")))
    await begun(slow)
    await world.apply(plain=text("plain"))
    slow.ready.set()
    await asyncio.wait_for(apply, 60)
    assert set(world.desired()) == {"slow", "plain"}
    assert slow.prepared == ["slow", "plain", "slow"]


async def test_whoever_named_a_generation_is_told_that_it_moved(world: World, slow: SlowEngine) -> None:
    """And nothing of the change is done."""
    generation = world.fleet.status().generation
    request = ApplyRequest(profiles={"slow": text("slow")}, generation=generation)
    apply = asyncio.create_task(world.fleet.apply(request))
    await begun(slow)
    await world.apply(plain=text("plain"))
    slow.ready.set()
    with pytest.raises(Conflict, match="decided on"):
        await asyncio.wait_for(apply, 60)
    assert set(world.desired()) == {"plain"}


async def test_a_state_that_never_rests_is_a_conflict_and_no_endless_plan(
    world: World, slow: SlowEngine
) -> None:
    slow.ready.set()
    await world.apply(plain=text("plain"))
    arranger = world.fleet._arranger
    arrange = arranger.arrange

    async def restless(*arguments: object, **more: object) -> object:
        found = await arrange(*arguments, **more)  # type: ignore[arg-type]
        world.fleet._state.commit()
        return found

    arranger.arrange = restless  # type: ignore[assignment]
    with pytest.raises(Conflict, match="faster than this can be planned"):
        await world.fleet.scale(ScaleRequest(profile="plain", replicas=0))


async def test_nothing_is_wanted_anew_while_everything_is_stopped(world: World) -> None:
    await world.apply(plain=text("plain"))
    await world.fleet.stop_everything(drain=True, forget=False)
    with pytest.raises(Conflict, match="everything is being stopped"):
        await world.apply(other=text("other"))
    with pytest.raises(Conflict, match="this was decided on"):
        await world.fleet.act("stop", ReplicasRequest(replicas=["plain"], generation=1))


# --- a reload is all or nothing

CHANGED = Settings(keys=(OTHER,), tls=Tls(cert="/c", key="/k"), hang_timeout_s=7.0, webhook="http://h/x")


async def test_a_reload_that_a_profile_refuses_changes_no_setting(world: World) -> None:
    await world.apply(plain=text("plain"))
    before, tables, desired = world.fleet.status(), len(world.tables.pushed), world.desired()
    (world.config / "plain.toml").write_text(text("plain") + "what_is_this = 1\n")
    world.found.append(CHANGED)
    with pytest.raises(Invalid, match="what_is_this"):
        await world.fleet.reload()
    assert world.settings.value == Settings(keys=(KEY,))
    assert world.desired() == desired
    assert world.fleet.status().generation == before.generation
    assert len(world.tables.pushed) == tables, "no router has heard of it"


async def test_a_reload_that_no_plan_fits_changes_no_setting(world: World) -> None:
    """Found late: the profile is right, and its replicas fit nowhere."""
    await world.apply(plain=text("plain"))
    (world.config / "plain.toml").write_text(text("plain", 3) + "[sim]\ngpus = 1\n")
    world.found.append(CHANGED)
    with pytest.raises(Exception, match="plain"):
        await world.fleet.reload()
    assert world.settings.value == Settings(keys=(KEY,))
    assert world.tables.pushed[-1].keys == [KEY]


async def test_a_reload_that_the_files_refuse_changes_no_profile(world: World) -> None:
    await world.apply(plain=text("plain"))
    (world.config / "plain.toml").write_text(text("other"))
    world.found.append(Invalid("keys: expected NAME:SHA256"))
    desired = world.desired()
    with pytest.raises(Invalid, match="expected NAME"):
        await world.fleet.reload()
    assert world.desired() == desired


async def test_a_reload_that_is_accepted_counts_as_a_whole(world: World) -> None:
    await world.apply(plain=text("plain"))
    (world.config / "plain.toml").write_text(text("plain") + 'policy = "session"\n')
    world.found.append(CHANGED)
    await world.fleet.reload()
    assert world.settings.value == CHANGED
    assert "session" in world.desired()["plain"]
    assert (world.tables.pushed[-1].keys, world.tables.pushed[-1].tls) == ([OTHER], CHANGED.tls)


async def test_a_problem_of_the_start_is_shown_until_what_is_wanted_is_applied(world: World) -> None:
    """A save that succeeds does not mend a profile that cannot be read."""
    world.fleet.report("profiles: bad.toml:1: not UTF-8 text")
    await world.fleet._saver.now()
    assert world.fleet.status().supervisor.degraded == "profiles: bad.toml:1: not UTF-8 text"
    await world.apply(plain=text("plain"))
    assert world.fleet.status().supervisor.degraded is None
