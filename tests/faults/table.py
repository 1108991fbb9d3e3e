"""The fault table: its rows, and what the tests of a row measure.

A test belongs to row N through `@pytest.mark.fault(N)`. What it measures it hands to the fixture `measured`. With
GPUSERVE_FAULTS_REPORT=FILE every such test adds a line to FILE; `python -m tests.faults.report FILE` prints the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """One fault, and the promise."""

    fault: str
    must: str
    no_vllm: str | None = None
    """Why no test of this row runs against the real vLLM; None: at least one does (`make test-vllm`)."""


DAEMON = "no: strikes the daemon, no replica"
ROUTER = "no: strikes the router, no replica"
OWNER = "no: the daemon's doing, whichever engine obeys"
SHIM = "no: the shim's doing, whichever engine it holds"
GPU = "no: needs a GPU, or its driver's word"

ROWS: Mapping[int, Row] = {
    1: Row(
        "kill -9 of the API process",
        "out of rotation within 1 s, tree swept, restarted; no unstarted request fails",
    ),
    2: Row("kill -9 of EngineCore", "as row 1; the reason names the engine"),
    3: Row("kill -9 of a tensor-parallel worker", "as row 1; the whole tree goes, not the worker alone"),
    4: Row("SIGSTOP of the API process", "out of rotation by failed probes, killed, restarted"),
    5: Row("SIGSTOP of EngineCore while /health stays 200", "found by its step counter, killed, restarted"),
    6: Row("a child that escapes by setsid and double fork", "swept with the tree"),
    7: Row(
        "the port or socket of a replica is taken",
        "another one is used, or the holder is named; no crash loop",
        SHIM,
    ),
    8: Row("a stranger answers at the replica's address", "never routed to: sockets live in a private folder"),
    9: Row("accepts requests, never answers", "out of rotation, and requests go elsewhere"),
    10: Row(
        "broken HTTP from the replica",
        "502 before the first byte, an abort after it; the connection is not used again",
    ),
    11: Row("useless /metrics", "bounded read; unknown is shown as unknown; traffic goes on"),
    12: Row("disk full under the logs", "the replica never blocks; what is dropped is counted"),
    13: Row(
        "disk full under the state",
        "`degraded` in status; no start that cannot be recorded; old state intact",
        DAEMON,
    ),
    14: Row(
        "state damaged, truncated, newer, or a link",
        "set aside and rebuilt from the shims; nothing is killed",
        DAEMON,
    ),
    15: Row("a GPU is lost", "its row says LOST, the others keep their figures", GPU),
    16: Row("Xid errors", "application errors restart, hardware errors quarantine", GPU),
    17: Row("no NVML, or one that hangs", "the daemon starts and serves; the reason is shown", GPU),
    18: Row("slow heads and bodies by the thousand", "408 at the deadline; others are not held up", ROUTER),
    19: Row("a client leaves in mid-stream", "its place is free within 1 s; not counted against the replica"),
    20: Row("ten thousand connections", "over the cap 503; the control socket and others go on", ROUTER),
    21: Row("huge, lying or endless bodies", "413 or 400 without keeping the bytes", ROUTER),
    22: Row("hostile JSON", "400; the loop is not held up", ROUTER),
    23: Row("request smuggling", "refused, and never reaches a replica", ROUTER),
    24: Row("other users on the control socket", "refused by mode and by peer credentials", DAEMON),
    25: Row("garbage and silence on the control socket", "costs that client its connection, and nobody else"),
    26: Row("kill -9 of the supervisor under load, then a new one", "no request fails; same PIDs, counts kept"),
    27: Row(
        "kill -9 of the supervisor at every step",
        "never two replicas on a lease, never an unknown one",
        "no: a thousand starts of a real engine take a day",
    ),
    28: Row(
        "kill -9 of the supervisor, for good",
        "traffic goes on; nothing stops while a router lives",
        SHIM,
    ),
    29: Row("kill -9 of a router", "only its own requests; the URL is back within 1 s"),
    30: Row("kill -9 of a shim", "its replica dies with it, the rest is swept; restarted"),
    31: Row("the wall clock jumps", "no timer notices", DAEMON),
    32: Row("out of file descriptors", "accepting pauses, running streams go on", ROUTER),
    33: Row("out of memory", "told apart from other kills"),
    34: Row("a program that cannot be started", "the reason is the system's own words; nothing half-made"),
    35: Row("zombies and reused PIDs", "none left; a reused PID is never signalled"),
    36: Row("reload with a broken file", "refused with file and line; what ran goes on", DAEMON),
    37: Row("a storm of commands on one replica", "one after the other; the last one wins", OWNER),
    38: Row("the supervisor hangs", "the watchdog replaces it; requests and streams go on", DAEMON),
    39: Row(
        "a start that takes long, and one that stalls",
        "the first is waited for, the second fails with its last lines; loads that end in a crash use the budget up",
    ),
    40: Row("every replica fails", "requests wait in a bounded queue; recovery needs nobody"),
    41: Row("an SDK's retries during a crash", "no amplification", ROUTER),
    42: Row(
        "the engine's environment is replaced under running replicas",
        "they go on; the next start uses the new one",
        "no: it replaces vLLM by other versions that are not there",
    ),
    43: Row("a poison request among 255 neighbours", "the neighbours survive; it is blocked"),
    44: Row(
        "the host restarts with eight replicas",
        "all READY again",
        "no: eight of them do not fit into a test machine",
    ),
    45: Row(
        "upgrade of daemon and routers, and one that fails",
        "no request fails, no stream is cut; same PIDs, counts kept",
    ),
}  # fmt: skip


@dataclass
class Measured:
    """What one test saw. None: not a question of this test."""

    failed: int | None = None
    """Requests that were refused or broken without an error event, though they had not begun."""
    told: int | None = None
    """Begun streams that ended with an error event."""
    answered: int | None = None
    detect_s: float | None = None
    """From the fault until the replica was out of rotation."""
    recover_s: float | None = None
    """From the fault until full capacity."""
    left: int | None = None
    """Processes and shared memory files left behind."""
