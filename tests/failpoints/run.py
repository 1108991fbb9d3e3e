"""One run: lives of a daemon that end where the script says, an operator who asks on, and a judge at the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from contextlib import nullcontext
from pathlib import Path

from tests.e2e.clients import PlainLoad
from tests.failpoints import judge, upgrades
from tests.failpoints.census import Census, Engine
from tests.failpoints.model import DRAINED, Death, Model
from tests.failpoints.script import Ask, Script
from tests.failpoints.world import A, B, World, profile

from gpuserved.api.errors import GpuserveError, Internal, TimedOut, Unavailable
from gpuserved.api.types import ApplyRequest, ReplicasRequest, ReplicaView, ScaleRequest
from gpuserved.host.failpoint import SHIM_POINTS

_NO_ANSWER = (Unavailable, TimedOut, Internal)
KILLED = -signal.SIGKILL
SHIMS_DIE_S = 1.5
"""Some starts whose shims die."""


class Run:
    """Plays one script."""

    def __init__(self, script: Script, census: Census) -> None:
        self.script = script
        self.census = census
        self.world = World(dict(os.environ))
        self.model = Model()
        self.first: dict[str, ReplicaView] = {}
        """Every replica as it was when it was first seen to serve."""
        self.struck = False
        """A supervisor died at a failpoint."""
        self._chance = random.Random(script.seed + 1)
        self._armed = [script.again, script.later]
        self._present = ""
        """What the present life is armed with."""
        self._deaths = list(script.die_unwatched)

    def play(self) -> list[str]:
        """What was wrong; empty: nothing.

        :raises AssertionError: it could not be played to its end.
        """
        self._set_up()
        if self.script.again and not self.script.boot:
            self._end_life()
        with PlainLoad(f"http://127.0.0.1:{self.world.port}", B) if self.script.loaded else nullcontext():
            for ask in self.script.asks:
                self._ask(ask)
            self._end_life()
            self._quiet()
        self._quiet()
        wrong = judge.running(self)
        return wrong + (self._down() if not wrong else [])

    # --- lives

    def _life(self) -> None:
        """There is a daemon that answers; where there was none, the next life begins."""
        while not self.world.alive() or not self.world.answers():
            if self.world.alive():
                continue  # looked at once: one that ends after this look is noted in the next round
            self._note_end()
            if not self.world.alive():
                self._present = self._armed.pop(0) if self._armed else ""
                self.world.begin(self._present)

    def _note_end(self) -> None:
        """A supervisor that is gone without having been killed here died at its failpoint, or handed over to one that may be gone
        by now as well; something may die unwatched now.
        """
        daemon = self.world.daemon
        if daemon is None or not daemon.ended:
            return
        self.world.forget()
        heir = self.world.heir()
        handed_over = daemon.handed_over and daemon.code in {0, None}
        if daemon.code == KILLED or (daemon.code is None and self._present and not handed_over):
            self.struck = True
            self.world.say("the supervisor died at its failpoint")
        elif handed_over and heir is None and self._present:
            self.struck = True  # a successor is armed as the one before was
            self.world.lives += 1
            self.world.say("the successor died at its failpoint before it was looked for")
        elif not (handed_over and heir is not None) and not (self.script.of_shim and self.world.lives == 1):
            who = "the successor" if handed_over else "the daemon"
            raise AssertionError(f"{who} ended by itself, exit code {None if handed_over else daemon.code}")
        self._die_unwatched()
        if heir is not None:
            self.world.succeed(heir)

    def _end_life(self) -> None:
        """kill -9, where its failpoint has not done it."""
        if self.world.alive():
            self.world.kill()
            self.world.forget()
            self._die_unwatched()
        self._life()

    def _die_unwatched(self) -> None:
        what = self._deaths.pop(0) if self._deaths else ""
        engines = sorted(self.census.engines(self.world.roots.run), key=lambda each: each.replica != f"{B}-0")
        if what and engines:
            self._strike(engines[0] if self._chance.random() < 0.6 else self._chance.choice(engines), what)

    def _strike(self, engine: Engine, what: str) -> None:
        """Kill a process of a replica, and wait for what that does to its API process."""
        pid = {"api": engine.pid, "engine": _core_of(engine.pid), "shim": _parent_of(engine.pid)}[what]
        if pid is None or not engine.lives():
            return
        self.world.say(f"{what} of {engine} is killed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.world.until(lambda: not engine.lives(), f"{engine} is gone")
        self.model.died(Death(engine.replica, engine.generation, what))

    def _quiet(self) -> None:
        """A daemon that is not armed has everything under control."""
        while True:
            self._life()
            settled = self.world.until(lambda: _known(self.world.settled()), "all is quiet")
            if settled and not self._present:
                return
            if settled:
                self._armed.clear()
                self._end_life()

    # --- what is asked

    def _set_up(self) -> None:
        texts = {A: profile(A, 2, [0, 1, 3]), B: profile(B, 1, [2])}
        self._present = self.script.boot
        self.world.begin(self._present)
        while True:
            self._life()
            try:
                self.world.client.apply(ApplyRequest(profiles=texts))
            except _NO_ANSWER:
                continue
            if self.world.until(lambda: _known(self.world.settled()), "the fleet is up"):
                rows = self.world.rows()
                if len(rows) == 3:
                    self.first = rows
                    return

    def _ask(self, ask: Ask) -> None:
        self._life()
        if ask.verb in {"change", "spoil"}:
            for name in [name for name in self.model.names() if DRAINED in self.model.possible(name)]:
                self._tell(Ask("undrain", name))  # a rolling change waits for it, as it should
        if ask.verb in {"drain", "spoil"}:
            self.world.until(lambda: _known(self.world.settled()), "what was asked before is done")
        if ask.verb == "crash":
            living = [e for e in self.census.engines(self.world.roots.run) if e.replica == ask.replica]
            for engine in living[:1]:
                self._strike(engine, "api")
        elif ask.verb in upgrades.VERBS:
            self._upgrade(ask)
        else:
            self._tell(ask)
        if self._present.partition("@")[0] in SHIM_POINTS:
            # Every shim of this life dies at it: what was asked is done by the next supervisor, whose shims are not armed.
            time.sleep(SHIMS_DIE_S)
            self._end_life()
        brings_to_it = (
            ask is self.script.asks[0] and self._present == self.script.again
        )  # it may take a moment
        if self._chance.random() < 0.5 or ask.verb == "spoil" or brings_to_it:
            if self.world.until(lambda: _known(self.world.settled()), f"{ask} is done"):
                self.model.settled()
        else:
            time.sleep(self._chance.random() * 0.4)

    def _tell(self, ask: Ask) -> None:
        self._life()
        try:
            self._send(ask)
            answered = "done"
        except _NO_ANSWER:
            answered = ""
        except GpuserveError as error:
            answered = "refused"
            self.world.say(f"refused: {error.message}")
        self.world.say(f"{ask}: {answered or 'no answer'}")
        self.model.asked(ask, answered)

    def _send(self, ask: Ask) -> None:
        client = self.world.client
        if ask.verb == "scale":
            client.scale(ScaleRequest(profile=A, replicas=ask.number))
        elif ask.verb in {"change", "spoil"}:
            more = ("--fail-load", "oom") if ask.verb == "spoil" else ()
            text = profile(A, 2, [0, 1, 3], str(ask.number), more)
            client.apply(ApplyRequest(profiles={A: text}))
            self.model.asked(Ask("scale", number=2), "done")  # a profile that is applied says how many
        else:
            client.act(ask.verb, ReplicasRequest(replicas=[ask.replica]))

    def _upgrade(self, ask: Ask) -> None:
        """Another daemon and other routers take over, or cannot; a supervisor that dies meanwhile has an heir, or none."""
        self._life()
        before = self.world.daemon
        assert before is not None
        try:
            asked_at = time.time()
            self.world.client.upgrade(upgrades.request(ask.verb))
            self.world.until(lambda: before.ended or self.world.refused_since(asked_at), f"{ask} is over")
            self._life()
            if ask.verb == "upgrade" and self.world.daemon is not before:
                self.world.client.replace_routers()  # they are of the same version
            self.world.until(self.world.routers_settled, f"no router comes or goes after {ask}")
            self.world.say(f"{ask}: done")
        except _NO_ANSWER:
            self.world.say(f"{ask}: no answer")

    # --- the end

    def _down(self) -> list[str]:
        """Everything is stopped, by a daemon that may be killed half-way."""
        if self.script.last:
            self.world.kill()
            self.world.forget()
            self.world.begin(self.script.last)
            self.world.until(lambda: _known(self.world.settled()), "all is quiet")
            with contextlib.suppress(*_NO_ANSWER):
                self.world.client.shutdown(forget=not self.script.keep)
            self.struck = self.world.wait_ended() == KILLED
            self.world.forget()
            self.world.begin("")
            self.world.until(lambda: _known(self.world.settled()), "all is quiet")
            wrong = judge.after_half_a_stop(self)
            if wrong:
                return wrong
        self.world.client.shutdown()
        code = self.world.wait_ended()
        return ([f"the daemon ended with {code}"] if code else []) + judge.stopped(self)


def _known(settled: bool | None) -> tuple[()] | str | None:
    """For `until`: an answer that is not None where the wait is over; falsy where the daemon is gone."""
    return None if settled is None else ("quiet" if settled else ())


def _parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return None


def _core_of(pid: int) -> int | None:
    """The engine process of an API process."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        cores = [
            int(child) for child in children if b"EngineCore" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
    except OSError:
        return None
    return cores[0] if cores else None
