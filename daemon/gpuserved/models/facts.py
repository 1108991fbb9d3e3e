"""A profile's model to its facts: the folder is found, read, and remembered until a file in it changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gpuserved.core.planner.model import ModelFacts, Unknown
from gpuserved.core.profile import EngineName, Profile
from gpuserved.models import cache, folder

_KEPT = 64


class ModelReader:
    """Reads and remembers. One object may serve several threads."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._known: dict[tuple[object, ...], ModelFacts | Unknown] = {}

    def facts(self, profile: Profile) -> ModelFacts | Unknown | None:
        """None: an engine whose memory is not planned.

        :raises Invalid: a file of the model is damaged.
        """
        if profile.engine is not EngineName.VLLM:
            return None
        flags = {key: value for key, value in profile.flags.items() if isinstance(value, str)}
        where = cache.find(
            profile.model,
            {**self._environ, **profile.env},
            revision=flags.get("revision"),
            download_dir=flags.get("download_dir"),
        )
        if where.folder is None:
            return _missing(profile, where)
        dtype = flags.get("dtype")
        key = (str(where.folder), dtype, *_stamp(where.folder))
        if key not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[key] = folder.read(where.folder, dtype=dtype)
        return self._known[key]


def _stamp(path: Path) -> tuple[object, ...]:
    with os.scandir(path) as entries:
        return tuple(
            sorted(
                (e.name, e.stat().st_size, e.stat().st_mtime_ns)
                for e in entries
                if e.name.endswith((".json", ".safetensors", ".bin")) and os.path.exists(e.path)
            )
        )


def _missing(profile: Profile, where: cache.Found) -> Unknown:
    if not where.is_hub_id:
        return Unknown(
            "model_not_here",
            f"there is no model folder {profile.model}",
            "its memory is not planned until it is there",
        )
    return Unknown(
        "model_not_here",
        f"{profile.model} is not in {where.cache}, so its memory is not planned",
        f"`hf download {profile.model} config.json model.safetensors.index.json` is enough to plan it",
    )
