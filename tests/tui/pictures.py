"""A screen as text that can be reviewed and compared: what an SVG of it holds, without its numbers that change by themselves."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import NamedTuple

from rich.cells import cell_len

_RULE = re.compile(r"\.terminal-\w+-(r\d+) \{ (.*?) ?\}")
CELL_PIXELS = 12.2
"""Rich's SVG: a font of 20 pixels, 0.61 of that a character."""
_SVG = "{http://www.w3.org/2000/svg}"


class Piece(NamedTuple):
    """A run of text in one style."""

    row: float
    column: float
    text: str
    style: str


class Picture(NamedTuple):
    """Lines of text, and for each line the styles of its pieces."""

    text: list[str]
    styles: list[str]
    colours: frozenset[str]


def read(svg: str) -> Picture:
    """The picture in an SVG of `export_screenshot`."""
    rules = dict(_RULE.findall(svg))
    root = ET.fromstring(svg)
    pieces = [piece for group in root.iter(f"{_SVG}g") for piece in _pieces(group, rules)]
    rows = sorted({piece.row for piece in pieces})
    lines, styles = [], []
    for row in rows:
        mine = sorted((p for p in pieces if p.row == row), key=lambda p: p.column)
        lines.append(_placed(mine))
        styles.append(" ".join(f"{p.style}:{len(p.text)}" for p in mine if p.text.strip()))
    colours = frozenset(re.findall(r"fill: (#[0-9a-f]{6})", svg))
    return Picture(lines, styles, colours)


def _placed(pieces: list[Piece]) -> str:
    """Pieces at their columns; blanks between them are not in the SVG."""
    line = ""
    for piece in pieces:
        line += " " * max(0, round(piece.column / CELL_PIXELS) - cell_len(line)) + piece.text
    return line.rstrip()


def _pieces(group: ET.Element, rules: dict[str, str]) -> list[Piece]:
    if not (group.get("class") or "").endswith("-matrix"):
        return []
    found = []
    for text in group.iter(f"{_SVG}text"):
        name = (text.get("class") or "").rsplit("-", 1)[1]
        style = rules.get(name, "").replace("fill: ", "").replace("font-weight: bold", "b").replace(";", "")
        content = (text.text or "").replace("\xa0", " ")
        found.append(Piece(float(text.get("y") or 0), float(text.get("x") or 0), content, style or "-"))
    return found
