from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuserved.api import roots
from gpuserved.api.errors import Invalid


def test_one_root_holds_everything(tmp_path: Path) -> None:
    found = roots.from_environment({"GPUSERVE_ROOT": str(tmp_path)}, uid=1000)
    folders = (found.run, found.state, found.log, found.cache)
    assert folders == tuple(tmp_path / name for name in ("run", "state", "log", "cache"))
    assert found.control_socket == tmp_path / "run" / "control.sock"


def test_root_uses_the_system_folders() -> None:
    found = roots.from_environment({}, uid=0)
    assert (str(found.run), str(found.state)) == ("/run/gpuserve", "/var/lib/gpuserve")
    assert (str(found.log), str(found.config)) == ("/var/log/gpuserve", "/etc/gpuserve")


def test_a_systemd_unit_uses_them_whatever_its_user() -> None:
    given = {
        "RUNTIME_DIRECTORY": "/run/gpuserve", "STATE_DIRECTORY": "/var/lib/gpuserve", "HOME": "/var/lib/gpuserve",
    }  # fmt: skip
    assert roots.from_environment(given, uid=987) == roots.from_environment({}, uid=0)


def test_the_operate_group_is_for_a_daemon_of_the_host() -> None:
    def system(uid: int, **env: str) -> bool:
        return roots.from_environment({"HOME": "/h", **env}, uid=uid).system

    assert system(0)
    assert system(987, RUNTIME_DIRECTORY="/run/gpuserve")
    assert not system(1000, RUNTIME_DIRECTORY="/run/user/1000/gpuserve", XDG_RUNTIME_DIR="/run/user/1000")
    assert not system(1000)
    assert not system(0, GPUSERVE_ROOT="/r")


def test_systemd_says_where_a_units_folders_are() -> None:
    names = ("RUNTIME", "STATE", "LOGS", "CACHE", "CONFIGURATION")
    found = roots.from_environment({f"{name}_DIRECTORY": f"/{name}" for name in names}, uid=987)
    folders = (found.run, found.state, found.log, found.cache, found.config)
    assert [str(folder) for folder in folders] == [f"/{name}" for name in names]


def test_a_folder_that_one_may_not_enter_counts_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a user outside the group is told of the group, not that nothing runs."""

    def closed(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_socket", closed)
    assert str(roots.find_socket({}, "/run/gpuserve/control.sock")) == "/run/gpuserve/control.sock"


def test_anybody_else_uses_xdg() -> None:
    env = {"HOME": "/home/ada", "XDG_RUNTIME_DIR": "/run/user/1000", "XDG_CACHE_HOME": "/fast"}
    found = roots.from_environment(env, uid=1000)
    assert str(found.control_socket) == "/run/user/1000/gpuserve/control.sock"
    assert str(found.state) == "/home/ada/.local/state/gpuserve"
    assert str(found.cache) == "/fast/gpuserve"
    bare = roots.from_environment({"HOME": "/home/ada"}, uid=1000)
    assert str(bare.run) == "/home/ada/.local/state/gpuserve/run"


@pytest.mark.parametrize("length", [10, 80, 82, 120, 300])
def test_every_socket_fits_however_long_the_root_is(length: int) -> None:
    top = "/" + "x" * (length - 1)
    run = roots.from_environment({"GPUSERVE_ROOT": top}, uid=1000).run
    longest = f"{run}/r/0123456789ab/engine.sock"
    assert len(longest) <= roots.SUN_PATH_MAX
    assert run == roots.from_environment({"GPUSERVE_ROOT": top}, uid=1000).run


def test_two_long_roots_do_not_share_a_run_folder() -> None:
    a, b = (roots.fitting(Path("/" + "x" * 150 + end)) for end in "ab")
    assert a != b


@pytest.mark.parametrize(
    ("env", "explicit", "wanted"),
    [
        ({"GPUSERVE_SOCKET": "/b", "GPUSERVE_ROOT": "/c"}, "/a", ["/a"]),
        ({"GPUSERVE_SOCKET": "/b", "GPUSERVE_ROOT": "/c"}, None, ["/b"]),
        ({"GPUSERVE_ROOT": "/c"}, None, ["/c/run/control.sock"]),
        (
            {"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/h"}, None,
            ["/run/user/7/gpuserve/control.sock", "/run/gpuserve/control.sock"],
        ),
    ],
)  # fmt: skip
def test_where_clients_look(env: dict[str, str], explicit: str | None, wanted: list[str]) -> None:
    found = roots.candidate_sockets(env, uid=1000, explicit=explicit)
    assert [str(path) for path in found] == wanted


def test_a_private_folder_is_ours_and_closed(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    roots.make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    roots.make_private(folder)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_no_umask_opens_it_or_what_is_above_it(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "top" / "deep" / "run"
    before = os.umask(umask)
    try:
        roots.make_private(folder)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not [each for each in (folder.parent, folder.parent.parent) if each.stat().st_mode & 0o022]


def test_one_that_others_may_write_to_is_closed_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    roots.make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    """A stand-in in the temporary directory has a name that anybody can guess."""
    (tmp_path / "theirs").mkdir()
    trap = tmp_path / "run"
    os.symlink(tmp_path / "theirs", trap)
    with pytest.raises(Invalid, match="not a folder of this user"):
        roots.make_private(trap)
