"""The changes that are tried: small mistakes that a person could make, each in one node of a module's syntax tree.

Not tried, because they are no decisions: annotations and names of types, docstrings, decorators, asserts (they narrow types), the wire values of enums,
`__slots__`, prose (a string with a space in it, the fixed parts of f-strings), and the entries of plain tables of strings.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

TABLE_MIN = 6
"""A tuple, list or set of at least so many strings is a table: data that other files list too."""

_BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
}  # fmt: skip
_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}  # fmt: skip
_NOT_BELOW = {"annotation", "returns", "decorator_list", "type_params", "type_comment"}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}


@dataclass(frozen=True)
class Edit:
    """One node to be put in the place of another."""

    operator: str
    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST

    def swap(self) -> Edit:
        """Put the new node in; the edit that takes it out again is returned."""
        held = getattr(self.parent, self.field)
        old = held if self.index is None else held[self.index]
        if self.index is None:
            setattr(self.parent, self.field, self.new)
        else:
            held[self.index] = self.new
        return Edit(self.operator, self.parent, self.field, self.index, old)


Place = tuple[ast.AST, str, int | None]
"""Where a node hangs: its parent, the field, and the index in it."""


def children(node: ast.AST) -> Iterator[tuple[ast.AST, Place]]:
    """The nodes below one that may be changed, each with its place."""
    for field, value in ast.iter_fields(node):
        if field in _NOT_BELOW or (isinstance(node, ast.ClassDef) and field in {"bases", "keywords"}):
            continue
        for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(item, ast.AST) and not _passed_over(node, item):
                yield item, (node, field, index)


def _passed_over(parent: ast.AST, node: ast.AST) -> bool:
    if isinstance(node, (ast.Assert, ast.Import, ast.ImportFrom, ast.Global)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.startswith("__")
    ):
        return True  # __slots__ and __all__ name what is written elsewhere
    if isinstance(node, ast.Assign) and _is_type(node.value):
        return True
    if isinstance(parent, ast.ClassDef) and isinstance(node, ast.Assign):
        names = {base.id for base in parent.bases if isinstance(base, ast.Name)}
        return "Enum" in names
    if isinstance(parent, ast.JoinedStr):
        return isinstance(node, ast.Constant)
    if isinstance(parent, ast.FormattedValue):
        return isinstance(node, ast.JoinedStr)  # the format
    return False


def _is_type(node: ast.expr) -> bool:
    """What annotations are made of: a type variable, or a union by its name."""
    named = (
        node.func if isinstance(node, ast.Call) else node.value if isinstance(node, ast.Subscript) else None
    )
    return isinstance(named, ast.Name) and named.id in {"TypeVar", "Union"}


def edits(node: ast.AST, place: Place) -> Iterator[Edit]:
    """All changes of one node."""
    for operator, new in _changed(node, place):
        fixed = ast.fix_missing_locations(ast.copy_location(new, node))
        yield Edit(operator, *place, fixed)


def _changed(node: ast.AST, place: Place) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Compare):
        yield from _compare(node)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "boolean", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "unary", node.operand
    elif isinstance(node, ast.BinOp) and not _joins_text(node):
        yield "arithmetic", ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in _ARITHMETIC:
        yield "arithmetic", ast.AugAssign(node.target, _ARITHMETIC[type(node.op)](), node.value)
    elif isinstance(node, ast.Constant):
        yield from _constant(node, place[0])
    elif isinstance(node, ast.Return) and not _is_none(node.value):
        yield "return", ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Lambda):
        yield "return", ast.Lambda(node.args, ast.Constant(None))
    elif isinstance(node, ast.Break):
        yield "loop", ast.Continue()
    elif isinstance(node, ast.Continue):
        yield "loop", ast.Break()
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "deletion", ast.Pass()
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _NAMES:
        name = ast.copy_location(ast.Name(_NAMES[node.func.id], ast.Load()), node.func)
        yield "call", ast.Call(name, node.args, node.keywords)
    if _is_condition(node, place):
        yield "condition", ast.UnaryOp(ast.Not(), node)  # type: ignore[arg-type] # a condition is an expression


def _compare(node: ast.Compare) -> Iterator[tuple[str, ast.AST]]:
    for at, op in enumerate(node.ops):
        for operator, table in (("boundary", _BOUNDARY), ("comparison", _OPPOSITE)):
            if type(op) in table:
                ops = [*node.ops[:at], table[type(op)](), *node.ops[at + 1 :]]
                yield operator, ast.Compare(node.left, ops, node.comparators)


def _is_none(node: ast.AST | None) -> bool:
    return node is None or (isinstance(node, ast.Constant) and node.value is None)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    )


def _joins_text(node: ast.BinOp) -> bool:
    """A string joined or formatted, or a type written as a union: another operator there is an error, not a mistake."""
    if isinstance(node.op, ast.BitOr) and all(
        isinstance(n, (ast.Name, ast.BinOp)) for n in (node.left, node.right)
    ):
        return True
    return any(
        _is_text(one) or (isinstance(one, ast.BinOp) and _joins_text(one)) for one in (node.left, node.right)
    )


def _constant(node: ast.Constant, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    value = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int):
        yield "constant", ast.Constant(value + 1)
    elif isinstance(value, float):
        yield "constant", ast.Constant(value * 2 or 1.0)
    elif isinstance(value, str) and value and " " not in value and not _in_table(parent):
        yield "constant", ast.Constant(f"{value}?")


def _in_table(parent: ast.AST) -> bool:
    return isinstance(parent, (ast.Tuple, ast.List, ast.Set)) and len(parent.elts) >= TABLE_MIN


def _is_condition(node: ast.AST, place: Place) -> bool:
    """True where a test is not negated by another operator already."""
    parent, field, _ = place
    tested = (isinstance(parent, (ast.If, ast.IfExp, ast.While)) and field == "test") or (
        isinstance(parent, ast.comprehension) and field == "ifs"
    )
    if not tested or isinstance(node, (ast.Constant, ast.UnaryOp)):
        return False
    return not (isinstance(node, ast.Compare) and len(node.ops) == 1)
