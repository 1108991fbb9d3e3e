"""Everything a key can do, and when it can. Bindings, footer, palette, help and the README are made from this table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gpuserved.api.types import GpuView, ReplicaView

PANES = ("overview", "replicas", "gpus", "logs", "events", "profiles")


class Grade(Enum):
    """How much asking an action needs."""

    NONE = "none"
    """Adds capacity, and is undone by its opposite: done at once."""
    CONFIRM = "confirm"
    """A dialog with Cancel focused; `y` accepts."""
    CONSEQUENCES = "consequences"
    """The dialog says what is lost; the last ready replica of a model wants its name typed."""


@dataclass(frozen=True)
class Action:
    """One thing an operator may want. `keys` are Textual's names; `footer` orders it there, 0: not shown."""

    id: str
    keys: tuple[str, ...]
    label: str
    help: str
    group: str
    footer: int = 0
    panes: tuple[str, ...] = PANES
    needs: str = ""
    """replica, profile, gpu or nothing."""
    verb: str | None = None
    """The control API's verb; set for what changes replicas."""
    states: frozenset[str] | None = None
    """Of the replicas, or the GPU, that it can act on; None: any."""
    grade: Grade | None = None
    """Set: it changes something."""

    @property
    def mutates(self) -> bool:
        """True where it changes the fleet."""
        return self.grade is not None


_RUNNING = frozenset({"STARTING", "READY", "UNHEALTHY", "DRAINING"})
_DOWN = frozenset({"STOPPED", "FAILED", "BACKOFF"})
_LOG = ("overview", "logs")
_TABLES = ("overview", "replicas")
_ACTING = ("overview", "replicas", "gpus")


def _act(id: str, keys: tuple[str, ...], label: str, help: str, footer: int, states: frozenset[str], grade: Grade) -> Action:  # noqa: A002 - a row of the table below  # fmt: skip
    return Action(id, keys, label, help, "Act", footer, _ACTING, "replica", id, states, grade)


ACTIONS: tuple[Action, ...] = (
    _act("start", ("s",), "Start", "start what is stopped, failed or waiting", 10, _DOWN, Grade.NONE),
    _act("stop", ("S",), "Stop", "drain and stop", 11, _RUNNING | {"BACKOFF", "FAILED"}, Grade.CONSEQUENCES),
    _act("restart", ("r",), "Restart", "drain, stop and start again", 12, _RUNNING | _DOWN, Grade.CONFIRM),
    _act("drain", ("d",), "Drain", "take out of rotation, keep running", 13, frozenset({"READY", "UNHEALTHY"}), Grade.CONFIRM),
    _act("undrain", ("D",), "Undrain", "put back into rotation", 24, frozenset({"DRAINING"}), Grade.NONE),
    Action("scale_up", ("plus",), "Scale up", "one more replica of the profile", "Act", 25, _ACTING, "profile", grade=Grade.CONFIRM),
    Action("scale_down", ("minus",), "Scale down", "one replica of the profile less", "Act", 26, _ACTING, "profile", grade=Grade.CONSEQUENCES),
    Action("quarantine", ("Q",), "Quarantine", "set the GPU aside; its replicas move or wait", "Act", 13, ("gpus",), "gpu", states=frozenset({"OK"}), grade=Grade.CONSEQUENCES),
    Action("release", ("R",), "Release", "let a GPU that is set aside be used again", "Act", 14, ("gpus",), "gpu", states=frozenset({"QUARANTINED"}), grade=Grade.CONFIRM),
    Action("apply", ("P",), "Apply", "apply the selected profile's file as it is now", "Act", 17, ("profiles",), "profile", grade=Grade.CONSEQUENCES),
    Action("mark", ("space",), "Mark", "mark the row; actions then mean all marked rows", "Act", 0, _TABLES, "replica"),
    Action("detail", ("enter",), "Detail", "everything about the selected row", "Look", 16, ("overview", "replicas", "gpus", "events", "profiles")),
    Action("logs_of", ("l",), "Logs", "the log of the selected replica", "Look", 15, (*_ACTING, "events"), "replica"),
    Action("back", ("escape",), "Back", "clear filter and marks, close what is open; never quits", "Look"),
    Action("filter", ("slash",), "Filter", "filter rows, or search the log: words, !word, /regex/, state: gpu: model:", "Look", 18),
    Action("sort", ("o",), "Sort", "sort by the next column", "Look", 20, _TABLES),
    Action("reverse", ("O",), "Reverse", "reverse the order", "Look", 0, _TABLES),
    Action("trends", ("a",), "Trends", "trends of everything, or of the selected replica", "Look", 0, ("overview",)),
    Action("freeze", ("p",), "Freeze", "freeze the display; data goes on arriving", "Look"),
    Action("slower", ("left_square_bracket",), "Slower", "redraw half as often", "Look"),
    Action("faster", ("right_square_bracket",), "Faster", "redraw twice as often", "Look"),
    *(Action(pane, (str(n),), pane.capitalize(), f"show {pane}", "Screens") for n, pane in enumerate(PANES, 1)),
    Action("next_table", ("tab",), "Next table", "move to the next table", "Move"),
    Action("previous_table", ("shift+tab",), "Previous", "move to the previous table", "Move"),
    Action("down", ("j", "down"), "Down", "one row down", "Move"),
    Action("up", ("k", "up"), "Up", "one row up", "Move"),
    Action("top", ("g", "home"), "Top", "to the first row; at the top of a log: older lines from the files", "Move"),
    Action("bottom", ("G", "end"), "Bottom", "to the last row; follows the log again", "Move"),
    Action("page_down", ("pagedown", "ctrl+d"), "Page down", "one page down", "Move"),
    Action("page_up", ("pageup", "ctrl+u"), "Page up", "one page up; beyond the top of a log: older lines", "Move"),
    Action("follow", ("f",), "Follow", "follow the end of the log, or stop to read", "Logs", 21, _LOG),
    Action("wrap", ("w",), "Wrap", "wrap long lines", "Logs", 22, ("logs",)),
    Action("level", ("v",), "Level", "least level shown: all, INFO, WARNING, ERROR", "Logs", 23, _LOG),
    Action("timestamps", ("t",), "Times", "the time each line arrived", "Logs", 0, ("logs",)),
    Action("numbers", ("number_sign",), "Numbers", "line numbers", "Logs", 0, ("logs",)),
    Action("log_filter", ("ampersand",), "Only", "show only the lines that match", "Logs", 24, ("logs",)),
    Action("next_match", ("n",), "Next", "next match", "Logs", 0, ("logs",)),
    Action("previous_match", ("N",), "Previous", "previous match; past the first one the files are searched", "Logs", 0, ("logs",)),
    Action("source_next", ("greater_than_sign",), "Source", "next log: all, each replica, the daemon", "Logs", 25, ("logs",)),
    Action("source_previous", ("less_than_sign",), "Source", "previous log", "Logs", 0, ("logs",)),
    Action("copy", ("y",), "Copy", "copy the selected row or line (OSC 52)", "Take away"),
    Action("copy_view", ("Y",), "Copy view", "copy everything on the screen that is data", "Take away"),
    Action("export", ("x",), "Export", "save the screen (SVG), the data (JSON) or the log", "Take away"),
    Action("mouse", ("M",), "Mouse", "give the mouse back to the terminal, or take it", "Program"),
    Action("theme", ("T",), "Theme", "dark or light", "Program"),
    Action("help", ("question_mark",), "Help", "the keys", "Program", 31),
    Action("palette", ("colon", "ctrl+p"), "Palette", "every command by name", "Program", 32),
    Action("refresh", ("ctrl+l",), "Refresh", "ask for everything now, and draw it anew", "Program"),
    Action("quit", ("q",), "Quit", "leave; nothing stops", "Program", 33),
    Action("interrupt", ("ctrl+c",), "Copy", "copy a selection; does not quit", "Program"),
)  # fmt: skip
BY_ID = {action.id: action for action in ACTIONS}
GROUPS = tuple(dict.fromkeys(action.group for action in ACTIONS))
_NAMES = {
    "slash": "/", "plus": "+", "minus": "-", "question_mark": "?", "colon": ":", "space": "space", "number_sign": "#",
    "left_square_bracket": "[", "right_square_bracket": "]", "ampersand": "&", "greater_than_sign": ">",
    "less_than_sign": "<", "escape": "esc", "pagedown": "pgdn", "pageup": "pgup", "down": "↓", "up": "↑",
}  # fmt: skip


def key_name(key: str) -> str:
    """A key as people write it."""
    return _NAMES.get(key, key.replace("ctrl+", "^"))


@dataclass(frozen=True)
class Selection:
    """What the cursor of a screen is on; None: nothing of that kind."""

    replica: str | None = None
    gpu: str | None = None
    """Its UUID."""
    profile: str | None = None


@dataclass(frozen=True)
class Situation:
    """What decides whether an action is possible now."""

    pane: str = "overview"
    live: bool = True
    """Connected, and the data is fresh."""
    why_not_live: str = ""
    read_only: str = ""
    """Why nothing may be changed; empty: it may."""
    targets: tuple[ReplicaView, ...] = ()
    profile: str | None = None
    busy: frozenset[str] = frozenset()
    """Replicas that an action of ours is under way for."""
    gpu: GpuView | None = None
    """The selected one."""


def unavailable(action: Action, now: Situation) -> str:
    """Why an action cannot be done now; empty: it can."""
    if now.pane not in action.panes:
        return f"{action.label}: not on this screen"
    if action.mutates and now.read_only:
        return f"{action.label}: {now.read_only}"
    if action.mutates and not now.live:
        return f"{action.label}: {now.why_not_live or 'not connected'}"
    if action.needs == "replica" and not now.targets:
        return f"{action.label}: no replica is selected"
    if action.needs == "profile" and now.profile is None:
        return f"{action.label}: no profile is selected"
    if action.needs == "gpu":
        if now.gpu is None:
            return f"{action.label}: no GPU is selected"
        if action.states is not None and now.gpu.state not in action.states:
            return f"{action.label}: GPU {now.gpu.index} is {now.gpu.state}"
    if action.verb is not None:
        busy = [replica.id for replica in now.targets if replica.id in now.busy]
        if busy:
            return f"{action.label}: {busy[0]} is being acted on"
        if action.states is not None and not any(r.state in action.states for r in now.targets):
            return f"{action.label}: {now.targets[0].id} is {now.targets[0].state}"
    return ""
