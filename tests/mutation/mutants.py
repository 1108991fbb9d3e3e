"""The mutants of a package: each one edit of one module, with a name that survives edits elsewhere in the file."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType

import tomli
from tests.mutation.operators import Edit, Place, children, edits

SHOWN_MAX = 100
"""Characters of a change in a report: the widest part of the statement that is not longer is shown."""


@dataclass(frozen=True)
class Mutant:
    """One change."""

    module: str
    """Dotted name."""
    path: Path
    function: str
    """Outermost function it is in, with its class; empty: the module's or a class's own level."""
    line: int
    lines: tuple[int, int]
    """First and last line of the statement, its body left out."""
    operator: str
    change: str
    """`before -> after`, with ` #2` where a function has the same change twice."""
    defines: tuple[str, ...]
    """Names that the statement defines, where it runs when the module is imported."""
    tree: ast.Module = field(repr=False, compare=False)
    edit: Edit = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """What the list of equivalent mutants calls it."""
        return f"{self.module}:{self.function or '-'}: {self.change}"

    def compiled(self) -> CodeType:
        """The module's code with this change in it."""
        back = self.edit.swap()
        try:
            return compile(self.tree, str(self.path), "exec", dont_inherit=True)
        finally:
            back.swap()


@dataclass(frozen=True)
class _Scope:
    """Where the walk through a module is."""

    function: str = ""
    owner: str = ""
    """The class, with a dot behind it."""
    statement: ast.stmt | None = None
    defines: tuple[str, ...] = ()
    expression: tuple[ast.AST, ...] = ()
    """From the statement down."""


def of_module(module: str, path: Path) -> list[Mutant]:
    """All mutants of one file, in the order of its lines."""
    tree = ast.parse(path.read_bytes(), str(path))
    found: list[Mutant] = []
    seen: Counter[tuple[str, str]] = Counter()
    for edit, node, scope in _walk(tree, _Scope()):
        change = _described(edit, scope)
        seen[scope.function, change] += 1
        again = seen[scope.function, change]
        named = change if again == 1 else f"{change} #{again}"
        line = getattr(node, "lineno", scope.statement.lineno if scope.statement else 1)
        lines = _lines(scope.statement) if scope.statement else (line, line)
        found.append(
            Mutant(module, path, scope.function, line, lines, edit.operator, named, scope.defines, tree, edit)
        )
    return sorted(found, key=lambda one: one.line)


def of_package(root: Path, package: str) -> list[Mutant]:
    """All mutants of a package below `root` (the folder that is on the path)."""
    folder = root / package.replace(".", "/")
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    found = []
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found += of_module(module, path)
    return found


def definitions(tree: ast.Module) -> Iterator[tuple[list[ast.AST], tuple[int, int], str, tuple[str, ...]]]:
    """Each statement: its nodes, those of its body left out, its lines, its outermost function, and what it defines at import."""
    for node, scope in _statements(tree, _Scope()):
        below: list[ast.AST] = []
        todo: list[ast.AST] = [node]
        while todo:
            one = todo.pop()
            below.append(one)
            todo += [child for child, _ in children(one) if not isinstance(child, ast.stmt)]
        yield below, _lines(node), "" if scope.defines else scope.function, scope.defines


def _statements(node: ast.AST, scope: _Scope) -> Iterator[tuple[ast.stmt, _Scope]]:
    for child, place in children(node):
        inner = _entered(child, place, scope)
        if isinstance(child, ast.stmt):
            yield child, inner
        yield from _statements(child, inner)


def _walk(node: ast.AST, scope: _Scope) -> Iterator[tuple[Edit, ast.AST, _Scope]]:
    for child, place in children(node):
        inner = _entered(child, place, scope)
        for edit in edits(child, place):
            yield edit, child, inner
        yield from _walk(child, inner)


def _entered(node: ast.AST, place: Place, scope: _Scope) -> _Scope:
    """The scope of a node."""
    parent, where, _ = place
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        if scope.function:
            return replace(scope, statement=node, expression=())
        name = scope.owner + node.name
        if isinstance(node, ast.ClassDef):
            return _Scope(owner=f"{name}.", statement=node, defines=(node.name,))
        special = node.name.startswith("__") and scope.owner  # nobody calls it by its name
        named = scope.owner.rstrip(".") if special else node.name
        return _Scope(function=name, owner=scope.owner, statement=node, defines=(named,))
    if isinstance(parent, ast.FunctionDef) and where == "body" and isinstance(node, ast.stmt):
        return replace(scope, statement=node, defines=(), expression=())
    if isinstance(node, ast.stmt):
        defines = () if scope.function else _assigned(node, scope.owner) or scope.defines
        return replace(scope, statement=node, defines=defines, expression=())
    return replace(scope, expression=(*scope.expression, node))


def _assigned(node: ast.stmt, owner: str) -> tuple[str, ...]:
    """A field's default is the class's too: who makes one need not name the field."""
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    return (*names, owner.rstrip(".").rpartition(".")[2]) if names and owner else tuple(names)


def _lines(node: ast.stmt) -> tuple[int, int]:
    """A compound statement's header, or all of a simple one."""
    body: Sequence[ast.stmt] = getattr(node, "body", ())
    end = node.end_lineno or node.lineno
    return node.lineno, max(node.lineno, body[0].lineno - 1) if body else end


def _described(edit: Edit, scope: _Scope) -> str:
    simple = scope.statement is not None and not hasattr(scope.statement, "body")
    wider = [scope.statement, *scope.expression] if simple else list(scope.expression)
    held = getattr(edit.parent, edit.field)
    old = held if edit.index is None else held[edit.index]
    shown = next((node for node in wider if node and len(_text(node)) <= SHOWN_MAX), old)
    before = _text(shown)
    if shown is old:
        return f"{before} -> {_text(edit.new)}"
    back = edit.swap()
    after = _text(shown)
    back.swap()
    return f"{before} -> {after}"


def _text(node: ast.AST) -> str:
    try:
        return " ".join(ast.unparse(node).split())
    except (AttributeError, ValueError):  # a comprehension, a keyword: no text of its own
        return "?" * (SHOWN_MAX + 1)


def sampled(mutants: Iterable[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` of them in the order of a draw by their names: an edit of one function leaves the choice in the others as it is."""
    return sorted(
        mutants, key=lambda one: hashlib.blake2b(f"{seed} {one.name}".encode(), digest_size=8).digest()
    )[:count]


def equivalent(file: Path) -> dict[str, str]:
    """Name of each mutant that no test can tell from the original, with the reason."""
    table = tomli.loads(file.read_text("utf-8"))
    return {f"{one['at']}: {one['change']}": one["reason"] for one in table.get("equivalent", [])}
