"""Fleets whose replicas can be made to misbehave, on either engine: what the rows of the fault table are played on."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping

from tests.e2e.clients import PlainLoad
from tests.e2e.strikes import mappings_known
from tests.e2e.texts import (
    HEALTH,
    RESTART,
    SERVED,
    VLLM_TABLES,
    Flavour,
    Fleet,
    Scalar,
    make_model,
    sim,
    vllm_profile,
)

from gpuserved.engines.sim.sabotage import GARBAGE


class Stage(Fleet, abc.ABC):
    """Replicas `tiny-0` and `tiny-1`. Faults are the look-alike's switches, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.faults_file = self.top / "faults.json"
        self.arm({})

    def arm(self, faults: Mapping[str, Mapping[str, Scalar]]) -> None:
        """What is wrong with which replica: {REPLICA@GENERATION or *: {fault: value}}."""
        fresh = self.faults_file.with_suffix(".new")
        fresh.write_text(json.dumps(faults), "utf-8")
        fresh.replace(self.faults_file)

    def both_ready(self) -> None:
        """Both replicas are READY and chosen."""
        for replica in ("tiny-0", "tiny-1"):
            self.wait_state(replica, "READY", self.flavour.start_s, rotation="in")

    @abc.abstractmethod
    def spoil(self, replica: str, **faults: Scalar) -> None:
        """One replica has these faults, in the start that is READY when this returns."""

    @abc.abstractmethod
    def poison(self, text: str) -> None:
        """From now on a prompt that holds `text` kills the engine of whichever replica it comes to."""

    @abc.abstractmethod
    def mend(self) -> None:
        """No replica has a fault any more; both are READY."""

    def next_load_lasts(self, replica: str) -> None:
        """The next start of a replica loads long enough to be struck while it does."""


class SimStage(Stage):
    """The look-alike, two tensor-parallel workers to a replica. Its faults are given at the start, so it is started again."""

    def __init__(self) -> None:
        super().__init__()
        flags: dict[str, Scalar] = {
            "load_s": 0.3, "gpus": 4, "shm_leak": True, "escape_child": True, "faults_file": str(self.faults_file),
        }  # fmt: skip
        profile = sim(
            SERVED,
            flags=flags,
            tables={"health": HEALTH | {"startup_stall_s": 8}, "restart": RESTART},
            tensor_parallel_size=2,
            gpus="all",
        )
        self.flavour = Flavour("sim", profile, stream_tokens=200, start_s=60, hang_rotation_s=2)
        self._spoilt: dict[str, int] = {}

    def spoil(self, replica: str, **faults: Scalar) -> None:
        """See `Stage.spoil`."""
        before = self.replica(replica)
        self.arm({f"{replica}@{before['generation'] + 1}": faults})
        self.ok("restart", replica)
        self._spoilt[replica] = self.wait_restarted(before, self.flavour.start_s)["generation"]

    def poison(self, text: str) -> None:
        """See `Stage.poison`."""
        self.arm({"*": {"crash_on_prompt": text}})
        self._restart("tiny-0", "tiny-1")
        for replica in ("tiny-0", "tiny-1"):
            mappings_known(self.replica(replica))
        self._spoilt = {row["id"]: -1 for row in self.look()["replicas"]}

    def mend(self) -> None:
        """See `Stage.mend`."""
        self.arm({})
        for name in self._spoilt:
            self.wait_state(name, "READY", self.flavour.start_s)
        now = {name: self.replica(name)["generation"] for name in self._spoilt}
        self._restart(*(name for name, start in self._spoilt.items() if start in {-1, now[name]}))
        self._spoilt = {}

    def next_load_lasts(self, replica: str) -> None:
        """See `Stage.next_load_lasts`."""
        self.arm({f"{replica}@{self.replica(replica)['generation'] + 1}": {"load_s": 60.0}})

    def _restart(self, *replicas: str) -> None:
        for replica in replicas:
            before = self.replica(replica)
            self.ok("restart", replica)
            self.wait_restarted(before, self.flavour.start_s)
        self.both_ready()


class VllmStage(Stage):
    """Two real vLLM servers, with `in_vllm/saboteur.py` inside."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model(self.top / "model")
        env = {"GPUSERVE_TEST_SABOTAGE": str(self.faults_file)}
        health = {**VLLM_TABLES["health"], "startup_stall_s": 15}
        profile = vllm_profile(
            self.model, SERVED, {"middleware": "saboteur.Saboteur"}, env, {**VLLM_TABLES, "health": health}
        )
        self.flavour = Flavour("vllm", profile, stream_tokens=1200, start_s=240, hang_rotation_s=4)

    def spoil(self, replica: str, **faults: Scalar) -> None:
        """See `Stage.spoil`."""
        if "garbage_response" in faults:
            faults = {"answer": GARBAGE[str(faults["garbage_response"])].decode("latin-1")}
        self.arm({f"{replica}@{self.replica(replica)['generation']}": faults})

    def poison(self, text: str) -> None:
        """See `Stage.poison`."""
        self.arm({"*": {"crash_on_prompt": text}})

    def mend(self) -> None:
        """See `Stage.mend`."""
        self.arm({})
        with PlainLoad(self.endpoint, SERVED):  # requests that succeed are what ends a probation
            self.both_ready()
