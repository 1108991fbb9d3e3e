"""The lines around the tables: who and how busy, screens, alerts, rolling changes, trends, keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from gpuserve_tui import cells as c
from gpuserve_tui.cells import Cell, Glyphs
from gpuserve_tui.model.actions import ACTIONS, PANES, Situation, key_name, unavailable
from gpuserve_tui.model.board import Trend, total
from gpuserve_tui.model.state import Arrangement, View
from gpuserve_tui.settings import Settings
from gpuserve_tui.view.gpus import foreign, foreign_bytes
from gpuserve_tui.view.layout import WIDE
from gpuserve_tui.view.replicas import KV_FULL_PCT, PREEMPTIONS_HIGH
from gpuserved.api.types import GpuView, ReplicaView, RolloutView, Status

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
FOREIGN_MIN_BYTES = 1024**3
"""Less foreign memory than this changes no plan: a desktop or a context has some hundred MiB."""


@dataclass(frozen=True)
class Alert:
    """Something to look at now."""

    severity: str
    text: str


def head(view: View, width: int, glyphs: Glyphs, host: str) -> list[Cell]:
    """The first line: who, how fresh, how busy."""
    status, lost = view.status, view.lost is not None
    wide = width >= WIDE
    name = Cell("gpuserve", "bold")
    if status is None:
        state = Cell("no daemon answers" if lost else "waiting for the daemon", "err" if lost else "dim")
        return pack([(name, 0), (state, 0), (Cell(host, "dim"), 1)], width)
    mode = "RO" if view.read_only else "RW"
    ready = sum(replica.state == "READY" for replica in status.replicas)
    role = "ok" if ready == len(status.replicas) else "warn"
    link = f"{glyphs.dot} {'lost' if lost else 'connected' if wide else ''} {c.age(view.age_s)}{' ago' if wide else ''}"
    running = c.count(total(replica.running for replica in status.replicas))
    waiting = c.count(total(replica.waiting for replica in status.replicas))
    profiles = list(dict.fromkeys(replica.profile for replica in status.replicas))
    load = status.load
    pieces = [
        (name, 0),
        (Cell(c.plain(host), "dim"), 5),
        (Cell(" ".join(link.split()), "err" if lost else "ok"), 2),
        (Cell(c.plain(profiles[0]) if len(profiles) == 1 else f"{len(profiles)} profiles", ""), 4),
        (Cell(f"{ready}/{len(status.replicas)} ready", role), 0),
        (Cell(f"run {running} wait {waiting}", ""), 1),
        (Cell(f"queue {c.count(status.router.queued)}", "warn" if status.router.queued else ""), 6),
        (
            Cell(
                f"{c.short(load.generation_tokens_per_s if load else None)} {'tok/s' if wide else 't/s'}", ""
            ),
            3,
        ),
        (Cell(mode, "warn" if mode == "RO" else "dim"), 0),
    ]
    if view.arrangement.frozen:
        pieces.append((Cell("FROZEN", "warn"), 0))
    if wide:
        pieces.append((Cell(time.strftime("%H:%M:%S", time.localtime(view.now)), "dim"), 7))
    return pack(pieces, width, 2 if wide else 1)


def tabs(view: View, width: int, alerts: Sequence[Alert], glyphs: Glyphs) -> list[Cell]:
    """The screens, then the filter in force and how many rows are marked, then what is wrong."""
    wide = width >= WIDE
    note = _note(view.arrangement)
    line: list[Cell] = []
    for number, name in enumerate(PANES, 1):
        label = f"{number} {(_FULL if wide else _SHORT)[name]}"
        if name == "events" and view.unread:
            label += f" {view.unread}" if wide else f"{min(view.unread, 99)}"
        line += [
            Cell(label, "match" if name == view.arrangement.pane else "dim" if width < 60 else ""),
            Cell("  " if wide else " "),
        ]
    used = sum(len(cell.text) for cell in line)
    rest = width - used
    if note:
        line.append(Cell(c.fit(f"{note} ", min(rest, len(note) + 1)), "warn"))
        rest -= len(note) + 1
    return line + (alert_cells(alerts, rest, glyphs) if rest > 8 else [])


def _note(how: Arrangement) -> str:
    parts = [f"/{how.filter.text}"] if how.filter.text else []
    parts += [f"{len(how.marked)} marked"] if how.marked else []
    return " ".join(parts)


def banner(view: View) -> str:
    """Why the data may be old; empty where it is not."""
    if view.lost is not None:
        old = f"data is {c.age(view.age_s)} old, " if view.status is not None else ""
        return f"DISCONNECTED  {old}nothing can be changed; trying again: {c.plain(view.lost)}"
    if view.status is not None and view.stale:
        return f"SILENT  connected, but no figures for {c.age(view.age_s)}; nothing can be changed"
    return ""


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


def alerts(status: Status) -> list[Alert]:
    """What is wrong now, the worst first."""
    found: list[Alert] = []
    if status.supervisor.degraded:
        found.append(Alert("error", f"degraded: {status.supervisor.degraded}"))
    if status.replicas and status.router.in_flight is None:
        found.append(Alert("error", "no router answers"))
    found += [_of_gpu(gpu) for gpu in status.gpus if gpu.state != "OK"]
    down = [replica.id for replica in status.replicas if replica.state in {"FAILED", "UNHEALTHY"}]
    if down:
        more = f" and {len(down) - 2} more" if len(down) > 2 else ""
        found.append(Alert("error", f"{', '.join(down[:2])}{more} down"))
    found += [Alert("error", text) for text in map(_alien, status.gpus) if text]
    found += [Alert("warning", text) for text in map(_pressed, status.replicas) if text]
    ended = [(roll.outcome, outcome(roll)) for roll in status.rollouts]
    found += [Alert("error" if how == "stopped" else "warning", text) for how, text in ended if text]
    waiting = [replica.id for replica in status.replicas if replica.state == "BACKOFF"]
    if waiting:
        found.append(
            Alert("warning", f"{', '.join(waiting[:2])}{'…' if len(waiting) > 2 else ''} in backoff")
        )
    return found


def _of_gpu(gpu: GpuView) -> Alert:
    return Alert("error", f"GPU {gpu.index} {gpu.state}")


def _alien(gpu: GpuView) -> str:
    if foreign_bytes(gpu) < FOREIGN_MIN_BYTES:
        return ""
    worst = max(foreign(gpu), key=lambda owner: owner.memory_bytes or 0)
    who = ", ".join(filter(None, (worst.user, worst.command)))
    return f"GPU {gpu.index}: {c.gib(foreign_bytes(gpu))} GiB of pid {worst.pid}{f' ({who})' if who else ''}, not ours"


def _pressed(replica: ReplicaView) -> str:
    preemptions = (replica.load.preemptions_per_min if replica.load else None) or 0.0
    parts = []
    if (replica.kv_cache_pct or 0.0) >= KV_FULL_PCT:
        parts.append(f"KV {replica.kv_cache_pct:.0f}%")
    if preemptions >= PREEMPTIONS_HIGH:
        parts.append(f"{preemptions:.0f} preemptions/min")
    return f"{replica.id} {' + '.join(parts)}" if parts else ""


def rollout_line(status: Status, now: float) -> list[Cell]:
    """The changes that are under way; empty: there is none.

    :param now: Unix seconds.
    """
    line: list[Cell] = []
    for roll in status.rollouts:
        if roll.outcome is not None:
            continue
        back = roll.direction == "back"
        step = min(roll.total, roll.done + (roll.current is not None))
        what = "rolling back" if back else "rolling change"
        line += [
            Cell("   " if line else ""),
            Cell(f"{c.plain(roll.profile)}: {what}", "warn" if back else "info"),
            Cell(f" {step} of {roll.total} ({c.age(max(0.0, now - roll.began_at))})"),
            *_current(roll, status.replicas),
        ]
    return line


def _current(roll: RolloutView, replicas: Sequence[ReplicaView]) -> list[Cell]:
    """The replica that is being replaced, else what is waited for."""
    replica = next((each for each in replicas if each.id == roll.current), None)
    reason = [Cell(f"  {c.plain(roll.reason)}", "dim")] if roll.reason else []
    if replica is None:
        return reason
    return [
        Cell(f"  {c.plain(replica.id)}: {_doing(replica)}"),
        *(reason if roll.direction == "back" else []),
    ]


def _doing(replica: ReplicaView) -> str:
    if replica.state == "STARTING":
        if replica.phase == "canary":
            return "canary asked, no answer yet"
        return f"{c.plain(replica.phase or 'starting')}, then canary"
    if replica.state == "DRAINING":
        return f"drains, {c.count(replica.in_flight)} in flight"
    return replica.state.lower()


def outcome(roll: RolloutView) -> str:
    """How a change ended that did not succeed; empty: it did, or goes on."""
    said = {"rolled_back": "rolled back to what ran before", "stopped": "rolling change stopped"}
    head = said.get(roll.outcome or "", "")
    return f"{roll.profile}: {head}" + (f": {roll.reason}" if roll.reason else "") if head else ""


def ruler(title: str, right: str, width: int, glyphs: Glyphs) -> list[Cell]:
    """A line with a title at its left and a remark at its right."""
    rest = max(1, width - cell_len(title) - cell_len(right) - 2)
    return [Cell(f"{title} ", "head"), Cell(glyphs.rule * rest, "dim"), Cell(f" {right}", "dim")]


def trends(trend: Trend, title: str, width: int, glyphs: Glyphs) -> list[list[Cell]]:
    """One line of sparklines, or in a wide terminal two: figures, and under them the lines."""
    shown: tuple[tuple[str, Sequence[float | None], Callable[[float | None], str], float | None], ...] = (
        ("tok/s", trend.tokens, c.short, None),
        ("wait", trend.waiting, c.count, None),
        ("KV%", trend.kv_pct, c.count, 100.0),
        ("TTFT95ms", trend.ttft_s, c.milliseconds, None),
        ("W", trend.power_w, c.count, None),
    )
    if width < WIDE:
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


def pack(pieces: Sequence[tuple[Cell, int]], width: int, gap: int = 2) -> list[Cell]:
    """Pieces in one line with gaps; where there is no room those of the highest rank go. Rank 0 always stays."""
    kept = list(pieces)
    while kept and sum(cell_len(cell.text) + gap for cell, _ in kept) - gap > width:
        worst = max(rank for _, rank in kept)
        if worst == 0:
            break
        last = max(n for n, (_, rank) in enumerate(kept) if rank == worst)
        del kept[last]
    line: list[Cell] = []
    for cell, _ in kept:
        line += [cell, Cell(" " * gap)]
    return line[:-1]
