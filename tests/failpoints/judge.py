"""The promises, looked at from outside: processes, locks and files, and what the daemon says of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.failpoints.census import Engine
from tests.failpoints.model import DRAINED, READY, STOPPED, Death
from tests.failpoints.world import GPUS, A, B, World, held

from gpuserved.api.types import ReplicaView
from gpuserved.host.gpulock import GpuLocks

if TYPE_CHECKING:
    from tests.failpoints.run import Run


def running(run: Run) -> list[str]:
    """All is quiet: is everything as it may be?"""
    rows = run.world.rows()
    engines = run.census.engines(run.world.roots.run)
    return [
        *run.census.wrong(run.world.roots.run),
        *_known(run.world, rows, engines),
        *_leases(run.world, {each.replica: each for each in engines}),
        *_wanted(run, rows, engines),
        *_same(run, rows),
        *_reported(run),
        *_unfinished(run.world),
        *_alone(run.world),
    ]


def after_half_a_stop(run: Run) -> list[str]:
    """A daemon was killed while it stopped everything; its successor has all under control, and has lost no profile."""
    rows = run.world.rows()
    engines = run.census.engines(run.world.roots.run)
    wrong = [
        *run.census.wrong(run.world.roots.run),
        *_known(run.world, rows, engines),
        *_leases(run.world, {each.replica: each for each in engines}),
    ]
    if run.script.keep:
        profiles = {row.profile for row in rows.values() if row.state == READY}
        wrong += [
            f"profile {name} is forgotten, or does not serve" for name in (A, B) if name not in profiles
        ]
    return wrong


def stopped(run: Run) -> list[str]:
    """Nothing is left of it."""
    world = run.world
    left = [f"process {pid} is left" for pid in world.strangers()]
    folders = list((world.roots.run / "r").glob("*"))
    sockets = [path for path in world.roots.run.rglob("*") if path.is_socket()]
    left += [f"{path.relative_to(world.roots.run)} is left" for path in [*folders, *sockets]]
    return [*run.census.wrong(world.roots.run), *left, *_leases(world, {}), *_unfinished(world)]


def _alone(world: World) -> list[str]:
    """There is one daemon."""
    other = world.heir()
    return [] if other is None else [f"another daemon runs beside the one that serves: PID {other.pid}"]


def _known(world: World, rows: dict[str, ReplicaView], engines: list[Engine]) -> list[str]:
    """Every engine is a replica's, every replica that says so has one, and every folder is somebody's."""
    wrong = []
    by_pid = {row.pid: row for row in rows.values() if row.pid is not None}
    wrong += [f"{each} is nobody's" for each in engines if each.pid not in by_pid]
    living = {each.pid for each in engines}
    wrong += [
        f"{row.id} says PID {pid}, and there is none" for pid, row in by_pid.items() if pid not in living
    ]
    folders = {path.name for path in (world.roots.run / "r").glob("*")}
    nonces = {each.nonce for each in engines}
    wrong += [f"run folder {name} is nobody's" for name in sorted(folders - nonces)]
    shims = {row.shim_pid for row in rows.values() if row.shim_pid is not None}
    return wrong + [f"shim {pid} is nobody's" for pid in _shims(world) if pid not in shims]


def _shims(world: World) -> list[int]:
    """Of replicas: those of routers have their folder elsewhere."""
    found = []
    for pid in world.strangers():
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                is_shim = file.read() == "gpuserve-shim\n"
        except OSError:
            continue
        if is_shim and not world.keeps_a_router(pid):
            found.append(pid)
    return found


def _leases(world: World, engines: dict[str, Engine]) -> list[str]:
    """The GPU of each engine is leased whole, in its name; no other is."""
    locks = GpuLocks(world.locks, "the judge")
    wrong = []
    for n in range(GPUS):
        there = [each.replica for each in engines.values() if each.gpu == str(n)]
        leased = [
            (lease.holder.partition(" of ")[0], lease.fraction)
            for lease in locks.held_by_others(world.uuid(n))
        ]
        if leased != [(name, 1.0) for name in there]:
            wrong.append(f"GPU {n} is leased by {leased}, and {there} runs there")
    return wrong


def _wanted(run: Run, rows: dict[str, ReplicaView], engines: list[Engine]) -> list[str]:
    """What was answered is so."""
    model = run.model
    wrong = []
    count = sum(row.profile == A for row in rows.values())
    if count not in model.counts:
        wrong.append(f"there are {count} replicas of {A}, and {model.counts} were asked for")
    for row in rows.values():
        state = DRAINED if held(row) else row.state
        if state not in model.possible(row.id):
            wrong.append(f"{row.id} is {state}, and {sorted(model.possible(row.id))} was asked for")
        if state == STOPPED and row.pid is not None:
            wrong.append(f"{row.id} is stopped, and runs as PID {row.pid}")
    marks = {each.mark for each in engines if each.replica.startswith(f"{A}-")}
    if marks - model.marks:
        wrong.append(f"settings {marks} run, and {model.marks} were asked for")
    return wrong


def _same(run: Run, rows: dict[str, ReplicaView]) -> list[str]:
    """Who was left alone is the same process, and counts as many restarts as it died."""
    wrong = []
    shims_died = run.script.of_shim
    for name, before in run.first.items():
        row = rows.get(name)
        if name in run.model.touched or row is None:
            continue
        deaths = [death for death in run.model.deaths if death.replica == name]
        if not deaths and not shims_died and (row.pid, row.generation) != (before.pid, before.generation):
            wrong.append(f"{name} was left alone, and is PID {row.pid} now, not {before.pid}")
        if row.restarts != len(deaths) and not shims_died:
            wrong.append(f"{name} counts {row.restarts} restarts, and died {len(deaths)} times")
    return wrong


def _reported(run: Run) -> list[str]:
    """Every death of who was left alone has its card, with how it ended."""
    return [
        f"{death}: {said}"
        for death in run.model.deaths
        if death.replica not in run.model.touched and (said := _report(run, death)) is not None
    ]


def _report(run: Run, death: Death) -> str | None:
    path = run.world.roots.log / "replicas" / death.replica / f"{death.generation}.crash.json"
    if run.script.of_shim and not path.with_name(f"{death.generation}.log").exists():
        return None  # every start died at the step, and the logs and cards of five starts are kept
    try:
        card: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return f"no crash card: {error}"
    ended = {
        "api": card["signal"] == 9,
        "engine": card["signal"] is not None or card["exit_code"] is not None,
        "shim": card["cause"] == "shim_lost",
    }
    shim_died_over_it = run.script.of_shim and ended["shim"]
    return (
        None if ended[death.what] or shim_died_over_it else f"reported as {card['cause']}: {card['message']}"
    )


def _unfinished(world: World) -> list[str]:
    """Broken-off writes of supervisors that died; the present one may be writing."""
    present = str(world.daemon.pid) if world.daemon is not None else ""
    folders = [world.roots.state, world.roots.run, *(world.roots.log / "replicas").glob("*")]
    return [
        f"{path} is left"
        for folder in folders
        for path in folder.glob(".*")
        if path.suffix[1:].isdigit() and path.suffix[1:] != present
    ]
