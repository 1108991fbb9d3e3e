"""Whether what an object shows can be changed by whoever looks: by the declared types of its public fields and properties."""

from __future__ import annotations

import ast
import enum
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import msgspec

PLAIN = (bool, int, float, str, bytes, type(None), Path, enum.Enum, property)
READ_ONLY = (
    Mapping,
    Sequence,
    AbstractSet,
    Collection,
    Iterable,
    Iterator,
    Callable,
    types.MappingProxyType,
    tuple,
    frozenset,
    type,
)
"""What offers no way to change it; mypy keeps a dict behind a Mapping from being written."""


def writable(owner: type, holds: frozenset[type] = frozenset()) -> list[str]:
    """What outsiders could change of an object of this class: its public fields, unless the class is frozen, its setters, and what
    its fields and properties hand out.

    :param holds: classes of objects that it may hand out because they protect themselves.
    """
    found: list[str] = []
    hints = typing.get_type_hints(owner)
    if not _frozen(owner):
        found += [
            f"{name} is a public field"
            for name in sorted({*hints, *_assigned(owner)})
            if not name.startswith("_")
        ]
    for name, member in inspect.getmembers(owner):
        if isinstance(member, property) and not name.startswith("_"):
            if member.fset is not None:
                found.append(f"{name} has a setter")
            hints[name] = typing.get_type_hints(member.fget).get("return", object)
    for name, hint in hints.items():
        if not name.startswith("_"):
            found += [f"{name}: {what}" for what in _loose(hint, holds, frozenset({owner}))]
    return found


def _assigned(owner: type) -> set[str]:
    """The fields that its methods assign."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    written = (
        each for each in ast.walk(tree) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
    )
    return {each.attr for each in written if isinstance(each.value, ast.Name) and each.value.id == "self"}


def _frozen(kind: type) -> bool:
    if issubclass(kind, msgspec.Struct):
        return bool(kind.__struct_config__.frozen)
    parameters = getattr(kind, "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


def _loose(hint: object, holds: frozenset[type], above: frozenset[type]) -> Iterator[str]:
    """The types within this one that can be changed."""
    outer, inner = typing.get_origin(hint), typing.get_args(hint)
    if outer is typing.Literal:
        return
    if inner:
        if outer not in {typing.Union, types.UnionType, typing.ClassVar, typing.Annotated}:
            yield from _loose(outer, holds, above)
        if outer is not Callable:
            for each in inner:
                yield from () if each is Ellipsis else _loose(each, holds, above)
        return
    if (
        hint in holds
        or hint in above
        or hint is None
        or hint in READ_ONLY
        or isinstance(hint, typing.ForwardRef)
    ):
        return  # a forward reference is to an alias that this is a part of
    if not isinstance(hint, type):
        yield str(hint)
    elif _frozen(hint):
        for name, part in typing.get_type_hints(hint).items():
            for what in _loose(part, holds, above | {hint}):
                yield f"{hint.__name__}.{name}: {what}"
    elif not issubclass(hint, PLAIN):
        yield hint.__name__
