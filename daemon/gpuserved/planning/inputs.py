"""What a profile is planned with: the facts of its model, what earlier starts measured, the version that will run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.api.types import GpuView
from gpuserved.core.assignment import Assignment
from gpuserved.core.planner.memory import Measured, Setting
from gpuserved.core.planner.model import ModelFacts, Unknown
from gpuserved.core.planner.options import Lookup
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Sampling
from gpuserved.engines.registry import Engines
from gpuserved.planning.arrange import Inputs
from gpuserved.planning.hub import Hub
from gpuserved.planning.measured import MeasuredStore, key_of
from gpuserved.planning.model_reader import ModelReader

log = logging.getLogger(__name__)

LOG_MAX_BYTES = 8 * 1024 * 1024
"""Of a start's log that are looked at: the figures come before the first request."""


class InputReader:
    """Of one host. Reads files, may ask the hub: call it off the event loop."""

    def __init__(self, state: Path, cache_dir: Path, engines: Engines) -> None:
        self._engines = engines
        self._models = ModelReader(Hub(cache_dir))
        self._measured = MeasuredStore(state)

    def of(self, profile: Profile, hf_token: str | None = None) -> Inputs:
        """What to plan this profile with; a damaged model is one that nobody knows, and its engine will say so.

        :param hf_token: for a gated model whose configuration is not here.
        """
        engine = self._engines.get(profile)
        try:
            facts = self._models.facts(profile, engine.python(profile), hf_token)
        except Invalid as error:
            return Inputs(Unknown("unknown_architecture", error.message, error.hint or ""))
        if not isinstance(facts, ModelFacts):
            return Inputs(facts)
        version = self._version(profile)
        return Inputs(facts, self._lookup(profile, facts, version), version)

    def sampling(self, profile: Profile) -> Sampling:
        """What a request gets that says nothing of sampling."""
        return self._engines.get(profile).sampling(profile, self._models.folder(profile))

    def _lookup(self, profile: Profile, facts: ModelFacts, version: str | None) -> Lookup:
        def find(setting: Setting) -> Measured | None:
            if version is None:
                return None
            return self._measured.find(key_of(facts.identity, setting, profile, version))

        return find

    def _version(self, profile: Profile) -> str | None:
        found = self._engines.get(profile).installed(profile)
        return None if found is None else found.version

    def record(
        self, assignment: Assignment, gpus: Sequence[GpuView], logs: Sequence[Path]
    ) -> Measured | None:
        """Keep what a start that became ready wrote of its memory; None: there was nothing to keep.

        :param gpus: those of the assignment.
        :raises OSError: it cannot be written.
        """
        profile = assignment.profile
        facts, version = self._models.facts(profile), self._version(profile)
        report = self._engines.get(profile).memory_report(_lines(logs))
        share = profile.flags.get("gpu_memory_utilization")
        known = [gpu for gpu in gpus if gpu.memory_total_bytes]
        if not isinstance(facts, ModelFacts) or version is None or report is None or not known:
            return None
        if not isinstance(share, (int, float)) or "kv_cache_memory_bytes" in profile.flags:
            return None  # without a utilisation nobody can say what was left over
        tight = min(known, key=lambda gpu: gpu.memory_total_bytes or 0)
        setting = Setting(
            tight.memory_total_bytes or 0, tight.name, profile.tensor_parallel_size or 1, profile.data_parallel_size or 1
        )  # fmt: skip
        measured = Measured(
            kv_cache_bytes=report.kv_cache_bytes,
            utilization=float(share),
            weights_bytes=report.weights_bytes,
            activation_bytes=report.activation_bytes,
            graph_bytes=report.graph_bytes,
            kv_cache_tokens=report.kv_cache_tokens,
            version=version,
        )
        key = key_of(facts.identity, setting, profile, version)
        self._measured.add(key, profile.model, tight.name, measured)
        return measured


def _lines(logs: Sequence[Path]) -> list[str]:
    text = b""
    for path in logs:
        try:
            with open(path, "rb") as file:
                text += file.read(LOG_MAX_BYTES - len(text))
        except OSError as error:
            log.info("%s: %s", path, error.strerror)
    return text.decode(errors="replace").splitlines()
