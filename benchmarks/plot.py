"""A plot as SVG, without a library: one panel of bars for each figure, with the spread over the rounds."""

from __future__ import annotations

import statistics
from xml.sax.saxutils import escape

_WIDTH = 860
_LABEL = 150
_PANEL_GAP = 34
_BAR = 18
_ROW = 28
_TOP = 64
_FONT = "font-family='system-ui, sans-serif'"


def svg(panels: dict[str, dict[str, list[float]]], note: str) -> str:
    """Bars: median over the rounds; whiskers: lowest to highest. nginx of the same round is 1.

    :param panels: ratios by candidate, by the panel's title; a candidate without any is left out.
    """
    parts: list[str] = []
    y = _TOP
    for title, bars in panels.items():
        shown = {name: values for name, values in bars.items() if values}
        if not shown:
            continue
        parts.append(f"<text x='16' y='{y}' font-size='14' font-weight='600' {_FONT}>{escape(title)}</text>")
        top = y + 12
        scale = (_WIDTH - _LABEL - 130) / max(max(values) for values in shown.values())
        for row, (name, values) in enumerate(
            sorted(shown.items(), key=lambda item: statistics.median(item[1]))
        ):
            parts += _bar(name, values, top + row * _ROW, scale)
        one = _LABEL + scale
        bottom = top + len(shown) * _ROW
        parts.append(
            f"<line x1='{one:.1f}' y1='{top}' x2='{one:.1f}' y2='{bottom}' stroke='#667' stroke-dasharray='3 3'/>"
        )
        y = bottom + _PANEL_GAP
    height = y - _PANEL_GAP + 16
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height}' viewBox='0 0 {_WIDTH} {height}'>"
        f"<rect width='100%' height='100%' fill='#fff'/>"
        f"<text x='16' y='28' font-size='16' font-weight='700' {_FONT}>CPU on one core, nginx of the same round = 1; less is better</text>"
        f"<text x='{_WIDTH - 16}' y='28' font-size='11' fill='#667' text-anchor='end' {_FONT}>{escape(note)}</text>"
    )
    return head + "\n" + "\n".join(parts) + "\n</svg>\n"


def _bar(name: str, values: list[float], y: int, scale: float) -> list[str]:
    middle = statistics.median(values)
    fill = "#0f766e" if name.startswith("ours") else "#94a3b8"
    low, high, line = _LABEL + min(values) * scale, _LABEL + max(values) * scale, y + _BAR / 2
    return [
        f"<text x='{_LABEL - 8}' y='{y + 14}' font-size='12' text-anchor='end' {_FONT}>{escape(name)}</text>",
        f"<rect x='{_LABEL}' y='{y}' width='{middle * scale:.1f}' height='{_BAR}' rx='2' fill='{fill}'/>",
        f"<line x1='{low:.1f}' y1='{line}' x2='{high:.1f}' y2='{line}' stroke='#111' stroke-width='1.5'/>",
        f"<text x='{high + 8:.1f}' y='{y + 14}' font-size='12' {_FONT}>{middle:.2f}</text>",
    ]
