"""A fleet for the fault table: two look-alikes of two tensor-parallel workers each, whose every start can be given faults."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.e2e.texts import HEALTH, RESTART, SERVED, Flavour, Fleet, Scalar, sim


class Stage(Fleet):
    """Replicas `tiny-0` and `tiny-1`."""

    def __init__(self) -> None:
        super().__init__()
        self._faults = self.top / "faults.json"
        self.arm({})
        flags: dict[str, Scalar] = {
            "load_s": 0.3, "gpus": 4, "shm_leak": True, "escape_child": True, "faults_file": str(self._faults),
        }  # fmt: skip
        profile = sim(
            SERVED,
            flags=flags,
            tables={"health": HEALTH, "restart": RESTART},
            tensor_parallel_size=2,
            gpus="all",
        )
        self.flavour = Flavour("sim", profile, stream_tokens=200, start_s=60)

    def arm(self, faults: dict[str, dict[str, Scalar]]) -> None:
        """What every later start of these replicas is given: {REPLICA, REPLICA@GENERATION or *: {flag: value}}."""
        self._faults.write_text(json.dumps(faults), "utf-8")

    def restart_with(self, replica: str, **flags: Scalar) -> None:
        """A new start of `replica`, and only this one, has these faults."""
        before = self.replica(replica)
        self.arm({f"{replica}@{before['generation'] + 1}": flags})
        self.ok("restart", replica)
        self.wait_restarted(before, self.flavour.start_s)


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    made = Stage()
    try:
        made.up({"tiny": made.flavour.profile}, wait_s=made.flavour.start_s)
        yield made
    finally:
        made.close()
