"""Plans what the fleet is to be: profiles read and checked, and placed on what the host has now. Nothing here changes the fleet.

Planning waits for engines, drivers and disks, some of it for minutes, and holds nobody else up: whoever decides on a plan looks
whether the state is still the one that it was made for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from gpuserved.api.errors import Invalid, Refused
from gpuserved.api.plan import Plan, PlanRequest
from gpuserved.api.types import PlanWarning
from gpuserved.config.document import placed
from gpuserved.config.profile import load_profile
from gpuserved.core.placement import Gpu, with_simulated
from gpuserved.core.profile import HealthPolicy, Profile
from gpuserved.engines.registry import Engines
from gpuserved.fleet.gpu_inventory import GpuInventory
from gpuserved.fleet.persistence import WantedRecord
from gpuserved.fleet.quarantine import Quarantine
from gpuserved.fleet.settings import CurrentSettings, Settings
from gpuserved.fleet.state import FleetState
from gpuserved.host.gpulock import GpuLocks
from gpuserved.planning.arrange import Arranged, Wanted, arrange, lacks_gpu
from gpuserved.planning.inputs import InputReader
from gpuserved.planning.inventory import free_gpus, leases_of_others
from gpuserved.planning.plan import shown
from gpuserved.telemetry.file import parse


class Arranger:
    """Plans for one fleet."""

    def __init__(
        self,
        state: FleetState,
        settings: CurrentSettings,
        engines: Engines,
        inputs: InputReader,
        inventory: GpuInventory,
        quarantine: Quarantine,
        gpu_locks: GpuLocks | None,
        cache_dir: Path,
    ) -> None:
        self._state = state
        self._settings = settings
        self._engines = engines
        self._inputs = inputs
        self._inventory = inventory
        self._quarantine = quarantine
        self._gpu_locks = gpu_locks
        self._cache_dir = cache_dir

    def read(self, name: str, text: str, source: str, settings: Settings | None = None) -> Profile:
        """One profile with the daemon's defaults.

        :param settings: None: those that count now.
        :raises Invalid: naming file, line and key.
        """
        profile = load_profile(text, source, name)
        hang_timeout_s = (settings or self._settings.value).hang_timeout_s
        if hang_timeout_s is not None and profile.health.hang_timeout_s == HealthPolicy().hang_timeout_s:
            return replace(profile, health=replace(profile.health, hang_timeout_s=hang_timeout_s))
        return profile

    def fresh(self, name: str, text: str, source: str, settings: Settings | None = None) -> Wanted:
        """What is wanted by an apply; a profile that did not change keeps what the planner decided for it.

        :raises Invalid: naming file, line and key.
        """
        before, profile = self._state.desired.get(name), self.read(name, text, source, settings)
        same = before is not None and before.profile.plans_like(profile)
        return Wanted(text, source, profile, solved=before.solved if before is not None and same else None)

    def saved(self, record: WantedRecord) -> Wanted:
        """A profile as it was saved.

        :raises Invalid: it is not valid any more.
        """
        profile = self.read(record.name, record.text, record.source)
        return Wanted(record.text, record.source, profile, record.scaled, record.solved)

    async def check(self, wanted: Collection[Wanted]) -> list[PlanWarning]:
        """Ask each profile's adapter what would make every start fail. May take minutes.

        :raises Invalid: something would.
        """
        found: list[PlanWarning] = []
        for each in wanted:
            engine = self._engines.get(each.profile)
            await engine.prepare(each.profile)
            try:
                said = engine.check(each.profile)
            except Invalid as error:
                raise placed(error, each.text, each.source) from None
            found += [PlanWarning(code="engine", message=f"{each.profile.name}: {text}") for text in said]
        return found

    async def arrange(
        self, wanted: Mapping[str, Wanted], fresh: Collection[str] = (), settings: Settings | None = None
    ) -> Arranged:
        """Place `wanted`; replicas stay where they are where they can.

        :param fresh: the profiles that are planned now; what was decided for the others, or never could be, is left alone.
        :raises Refused: a profile does not fit.
        """
        names = [name for name in fresh if wanted[name].solved is None]
        token = (settings or self._settings.value).hf_token
        inputs = await asyncio.to_thread(
            lambda: {name: self._inputs.of(wanted[name].profile, token) for name in names}
        )
        inventory = await self.inventory(wanted)
        held = {name: each.gpu_uuids for name, each in self._state.targets().items()}
        leases = leases_of_others(self._gpu_locks, inventory)
        waiting = [name for name, replica in self._state.snapshots().items() if lacks_gpu(replica.r)]
        return arrange(wanted, inventory, held, inputs, leases, self._quarantine.blocked(), waiting)

    async def inventory(self, wanted: Mapping[str, Wanted]) -> list[Gpu]:
        """The GPUs that these profiles may be placed on, with those that are set aside and gone."""
        real = await self._inventory.real()
        profiles = [each.profile for each in wanted.values()]
        return self._quarantine.with_missing(with_simulated(real, profiles))

    async def plan(self, request: PlanRequest) -> Plan:
        """Place one profile beside what runs; nothing is changed. It is planned anew, whatever was decided before.

        :raises Invalid: the profile or the inventory is wrong.
        """
        name, source = request.name, request.source or request.name
        profile = self.read(name, request.text, source)
        wanted = Wanted(request.text, source, profile)
        found: Arranged | Refused
        try:
            if request.inventory is not None:
                inputs = await asyncio.to_thread(self._inputs.of, profile, self._settings.value.hf_token)
                gpus = free_gpus(*parse(request.inventory, "inventory"))
                found = arrange({name: wanted}, gpus, {}, {name: inputs})
            else:
                found = await self.arrange({**self._state.desired, name: wanted}, (name,))
        except Refused as error:
            found = error
        sampling = await asyncio.to_thread(self._inputs.sampling, profile)
        try:
            return shown(found, profile, self._engines.get(profile), sampling, self._cache_dir)
        except Invalid as error:
            raise placed(error, wanted.text, wanted.source) from None


def one_model_per_name(wanted: Mapping[str, Wanted]) -> None:
    """Two profiles may serve one name; their models must then be the same, or answers would depend on chance.

    :raises Invalid: they are not.
    """
    models: dict[str, tuple[str, str]] = {}
    for name, each in wanted.items():
        for served in each.profile.model_names:
            # One name may be an adapter here and a model there.
            adapter = served in each.profile.adapter_names
            model = f"{each.profile.model}, adapter {served}" if adapter else each.profile.model
            other = models.setdefault(served, (name, model))
            if other[1] != model:
                raise Invalid(
                    f"profiles {other[0]} and {name} both serve {served!r}, with different models",
                    "give one of them another served_name",
                )
