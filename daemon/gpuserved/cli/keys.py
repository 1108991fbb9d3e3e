"""keys: making API keys, shown once and kept as hashes; listing and removing them."""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import tempfile
from pathlib import Path

from gpuserved.api.errors import Invalid, NotFound, Unavailable
from gpuserved.api.roots import Roots, from_environment
from gpuserved.api.routing import ApiKey, KeyStats
from gpuserved.cli.parser import VerbParser, count
from gpuserved.cli.session import client_of, print_json, warn
from gpuserved.config.api_keys import LIMITS, NAME, read_keys
from gpuserved.config.daemon import DaemonConfig, find_config, load_daemon_config

_PREFIX = "gs-"
_RANDOM_BYTES = 32


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples("keys", "keys add alice --rpm 60 --tpd 1000000", "keys remove alice && gpuserve reload")
    parser.add_argument("action", nargs="?", choices=("list", "add", "remove"), default="list", help="list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="whose key: letters, digits and . _ @ -")
    parser.add_argument("--rpm", type=count, metavar="N", help="requests a minute")
    parser.add_argument(
        "--tpm", type=count, metavar="N", help="tokens a minute, prompt and completion together"
    )
    parser.add_argument("--tpd", type=count, metavar="N", help="tokens a day")
    parser.add_argument("--keys-file", metavar="FILE", help="another file than the daemon's")


def keys_path(config: DaemonConfig, roots: Roots) -> Path:
    """Where keys are kept when nobody says otherwise."""
    return config.keys_file or roots.config / "keys"


def generate_key(path: Path, name: str | None = None, limits: dict[str, int] | None = None) -> str:
    """Add a new key to a keys file, which is made where it is not there.

    :param name: None: `key-N`.
    :param limits: by their words in the file (`rpm`, `tpm`, `tpd`).
    :returns: the key itself, which is nowhere else.
    :raises Invalid: the file cannot be written, or is no keys file; the name is taken.
    """
    taken = {key.name for key in read_keys(path)} if path.exists() else set()
    if name is None:
        name = next(name for number in range(1, len(taken) + 2) if (name := f"key-{number}") not in taken)
    elif name in taken:
        raise Invalid(f"{path}: there is a key named {name}", f"gpuserve keys remove {name}, or another name")
    key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    words = "".join(f" {word}={value}" for word, value in (limits or {}).items())
    line = f"{name}:{hashlib.sha256(key.encode()).hexdigest()}{words}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            whole = size == 0 or file.read(1) == b"\n"
            file.write((line if whole else "\n" + line).encode())
    except OSError as error:
        raise Invalid(f"{path}: cannot be written: {error.strerror}", "choose another --keys-file") from None
    return key


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file; everything else in it stays as it is.

    :raises NotFound: no such key; :raises Invalid: the file cannot be written.
    """
    if name not in {key.name for key in read_keys(path)}:
        raise NotFound(f"{path}: no key is named {name}", "gpuserve keys lists them")
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.strip().startswith(f"{name}:")]
    try:
        mode = path.stat().st_mode & 0o777
        fd, fresh = tempfile.mkstemp(prefix=".keys-", dir=path.parent)
        with open(fd, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.writelines(kept)
        os.replace(fresh, path)
    except OSError as error:
        raise Invalid(
            f"{path}: cannot be written: {error.strerror}", "check the folder's permissions"
        ) from None


def run(options: argparse.Namespace) -> int:
    """`gpuserve keys`."""
    roots = from_environment(os.environ, uid=os.getuid())
    path = (
        Path(options.keys_file).expanduser().absolute()
        if options.keys_file
        else keys_path(load_daemon_config(find_config(roots)), roots)
    )
    limits = {word: value for word in LIMITS if (value := getattr(options, word))}
    if options.action == "list":
        if options.name or limits:
            raise Invalid("keys list takes neither a name nor limits", "gpuserve keys add NAME --rpm 60")
        return _list(options, path)
    if not options.name or not NAME.fullmatch(options.name):
        raise Invalid(
            f"keys {options.action} needs a name of letters, digits and . _ @ -",
            f"gpuserve keys {options.action} alice",
        )
    if options.action == "add":
        key = generate_key(path, options.name, limits)
        if options.json:
            print_json({"name": options.name, "key": key, "keys_file": str(path)})
        else:
            print(key)
            warn("this is the only time the key is shown")
    else:
        if limits:
            raise Invalid("keys remove takes no limits", f"gpuserve keys remove {options.name}")
        remove_key(path, options.name)
    warn(f"{path} has changed; gpuserve reload makes a running daemon read it")
    return 0


def _list(options: argparse.Namespace, path: Path) -> int:
    found = read_keys(path) if path.exists() else []
    try:
        used = {stats.name: stats for stats in client_of(options).status().router.keys}
    except Unavailable:
        used = {}
    if options.json:
        print_json([_row(key, used.get(key.name)) for key in found])
        return 0
    if not found:
        warn(f"no keys in {path}; gpuserve keys add NAME makes one")
        return 0
    print(f"{'NAME':<20} {'LIMITS':<36} {'REQUESTS':>9} {'LIMITED':>8} {'PROMPT':>12} {'COMPLETION':>12}")
    for key in found:
        limits = " ".join(
            f"{word}={getattr(key, long)}" for word, long in LIMITS.items() if getattr(key, long)
        )
        stats = used.get(key.name)
        figures = ["-"] * 4 if stats is None else [
            str(n) for n in (stats.requests_total, stats.limited_total, stats.prompt_tokens_total, stats.completion_tokens_total)
        ]  # fmt: skip
        print(
            f"{key.name:<20} {limits or 'none':<36} {figures[0]:>9} {figures[1]:>8} {figures[2]:>12} {figures[3]:>12}"
        )
    return 0


def _row(key: ApiKey, stats: KeyStats | None) -> dict[str, object]:
    return {
        "name": key.name,
        **{long: getattr(key, long) for long in LIMITS.values()},
        "requests_total": None if stats is None else stats.requests_total,
        "limited_total": None if stats is None else stats.limited_total,
        "prompt_tokens_total": None if stats is None else stats.prompt_tokens_total,
        "completion_tokens_total": None if stats is None else stats.completion_tokens_total,
    }
