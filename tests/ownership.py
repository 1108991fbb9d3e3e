"""Who assigns whose fields: assignments to attributes of other objects, found in the syntax of daemon/ and tui/.

An assignment to `self.x` is the owner's own. One to `thing.x` is judged by the class of `thing`, where an annotation, a constructor
or the field it was read from tells it; else by all classes of ours that have a field `x`. A class and what stands in its module
are one owner: a small record is filled by the function beside it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

CONTAINERS = {"list", "dict", "set", "deque", "defaultdict", "OrderedDict", "Counter", "bytearray"}
MUTATORS = {
    "append", "extend", "insert", "pop", "popitem", "clear", "update", "setdefault", "add", "discard", "remove", "sort",
    "reverse", "appendleft", "popleft",
}  # fmt: skip
DETOURS = {"setattr", "delattr", "__setattr__", "__delattr__"}
SCOPES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
FOREIGN = "(a library's)"
Names = Mapping[str, str | None]
"""What the names of a scope are: MODULE.CLASS, the name of a builtin, `FOREIGN`, or None where nothing tells."""


@dataclass(frozen=True)
class Trespass:
    """A field that somebody else writes."""

    module: str
    line: int
    text: str
    """`thing.field`, or the call that assigns it."""
    classes: tuple[str, ...]
    """Whose field it is: MODULE.CLASS; several where only its name tells, none of a detour."""

    @property
    def place(self) -> str:
        """What stays the same when lines move."""
        return f"{self.module}: {self.text}"

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.text} ({', '.join(self.classes[:3])})"


@dataclass
class Class:
    """One class of ours."""

    module: str
    bases: list[str | None]
    fields: dict[str, str | None] = field(default_factory=dict)
    """Its own fields and, where that is written down, the class of each."""
    containers: set[str] = field(default_factory=set)


def module_of(path: Path, root: Path) -> str:
    """The dotted name, without `daemon` or `tui`."""
    return ".".join(path.relative_to(root).with_suffix("").parts[1:]).removesuffix(".__init__")


def trespasses(paths: Iterable[Path], root: Path) -> list[Trespass]:
    """Every assignment, deletion or change of a container in a field of another module's class, and every detour around one:
    `setattr`, `vars`, `__dict__`, the setter of a property.
    """
    modules = [_Module(module_of(path, root), ast.parse(path.read_text())) for path in paths]
    code = _Code({module.name: module for module in modules})
    return [found for module in modules for found in _Reader(code, module).read()]


def _own_nodes(block: ast.AST) -> Iterator[ast.AST]:
    """What stands in a scope itself; scopes within are named, not entered."""
    for found in ast.iter_child_nodes(block):
        yield found
        if not isinstance(found, SCOPES):
            yield from _own_nodes(found)


def _is_self(found: ast.expr) -> bool:
    return isinstance(found, ast.Name) and found.id in {"self", "cls"}


class _Module:
    """One file, and what its global names mean."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name, self.tree = name, tree
        self.globals: dict[str, str] = {}
        for found in ast.walk(tree):
            if isinstance(found, ast.ImportFrom) and found.module:
                self.globals |= {
                    (one.asname or one.name): f"{found.module}.{one.name}" for one in found.names
                }
        for found in tree.body:
            if isinstance(found, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                self.globals[found.name] = f"{name}.{found.name}"

    def annotated(self, annotation: ast.expr | None) -> str | None:
        """The class that an annotation names, without `| None`; of a generic the outer one."""
        match annotation:
            case ast.Name(id=name):
                return self.globals.get(name, name)
            case ast.Attribute(attr=name):
                return name if name in CONTAINERS else FOREIGN
            case ast.Constant(value=str(text)):
                return self.annotated(ast.parse(text, mode="eval").body)
            case ast.Subscript(value=outer):
                return self.annotated(outer)
            case ast.BinOp(left=left, right=ast.Constant(value=None)):
                return self.annotated(left)
        return None


class _Code:
    """All classes and functions, by MODULE.NAME."""

    def __init__(self, modules: Mapping[str, _Module]) -> None:
        self.modules = modules
        self.classes: dict[str, Class] = {}
        self.returns: dict[str, str | None] = {}
        self.by_field: dict[str, set[str]] = defaultdict(set)
        for module in modules.values():
            for found in ast.walk(module.tree):
                if isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    self.returns[f"{module.name}.{found.name}"] = module.annotated(found.returns)
                elif isinstance(found, ast.ClassDef):
                    self._learn(module, found)
        for name, known in self.classes.items():
            for one in known.fields:
                self.by_field[one].add(name)

    def _learn(self, module: _Module, tree: ast.ClassDef) -> None:
        bases = [module.annotated(base) for base in tree.bases]
        known = self.classes[f"{module.name}.{tree.name}"] = Class(module.name, bases)
        for line in tree.body:
            if isinstance(line, (ast.FunctionDef, ast.AsyncFunctionDef)):
                kind = module.annotated(line.returns)
                self.returns[f"{module.name}.{tree.name}.{line.name}"] = kind
                names = {
                    one.arg: module.annotated(one.annotation)
                    for one in (*line.args.args, *line.args.kwonlyargs)
                }
                for found in ast.walk(line):
                    self._learn_line(module, known, found, names, of_self=True)
            else:
                self._learn_line(module, known, line, {}, of_self=False)

    def _learn_line(
        self, module: _Module, known: Class, line: ast.AST, names: Names, *, of_self: bool
    ) -> None:
        if isinstance(line, ast.Assign):
            targets, annotation = line.targets, None
        elif isinstance(line, ast.AnnAssign):
            targets, annotation = [line.target], line.annotation
        else:
            return
        for one in (part for target in targets for part in ast.walk(target)):
            if of_self and isinstance(one, ast.Attribute) and _is_self(one.value):
                name = one.attr
            elif not of_self and isinstance(one, ast.Name):
                name = one.id
            else:
                continue
            value = line.value if one in targets else None
            kind = module.annotated(annotation) or self.class_of(module, value, names)
            known.fields[name] = known.fields.get(name) or kind
            literals = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
            if isinstance(value, literals) or kind in CONTAINERS:
                known.containers.add(name)

    def class_of(self, module: _Module, value: ast.expr | None, names: Names) -> str | None:
        """The class of a value, where that is written down."""
        match value:
            case ast.Name(id=name):
                return names.get(name)
            case ast.Attribute(value=thing, attr=name):
                return self.field(self.class_of(module, thing, names), name)
            case ast.Call(func=ast.Name(id=name)):
                full = module.globals.get(name, name)
                return full if full in self.classes or full in CONTAINERS else self.returns.get(full)
            case ast.Call(func=ast.Attribute(value=thing, attr=name)):
                return self.returns.get(f"{self.class_of(module, thing, names)}.{name}")
        return None

    def field(self, owner: str | None, name: str) -> str | None:
        """The class of a field, its owner's bases included."""
        known = self.classes.get(owner or "")
        if known is None:
            return FOREIGN if owner == FOREIGN else None
        if name in known.fields:
            return known.fields[name]
        return next((kind for base in known.bases if (kind := self.field(base, name))), None)

    def declares(self, owner: str, name: str) -> set[str]:
        """The classes of ours, `owner` and its bases, that have this field; none: it is a library's."""
        known = self.classes.get(owner)
        if known is None:
            return set()
        return (
            {owner}
            if name in known.fields
            else {one for base in known.bases if base for one in self.declares(base, name)}
        )


class _Reader:
    """Reads one module."""

    def __init__(self, code: _Code, module: _Module) -> None:
        self._code, self._module = code, module

    def read(self) -> Iterator[Trespass]:
        yield from self._block(self._module.tree, {})

    def _block(self, block: ast.AST, outer: Names) -> Iterator[Trespass]:
        names = dict(outer)
        if isinstance(block, ast.ClassDef):
            names["self"] = names["cls"] = f"{self._module.name}.{block.name}"
        if isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for one in (*block.args.posonlyargs, *block.args.args, *block.args.kwonlyargs):
                if one.arg not in {"self", "cls"}:
                    names[one.arg] = self._module.annotated(one.annotation)
        inside = [*_own_nodes(block)]
        for found in inside:
            self._name(found, names)
        for found in inside:
            yield from self._judge(found, names)
        for found in inside:
            if isinstance(found, SCOPES):
                yield from self._block(found, names)

    def _name(self, found: ast.AST, names: dict[str, str | None]) -> None:
        """Learn what the names of this scope are."""
        match found:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    pairs = [(target, value)]
                    if (
                        isinstance(target, ast.Tuple)
                        and isinstance(value, ast.Tuple)
                        and len(target.elts) == len(value.elts)
                    ):
                        pairs = [*zip(target.elts, value.elts, strict=True)]
                    for one, what in pairs:
                        if isinstance(one, ast.Name):
                            names[one.id] = self._code.class_of(self._module, what, names)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                names[name] = self._module.annotated(annotation)
            case ast.For(target=ast.Name(id=name)) | ast.comprehension(target=ast.Name(id=name)):
                names[name] = None

    def _judge(self, found: ast.AST, names: Names) -> Iterator[Trespass]:
        match found:
            case ast.Attribute(value=thing, attr=name, ctx=ast.Store() | ast.Del()):
                yield from self._written(found.lineno, thing, name, names)
            case ast.Subscript(value=ast.Attribute(value=thing, attr=name), ctx=ast.Store() | ast.Del()):
                yield from self._written(found.lineno, thing, name, names)
            case ast.Call(func=ast.Attribute(value=ast.Attribute(value=thing, attr=name), attr=method)) if (
                method in MUTATORS
            ):
                yield from self._written(found.lineno, thing, name, names, container=True)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[thing, *_]) if (
                name in DETOURS
            ):
                if not _is_self(thing):
                    yield Trespass(self._module.name, found.lineno, ast.unparse(found), ())
            case ast.Subscript(value=ast.Call(func=ast.Name(id="vars")), ctx=ast.Store() | ast.Del()):
                yield Trespass(self._module.name, found.lineno, ast.unparse(found), ())
            case ast.Attribute(attr="__dict__") | ast.Attribute(attr="setter"):
                yield Trespass(self._module.name, found.lineno, ast.unparse(found), ())

    def _written(
        self, line: int, thing: ast.expr, name: str, names: Names, *, container: bool = False
    ) -> Iterator[Trespass]:
        if _is_self(thing):
            return
        kind = self._code.class_of(self._module, thing, names)
        owners = (
            self._code.by_field[name]
            if kind in {None, "Any", "object"}
            else self._code.declares(kind or "", name)
        )
        if container:
            owners = {one for one in owners if name in self._code.classes[one].containers}
        if owners and all(self._code.classes[one].module != self._module.name for one in owners):
            yield Trespass(self._module.name, line, f"{ast.unparse(thing)}.{name}", tuple(sorted(owners)))
