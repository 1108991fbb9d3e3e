"""What the starts of a replica leave on disk: a run folder with a note while one runs; its log, crash card and evidence for later."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpuserved.api.roots import Roots
from gpuserved.engines.installed import Installed
from gpuserved.host.shimclient import read_identity
from gpuserved.host.statefile import write_atomically

NOTE = "start.json"
KEPT_STARTS = 5
"""Logs of this many starts stay: the present one, the one that `--previous` shows, and some history of a crash loop."""


class StartNote(msgspec.Struct, frozen=True):
    """What a run folder was made for; adoption reads it."""

    replica: str
    profile: str
    generation: int
    nonce: str
    address: str
    gpu_uuids: tuple[str, ...] = ()
    installed: Installed | None = None
    """What it was started from."""
    version: str | None = None
    """Of the gpuserve that started it, and so of its shim; None: older than this note."""


@dataclass(frozen=True)
class Start:
    """One start: its run folder, and what that was made for."""

    folder: Path
    note: StartNote

    def describe(self) -> str:
        """For the log and the notice of a stray."""
        identity = read_identity(self.folder)
        pid = f", PID {identity.pid}" if identity else ""
        return f"{self.note.replica} generation {self.note.generation}{pid}"


def run_folder(roots: Roots, nonce: str) -> Path:
    """Of one start, while it lasts."""
    return roots.run / "r" / nonce


def scan(run: Path) -> tuple[list[Start], list[Path]]:
    """The starts that have a run folder below `run`, and folders that no note explains."""
    found: list[Start] = []
    unexplained: list[Path] = []
    folder = run / "r"
    for each in sorted(folder.iterdir()) if folder.is_dir() else []:
        note = read_note(each)
        if note is None:
            unexplained.append(each)
        else:
            found.append(Start(each, note))
    return found, unexplained


def write_note(folder: Path, note: StartNote) -> None:
    """Before the fork: a crash right after it leaves a folder that says what was meant."""
    write_atomically(folder / NOTE, msgspec.json.encode(note))


def read_note(folder: Path) -> StartNote | None:
    """None where the folder is no start of ours, or was never finished."""
    try:
        return msgspec.json.decode((folder / NOTE).read_bytes(), type=StartNote)
    except (OSError, msgspec.DecodeError):
        return None


def log_folder(roots: Roots, replica: str) -> Path:
    """Everything that is kept of a replica's starts; each file's name begins with a start's generation."""
    return roots.log / "replicas" / replica


def log_path(roots: Roots, replica: str, generation: int) -> Path:
    """The log of one start."""
    return log_folder(roots, replica) / f"{generation}.log"


def crash_path(roots: Roots, replica: str, generation: int) -> Path:
    """The crash card of one start, where it ended without being asked to."""
    return log_folder(roots, replica) / f"{generation}.crash.json"


def evidence_path(roots: Roots, replica: str, generation: int) -> Path:
    """What was saved before one start was killed."""
    return log_folder(roots, replica) / f"{generation}.evidence.txt"


def generations(roots: Roots, replica: str) -> list[int]:
    """The starts that logs exist of, oldest first."""
    folder = log_folder(roots, replica)
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(
        int(name[: -len(".log")]) for name in names if name.endswith(".log") and name[:-4].isdigit()
    )


def prune_logs(roots: Roots, replica: str) -> None:
    """Before one more start: keep `KEPT_STARTS` with it."""
    folder = log_folder(roots, replica)
    # No glob: Python keeps the compiled form of each pattern, and every start would leave another.
    gone = {f"{generation}" for generation in generations(roots, replica)[: -(KEPT_STARTS - 1)]}
    for name in os.listdir(folder):
        if name.partition(".")[0] in gone:
            (folder / name).unlink(missing_ok=True)
