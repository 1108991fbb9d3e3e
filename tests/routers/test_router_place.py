"""Names of what belongs to routers: nobody's socket is taken from him, and the plain name always leads to the present one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuserved.routers import place as place_module
from gpuserved.routers.place import RouterPlace, places


class Sockets:
    """Binds what shims and routers would, and says which of them a path leads to."""

    def __init__(self) -> None:
        self._made: dict[int, socket.socket] = {}

    def bind(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(path))
        made.listen()
        self._made[os.stat(path).st_ino] = made

    def live(self, place: RouterPlace) -> None:
        place.prepare("1.0")
        self.bind(place.shim)
        self.bind(place.control)

    def close(self) -> None:
        for made in self._made.values():
            made.close()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.close()


def inode(path: Path) -> int:
    return path.stat().st_ino


def names(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def test_the_first_generation_has_the_names_that_always_were(tmp_path: Path) -> None:
    first, second = RouterPlace(tmp_path, 0), RouterPlace(tmp_path, 1)
    assert first.shim == tmp_path / "router" / "shim.sock"
    assert first.control == tmp_path / "router" / "ctl.sock"
    assert (second.shim, second.control) == (
        tmp_path / "router-1" / "shim.sock",
        tmp_path / "router" / "ctl-1.sock",
    )
    assert first.counts == second.counts == tmp_path / "router" / "counts"


def test_no_two_places_share_anything_but_the_counts_of_their_generation(tmp_path: Path) -> None:
    all_of_them = [RouterPlace(tmp_path, row, generation) for row in range(12) for generation in range(1, 13)]
    for kind in ("folder", "shim", "control"):
        assert len({getattr(place, kind) for place in all_of_them}) == len(all_of_them)
    assert len({place.counts for place in all_of_them}) == 12


@pytest.mark.parametrize("row", [0, 3])
def test_the_plain_name_leads_to_the_newest_and_the_older_ones_stay_in_reach(
    tmp_path: Path, sockets: Sockets, row: int
) -> None:
    plain = RouterPlace(tmp_path, row).control
    made = [RouterPlace(tmp_path, row, generation) for generation in (1, 2, 3)]
    sockets.live(made[0])
    own = [inode(made[0].control)]
    for place in made[1:]:
        sockets.live(place)
        own.append(inode(place.control))
        place.take_name()
        place.take_name()  # said again by the next supervisor
        assert inode(plain) == own[-1]
        assert [inode(each.control_now) for each in made[: len(own)]] == own
    # The folder of router 0 is there in any case: every control socket is in it.
    assert [place for place in places(tmp_path) if place.shim.exists()] == made[::-1]
    for place in made[:2]:
        place.shim.unlink()  # as the shim does when it ends
        place.forget()
    assert [place for place in places(tmp_path) if place.shim.exists()] == made[2:]
    assert inode(plain) == own[2]
    made[2].shim.unlink()
    made[2].forget()
    assert names(tmp_path) == {"router"}


def test_nothing_is_left_of_those_that_are_forgotten(tmp_path: Path, sockets: Sockets) -> None:
    for place in (RouterPlace(tmp_path, 0), RouterPlace(tmp_path, 0, 2), RouterPlace(tmp_path, 1, 2)):
        sockets.live(place)
    RouterPlace(tmp_path, 0, 2).take_name()
    RouterPlace(tmp_path, 0, 2).counts.touch()
    (tmp_path / "routing.json").touch()
    for place in places(tmp_path):
        place.shim.unlink()
        place.forget()
    assert names(tmp_path) == {"router", "routing.json"}


@pytest.mark.parametrize("row", [0, 3])
def test_nothing_is_left_where_a_supervisor_died_before_the_plain_name_led_elsewhere(
    tmp_path: Path, sockets: Sockets, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    def die(_step: str) -> None:
        raise KeyboardInterrupt

    first, second = RouterPlace(tmp_path, row), RouterPlace(tmp_path, row, 2)
    sockets.live(first)
    sockets.live(second)
    with monkeypatch.context() as dying:
        dying.setattr(place_module, "reach", die)
        with pytest.raises(KeyboardInterrupt):
            second.take_name()
    assert inode(first.control_now) == inode(RouterPlace(tmp_path, row).control), "it has two names"
    first.shim.unlink()  # it has ended before the next supervisor looks, which forgets it and goes on
    first.forget()
    second.take_name()
    assert inode(RouterPlace(tmp_path, row).control) == inode(second.control)
    second.shim.unlink()
    second.forget()
    assert names(tmp_path) == {"router"}


def test_the_version_of_a_shim_is_known_where_it_was_noted(tmp_path: Path) -> None:
    place = RouterPlace(tmp_path, 0, 2)
    assert place.version() is None
    place.prepare("1.2.3")
    assert place.version() == "1.2.3"
