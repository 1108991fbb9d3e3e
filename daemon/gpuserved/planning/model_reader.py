"""A profile's model to its facts: the folder is found or fetched, read, and remembered until a file in it changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gpuserved.core.planner.architecture import Files
from gpuserved.core.planner.model import ModelFacts, Unknown
from gpuserved.core.profile import Profile
from gpuserved.planning import hub, model_folder

_KEPT = 64


class ModelReader:
    """Reads and remembers. One object may serve several threads."""

    def __init__(self, source: hub.Hub | None = None, environ: Mapping[str, str] | None = None) -> None:
        """:param source: None: nothing is fetched."""
        self._environ = os.environ if environ is None else environ
        self._hub = source
        self._known: dict[tuple[object, ...], ModelFacts | Unknown] = {}

    def facts(
        self, profile: Profile, python: str | None = None, token: str | None = None
    ) -> ModelFacts | Unknown | None:
        """None: an engine whose memory is not planned.

        :param python: the interpreter of the engine's environment, whose huggingface_hub may fetch a configuration.
        :raises Invalid: a file of the model is damaged.
        """
        if not profile.engine.planning.by_memory:
            return None
        where = self._find(profile)
        reason: str | None = None
        if where.folder is None and where.is_hub_id and self._hub is not None and python is not None:
            wanted = hub.Fetch(profile.model, _text(profile, "revision"), where.cache, python)
            reason = self._hub.fetch(wanted, profile.env.get("HF_TOKEN", token))
            where = self._find(profile) if reason is None else where
        if where.folder is None:
            return _missing(profile, where, reason)
        return self._read(profile, where.folder)

    def folder(self, profile: Profile) -> Path | None:
        """The model's folder; None: it is not on this host."""
        return self._find(profile).folder

    def _find(self, profile: Profile) -> hub.Found:
        return hub.find(
            profile.model,
            {**self._environ, **profile.env},
            revision=_text(profile, "revision"),
            download_dir=_text(profile, "download_dir"),
        )

    def _read(self, profile: Profile, path: Path) -> ModelFacts | Unknown:
        dtype = _text(profile, "dtype")
        key = (str(path), dtype, *_stamp(path))
        if key not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            elsewhere: Files | None = self._hub.sizes(profile.model, path.name) if self._hub else None
            self._known[key] = model_folder.read(path, dtype=dtype, elsewhere=elsewhere)
        return self._known[key]


def _text(profile: Profile, flag: str) -> str | None:
    value = profile.flags.get(flag)
    return value if isinstance(value, str) else None


def _stamp(path: Path) -> tuple[object, ...]:
    found: list[tuple[str, int, int]] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith((".json", ".safetensors", ".bin")) and os.path.exists(entry.path):
                stat = entry.stat()
                found.append((entry.name, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found))


def _missing(profile: Profile, where: hub.Found, reason: str | None) -> Unknown:
    if not where.is_hub_id:
        return Unknown(
            "model_not_here",
            f"there is no model folder {profile.model}",
            "its memory is not planned until it is there",
        )
    fetched = f", and its configuration could not be fetched: {reason}" if reason else ""
    return Unknown(
        "model_not_here",
        f"{profile.model} is not in {where.cache}{fetched}; its memory is not planned",
        f"`hf download {profile.model} config.json model.safetensors.index.json` is enough to plan it",
    )
