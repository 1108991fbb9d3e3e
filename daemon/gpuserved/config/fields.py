"""How a key is declared: once, with its type, bounds and meaning. The reader, the JSON Schema and the documents' tables follow from it.

TOML knows types: a number in quotes is a mistake, not a number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpuserved.config.document import Document

Json = dict[str, Any]


class Read(ABC):
    """How a value is read."""

    @abstractmethod
    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> Any:
        """The value, checked.

        :raises Invalid: naming file, line and key.
        """

    def schema(self) -> Json:
        """As JSON Schema says it, which refuses nothing that the reader accepts; {}: anything."""
        return {}


@dataclass(frozen=True)
class Text(Read):
    """A string."""

    choices: tuple[str, ...] = ()
    """The only values allowed."""
    needs: tuple[str, Callable[[str], bool]] | None = None
    """What it must be, in words, and the test of it."""
    convert: Callable[[str], Any] = str
    """What is kept of it."""

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> Any:
        if self.choices and value not in self.choices:
            document.refuse_value(path, "one of " + ", ".join(f'"{c}"' for c in self.choices), value)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            document.refuse_value(path, "a string that is not empty", value)
        if self.needs is not None and not self.needs[1](value):
            document.refuse_value(path, self.needs[0], value)
        return self.convert(value)

    def schema(self) -> Json:
        return {"enum": list(self.choices)} if self.choices else {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Integer(Read):
    """A whole number in a range; `auto` allows the word "auto", which becomes None."""

    low: int
    high: int
    auto: bool = False

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> int | None:
        if self.auto and value == "auto":
            return None
        if type(value) is not int or not self.low <= value <= self.high:
            or_auto = ' or "auto"' if self.auto else ""
            document.refuse_value(path, f"a whole number from {self.low} to {self.high}{or_auto}", value)
        return int(value)

    def schema(self) -> Json:
        whole = {"type": "integer", "minimum": self.low, "maximum": self.high}
        return {"anyOf": [whole, {"const": "auto"}]} if self.auto else whole


@dataclass(frozen=True)
class Number(Read):
    """A number in a range; whole numbers are fine too."""

    low: float
    high: float

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> float:
        real = type(value) in {int, float} and math.isfinite(value)
        if not real or not self.low <= value <= self.high:
            document.refuse_value(path, f"a number from {self.low:g} to {self.high:g}", value)
        return float(value)

    def schema(self) -> Json:
        return {"type": "number", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Boolean(Read):
    """A TOML boolean."""

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> bool:
        if not isinstance(value, bool):
            document.refuse_value(path, "true or false", value)
        return value

    def schema(self) -> Json:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Words(Read):
    """A list of strings."""

    at_least: int = 1

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(
            isinstance(word, str) and "\0" not in word for word in value
        ):
            document.refuse_value(path, "a list of strings", value)
        if len(value) < self.at_least or (value and not value[0]):
            document.refuse_value(
                path, f"a list of at least {self.at_least} strings, the first not empty", value
            )
        return tuple(value)

    def schema(self) -> Json:
        return {"type": "array", "items": {"type": "string"}, "minItems": self.at_least}


@dataclass(frozen=True)
class Key:
    """One key."""

    name: str
    read: Read
    means: str
    """What documents say of it, in Markdown."""
    default: str | None = None
    """In Markdown, where it is more than the default of the field it becomes."""
    example: str | None = None
    """A value as TOML writes it, for an example of the whole file."""
    flags: Mapping[str, str] | None = None
    """By engine, the flag that says the same: written in the engine's own table alone, it counts as this key."""


@dataclass(frozen=True)
class Table:
    """The keys of one table."""

    name: str
    """Empty: the top level."""
    keys: tuple[Key, ...]
    makes: type[Any] | None = None
    """The type that has a field for each key, and its default."""

    def key(self, name: str) -> Key:
        """:raises StopIteration: there is none of this name."""
        return next(key for key in self.keys if key.name == name)

    def read(self, document: Document, *, also: tuple[str, ...] = ()) -> dict[str, Any]:
        """The keys that the file sets, checked; others stay absent.

        :param also: keys that somebody else reads.
        :raises Invalid: an unknown key, or a value of the wrong kind.
        """
        path = (self.name,) if self.name else ()
        data: Any = document.data.get(self.name, {}) if self.name else document.data
        if not isinstance(data, dict):
            document.refuse_value(path, f"a table, as in [{self.name}]", data)
        reads = {key.name: key.read for key in self.keys}
        found: dict[str, Any] = {}
        for name, value in data.items():
            if name in reads:
                found[name] = reads[name](document, (*path, name), value)
            elif name not in also:
                document.refuse_unknown((*path, name), {*reads, *also})
        return found
