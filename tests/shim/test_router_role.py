"""The router's shim: the port stays open whatever happens to the router."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.shim.yard import Connect, IsAlive, WaitUntil, Yard, stopped

from gpuserved.host import shimclient as sc

PAUSE_S = 0.9
"""Less than the second between a short life and the next one; more than any restart at once."""
TRIES = 5
# Whether an accept waits is a flag of the open socket, which all that share it share: as routers do, this one never waits in it.
ANSWER_PID = """
import os, select, socket
listener = socket.socket(fileno=3)
listener.setblocking(False)
while True:
    select.select([listener], [], [])
    try:
        peer, _ = listener.accept()
    except BlockingIOError:
        continue
    peer.setblocking(True)
    peer.sendall(b"%d" % os.getpid())
    peer.close()
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as made:
        yield made


def router(yard: Yard, listener: socket.socket, **changes: object) -> dict[str, Any]:
    replica = yard.spec(ANSWER_PID)
    spec = sc.router_spec(
        name="router", nonce=replica["nonce"], folder=Path(replica["dir"]), argv=tuple(replica["argv"]),
        env=replica["env"], cwd="/", log_path=Path(replica["dir"]) / "router.log", log_max_bytes=65536, log_keep=1,
        listen_fd=listener.fileno(),
    )  # fmt: skip
    return spec | changes


async def start(yard: Yard, listener: socket.socket, **changes: object) -> tuple[Path, sc.Started]:
    spec = router(yard, listener, **changes)
    return Path(spec["dir"]), await yard.launch(spec, pass_fds=(listener.fileno(),))


async def who_answers(port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return int(await asyncio.wait_for(reader.read(), 30))
    finally:
        writer.close()
        await writer.wait_closed()


async def test_the_port_stays_open_while_the_router_is_killed_again_and_again(
    yard: Yard, listener: socket.socket, connect: Connect, wait_until: WaitUntil, is_alive: IsAlive
) -> None:
    port = listener.getsockname()[1]
    folder, started = await start(yard, listener)
    listener.close()
    client = await connect(folder, "supervisor")
    lives: list[tuple[int, float]] = []
    await client.watch(lambda event: lives.append((event.pid or 0, time.monotonic())))
    assert await who_answers(port) == started.pid

    async def pause_after_killing(pid: int) -> float:
        count, killed_at = len(lives), time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: not is_alive(pid), "the killed one takes no more")
        answers = await asyncio.gather(*(who_answers(port) for _ in range(50)))  # none is refused
        await wait_until(lambda: len(lives) > count, "the next one")
        assert set(answers) == {lives[count][0]}
        return lives[count][1] - killed_at

    # A machine that stalls makes a short life a long one, and no pause a pause: one try of each that it leaves alone is enough.
    short = [await pause_after_killing(started.pid)]
    while max(short) < PAUSE_S and len(short) < TRIES:
        short.append(await pause_after_killing(lives[-1][0]))
    assert max(short) >= PAUSE_S, "a router that lived under a second is restarted after one"
    long: list[float] = []
    while not long or (min(long) >= PAUSE_S and len(long) < TRIES):
        while time.monotonic() - lives[-1][1] < 1.1:  # a life long enough for an immediate restart
            await who_answers(port)
            await asyncio.sleep(0.02)
        long.append(await pause_after_killing(lives[-1][0]))
    assert min(long) < PAUSE_S, "a router that lived longer is restarted at once"
    assert await who_answers(port) == lives[-1][0]
    hello = await client.hello("supervisor")
    seen = (hello.restarts, hello.pid, hello.role, hello.generation)
    assert seen == (len(lives), lives[-1][0], "router", None)


async def test_two_processes_accept_on_the_same_socket(
    yard: Yard, listener: socket.socket, connect: Connect
) -> None:
    port = listener.getsockname()[1]
    folder, started = await start(yard, listener)
    listener.close()
    client = await connect(folder)
    with await client.listen_fd() as ours, await client.listen_fd() as again:
        assert ours.getsockname()[1] == again.getsockname()[1] == port
        assert not os.get_inheritable(ours.fileno())
        os.kill(started.pid, signal.SIGSTOP)
        await stopped(started.pid)
        with socket.create_connection(("127.0.0.1", port)) as peer:
            ours.settimeout(30)
            accepted, address = await asyncio.to_thread(ours.accept)
            accepted.close()
            assert address == peer.getsockname()
        os.kill(started.pid, signal.SIGCONT)
    assert await who_answers(port) == started.pid


async def test_stop_ends_router_and_shim_and_frees_the_port(
    yard: Yard, listener: socket.socket, connect: Connect, wait_until: WaitUntil, is_alive: IsAlive
) -> None:
    port = listener.getsockname()[1]
    folder, started = await start(yard, listener)
    listener.close()
    client = await connect(folder)
    kinds: list[str] = []
    await client.watch(lambda event: kinds.append(event.kind))
    await client.stop(5)
    await asyncio.wait_for(client.closed, 30)
    await wait_until(lambda: not is_alive(started.shim_pid), "the shim ends")
    assert kinds == ["exited"]
    assert not is_alive(started.pid)
    assert not (folder / "shim.sock").exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


async def test_stop_between_two_lives_is_a_stop_too(
    yard: Yard, listener: socket.socket, connect: Connect, wait_until: WaitUntil, is_alive: IsAlive
) -> None:
    folder, started = await start(yard, listener, argv=[sys.executable, "-c", "pass"])
    client = await connect(folder)
    await client.stop(5)
    await asyncio.wait_for(client.closed, 30)
    await wait_until(lambda: not is_alive(started.shim_pid), "the shim ends")


async def test_kill_ends_this_life_and_the_next_follows(
    yard: Yard, listener: socket.socket, connect: Connect, wait_until: WaitUntil
) -> None:
    folder, _started = await start(yard, listener)
    client = await connect(folder)
    pids: list[int | None] = []
    await client.watch(lambda event: pids.append(event.pid))
    survived: list[bool] = []
    while not any(survived):
        # Where the machine stalls between the two, the second may come when the next life is there: once more, then.
        assert len(survived) < TRIES, "the next life was a target, too"
        pids.clear()
        await client.kill()
        await client.kill()  # comes while there is no life to end; the next one is not its target
        await wait_until(lambda: pids, "the next life")
        await asyncio.sleep(1.2)  # a sweep that goes on strikes once a second
        survived.append(await who_answers(listener.getsockname()[1]) == pids[0])


async def test_a_router_does_not_survive_its_shim(
    yard: Yard, listener: socket.socket, wait_until: WaitUntil, is_alive: IsAlive
) -> None:
    _, started = await start(yard, listener)
    os.kill(started.shim_pid, signal.SIGKILL)
    await wait_until(lambda: not is_alive(started.pid), "PDEATHSIG ends the router")


async def test_a_program_that_is_away_for_a_while_is_tried_again(
    yard: Yard, listener: socket.socket, connect: Connect, wait_until: WaitUntil
) -> None:
    program = yard.top / "sleep"
    shutil.copy(shutil.which("sleep") or "", program)
    folder, started = await start(yard, listener, argv=[str(program), "600"])
    client = await connect(folder)
    program.rename(yard.top / "away")
    os.kill(started.pid, signal.SIGKILL)
    log = folder / "router.log"
    await wait_until(lambda: b"[gpuserve] the router does not start" in log.read_bytes(), "a failed restart")
    assert not (await client.hello("cli")).running
    (yard.top / "away").rename(program)
    while not (hello := await client.hello("cli")).running:
        await asyncio.sleep(0.05)
    assert hello.pid != started.pid
    assert hello.restarts == 1


async def test_a_first_start_that_fails_leaves_nothing(yard: Yard, listener: socket.socket) -> None:
    spec = router(yard, listener, argv=["/no/such/router"])
    with pytest.raises(sc.ShimError, match="cannot run /no/such/router"):
        await yard.launch(spec, pass_fds=(listener.fileno(),))
    assert list(Path(spec["dir"]).iterdir()) == []


async def test_a_descriptor_that_was_not_passed_is_refused(yard: Yard, listener: socket.socket) -> None:
    with pytest.raises(sc.ShimError) as caught:
        await yard.launch(router(yard, listener))
    assert caught.value.errno == errno.EBADF
