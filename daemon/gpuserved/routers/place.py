"""Where routers live on disk. A router that takes another's place gets folders and sockets of its own: both live for a while.

The first routers of a run folder have the plain names, those that replaced them end in a number, their generation:

    router/shim.sock      router/ctl.sock      router/counts        generation 1, router 0
    router-1/shim.sock    router/ctl-1.sock                         generation 1, router 1
    router.2/shim.sock    router/ctl.2.sock    router/counts.2      generation 2, router 0

`router/ctl.sock` always leads to router 0 of the present generation: once that is a later one, it is a symbolic link, and the
socket of generation 1 goes on as `ctl.1.sock`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpuserved.host.failpoint import reach
from gpuserved.host.statefile import write_atomically

_FOLDER = re.compile(r"router(?:-([1-9][0-9]*))?(?:\.([1-9][0-9]*))?")
NOTE = "router.json"


class RouterNote(msgspec.Struct, frozen=True):
    """Beside the shim's socket: who started it."""

    version: str
    """Of gpuserve, and so of the shim."""


@dataclass(frozen=True)
class RouterPlace:
    """One router: its row among those that run together, and its generation."""

    run: Path
    row: int
    generation: int = 1

    @property
    def folder(self) -> Path:
        """The shim's own."""
        return self.run / f"router{self._suffix}"

    @property
    def shim(self) -> Path:
        """The shim's socket."""
        return self.folder / "shim.sock"

    @property
    def control(self) -> Path:
        """The router's control socket, as it is to be made."""
        return self._common / f"ctl{self._suffix}.sock"

    @property
    def control_now(self) -> Path:
        """The same, where it is now: that of the first generation is moved aside when another takes its name."""
        aside = self._aside
        return aside if self.generation == 1 and aside.exists() else self.control

    @property
    def counts(self) -> Path:
        """The in-flight counts of its generation: each has its own, for a row must have one writer."""
        return self._common / ("counts" if self.generation == 1 else f"counts.{self.generation}")

    @property
    def _common(self) -> Path:
        return self.run / "router"

    @property
    def _suffix(self) -> str:
        return (f"-{self.row}" if self.row else "") + (f".{self.generation}" if self.generation > 1 else "")

    @property
    def _plain(self) -> Path:
        """The control socket of the first generation, whose name leads to the present one."""
        return RouterPlace(self.run, self.row).control

    @property
    def _aside(self) -> Path:
        return self._common / f"ctl{f'-{self.row}' if self.row else ''}.1.sock"

    def prepare(self, version: str) -> None:
        """Make its folders, empty of sockets that others left.

        :raises OSError: it cannot be done.
        """
        for folder in (self._common, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.shim.unlink(missing_ok=True)
        if self.generation == 1:
            self._aside.unlink(missing_ok=True)
        write_atomically(self.folder / NOTE, msgspec.json.encode(RouterNote(version)))

    def version(self) -> str | None:
        """Of the gpuserve that started the shim; None: it is older than such notes."""
        try:
            return msgspec.json.decode((self.folder / NOTE).read_bytes(), type=RouterNote).version
        except (OSError, msgspec.DecodeError):
            return None

    def take_name(self) -> None:
        """Let the plain name of the control socket lead here. There is no moment without it.

        :raises OSError: it cannot be done.
        """
        if self.generation == 1:
            return
        if self._plain.exists() and not self._plain.is_symlink():
            with contextlib.suppress(FileExistsError):
                os.link(self._plain, self._aside)
                reach("router.aside")
        fresh = self._plain.with_name(f".{self._plain.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self.control.name)
        fresh.replace(self._plain)

    def forget(self) -> None:
        """Remove what a router that has ended leaves: a later one has its own."""
        self.control.with_name(self.control.name + ".prompts").unlink(missing_ok=True)
        # Both names of a first generation: where a supervisor died between giving it the second and taking the plain one away,
        # the plain one would be put aside once more.
        for control in (self.control_now, self.control):
            if not control.is_symlink():
                control.unlink(missing_ok=True)
        if self._plain.is_symlink() and os.readlink(self._plain) == self.control.name:
            self._plain.unlink(missing_ok=True)
        if self.folder != self._common:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            (self.folder / NOTE).unlink(missing_ok=True)
        if not any(place.generation == self.generation and place.shim.exists() for place in places(self.run)):
            self.counts.unlink(missing_ok=True)


def places(run: Path) -> list[RouterPlace]:
    """Every place that has a folder, whether somebody lives there or not; the newest generation first."""
    names = (_FOLDER.fullmatch(folder.name) for folder in run.glob("router*") if folder.is_dir())
    made = [RouterPlace(run, int(name[1] or 0), int(name[2] or 1)) for name in names if name is not None]
    return sorted(made, key=lambda place: (-place.generation, place.row))
