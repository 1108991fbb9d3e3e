"""A model of the hub: where it lies on this host, and the few small files that a plan needs of one that does not.

They are fetched with the huggingface_hub of the engine's own environment, into the hub's cache, where the engine finds them.
Weights are never fetched here: the engine does that, with progress in the replica's log. The sizes of the weights' files, which
the hub tells without the files, are kept in this daemon's cache.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuserved.core.planner.architecture import Files
from gpuserved.host.statefile import write_atomically

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""Of the whole fetch: three requests and files of some kilobytes."""
_FIRST_LINE_CHARS = 300
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PASSED = (
    "PATH", "HOME", "LD_LIBRARY_PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE", "XDG_CACHE_HOME",
)  # fmt: skip
_PREFIXES = ("HF_", "HUGGINGFACE_HUB_", "HUGGING_FACE_HUB_")
_PROGRAM = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download
model, revision, cache = sys.argv[1:4]
info = HfApi().model_info(model, revision=revision or None, files_metadata=True)
sizes = {one.rfilename: one.size for one in info.siblings or []}
for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
    if name in sizes:
        hf_hub_download(model, name, revision=revision or None, cache_dir=cache)
print(json.dumps({"commit": info.sha, "sizes": sizes}))
"""


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


@dataclass(frozen=True)
class Fetch:
    """What is to be fetched."""

    model: str
    revision: str | None
    hub_cache: Path
    python: str
    """The interpreter of the engine's environment."""


class Hub:
    """Access to the hub. Calls block: keep them off an event loop."""

    def __init__(self, cache_dir: Path, environ: Mapping[str, str] | None = None) -> None:
        self._folder = cache_dir / "hub-sizes"
        self._environ = os.environ if environ is None else environ

    def fetch(self, wanted: Fetch, token: str | None) -> str | None:
        """Fetch the small files; None: they are there now, else why not."""
        if self._environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            return "HF_HUB_OFFLINE is set"
        log.info("fetching the configuration of %s from the hub", wanted.model)
        try:
            done = subprocess.run(
                [wanted.python, "-c", _PROGRAM, wanted.model, wanted.revision or "", str(wanted.hub_cache)],
                capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False,
                stdin=subprocess.DEVNULL, env=self._child_environment(token), cwd="/",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"the hub gave no answer within {TIMEOUT_S:.0f} s"
        except OSError as error:
            return f"{wanted.python}: {error.strerror}"
        if done.returncode != 0:
            return _last_line(done.stderr)
        return self._keep(wanted.model, done.stdout)

    def _child_environment(self, token: str | None) -> dict[str, str]:
        env = {k: v for k, v in self._environ.items() if k.upper() in _PASSED or k.startswith(_PREFIXES)}
        env["HF_HUB_DISABLE_TELEMETRY"] = "1"
        if token:
            env["HF_TOKEN"] = token
        return env

    def _keep(self, model: str, output: str) -> str | None:
        try:
            found = json.loads(output)
            text = json.dumps({"commit": str(found["commit"]), "sizes": dict(found["sizes"])})
        except (ValueError, KeyError, TypeError) as error:
            return f"the hub's answer makes no sense ({error})"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path(model), text.encode())
        except OSError as error:
            return f"{self._folder}: {error.strerror}"
        return None

    def sizes(self, model: str, commit: str) -> Files | None:
        """Bytes of a model's weights by what the hub told of them; None: it was not asked about this commit."""
        try:
            found = json.loads(self._path(model).read_bytes())
            if found["commit"] != commit:
                return None
            sizes = {str(name): int(size or 0) for name, size in found["sizes"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        top = {name: size for name, size in sizes.items() if "/" not in name}
        total = sum(size for name, size in top.items() if name.endswith(".safetensors") and not name.startswith("consolidated"))  # fmt: skip
        total = total or sum(size for name, size in top.items() if name.endswith(".safetensors"))
        total = total or sum(size for name, size in top.items() if name.startswith("pytorch_model") and name.endswith(".bin"))  # fmt: skip
        return Files(total, "hub") if total else None

    def _path(self, model: str) -> Path:
        return self._folder / (re.sub(r"[^A-Za-z0-9._-]", "--", model)[:150] + ".json")


def _last_line(text: str) -> str:
    """A traceback's own word, which never holds the token: huggingface_hub keeps it out of its errors."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "it ended without a word"
    if "No module named 'huggingface_hub'" in text:
        return "there is no huggingface_hub in the engine's environment"
    named = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Timeout|NotFound)\w*:", line)]
    return (named[-1] if named else lines[-1])[:_FIRST_LINE_CHARS]
