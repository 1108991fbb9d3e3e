"""Colours and characters. A role says what a text means; the word beside it always says so too, for whoever sees no colour."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from rich.style import Style
from textual.theme import Theme

from gpuserve_tui.cells import ASCII, UNICODE, Glyphs

# Under NO_COLOR Textual turns colours into greys; a theme of terminal colours would become black on black.
DARK = Theme(
    name="gpuserve-dark", primary="#58a6ff", secondary="#8b949e", accent="#58a6ff", foreground="#e6edf3",
    background="#0d1117", surface="#161b22", panel="#21262d", success="#7ee787", warning="#e3b341", error="#ff7b72",
    dark=True,
)  # fmt: skip
LIGHT = Theme(
    name="gpuserve-light", primary="#0550ae", secondary="#57606a", accent="#0550ae", foreground="#1f2328",
    background="#ffffff", surface="#f6f8fa", panel="#eaeef2", success="#116329", warning="#7d4e00", error="#a40e26",
    dark=False,
)  # fmt: skip
THEMES = {"dark": DARK, "light": LIGHT}


@lru_cache(maxsize=8)
def styles_of(name: str, *, live: bool) -> Mapping[str, Style]:
    """A style for each role in one of `THEMES`; the same object each time, so that who compares is quick.

    :param live: False: for data that is old.
    """
    theme = next((each for each in THEMES.values() if each.name == name), DARK)
    return styles(theme) if live else stale(theme)


def styles(theme: Theme) -> dict[str, Style]:
    """A style for each role."""
    muted = theme.secondary or "#808080"
    return {
        "": Style(),
        "ok": Style(color=theme.success),
        "warn": Style(color=theme.warning, bold=True),
        "err": Style(color=theme.error, bold=True),
        "info": Style(color=theme.primary),
        "dim": Style(color=muted),
        "bold": Style(bold=True),
        "head": Style(color=muted, bold=True),
        "bar": Style(color=theme.success),
        "other": Style(color=theme.warning),
        "mark": Style(color=theme.primary, bold=True),
        "key": Style(color=theme.primary, bold=True),
        "match": Style(reverse=True),
        "off": Style(color=muted, strike=True),
    }


def stale(theme: Theme) -> dict[str, Style]:
    """The same roles for data that is old: everything is muted, alerts stay bold."""
    muted = theme.secondary or "#808080"
    return {
        role: Style(color=muted, bold=style.bold, reverse=style.reverse)
        for role, style in styles(theme).items()
    }


class Look:
    """How a role looks now, and which characters bars are made of. The app changes it, every widget reads it."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        self._glyphs = ASCII if ascii_only else UNICODE
        self._roles = styles_of(DARK.name, live=True)

    @property
    def roles(self) -> Mapping[str, Style]:
        """Role -> style; another object when the look has changed."""
        return self._roles

    @property
    def glyphs(self) -> Glyphs:
        return self._glyphs

    def use(self, theme: str, *, live: bool) -> None:
        """Another theme, or data that is old now."""
        self._roles = styles_of(theme, live=live)
