"""A TOML document that can say where each of its keys stands, so that every complaint names file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import tomli

from gpuserved.api.errors import Invalid

_SECRET = re.compile(r"(?i)token|secret|passw|credential|api_?key|private|auth")
_VALUE_MAX_CHARS = 60
_TRIPLE = re.compile(r'"""|\'\'\'')


def is_secret(key: str) -> bool:
    """True where the name says that its value must not be shown."""
    return _SECRET.search(key) is not None


@dataclass(frozen=True)
class Document:
    """A parsed file. `source` is what errors call it."""

    source: str
    text: str
    data: Mapping[str, Any]

    def line(self, *path: str) -> int | None:
        """The line (from 1) where a key or a table header stands; None where it is not found."""
        return locate(self.text, path)

    def refuse(self, path: tuple[str, ...], problem: str, hint: str | None = None) -> NoReturn:
        """Raise Invalid about one key.

        :param path: table and key; empty: the file as a whole.
        """
        line = self.line(*path) if path else None
        where = f"{self.source}:{line}" if line else self.source
        name = ".".join(path)
        raise Invalid(
            f"{where}: {name + ': ' if name else ''}{problem}",
            hint,
            {"file": self.source, "line": line, "key": name or None},
        )

    def refuse_value(self, path: tuple[str, ...], expected: str, value: object) -> NoReturn:
        """Raise Invalid about a value; one that may be a secret is not repeated."""
        secret = path[0] == "env" or is_secret(path[-1])
        shown = _type_name(value) if secret else f"{_type_name(value)} {_short(value)}"
        self.refuse(path, f"expected {expected}, got {shown}")

    def refuse_unknown(self, path: tuple[str, ...], known: Iterable[str]) -> NoReturn:
        """Raise Invalid about a key nobody knows, naming the nearest one that exists."""
        names = sorted(known)
        near = difflib.get_close_matches(path[-1].replace("-", "_"), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(names)}"
        self.refuse(path, "unknown key", hint)


def parse(text: str, source: str) -> Document:
    """Read TOML.

    :raises Invalid: bad syntax, with line and column.
    """
    try:
        return Document(source, text, tomli.loads(text))
    except tomli.TOMLDecodeError as error:
        lines = text.count("\n") + 1
        line = min(error.lineno, lines)
        what = "this key is set twice" if "overwrite" in error.msg else error.msg
        raise Invalid(
            f"{source}:{line}:{error.colno}: not valid TOML: {what[:1].lower()}{what[1:]}",
            'strings need quotes, as in model = "org/name"; lists and tables must be closed',
            {"file": source, "line": line, "column": error.colno},
        ) from None


def placed(error: Invalid, text: str, source: str) -> Invalid:
    """The same about a key that an engine complains of, with the file and line where the key stands.

    :param error: its detail names `table` and `key`; one that names none comes back as it is.
    """
    about = error.detail or {}
    if not {"table", "key"} <= about.keys():
        return error
    line = next(
        (at for key in _spellings(str(about["key"])) if (at := locate(text, (str(about["table"]), key)))),
        None,
    )
    if line is None:
        return error
    said = error.message[max(0, error.message.find("[")) :]
    return Invalid(f"{source}:{line}: {said}", error.hint, {"file": source, "line": line, **about})


def _spellings(key: str) -> tuple[str, str]:
    return key, key.replace("_", "-")


def locate(text: str, path: tuple[str, ...]) -> int | None:
    """The first line that sets `path` or opens it as a table."""
    table: tuple[str, ...] = ()
    inside: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if inside is None:
            stripped = line.strip()
            if stripped.startswith("["):
                header = _key(stripped.split("#")[0].strip().strip("[]").strip())
                if header is not None:
                    table = header
                    if table[: len(path)] == path:
                        return number
            elif "=" in stripped and not stripped.startswith("#"):
                key = _key(stripped.split("=", 1)[0].strip())
                if key is not None and (*table, *key)[: len(path)] == path:
                    return number
        for quotes in _TRIPLE.findall(line):
            if inside is None:
                inside = quotes
            elif inside == quotes:
                inside = None
    return None


def _key(written: str) -> tuple[str, ...] | None:
    """`a."b c".d` as its parts; None where it is no key."""
    try:
        found: Any = tomli.loads(f"{written} = 0")
    except tomli.TOMLDecodeError:
        return None
    parts: list[str] = []
    while isinstance(found, dict):
        name, found = next(iter(found.items()))
        parts.append(name)
    return tuple(parts)


def _type_name(value: object) -> str:
    names: dict[type, str] = {
        str: "the string", bool: "the boolean", int: "the number", float: "the number", list: "the list", dict: "the table",
    }  # fmt: skip
    return names.get(type(value), f"a {type(value).__name__}")


def _short(value: object) -> str:
    if isinstance(value, dict):
        return f"with {len(value)} keys"
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= _VALUE_MAX_CHARS else shown[:_VALUE_MAX_CHARS] + "..."
