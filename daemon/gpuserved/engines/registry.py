"""The adapter of each engine, imported when it is asked for."""

from __future__ import annotations

from pathlib import Path

from gpuserved.core.profile import EngineName, Profile
from gpuserved.engines.base import Engine


def for_profile(profile: Profile, cache_dir: Path) -> Engine:
    """The adapter for one profile: that of its engine, and for a command the paths that the profile gives.

    Profiles with the same engine and the same command may share one.
    """
    if profile.engine is EngineName.COMMAND:
        from gpuserved.engines.command.adapter import CommandEngine

        return CommandEngine(cache_dir, command=profile.command)
    return get(profile.engine, cache_dir)


def get(name: EngineName, cache_dir: Path) -> Engine:
    """The adapter of an engine.

    :param cache_dir: the daemon's cache root; models, compile caches and flag tables go below it.
    """
    if name is EngineName.VLLM:
        from gpuserved.engines.vllm.adapter import VllmEngine

        return VllmEngine(cache_dir)
    if name is EngineName.LLAMACPP:
        from gpuserved.engines.llamacpp.adapter import LlamacppEngine

        return LlamacppEngine(cache_dir)
    if name is EngineName.COMMAND:
        from gpuserved.engines.command.adapter import CommandEngine

        return CommandEngine(cache_dir)
    from gpuserved.engines.sim.adapter import SimEngine

    return SimEngine()
