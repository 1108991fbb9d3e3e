"""Strict checks of single values. TOML knows types: a number in quotes is a mistake, not a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpuserved.config.document import Document

Read = Callable[[Document, tuple[str, ...], Any], Any]


@dataclass(frozen=True)
class Text:
    """A string.

    :param choices: the only values allowed.
    :param needs: what it must be, in words, and the test of it.
    """

    choices: tuple[str, ...] = ()
    needs: tuple[str, Callable[[str], bool]] | None = None

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> str:
        """The value, checked."""
        if self.choices and value not in self.choices:
            document.refuse_value(path, "one of " + ", ".join(f'"{c}"' for c in self.choices), value)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            document.refuse_value(path, "a string that is not empty", value)
        if self.needs is not None and not self.needs[1](value):
            document.refuse_value(path, self.needs[0], value)
        return value


@dataclass(frozen=True)
class Integer:
    """A whole number in a range; `auto` allows the word "auto", which becomes None."""

    low: int
    high: int
    auto: bool = False

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> int | None:
        """The value, checked."""
        if self.auto and value == "auto":
            return None
        if type(value) is not int or not self.low <= value <= self.high:
            or_auto = ' or "auto"' if self.auto else ""
            document.refuse_value(path, f"a whole number from {self.low} to {self.high}{or_auto}", value)
        return value


@dataclass(frozen=True)
class Number:
    """A number in a range; whole numbers are fine too."""

    low: float
    high: float

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> float:
        """The value, checked."""
        real = type(value) in {int, float} and math.isfinite(value)
        if not real or not self.low <= value <= self.high:
            document.refuse_value(path, f"a number from {self.low:g} to {self.high:g}", value)
        return float(value)


def boolean(document: Document, path: tuple[str, ...], value: Any) -> bool:
    """A TOML boolean."""
    if not isinstance(value, bool):
        document.refuse_value(path, "true or false", value)
    return value


@dataclass(frozen=True)
class Words:
    """A list of strings."""

    at_least: int = 1

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> tuple[str, ...]:
        """The value, checked."""
        if not isinstance(value, list) or not all(
            isinstance(word, str) and "\0" not in word for word in value
        ):
            document.refuse_value(path, "a list of strings", value)
        if len(value) < self.at_least or (value and not value[0]):
            document.refuse_value(
                path, f"a list of at least {self.at_least} strings, the first not empty", value
            )
        return tuple(value)


def read_table(
    document: Document, table: tuple[str, ...], fields: Mapping[str, Read], *, also: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The known keys of one table, checked; keys that are absent stay absent.

    :param also: keys that somebody else reads.
    :raises Invalid: an unknown key, or a value of the wrong kind.
    """
    data: Any = document.data
    for name in table:
        data = data.get(name, {})
        if not isinstance(data, dict):
            document.refuse_value(table, f"a table, as in [{'.'.join(table)}]", data)
    found: dict[str, Any] = {}
    for key, value in data.items():
        if key in fields:
            found[key] = fields[key](document, (*table, key), value)
        elif key not in also:
            document.refuse_unknown((*table, key), {*fields, *also})
    return found
