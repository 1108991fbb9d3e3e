"""systemd: the unit, its socket, and whether a user's service outlives the login."""

from __future__ import annotations

import getpass
import os
import subprocess
from pathlib import Path

from gpuserved.cli.doctor.base import Finding, Host, fail, ok, warn

NAME = "service"
_WAIT_S = 5.0
_OLDEST = 249


def check(_host: Host) -> list[Finding]:
    """What systemd says of us."""
    version = _ask("systemctl", "--version").split()[:2]
    if not Path("/run/systemd/system").is_dir() and not version:
        return [ok(NAME, "no systemd here: gpuserve up runs the daemon in the background")]
    found = []
    if len(version) == 2 and version[1].isdigit() and int(version[1]) < _OLDEST:
        found.append(
            warn(
                NAME,
                f"systemd {version[1]}: the unit needs {_OLDEST} or newer",
                "gpuserve up, without the unit",
            )
        )
    system = _unit("gpuserved.service")
    if system.get("LoadState") == "loaded":
        return found + _system(system)
    user = _unit("gpuserved.service", "--user")
    if user.get("LoadState") == "loaded":
        return found + _user(user)
    return [
        *found,
        ok(
            NAME,
            "not installed: a daemon of gpuserve up is not started again after a reboot (docs/operations.md, systemd)",
        ),
    ]


def _system(unit: dict[str, str]) -> list[Finding]:
    found = []
    if unit.get("ActiveState") == "failed":
        found.append(
            fail(
                NAME,
                "gpuserved.service has failed",
                "systemctl status gpuserved; journalctl -u gpuserved -n 50",
            )
        )
    if unit.get("UnitFileState") not in {"enabled", "enabled-runtime", "static"}:
        found.append(
            warn(
                NAME,
                "gpuserved.service is not enabled: not started after a reboot",
                "sudo systemctl enable gpuserved.socket gpuserved.service",
            )
        )
    socket = _unit("gpuserved.socket")
    if socket.get("LoadState") != "loaded":
        found.append(
            warn(
                NAME,
                "gpuserved.socket is not installed: the port is closed while the daemon starts",
                "sudo install -m 644 systemd/gpuserved.socket /etc/systemd/system/ && sudo systemctl daemon-reload",
            )
        )
    elif socket.get("ActiveState") != "active":
        found.append(
            warn(
                NAME,
                f"gpuserved.socket is {socket.get('ActiveState') or 'unknown'}",
                "sudo systemctl enable --now gpuserved.socket",
            )
        )
    if unit.get("NeedDaemonReload") == "yes":
        found.append(warn(NAME, "the unit was changed since systemd read it", "sudo systemctl daemon-reload"))
    return found or [ok(NAME, f"gpuserved.service is {unit.get('ActiveState')}, its socket too")]


def _user(unit: dict[str, str]) -> list[Finding]:
    found = [ok(NAME, f"gpuserved.service of this user is {unit.get('ActiveState')}")]
    if unit.get("ActiveState") == "failed":
        found = [fail(NAME, "gpuserved.service of this user has failed", "systemctl --user status gpuserved")]
    user = os.environ.get("USER") or getpass.getuser()
    if _ask("loginctl", "show-user", user, "--property=Linger", "--value").strip() != "yes":
        found.append(
            warn(NAME, "a user's service ends with the last login", f"sudo loginctl enable-linger {user}")
        )
    return found


def _unit(name: str, *scope: str) -> dict[str, str]:
    wanted = "--property=LoadState,ActiveState,UnitFileState,NeedDaemonReload"
    lines = _ask("systemctl", *scope, "show", name, wanted).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _ask(*command: str) -> str:
    """What a program says; empty where there is none, or it fails or is late."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_WAIT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
