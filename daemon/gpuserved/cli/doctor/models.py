"""The hub's cache and its token. A token's text goes nowhere."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

from gpuserved.cli.doctor.base import GIB, Finding, Host, fail, gib, ok, warn
from gpuserved.planning.hub import hub_cache

NAME = "hub"
_LOOK_S = 0.7
"""A cache on a network disk is not counted to its end."""
_ROOM_BYTES = 20 * GIB
"""An 8B model in 16 bits, with something to spare."""


def check(host: Host) -> list[Finding]:
    """Where models are looked for and put."""
    cache = hub_cache(host.env)
    return [*_cache(cache, offline=_offline(host)), _token(host)]


def _offline(host: Host) -> bool:
    return host.env.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def _cache(cache: Path, *, offline: bool) -> list[Finding]:
    above = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not cache.is_dir():
        if not os.access(above, os.W_OK | os.X_OK) or not above.is_dir():
            return [
                fail(NAME, f"{cache} is not there and cannot be made", f"sudo install -d -o $USER {cache}")
            ]
        text, size = f"{cache} does not exist yet", None
    else:
        if not os.access(cache, os.R_OK | os.X_OK):
            return [fail(NAME, f"{cache} cannot be read by this user", f"sudo chown -R $USER {cache}")]
        if not os.access(cache, os.W_OK) and not offline:
            return [
                fail(
                    NAME,
                    f"{cache} cannot be written by this user",
                    f"sudo chown -R $USER {cache}, or export HF_HUB_OFFLINE=1",
                )
            ]
        count = sum(1 for one in cache.glob("models--*"))
        size, whole = _size(cache)
        text = f"{cache}: {count} models, {'' if whole else 'at least '}{gib(size)}"
    free = shutil.disk_usage(above).free
    text += f", {gib(free)} free" + (", offline" if offline else "")
    if free < _ROOM_BYTES and not offline:
        return [
            warn(
                NAME,
                f"{text}: no room for another model",
                "hf cache prune, or export HF_HUB_CACHE=/a/larger/disk",
            )
        ]
    return [ok(NAME, text)]


def _size(folder: Path) -> tuple[int, bool]:
    """Bytes on disk, and whether everything was counted. Snapshots are links into blobs and count nothing."""
    end = time.monotonic() + _LOOK_S
    total, waiting = 0, [folder]
    while waiting:
        if time.monotonic() > end:
            return total, False
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total, True


def _token(host: Host) -> Finding:
    """Where a token is found, and who may read it."""
    home = Path(
        host.env.get("HF_HOME") or Path(host.env.get("HOME", "/")) / ".cache" / "huggingface"
    ).expanduser()
    places = [
        (host.config.hf_token_file, "hf_token_file"),
        (
            Path(host.env["HF_TOKEN_PATH"]) if host.env.get("HF_TOKEN_PATH") else home / "token",
            "the hub's own file",
        ),
    ]
    for path, what in places:
        if path is None:
            continue
        try:
            mode = path.stat().st_mode
        except OSError:
            if what == "hf_token_file":
                return fail(NAME, f"hf_token_file {path} cannot be read", f"install -m 600 /dev/stdin {path}")
            continue
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            return fail(NAME, f"the token in {path} can be read by everybody", f"chmod 600 {path}")
        return ok(NAME, f"token in {path} ({what})")
    if host.env.get("HF_TOKEN"):
        return warn(NAME, "HF_TOKEN is set here, and a daemon's replicas do not inherit it",
                    "write it into a file of mode 600, and set [supervisor] hf_token_file")  # fmt: skip
    return ok(NAME, "no token: gated models cannot be downloaded")
