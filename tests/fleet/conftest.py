"""A whole fleet without routers, GPUs or processes: what is planned and decided is real, and nothing is started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.api.roots import Roots, from_environment
from gpuserved.api.routing import ApiKey, RoutingTable
from gpuserved.api.types import ApplyRequest, UpgradeAccepted, UpgradeRequest
from gpuserved.core.profile import Profile
from gpuserved.engines.registry import Engines
from gpuserved.fleet.service import Daemon, Fleet
from gpuserved.fleet.settings import CurrentSettings, Settings
from gpuserved.routers.routers import Routers
from gpuserved.telemetry.provider import NoneProvider

KEY = ApiKey(name="first", sha256="0" * 64)


def text(name: str, replicas: int = 0, **more: object) -> str:
    """A profile that fits anywhere; without replicas it starts nothing."""
    lines = [f'model = "org/{name}"', f'served_name = "{name}"', 'engine = "sim"', f"replicas = {replicas}"]
    return "\n".join([*lines, *(f"{key} = {value!r}" for key, value in more.items())]) + "\n"


class Tables(Routers):
    """Routers of which none is started; keeps the tables that they are told."""

    def __init__(self, roots: Roots) -> None:
        super().__init__(roots)
        self.pushed: list[RoutingTable] = []

    def push(self, table: RoutingTable) -> None:
        self.pushed.append(table)
        super().push(table)


@dataclass
class World:
    """A fleet with what tests turn of its surroundings."""

    fleet: Fleet
    tables: Tables
    settings: CurrentSettings
    state_file: Path
    config: Path
    found: list[Settings | Invalid] = field(default_factory=list)
    """What the daemon's files hold at the next reload."""

    async def apply(self, **texts: str) -> None:
        for name, profile in texts.items():
            (self.config / f"{name}.toml").write_text(profile)
        sources = {name: str(self.config / f"{name}.toml") for name in texts}
        await self.fleet.apply(ApplyRequest(profiles=texts, sources=sources))

    def desired(self) -> dict[str, str]:
        return {each.name: each.applied_text or "" for each in self.fleet.inspection.profiles().profiles}


@dataclass
class SlowEngine:
    """An adapter whose `prepare` takes until `ready` is set, as learning a vLLM's flags takes minutes."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    prepared: list[str] = field(default_factory=list)

    def instead_of(self, adapter: Any) -> Any:
        async def prepare(profile: Profile) -> None:
            self.prepared.append(profile.name)
            if profile.name == "slow":
                self.asked.set()
                await self.ready.wait()

        others = {name: getattr(adapter, name) for name in dir(adapter) if not name.startswith("_")}
        return SimpleNamespace(**{**others, "prepare": prepare})


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    roots = from_environment({"GPUSERVE_ROOT": str(tmp_path)}, uid=0)
    for folder in (roots.run, roots.state, roots.log, roots.cache, roots.config):
        folder.mkdir(parents=True, exist_ok=True)
    tables, settings = Tables(roots), CurrentSettings(Settings(keys=(KEY,)))
    found: list[Settings | Invalid] = []

    def read() -> Settings:
        said = found.pop(0)
        if isinstance(said, Invalid):
            raise said
        return said

    async def upgrade(_request: UpgradeRequest) -> UpgradeAccepted:
        raise AssertionError

    daemon = Daemon(read, lambda _drain, _forget: None, upgrade)
    fleet = Fleet(roots, tables, NoneProvider(), settings, daemon)
    await fleet.recover()
    yield World(fleet, tables, settings, roots.state / "fleet.json", roots.config, found)
    await fleet.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowEngine:
    engine, get = SlowEngine(), Engines.get
    monkeypatch.setattr(Engines, "get", lambda self, profile: engine.instead_of(get(self, profile)))
    return engine
