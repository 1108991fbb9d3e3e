"""Where a hub model lies on this host: the hub's cache, as huggingface_hub lays it out. Nothing is fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Found:
    """A model's folder."""

    folder: Path | None
    """None: not on this host."""
    cache: Path
    """The cache that was looked into."""
    is_hub_id: bool


def hub_cache(env: Mapping[str, str], download_dir: str | None = None) -> Path:
    """The cache's folder, by the variables that huggingface_hub reads, in its order."""
    if download_dir:
        return Path(download_dir).expanduser()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if env.get(name):
            return Path(env[name]).expanduser()
    if env.get("HF_HOME"):
        return Path(env["HF_HOME"]).expanduser() / "hub"
    base = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME", "/")) / ".cache")
    return Path(base).expanduser() / "huggingface" / "hub"


def find(
    model: str, env: Mapping[str, str], *, revision: str | None = None, download_dir: str | None = None
) -> Found:
    """A folder as it is given, or the snapshot of a hub id that vLLM would load.

    :param revision: branch, tag or commit; None: main.
    """
    cache = hub_cache(env, download_dir)
    path = Path(os.path.expanduser(model))
    if model.startswith(("/", ".", "~")) or path.is_dir():
        return Found(path if path.is_dir() else None, cache, is_hub_id=False)
    if not _HUB_ID.fullmatch(model):
        return Found(None, cache, is_hub_id=False)
    repository = cache / ("models--" + model.replace("/", "--"))
    wanted = revision or "main"
    commit = wanted if _COMMIT.fullmatch(wanted) else _ref(repository, wanted)
    folder = repository / "snapshots" / commit if commit else None
    return Found(
        folder if folder is not None and (folder / "config.json").is_file() else None, cache, is_hub_id=True
    )


def _ref(repository: Path, name: str) -> str | None:
    if ".." in name.split("/") or name.startswith("/"):
        return None
    try:
        found = (repository / "refs" / name).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return found if _COMMIT.fullmatch(found) else None
