"""What one seed does: where the supervisor is killed, what an operator asks meanwhile, what dies while nobody watches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpuserved.host.failpoint import POINTS, SHIM_POINTS

ALL = (*sorted(POINTS), *sorted(SHIM_POINTS))
"""Seed N is about point N modulo their number, so that as many runs as there are points reach each of them."""


@dataclass(frozen=True)
class Ask:
    """One thing an operator asks."""

    verb: str
    """stop, start, restart, drain, undrain; scale; change, spoil; one of `upgrades.VERBS`; crash (not asked for: a replica dies)."""
    replica: str = ""
    number: int = 0


@dataclass(frozen=True)
class Script:
    """One run."""

    seed: int
    point: str
    boot: str = ""
    """What the life is armed with in which the fleet comes up."""
    again: str = ""
    """The next one, which adopts it."""
    later: str = ""
    """The one after that."""
    last: str = ""
    """The one that is told to stop everything."""
    asks: tuple[Ask, ...] = ()
    keep: bool = False
    """The last one keeps its profiles."""
    die_unwatched: tuple[str, ...] = field(default=())
    """After each end of a supervisor: whose process is killed before the next begins (api, engine, shim, or nobody)."""

    loaded: bool = False
    """Clients ask profile B all the time, and none of their requests may fail."""

    @property
    def of_shim(self) -> bool:
        """A shim dies at it, not the supervisor."""
        return self.point in SHIM_POINTS


_UPGRADE = (
    "upgrade.freed", "upgrade.launched", "upgrade.answered", "upgrade.named", "upgrade.ended",
    "router.fresh", "router.serving", "router.drained", "router.ending", "router.aside", "router.renamed", "router.forgotten",
    "router.failed",
)  # fmt: skip
"""Steps of an upgrade. No replica's process is killed in their runs: whatever then fails is the upgrade's fault."""
_NEEDS: dict[str, tuple[str, ...]] = {
    "stop.decided": ("restart", "stop", "scale-down", "change"),
    "stop.signalled": ("restart", "stop", "scale-down", "change"),
    "exit.seen": ("crash", "restart", "stop"),
    "exit.carded": ("crash",),
    "exit.recorded": ("crash", "restart", "stop"),
    "exit.forgotten": ("crash", "restart", "stop"),
    "act.done": ("stop", "restart", "drain"),
    "act.saved": ("stop", "restart", "drain"),
    "apply.assigned": ("change", "scale-up", "scale-down"),
    "apply.saved": ("change", "scale-up", "scale-down"),
    "roll.decided": ("change",),
    "roll.saved": ("change",),
    "roll.ordered": ("change",),
    "roll.turned": ("spoil",),
    **dict.fromkeys(_UPGRADE, ("upgrade",)),
    "upgrade.ended": ("upgrade-spoilt",),
    "router.failed": ("upgrade-routers",),
    "shim.ended": ("restart",),
    "shim.recorded": ("restart",),
}
"""What brings a supervisor that runs already to a step; for those not named a restart does."""
_AT_START = frozenset({"serve.locked", "serve.listening"})
_FIRST = frozenset({"router.bound", "router.stored", "router.answered", "router.started"})


def script(seed: int) -> Script:
    """The run of a seed; the same for ever."""
    chance = random.Random(seed)
    point = ALL[seed % len(ALL)]
    room = point.partition(".")[0]
    deaths = tuple(chance.choice(("", "", "api", "api", "engine", "shim")) for _ in range(3))
    loaded = point in _UPGRADE
    if loaded:
        deaths = ()
    asks = _asks(chance, _NEEDS.get(point, ("restart",)), deadly=not loaded)
    extra = chance.choice(("", "", _some(chance, ("adopt", "spawn", "save", "exit"))))
    common = {"seed": seed, "point": point, "die_unwatched": deaths, "later": extra, "loaded": loaded}
    if point in {"adopt.stray", "adopt.ended"}:
        # A stray is a start whose end is in the state already, and whose folder nobody had time to remove.
        ended = (Ask("restart", "a-0"), *asks)
        return Script(**common, boot="exit.recorded", again=point, asks=ended)  # type: ignore[arg-type]
    if room == "adopt" or point == "router.found" or point in _AT_START:
        first = f"{point}@1" if point != "adopt.attached" else f"{point}@{chance.randint(1, 3)}"
        return Script(**common, again=first, asks=asks)  # type: ignore[arg-type]
    if point in _FIRST or (room in {"spawn", "save"} and chance.random() < 0.5):
        hits = {"spawn": 3, "save": 20}.get(room, 1)
        return Script(**common, boot=f"{point}@{chance.randint(1, hits)}", asks=asks)  # type: ignore[arg-type]
    if room in {"shim", "rotate"} or room in {"spawn", "save"}:
        # Armed when the fleet is up, so that starts that operators ask for are the ones that are struck.
        hits = {"save": 12, "spawn": 2}.get(room, 1)
        return Script(**common, again=f"{point}@{chance.randint(1, hits)}", asks=asks)  # type: ignore[arg-type]
    if room == "down":
        return Script(**common, asks=asks, last=point, keep=chance.random() < 0.5)  # type: ignore[arg-type]
    return Script(**common, again=point, asks=asks)  # type: ignore[arg-type]


def _some(chance: random.Random, rooms: tuple[str, ...]) -> str:
    names = [
        name for name in ALL if name.partition(".")[0] in rooms and name not in {"adopt.stray", "adopt.ended"}
    ]
    return f"{chance.choice(names)}@{chance.choice((1, 1, 2, 5))}"


def _asks(chance: random.Random, needs: Sequence[str], *, deadly: bool) -> tuple[Ask, ...]:
    """What brings the supervisor to the step, and up to two more.

    :param deadly: a replica may crash among them.
    """
    others = ["restart", "stop", "start", "drain", "undrain", "scale-up", "scale-down", "change", "upgrade"]
    others += ["crash"] if deadly else ["upgrade-spoilt"]
    found = [_ask(chance, chance.choice(needs))]
    found += [_ask(chance, chance.choice(others)) for _ in range(chance.randint(0, 2))]
    return tuple(found)


def _ask(chance: random.Random, verb: str) -> Ask:
    if verb == "scale-up":
        return Ask("scale", number=3)
    if verb == "scale-down":
        return Ask("scale", number=1)
    if verb in {"change", "spoil"}:
        return Ask(verb, number=chance.randint(2, 99))
    if verb == "crash":
        return Ask(verb, chance.choice(("b-0", "b-0", "a-0", "a-1")))
    return Ask(verb) if verb.startswith("upgrade") else Ask(verb, chance.choice(("a-0", "a-1")))
