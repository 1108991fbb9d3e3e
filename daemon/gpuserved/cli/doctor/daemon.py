"""Configuration, folders, the daemon itself, its port, its systemd unit, and what daemons that are gone left behind."""

from __future__ import annotations

import fcntl
import getpass
import os
import stat
import subprocess
from pathlib import Path

import gpuserved
from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError, Unavailable
from gpuserved.api.roots import Roots, fitting
from gpuserved.cli.doctor.base import Finding, Host, fail, ok, warn
from gpuserved.config.api_keys import read_keys
from gpuserved.config.daemon import find_config, load_daemon_config, read_hf_token
from gpuserved.config.profile import load_profile
from gpuserved.host import listen
from gpuserved.host.logtail import clean
from gpuserved.host.shimclient import Identity, read_identity

_SERVICE = "service"
_SYSTEMCTL_S = 5.0
_SYSTEMD_OLDEST = 249


def configuration(host: Host) -> list[Finding]:
    """The daemon's file, what it names, and the operator's profiles, as a start would read them."""
    path = find_config(host.roots)
    try:
        config = load_daemon_config(path).with_default_keys(host.roots.config).checked()
        if config.keys_file is not None:
            read_keys(config.keys_file)
        if config.hf_token_file is not None:
            read_hf_token(config.hf_token_file)
    except GpuserveError as error:
        return [fail("configuration", clean(error.message), error.hint or f"correct {path}")]
    found = [
        ok(
            "configuration",
            f"{path} is valid" if path else f"no gpuserved.toml in {host.roots.config}: the defaults count",
        )
    ]
    for profile in host.profiles:
        try:
            load_profile(profile.read_text("utf-8"), str(profile), profile.stem)
        except GpuserveError as error:
            found.append(fail("configuration", clean(error.message), error.hint or f"correct {profile}"))
        except (OSError, UnicodeDecodeError) as error:
            found.append(fail("configuration", f"{profile}: cannot be read: {error}", f"ls -l {profile}"))
    return found


def roots(host: Host) -> list[Finding]:
    """The folders: ours, private, and short enough for sockets."""
    found = []
    wanted = _wanted_run(host)
    if wanted is not None and fitting(wanted) != wanted:
        found.append(
            ok(
                "folders",
                f"sockets are in {host.roots.run}: paths below {wanted} would pass the kernel's 107 bytes",
            )
        )
    for folder in (host.roots.run, host.roots.state, host.roots.log, host.roots.cache):
        problem = _folder_problem(folder)
        if problem is not None:
            found.append(
                fail(
                    "folders",
                    f"{folder}: {problem}",
                    f"sudo chown $USER {folder} && chmod 700 {folder}, or another GPUSERVE_ROOT",
                )
            )
    return found or [ok("folders", f"run {host.roots.run}, state {host.roots.state}, log {host.roots.log}")]


def _wanted_run(host: Host) -> Path | None:
    root = host.env.get("GPUSERVE_ROOT")
    if root:
        return Path(root).expanduser().absolute() / "run"
    runtime = host.env.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "gpuserve" if runtime and os.getuid() else None


def _folder_problem(folder: Path) -> str | None:
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        above = next(one for one in folder.parents if one.exists())
        return (
            None
            if os.access(above, os.W_OK | os.X_OK)
            else f"cannot be made: {above} cannot be written by this user"
        )
    except OSError as error:
        return str(error.strerror)
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != os.getuid():
        return "belongs to another user"
    return "can be written by others" if found.st_mode & stat.S_IWOTH else None


def daemon(host: Host) -> list[Finding]:
    """Whether one runs, answers, and is of this release."""
    try:
        version = ControlClient(host.socket).version().version
        status = ControlClient(host.socket).status()
    except Unavailable as error:
        holder = _lock_holder(host.roots)
        if holder is None:
            return [ok("daemon", "none runs")]
        return [
            fail(
                "daemon",
                f"PID {holder} holds the daemon's lock and does not answer: {clean(error.message)}",
                f"tail {host.roots.log / 'daemon.log'}; kill {holder}",
            )
        ]
    except GpuserveError as error:
        return [fail("daemon", clean(error.message), error.hint or "gpuserve logs --daemon")]
    ready = sum(replica.state == "READY" for replica in status.replicas)
    text = f"{version} at {status.endpoint}, {ready} of {len(status.replicas)} replicas ready"
    found = []
    if status.supervisor.degraded:
        found.append(
            fail("daemon", f"degraded: {clean(status.supervisor.degraded)}", "gpuserve logs --daemon")
        )
    if version != gpuserved.__version__:
        found.append(
            warn(
                "daemon",
                f"{text}; this command is {gpuserved.__version__}",
                "gpuserve upgrade: replicas and requests go on",
            )
        )
    failed = [replica.id for replica in status.replicas if replica.state == "FAILED"]
    if failed:
        found.append(
            fail(
                "daemon",
                f"{text}; FAILED: {', '.join(failed)}",
                f"gpuserve status; gpuserve logs {failed[0]} --previous",
            )
        )
    return found or [ok("daemon", text)]


def _lock_holder(roots: Roots) -> str | None:
    """Who holds the daemon's lock, as its file says; None: nobody does."""
    try:
        fd = os.open(roots.run / "daemon.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(fd, 32).decode(errors="replace").strip()
        return text if text.isdigit() else "unknown"
    finally:
        os.close(fd)
    return None


def port(host: Host) -> list[Finding]:
    """Whether the one URL's address is ours or free."""
    where = host.config.listen
    try:
        endpoint = ControlClient(host.socket).status().endpoint or ""
    except GpuserveError:
        endpoint = ""
    if endpoint:
        return [ok("port", f"our router serves {endpoint}")]
    try:
        listen.bind(where).close()
    except GpuserveError as error:
        return [
            fail(
                "port",
                clean(error.message),
                f"gpuserve up --port {host.config.port + 1}, or stop that program",
            )
        ]
    return [ok("port", f"{where} is free")]


def leftovers(host: Host) -> list[Finding]:
    """Starts whose daemon is gone: they hold GPU memory until a daemon of their root adopts or ends them."""
    found = []
    running = _lock_holder(host.roots) is not None
    mine = [] if running else _living(host.roots.run / "r")
    if mine:
        names = ", ".join(sorted(one.id for one in mine))
        found.append(
            warn(
                "leftovers",
                f"{names} run{'s' if len(mine) == 1 else ''} without a daemon",
                "gpuserve up adopts them; gpuserve down --yes after it stops them",
            )
        )
    found += [
        warn(
            "leftovers",
            f"shim PID {pid} keeps a replica of {folder}, where no daemon runs{gone}",
            f"kill {pid}",
        )
        for pid, folder, gone in _strange_shims(host.roots.run)
    ]
    return found or [ok("leftovers", "no replica runs without a daemon")]


def _living(folder: Path) -> list[Identity]:
    if not folder.is_dir():
        return []
    notes = (read_identity(one) for one in folder.iterdir())
    return [note for note in notes if note is not None and (note.shim_lives() or note.process_lives())]


def _strange_shims(ours: Path) -> list[tuple[int, str, str]]:
    """Replica shims of this user in other run folders, or in folders that are gone, without a daemon there."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or not _is_shim(name):
            continue
        for run in _run_folders(name):
            path = run.removesuffix(" (deleted)")
            top = Path(path).parent.parent
            if top == ours or _lock_holder(_only_run(top)) is not None:
                continue
            found.append((int(name), str(top), "" if Path(path).is_dir() else ": the folder is gone"))
            break
    return found


def _is_shim(pid: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(word.endswith(b"gpuserved/shim/__main__.py") for word in words)


def _run_folders(pid: str) -> list[str]:
    """The run folder that a shim holds open; a router's has another form."""
    folders = []
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if Path(target.removesuffix(" (deleted)")).parent.name == "r":
                folders.append(target)
    except OSError:
        return folders
    return folders


def _only_run(run: Path) -> Roots:
    return Roots(run, run, run, run, run)


def service(_host: Host) -> list[Finding]:
    """What systemd says of us."""
    version = _ask("systemctl", "--version").split()[:2]
    if not Path("/run/systemd/system").is_dir() and not version:
        return [ok(_SERVICE, "no systemd here: gpuserve up runs the daemon in the background")]
    found = []
    if len(version) == 2 and version[1].isdigit() and int(version[1]) < _SYSTEMD_OLDEST:
        found.append(
            warn(
                _SERVICE,
                f"systemd {version[1]}: the unit needs {_SYSTEMD_OLDEST} or newer",
                "gpuserve up, without the unit",
            )
        )
    system = _unit("gpuserved.service")
    if system.get("LoadState") == "loaded":
        return found + _system_unit(system)
    user = _unit("gpuserved.service", "--user")
    if user.get("LoadState") == "loaded":
        return found + _user_unit(user)
    return [
        *found,
        ok(
            _SERVICE,
            "not installed: a daemon of gpuserve up is not started again after a reboot (docs/operations.md, systemd)",
        ),
    ]


def _system_unit(unit: dict[str, str]) -> list[Finding]:
    found = []
    if unit.get("ActiveState") == "failed":
        found.append(
            fail(
                _SERVICE,
                "gpuserved.service has failed",
                "systemctl status gpuserved; journalctl -u gpuserved -n 50",
            )
        )
    if unit.get("UnitFileState") not in {"enabled", "enabled-runtime", "static"}:
        found.append(
            warn(
                _SERVICE,
                "gpuserved.service is not enabled: not started after a reboot",
                "sudo systemctl enable gpuserved.socket gpuserved.service",
            )
        )
    port_unit = _unit("gpuserved.socket")
    if port_unit.get("LoadState") != "loaded":
        found.append(
            warn(
                _SERVICE,
                "gpuserved.socket is not installed: the port is closed while the daemon starts",
                "sudo install -m 644 systemd/gpuserved.socket /etc/systemd/system/ && sudo systemctl daemon-reload",
            )
        )
    elif port_unit.get("ActiveState") != "active":
        found.append(
            warn(
                _SERVICE,
                f"gpuserved.socket is {port_unit.get('ActiveState') or 'unknown'}",
                "sudo systemctl enable --now gpuserved.socket",
            )
        )
    if unit.get("NeedDaemonReload") == "yes":
        found.append(
            warn(_SERVICE, "the unit was changed since systemd read it", "sudo systemctl daemon-reload")
        )
    return found or [ok(_SERVICE, f"gpuserved.service is {unit.get('ActiveState')}, its socket too")]


def _user_unit(unit: dict[str, str]) -> list[Finding]:
    found = [ok(_SERVICE, f"gpuserved.service of this user is {unit.get('ActiveState')}")]
    if unit.get("ActiveState") == "failed":
        found = [
            fail(_SERVICE, "gpuserved.service of this user has failed", "systemctl --user status gpuserved")
        ]
    user = os.environ.get("USER") or getpass.getuser()
    if _ask("loginctl", "show-user", user, "--property=Linger", "--value").strip() != "yes":
        found.append(
            warn(_SERVICE, "a user's service ends with the last login", f"sudo loginctl enable-linger {user}")
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
            command,
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
