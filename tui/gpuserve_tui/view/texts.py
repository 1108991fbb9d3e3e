"""Texts to read: the keys, one replica, a profile's difference."""

from __future__ import annotations

import difflib
import shlex
import signal
from collections.abc import Sequence

from gpuserve_tui import cells as c
from gpuserve_tui.cells import Cell
from gpuserve_tui.model.actions import ACTIONS, GROUPS, Situation, key_name, unavailable
from gpuserve_tui.settings import Settings
from gpuserve_tui.view.replicas import STATE_ROLES
from gpuserved.api.crash import CrashCard
from gpuserved.api.inspect import ProfileView, ReplicaDetail
from gpuserved.api.types import LoadView

Lines = list[Sequence[Cell] | str]
_DIFF_ROLES = {"+": "ok", "-": "err", "@": "info"}


def keys(settings: Settings, now: Situation) -> Lines:
    """Every key, by group; what is impossible now is muted and says why."""
    lines: Lines = []
    for group in GROUPS:
        lines += [[Cell(group, "head")]]
        for action in (each for each in ACTIONS if each.group == group):
            names = " ".join(key_name(key) for key in settings.keys_of(action.id))
            why = unavailable(action, now)
            note = f"  ({why.partition(': ')[2]})" if why else ""
            role = "dim" if why else ""
            lines.append(
                [Cell(f"  {names:<14}", "dim" if why else "key"), Cell(f"{action.label:<12}", role), Cell(action.help, role), Cell(note, "dim")]
            )  # fmt: skip
        lines.append("")
    return [*lines, "q only detaches. gpuserve down stops the daemon and everything it runs."]


def replica(found: ReplicaDetail, now: float) -> Lines:
    """State, figures, history, command, environment, last lines."""
    r = found.replica
    role = STATE_ROLES.get(r.state, "")
    lines: Lines = [
        [Cell("State        "), Cell(r.state, role), Cell(f"   rotation {r.rotation or '-'}   start {r.generation}   restarts {r.restarts}")],
        f"Why          {r.reason or '-'}",
        f"Serves       {r.model} on {r.engine}, profile {r.profile}, GPUs {', '.join(map(str, r.gpus)) or '-'}",
        f"Processes    API {r.pid or '-'}, shim {r.shim_pid or '-'}, up {c.age(now - r.started_at) if r.started_at else '-'}",
        f"Requests     in flight {c.count(r.in_flight)}, running {c.count(r.running)}, waiting {c.count(r.waiting)}, KV {c.count(r.kv_cache_pct)}%",
        *_load(r.load),
        *(crash(found.crash, now) if found.crash is not None else []),
        "",
        [Cell("History", "head")],
        *_history(found, now),
        "",
        [Cell("Last lines of its log", "head")],
        *(f"  {line}" for line in found.last_lines or ["nothing yet"]),
        "",
        [Cell("Command", "head")],
    ]  # fmt: skip
    lines += [f"  {found.error}"] if found.error else _command(found.command)
    lines += ["", [Cell("Environment (secrets are masked)", "head")]]
    lines += [f"  {name}={value}" for name, value in found.environment.items()]
    lines += ["", [Cell("Log files", "head")], *(f"  {path}" for path in found.log_files)]
    return lines


def crash(card: CrashCard, now: float) -> Lines:
    """Why the last start that ended by itself did, and what helps."""
    lived = f" after {c.age(card.at - card.started_at)}" if card.started_at is not None else ""
    figures = card.figures
    lines: Lines = [
        "",
        [Cell(f"Last crash: start {card.generation}, {c.moment(card.at, now)}{lived}", "head")],
        [Cell("  ended      "), Cell(_exit(card), "err")],
        f"  reason     {card.message}",
    ]
    if card.lever is not None:
        lines.append([Cell("  helps      "), Cell(c.plain(card.lever), "info")])
    lines.append(
        f"  engine     running {c.count(figures.running)}, waiting {c.count(figures.waiting)}, KV {c.count(figures.kv_cache_pct)}%"
    )
    lines += [
        f"  GPU {gpu.index:<6} {gpu.state}, {c.gib(gpu.memory_used_bytes)}/{c.gib(gpu.memory_total_bytes)} GiB, {c.count(gpu.temperature_c)} °C"
        for gpu in card.gpus
    ]
    for traceback in card.tracebacks:
        lines.append(f"  first traceback of {traceback.process or 'the API process'}:")
        lines += [f"    {line}" for line in traceback.lines if line.strip()]
    if not card.tracebacks:
        lines += ["  last lines:", *(f"    {line}" for line in card.last_lines if line.strip())]
    lines.append(f"  log        {card.log}")
    return [*lines, f"  evidence   {card.evidence}"] if card.evidence is not None else lines


def _exit(card: CrashCard) -> str:
    if card.signal is not None:
        known = {each.value: each.name for each in signal.Signals}
        said = f"killed by {known.get(card.signal, f'signal {card.signal}')}"
    else:
        said = "exit status unknown" if card.exit_code is None else f"exit code {card.exit_code}"
    return said + (", the kernel killed for memory in that moment" if card.oom_killed else "")


def _load(load: LoadView | None) -> list[str]:
    if load is None:
        return ["Figures      not known yet"]
    return [
        f"Tokens       {c.count(load.generation_tokens_per_s)}/s generated, {c.count(load.prompt_tokens_per_s)}/s of prompts",
        f"First token  p50 {c.milliseconds(load.ttft_p50_s)} ms, p95 {c.milliseconds(load.ttft_p95_s)} ms (last minute)",
        f"Inter-token  p50 {c.milliseconds(load.itl_p50_s)} ms, p95 {c.milliseconds(load.itl_p95_s)} ms",
        f"Prefix cache {c.count(load.prefix_hit_pct)}% of looked-up tokens   preemptions {c.count(load.preemptions_per_min)}/min",
    ]


def _history(found: ReplicaDetail, now: float) -> Lines:
    lines: Lines = []
    for change in reversed(found.history):
        at = c.moment(change.at, now)
        why = f"  {c.plain(change.reason)}" if change.reason else ""
        lines.append(
            [Cell(f"  {at:>14}  start {change.generation:<3} {change.previous_state} -> "), Cell(change.state, STATE_ROLES.get(change.state, "")), Cell(why)]
        )  # fmt: skip
    return lines or ["  nothing"]


def _command(argv: Sequence[str]) -> Lines:
    """One flag with its value on a line, ready to be pasted into a shell."""
    rows: list[str] = []
    for word in map(shlex.quote, argv):
        if rows and not word.startswith("-"):
            rows[-1] += f" {word}"
        else:
            rows.append(f"  {word}")
    return [row + (" \\" if n < len(rows) - 1 else "") for n, row in enumerate(rows)]


def difference(profile: ProfileView) -> Lines:
    """What the file says other than what is applied."""
    if profile.error:
        return [[Cell(c.plain(profile.error), "err")]]
    if profile.applied_text is None:
        return [
            [Cell(f"not applied: {profile.source}   P applies it", "info")],
            "",
            *(profile.source_text or "").splitlines(),
        ]
    if profile.source_text is None:
        return [[Cell(f"{profile.source} is no file that can be read; P applies the same text again", "dim")]]
    if not profile.differs:
        return [[Cell(f"{profile.source} is what is applied", "dim")]]
    lines = difflib.unified_diff(
        profile.applied_text.splitlines(), profile.source_text.splitlines(), "applied", profile.source, lineterm="", n=3
    )  # fmt: skip
    rows: Lines = [[Cell(c.plain(line), _DIFF_ROLES.get(line[:1], ""))] for line in lines]
    return rows or [[Cell("only masked values differ", "warn")]]


def profile(found: ProfileView) -> Lines:
    """A profile as it is applied, or as its file has it."""
    return [*difference(found), "", *(found.applied_text or found.source_text or "").splitlines()]
