"""`tui.toml` in the configuration folder: theme, keys, and how much is drawn. Every problem names file and key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuserve_tui.model.actions import ACTIONS, BY_ID
from gpuserved.api.errors import Invalid

FILE_NAME = "tui.toml"
THEMES = ("dark", "light")
_REFRESH_MIN_S = 0.25
"""The daemon samples once a second; more often than this is only heat."""
_REFRESH_MAX_S = 60.0
REMOTE_REFRESH_S = 2.0
"""Over SSH each redraw is some kB on the wire."""


@dataclass(frozen=True)
class Settings:
    """What the file says."""

    theme: str = "dark"
    ascii: bool = False
    mouse: bool = True
    refresh_s: float | None = None
    """None: one second, two over SSH."""
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Action -> keys that take the place of its own."""

    def keys_of(self, action: str) -> tuple[str, ...]:
        return self.keys.get(action, BY_ID[action].keys)


def load(path: Path, *, required: bool = False) -> Settings:
    """Read the file; defaults where there is none.

    :param required: it was named on the command line, so it must exist.
    :raises Invalid: naming file and key.
    """
    import tomli

    try:
        data = tomli.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if required:
            raise Invalid(f"{path}: there is no such file", "leave --config away for the defaults") from None
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path}: cannot be read: {error}") from None
    except tomli.TOMLDecodeError as error:
        raise Invalid(f"{path}: {error}", "the file is TOML") from None
    return _settings(data, path)


def _settings(data: dict[str, Any], path: Path) -> Settings:
    known = ("theme", "ascii", "mouse", "refresh_s", "keys")
    for key in data:
        if key not in known:
            raise Invalid(f"{path}: {key}: there is no such setting", _near(key, known))
    theme = data.get("theme", "dark")
    if theme not in THEMES:
        raise Invalid(f"{path}: theme: expected one of {', '.join(THEMES)}, got {theme!r}")
    for key in ("ascii", "mouse"):
        if not isinstance(data.get(key, False), bool):
            raise Invalid(f"{path}: {key}: expected true or false")
    refresh = data.get("refresh_s")
    number = isinstance(refresh, (int, float)) and not isinstance(refresh, bool)
    if refresh is not None and not (number and _REFRESH_MIN_S <= refresh <= _REFRESH_MAX_S):
        raise Invalid(f"{path}: refresh_s: expected a number from {_REFRESH_MIN_S} to {_REFRESH_MAX_S:.0f}")
    return Settings(
        theme, data.get("ascii", False), data.get("mouse", True), refresh, _keys(data.get("keys", {}), path)
    )


def _keys(table: object, path: Path) -> dict[str, tuple[str, ...]]:
    if not isinstance(table, dict):
        raise Invalid(f"{path}: keys: expected a table [keys]", 'for example: stop = "ctrl+k"')
    found: dict[str, tuple[str, ...]] = {}
    for name, value in table.items():
        if name not in BY_ID:
            raise Invalid(f"{path}: keys.{name}: there is no such action", _near(name, tuple(BY_ID)))
        keys = [value] if isinstance(value, str) else value
        if not isinstance(keys, list) or not keys or not all(isinstance(key, str) and key for key in keys):
            raise Invalid(f"{path}: keys.{name}: expected a key or a list of keys", 'for example "ctrl+k"')
        found[name] = tuple(keys)
    _refuse_doubles(found, path)
    return found


def _refuse_doubles(changed: Mapping[str, tuple[str, ...]], path: Path) -> None:
    """One key for two actions: the second would never be reached."""
    users: dict[str, str] = {}
    for action in ACTIONS:
        for key in changed.get(action.id, action.keys):
            other = users.setdefault(key, action.id)
            if other != action.id:
                named = action.id if action.id in changed else other
                raise Invalid(
                    f"{path}: keys.{named}: {key!r} is the key of both {other} and {action.id}",
                    "give one of them another key",
                )


def _near(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
