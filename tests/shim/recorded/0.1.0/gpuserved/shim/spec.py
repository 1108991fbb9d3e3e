"""The spec a shim is started with: read once from stdin, checked before anything is touched."""

from __future__ import annotations

from gpuserved.shim.wire import VERSION, BrokenLine, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_SPEC_BYTES = 4 * 1024 * 1024
LONGEST_S = 365 * 86400.0
DEFAULT_TERM_GRACE_S = 10.0
SMALLEST_LOG_BYTES = 1024


class SpecError(Exception):
    """The spec cannot be obeyed; the message names the key."""


class Spec:
    """What to run and how. Field names are the wire's (docs/architecture.md)."""

    __slots__ = (
        "argv", "cgroup", "cwd", "dir", "drain_s", "env", "generation", "id", "listen_fd",
        "log_keep", "log_max_bytes", "log_path", "nonce", "orphan_ttl_s", "role", "term_grace_s",
    )  # fmt: skip

    def __init__(self, raw: dict[str, Any]) -> None:
        self.role = _text(raw, "role")
        if self.role not in {"replica", "router"}:
            raise SpecError(f"role: {self.role!r} is neither replica nor router")
        self.id = _text(raw, "id")
        self.nonce = _text(raw, "nonce")
        self.dir = _absolute(raw, "dir")
        self.cwd = _absolute(raw, "cwd")
        self.argv = _argv(raw)
        self.env = _env(raw)
        log = raw.get("log")
        if not isinstance(log, dict):
            raise SpecError("log: an object is needed")
        self.log_path = _absolute(log, "path")
        self.log_max_bytes = _whole(log, "max_bytes", SMALLEST_LOG_BYTES)
        self.log_keep = _whole(log, "keep", 0)
        replica = self.role == "replica"
        self.generation = _whole(raw, "generation", 0) if replica else None
        self.orphan_ttl_s = _seconds(raw, "orphan_ttl_s") if replica else None
        self.drain_s = _seconds(raw, "drain_s") or 0.0
        grace_s = _seconds(raw, "term_grace_s")
        self.term_grace_s = DEFAULT_TERM_GRACE_S if grace_s is None else grace_s
        self.cgroup = _absolute(raw, "cgroup") if raw.get("cgroup") is not None else None
        self.listen_fd = None if replica else _whole(raw, "listen_fd", 3)


def parse(data: bytes) -> Spec:
    """The checked spec.

    :raises SpecError: what is wrong, by key.
    """
    try:
        raw = decode(data)
    except BrokenLine as error:
        raise SpecError(f"the spec is no JSON object: {error}") from None
    if raw.get("v") != VERSION:
        raise SpecError(f"v: this shim speaks version {VERSION}, not {raw.get('v')!r}")
    return Spec(raw)


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise SpecError(f"{key}: a text is needed")
    return value


def _absolute(raw: dict[str, Any], key: str) -> str:
    value = _text(raw, key)
    if not value.startswith("/"):
        raise SpecError(f"{key}: {value!r} is not an absolute path")
    return value


def _whole(raw: dict[str, Any], key: str, least: int) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SpecError(f"{key}: a whole number from {least} is needed")
    return value


def seconds(value: object) -> float | None:
    """`value` as seconds, or None where it is not a number from 0 to a year."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= LONGEST_S:
        return None
    return float(value)


def _seconds(raw: dict[str, Any], key: str) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    checked = seconds(value)
    if checked is None:
        raise SpecError(f"{key}: seconds from 0 to a year are needed")
    return checked


def _argv(raw: dict[str, Any]) -> list[str]:
    argv = raw.get("argv")
    if not isinstance(argv, list) or not argv or not argv[0]:
        raise SpecError("argv: a list that names a program is needed")
    if any(not isinstance(item, str) or "\0" in item for item in argv):
        raise SpecError("argv: texts without NUL are needed")
    return argv


def _env(raw: dict[str, Any]) -> dict[str, str]:
    env = raw.get("env")
    if not isinstance(env, dict):
        raise SpecError("env: an object is needed")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or not isinstance(value, str) or "\0" in value:
            raise SpecError(f"env: {name!r} is no variable with a text value")  # the value may be a secret
    return env
