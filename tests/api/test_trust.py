from __future__ import annotations

import os
import select
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import Denied
from gpuserved.api.trust import credentials, expect_trusted
from gpuserved.api.types import ApplyRequest

OTHER = 54_321
"""A user that nothing on the host belongs to."""


@contextmanager
def folder_of(uid: int, parent: str) -> Iterator[Path]:
    """A folder in `parent` as that user would have made it."""
    if os.getuid() != 0:
        pytest.skip("only root can act as another user")
    with tempfile.TemporaryDirectory(prefix="gs-trust-", dir=parent) as made:
        os.chown(made, uid, uid)
        yield Path(made)


@contextmanager
def listening_as(uid: int, path: Path) -> Iterator[int]:
    """A process of that user listens at `path`; a descriptor with what it was sent, readable once a client has hung up."""
    hears, tells = os.pipe()
    ready, up = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen()
            os.write(up, b".")
            connection, _ = listener.accept()
            os.write(tells, connection.recv(65_536) or b"(nothing)")
        finally:
            os._exit(0)
    os.close(tells)
    try:
        assert select.select([ready], [], [], 30)[0]
        yield hears
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        for each in (hears, ready, up):
            os.close(each)


def test_a_socket_that_somebody_planted_in_tmp_gets_no_byte() -> None:
    """It answers to the name that this user's daemon would have; a profile may hold a token."""
    with (
        folder_of(OTHER, tempfile.gettempdir()) as folder,
        listening_as(OTHER, folder / "control.sock") as hears,
    ):
        with pytest.raises(Denied, match=r"uid 54321.*nothing was sent"):
            ControlClient(folder / "control.sock").apply(
                ApplyRequest(profiles={"a": "[env]\nHF_TOKEN = 'hf_secret'"})
            )
        assert select.select([hears], [], [], 30)[0]
        assert os.read(hears, 65_536) == b"(nothing)"


def test_a_daemon_of_a_system_user_is_believed_in_a_folder_that_only_root_could_give_it() -> None:
    with folder_of(OTHER, "/run") as folder, listening_as(OTHER, folder / "control.sock"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(folder / "control.sock"))
        with connection:
            assert credentials(connection)[1] == OTHER
        expect_trusted(folder / "control.sock", OTHER, uid=1000)
        with pytest.raises(Denied):
            expect_trusted(
                folder / "control.sock", OTHER + 1, uid=1000
            )  # in there, but not the folder's owner


def test_ones_own_daemon_and_roots_are_believed_anywhere(tmp_path: Path) -> None:
    for peer in (os.getuid(), 0):
        expect_trusted(tmp_path / "control.sock", peer, uid=os.getuid())


def test_a_link_to_a_planted_folder_does_not_hide_where_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with folder_of(OTHER, str(shared)) as planted:
        (tmp_path / "link").symlink_to(planted)
        with pytest.raises(Denied, match="another user"):
            expect_trusted(tmp_path / "link" / "control.sock", OTHER, uid=1000)
