"""The lines around the tables: who and how busy, screens, alerts, trends, keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.cells import cell_len

from gpuserve_tui.actions import ACTIONS, PANES, Situation, key_name, unavailable
from gpuserve_tui.settings import Settings
from gpuserve_tui.view import cells as c
from gpuserve_tui.view.board import Alert, Series
from gpuserve_tui.view.cells import Cell, Glyphs
from gpuserve_tui.widgets.lines import pack
from gpuserved.api.types import Status

_SHORT = {
    "overview": "Over",
    "replicas": "Repl",
    "gpus": "GPUs",
    "logs": "Logs",
    "events": "Ev",
    "profiles": "Prof",
}
_FULL = {"overview": "Overview", "replicas": "Replicas", "gpus": "GPUs", "logs": "Logs", "events": "Events", "profiles": "Profiles"}  # fmt: skip
_ALWAYS = {"help", "palette", "quit"}


def head(
    status: Status | None,
    width: int,
    glyphs: Glyphs,
    *,
    host: str,
    age_s: float,
    lost: bool,
    mode: str,
    frozen: bool,
    now: float,
) -> list[Cell]:
    """The first line.

    :param mode: RW, or RO where nothing may be changed.
    """
    wide = width >= 100
    name = Cell("gpuserve", "bold")
    if status is None:
        state = Cell("no daemon answers" if lost else "waiting for the daemon", "err" if lost else "dim")
        return pack([(name, 0), (state, 0), (Cell(host, "dim"), 1)], width)
    ready = sum(replica.state == "READY" for replica in status.replicas)
    role = "ok" if ready == len(status.replicas) else "warn"
    link = f"{glyphs.dot} {'lost' if lost else 'connected' if wide else ''} {c.age(age_s)}{' ago' if wide else ''}"
    profiles = list(dict.fromkeys(replica.profile for replica in status.replicas))
    load = status.load
    pieces = [
        (name, 0),
        (Cell(c.plain(host), "dim"), 5),
        (Cell(" ".join(link.split()), "err" if lost else "ok"), 2),
        (Cell(c.plain(profiles[0]) if len(profiles) == 1 else f"{len(profiles)} profiles", ""), 4),
        (Cell(f"{ready}/{len(status.replicas)} ready", role), 0),
        (Cell(f"run {_sum(status, 'running')} wait {_sum(status, 'waiting')}", ""), 1),
        (Cell(f"queue {c.count(status.router.queued)}", "warn" if status.router.queued else ""), 6),
        (
            Cell(
                f"{c.short(load.generation_tokens_per_s if load else None)} {'tok/s' if wide else 't/s'}", ""
            ),
            3,
        ),
        (Cell(mode, "warn" if mode == "RO" else "dim"), 0),
    ]
    if frozen:
        pieces.append((Cell("FROZEN", "warn"), 0))
    if wide:
        pieces.append((Cell(time.strftime("%H:%M:%S", time.localtime(now)), "dim"), 7))
    return pack(pieces, width, 2 if wide else 1)


def _sum(status: Status, name: str) -> str:
    known = [value for value in (getattr(r, name) for r in status.replicas) if value is not None]
    return c.count(sum(known)) if known else c.UNKNOWN


def tabs(
    pane: str, width: int, unread: int, alerts: Sequence[Alert], glyphs: Glyphs, note: str
) -> list[Cell]:
    """The screens, then what is wrong; `note` (a filter in force, marks) stands before that."""
    wide = width >= 100
    line: list[Cell] = []
    for number, name in enumerate(PANES, 1):
        label = f"{number} {(_FULL if wide else _SHORT)[name]}"
        if name == "events" and unread:
            label += f" {unread}" if wide else f"{min(unread, 99)}"
        line += [
            Cell(label, "match" if name == pane else "dim" if width < 60 else ""),
            Cell("  " if wide else " "),
        ]
    used = sum(len(cell.text) for cell in line)
    rest = width - used
    if note:
        line.append(Cell(c.fit(f"{note} ", min(rest, len(note) + 1)), "warn"))
        rest -= len(note) + 1
    return line + (alert_cells(alerts, rest, glyphs) if rest > 8 else [])


def alert_cells(alerts: Sequence[Alert], width: int, glyphs: Glyphs) -> list[Cell]:
    """As many alerts as fit, and how many more there are."""
    line: list[Cell] = []
    used = 0
    for number, alert in enumerate(alerts):
        mark = glyphs.cross if alert.severity == "error" else glyphs.alert
        text = f"{mark} {c.plain(alert.text)}"
        more = f" +{len(alerts) - number} more"
        room = width - used - (len(more) if number < len(alerts) - 1 else 0)
        if number and room < min(len(text), 24):
            line.append(Cell(c.fit(f" +{len(alerts) - number} more", max(0, width - used)), "warn"))
            break
        shown = c.fit(text, min(len(text), max(1, room)), ellipsis=glyphs.ellipsis) + "  "
        line.append(Cell(shown, "err" if alert.severity == "error" else "warn"))
        used += cell_len(shown)
    return line


def ruler(title: str, right: str, width: int, glyphs: Glyphs) -> list[Cell]:
    """A line with a title at its left and a remark at its right."""
    rest = max(1, width - cell_len(title) - cell_len(right) - 2)
    return [Cell(f"{title} ", "head"), Cell(glyphs.rule * rest, "dim"), Cell(f" {right}", "dim")]


def trends(series: Series | None, title: str, width: int, glyphs: Glyphs) -> list[list[Cell]]:
    """One line of sparklines, or in a wide terminal two: figures, and under them the lines."""
    series = series or Series()
    shown: tuple[tuple[str, list[float | None], Callable[[float | None], str], float | None], ...] = (
        ("tok/s", list(series.tokens), c.short, None),
        ("wait", list(series.waiting), c.count, None),
        ("KV%", list(series.kv_pct), c.count, 100.0),
        ("TTFT95ms", list(series.ttft_s), c.milliseconds, None),
        ("W", list(series.power_w), c.count, None),
    )
    if width < 100:
        line = [Cell(f"{c.fit_middle(title, min(12, cell_len(title)))} ", "head")]
        parts = shown[:3]
        each = max(4, (width - cell_len(line[0].text)) // len(parts) - 14)
        for name, values, write, top in parts:
            figure = f"{write(values[-1] if values else None):>5}"
            line += [Cell(f" {name} ", "dim"), Cell(c.spark(values, each, glyphs, top), "info"), Cell(figure)]
        return [line]
    each = width // len(shown)
    figures: list[Cell] = []
    graphs: list[Cell] = []
    for name, values, write, top in shown:
        now = f" {write(values[-1] if values else None)}"
        figures += [Cell(f" {name}", "dim"), Cell(c.fit(now, each - len(name) - 1))]
        graphs += [Cell(" "), Cell(c.fit(c.spark(values, each - 3, glyphs, top), each - 1), "info")]
    return [figures, graphs]


def foot(now: Situation, width: int, settings: Settings) -> list[Cell]:
    """The keys of this screen, as many as fit; those that are impossible now are muted, or left out where they always are."""
    pieces: list[tuple[Cell, Cell, int]] = []
    for action in sorted(ACTIONS, key=lambda each: each.footer):
        if not action.footer or now.pane not in action.panes or (action.mutates and now.read_only):
            continue
        off = bool(unavailable(action, now))
        key = key_name(settings.keys_of(action.id)[0])
        cells = Cell(key, "off" if off else "key"), Cell(f" {action.label}", "dim" if off else "")
        pieces.append((*cells, 0 if action.id in _ALWAYS else action.footer))
    while pieces and sum(len(k.text) + len(t.text) + 2 for k, t, _ in pieces) > width + 2:
        worst = max(rank for _, _, rank in pieces)
        if worst == 0:
            break
        pieces = [piece for piece in pieces if piece[2] != worst]
    return [cell for key, text, _ in pieces for cell in (key, text, Cell("  "))]
