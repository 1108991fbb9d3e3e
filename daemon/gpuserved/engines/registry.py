"""The adapters of one daemon, each imported when a profile first asks for it.

The engines there are stand in `core.profile.EngineName`; the adapter of `x` is `engines.x.adapter.XEngine`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import cast

from gpuserved.core.profile import EngineName, Profile
from gpuserved.engines.base import Engine


class Engines:
    """Gives each profile the adapter of its engine. Serves several threads."""

    def __init__(self, cache_dir: Path, environ: Mapping[str, str] | None = None) -> None:
        """:param cache_dir: the daemon's cache root; models, compile caches and flag tables go below it."""
        self._cache_dir = cache_dir
        self._environ = os.environ if environ is None else environ
        self._made: dict[EngineName, Engine] = {}

    def get(self, profile: Profile) -> Engine:
        """The adapter: the same for all profiles of an engine, for nothing of it depends on the profile."""
        return self.named(profile.engine)

    def load(self) -> None:
        """Import every adapter now. For a daemon: `pip install -U` may replace the files under it, and an adapter of another release
        would not fit what it has in memory.
        """
        for name in EngineName:
            self.named(name)

    def named(self, name: EngineName) -> Engine:
        """The adapter of an engine."""
        if name not in self._made:
            module = import_module(f"gpuserved.engines.{name.value}.adapter")
            adapter = cast("type[Engine]", getattr(module, f"{name.value.capitalize()}Engine"))
            self._made[name] = adapter(self._cache_dir, self._environ)
        return self._made[name]
