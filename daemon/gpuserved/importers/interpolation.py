"""OmegaConf's `${...}`: references within the file and environment variables. Everything else is refused, never passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpuserved.importers.yaml_text import Path, YamlText

MISSING = "???"
"""OmegaConf's mark of a value that somebody must still give."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(r"\.*[A-Za-z_][\w-]*(?:\.[\w-]+|\[[^\]\[]+\])*")
_DEPTH_MAX = 32


class Resolver:
    """Resolves the values of one file.

    LlamaFactory itself loads the file with OmegaConf and does not resolve it: the text `${...}` reaches its arguments as
    it is. Whoever wrote one meant its value, so it is resolved here, and `used` names the keys for a warning.
    """

    def __init__(self, file: YamlText, env: Mapping[str, str]) -> None:
        self._file = file
        self._env = env
        self._open: list[Path] = []
        self.used: list[Path] = []

    def all(self) -> dict[str, Any]:
        """The whole file with every interpolation replaced.

        :raises Invalid: one that cannot be resolved; names file, line and key.
        """
        return {key: self._value(value, (key,)) for key, value in self._file.data.items()}

    def _value(self, value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {key: self._value(inner, (*path, str(key))) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._value(inner, (*path, at)) for at, inner in enumerate(value)]
        if value == MISSING:
            self._file.refuse(path, "has no value yet (???)", "write the value")
        if not isinstance(value, str) or "${" not in value:
            return value
        if path in self._open or len(self._open) > _DEPTH_MAX:
            self._file.refuse(path, f"{value} leads back to itself", "write the value itself")
        self._open.append(path)
        self.used.append(path)
        try:
            return self._text(value, path)
        finally:
            self._open.pop()

    def _text(self, text: str, path: Path) -> Any:
        """A text with interpolations; one that is nothing else keeps the type of what it names."""
        pieces: list[Any] = []
        at = 0
        while at < len(text):
            start = text.find("${", at)
            if start < 0:
                pieces.append(text[at:])
                break
            before = text[at:start]
            slashes = len(before) - len(before.rstrip("\\"))
            pieces.append(before[: len(before) - slashes] + "\\" * (slashes // 2))
            if slashes % 2:  # an escaped one is plain text
                pieces.append("${")
                at = start + 2
                continue
            end = self._end(text, start, path)
            pieces.append(self._one(text[start + 2 : end], path))
            at = end + 1
        whole = [piece for piece in pieces if piece != ""]
        return whole[0] if len(whole) == 1 else "".join(_shown(piece) for piece in whole)

    def _end(self, text: str, start: int, path: Path) -> int:
        """Where the brace that belongs to `text[start:]` closes."""
        depth, at = 1, start + 2
        while depth:
            if at == len(text):
                self._file.refuse(path, f"{text[start:]} is not closed", "add the missing }")
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        return at - 1

    def _one(self, inside: str, path: Path) -> Any:
        inner = inside.strip()
        if "${" in inner:
            inner = _shown(self._text(inner, path))
        name, colon, rest = inner.partition(":")
        if colon:
            if name.strip() not in {"oc.env", "env"}:
                self._file.refuse(
                    path,
                    f"${{{inside}}}: the resolver {name.strip()} is not known here",
                    "write the value itself",
                )
            return self._variable(rest, path)
        if not _REFERENCE.fullmatch(inner):
            self._file.refuse(path, f"${{{inside}}} is no reference to a key", "write the value itself")
        return self._reference(inner, path)

    def _variable(self, written: str, path: Path) -> Any:
        name, comma, default = written.partition(",")
        name = name.strip().strip("\"'")
        if not _NAME.fullmatch(name):
            self._file.refuse(path, f"{name!r} cannot be the name of an environment variable")
        if name in self._env:
            return self._env[name]
        if not comma:
            self._file.refuse(
                path,
                f"the environment variable {name} is not set",
                f"set {name} for this command, or write ${{oc.env:{name},DEFAULT}}",
            )
        given = default.strip()
        return None if given == "null" else given.strip("\"'")

    def _reference(self, written: str, path: Path) -> Any:
        dots = len(written) - len(written.lstrip("."))
        base: Path = () if not dots else path[: len(path) - dots]
        if dots > len(path):
            self._file.refuse(path, f"${{{written}}} leads above the top of the file")
        parts = [part for part in re.split(r"[.\[\]]+", written[dots:]) if part]
        target: Path = base
        found: Any = self._file.data
        for part in [*base, *parts]:
            step: Any = int(part) if isinstance(found, list) and str(part).isdigit() else part
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                self._file.refuse(
                    path, f"${{{written}}}: there is no such key in the file", "correct the name"
                )
        for part in parts:
            target = (*target, int(part) if part.isdigit() else part)
        return self._value(found, target)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
