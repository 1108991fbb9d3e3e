"""The fleet's state: what outsiders get cannot be written, and who decides on an older one is refused."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.conftest import World, text

import gpuserved.fleet
from gpuserved.api.errors import Conflict
from gpuserved.config.profile import load_profile
from gpuserved.fleet.state import FleetState
from gpuserved.planning.arrange import Wanted

WANTED = Wanted(text("a"), "a.toml", load_profile(text("a"), "a.toml", "a"))


def test_views_cannot_be_written() -> None:
    state: Any = FleetState()
    for view in (state.desired, state.replicas, state.removals):
        with pytest.raises(TypeError):
            view["a"] = WANTED
    for name in ("generation", "desired", "replicas", "removals", "after_shutdown"):
        with pytest.raises(AttributeError):
            setattr(state, name, None)


def test_a_decision_counts_up_and_one_on_an_older_state_changes_nothing() -> None:
    state = FleetState()
    assert state.commit({"a": WANTED}, expected=0) == 1
    with pytest.raises(Conflict, match="generation 1, and this was decided on 0"):
        state.commit({}, expected=0)
    assert (state.generation, dict(state.desired)) == (1, {"a": WANTED})
    assert state.commit() == 2
    assert dict(state.desired) == {"a": WANTED}


def test_a_given_mapping_stays_the_givers() -> None:
    state, given = FleetState(), {"a": WANTED}
    state.commit(given)
    given.clear()
    assert dict(state.desired) == {"a": WANTED}


def test_the_next_daemon_wants_what_was_wanted_unless_it_is_to_be_forgotten() -> None:
    for forget, after in ((False, {"a": WANTED}), (True, {})):
        state = FleetState()
        state.commit({"a": WANTED})
        state.shut_down(forget=forget)
        assert (dict(state.desired), state.after_shutdown) == ({}, after)


async def test_an_end_leaves_on_disk_what_the_next_daemon_is_to_want(world: World) -> None:
    await world.apply(plain=text("plain"))
    await world.fleet.stop_everything(drain=False, forget=False)
    assert b'"plain"' in world.state_file.read_bytes()


def test_the_generation_counts_up_in_one_place() -> None:
    places = [
        path.name
        for path in Path(gpuserved.fleet.__path__[0]).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AugAssign) and "generation" in ast.unparse(node.target)
    ]
    assert places == ["state.py"]
