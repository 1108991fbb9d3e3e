"""YAML read as OmegaConf reads it, with the line and column of every key, so that complaints can point."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from gpuserved.api.errors import Invalid
from gpuserved.config.document import is_secret

Path = tuple[str | int, ...]
"""Keys and list positions from the top of the file."""
_FLOAT = re.compile(
    r"""[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?$
    |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)$
    |\.[0-9_]+(?:[eE][-+][0-9]+)?$
    |[-+]?\.(?:inf|Inf|INF)$
    |\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
"""1e-4 is a number here, as it is to OmegaConf and not in YAML 1.1."""
_VALUE_MAX_CHARS = 60


class _Loader(yaml.SafeLoader):
    """Safe, and without dates: OmegaConf reads 2024-01-01 as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, test) for tag, test in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass
class YamlText:
    """A parsed file. `source` is what errors call it; positions count from 1."""

    source: str
    data: dict[str, Any]
    marks: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def at(self, path: Path) -> str | None:
        """`file:line:col` of a key, or of its nearest parent; None where it does not stand in the file."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.marks:
                line, column = self.marks[path[:end]]
                return f"{self.source}:{line}:{column}"
        return None

    def override(self, key: str, value: Any) -> None:
        """Set `a.b.c` to a value that does not stand in the file.

        :raises Invalid: what is above it is no mapping.
        """
        parts = tuple(key.split("."))
        at: dict[str, Any] = self.data
        for part in parts[:-1]:
            inner = at.get(part)
            if inner is None:
                inner = at[part] = {}
            if not isinstance(inner, dict):
                raise Invalid(f"{key}: {part} is no mapping in {self.source}", f"override {part} as a whole")
            at = inner
        at[parts[-1]] = value
        self.marks = {path: mark for path, mark in self.marks.items() if path[: len(parts)] != parts}

    def refuse(self, path: Path, problem: str, hint: str | None = None) -> NoReturn:
        """Raise Invalid about one key."""
        name = ".".join(map(str, path))
        raise Invalid(
            f"{self.at(path) or self.source}: {name}: {problem}", hint, {"file": self.source, "key": name}
        )

    def refuse_value(self, path: Path, expected: str, value: object) -> NoReturn:
        """Raise Invalid about a value; one that may be a secret is not repeated."""
        shown = "a value that is not shown" if is_secret(str(path[-1])) else repr(value)
        if len(shown) > _VALUE_MAX_CHARS:
            shown = shown[:_VALUE_MAX_CHARS] + "..."
        self.refuse(path, f"expected {expected}, got {shown}")


def parse(text: str, source: str) -> YamlText:
    """Read one mapping.

    :raises Invalid: bad syntax, a key that stands twice, or something that is no mapping; with line and column.
    """
    found = YamlText(source, {})
    try:
        data = _read(_Loader(text), found)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Invalid(
            f"{_at(source, mark)}: not valid YAML: {error.problem or error.context or 'unreadable'}",
            "indent with blanks, and quote text that holds ': ' or begins with a special character",
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = str(error).splitlines()[0]
        raise Invalid(f"{source}: not valid YAML: {said}", "the file must be plain UTF-8 text") from None
    for key in data:
        if not isinstance(key, str):
            raise Invalid(
                f"{source}: the key {key!r} is no text", "every key is a name, as in template: llama3"
            )
    found.data = data
    return found


def _read(loader: _Loader, found: YamlText) -> dict[str, Any]:
    try:
        node = loader.get_single_node()
        if node is None:
            raise Invalid(
                f"{found.source}: the file is empty", "write at least model_name_or_path and template into it"
            )
        if not isinstance(node, yaml.MappingNode):
            where = _at(found.source, node.start_mark)
            raise Invalid(f"{where}: expected keys and values, as in template: llama3")
        _note(node, (), found, set())
        data: dict[str, Any] = loader.construct_document(node)
        return data
    finally:
        loader.dispose()


def _note(node: yaml.Node, path: Path, found: YamlText, above: set[int]) -> None:
    """Write down where every key of `node` stands."""
    if id(node) in above:
        raise Invalid(
            f"{_at(found.source, node.start_mark)}: an alias that holds itself", "write the values out"
        )
    above = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise Invalid(f"{_at(found.source, key.start_mark)}: a key must be a plain word")
            line, column = key.start_mark.line + 1, key.start_mark.column + 1
            if key.value in seen:
                raise Invalid(
                    f"{found.source}:{line}:{column}: {key.value} stands twice, first in line {seen[key.value]}",
                    "keep one of them; LlamaFactory refuses the file too",
                )
            seen[key.value] = line
            inner: Path = (*path, key.value)
            found.marks[inner] = (line, column)
            _note(value, inner, found, above)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            item: Path = (*path, position)
            found.marks[item] = (value.start_mark.line + 1, value.start_mark.column + 1)
            _note(value, item, found, above)


def _at(source: str, mark: yaml.Mark | None) -> str:
    return source if mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}"
