"""The shim's socket: adoption, and clients that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.shim.yard import Connect, IsAlive, WaitUntil, Yard, stopped

from gpuserved.host import shimclient as sc


def raw(folder: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(folder / "shim.sock"))  # without a timeout it waits for room in the backlog
    peer.settimeout(30)
    return peer


def line(peer: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        more = peer.recv(65536)
        if not more:
            return {}
        data += more
    answer: dict[str, Any] = json.loads(data)
    return answer


async def test_a_second_supervisor_adopts_the_same_process(yard: Yard, connect: Connect) -> None:
    folder, started = await yard.run()
    first = await connect(folder)
    one = await first.hello("supervisor")
    first.close()
    second = await connect(folder)
    two = await second.hello("supervisor")
    assert one == two
    assert (two.pid, two.shim_pid, two.running, two.exit) == (started.pid, started.shim_pid, True, None)
    assert (two.role, two.id, two.nonce, two.restarts) == ("replica", "demo-0", folder.name, 0)
    identity = sc.read_identity(folder)
    assert identity is not None
    assert identity.pid_start_ticks == two.pid_start_ticks
    assert identity.shim_lives()
    assert identity.process_lives()


async def test_a_replica_outlives_the_supervisor_that_started_it(
    yard: Yard, connect: Connect, wait_until: WaitUntil, is_alive: IsAlive
) -> None:
    spec = yard.spec()
    folder = Path(spec["dir"])
    supervisor = (
        "import asyncio,json,os,sys\n"
        "from gpuserved.host import shimclient as sc\n"
        "async def main():\n"
        "  s = json.load(sys.stdin); await sc.launch(s)\n"
        "  c = await sc.ShimConnection.connect(s['dir'] + '/shim.sock'); await c.hello('supervisor')\n"
        "  print('kept', flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", supervisor], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdin, process.stdout:
        process.stdin.write(json.dumps(spec).encode())
        process.stdin.close()
        assert await asyncio.to_thread(process.stdout.readline) == b"kept\n"
        process.kill()
    identity = sc.read_identity(folder)
    assert identity is not None
    yard.shims.append(identity.shim_pid)
    hello = await (await connect(folder)).hello("supervisor")
    assert hello.running
    assert hello.pid == identity.pid
    assert is_alive(hello.pid)


async def test_a_late_watcher_of_a_dying_tree_is_told_at_once(yard: Yard, connect: Connect) -> None:
    # The shim itself is held while both the death and the request happen, and finds them together.
    folder, started = await yard.run()
    watcher = await connect(folder)
    events: list[sc.ShimEvent] = []
    os.kill(started.shim_pid, signal.SIGSTOP)
    await stopped(started.shim_pid)
    os.kill(started.pid, signal.SIGKILL)
    asking = asyncio.ensure_future(watcher.watch(events.append))
    await asyncio.sleep(0)
    os.kill(started.shim_pid, signal.SIGCONT)
    await asyncio.wait_for(watcher.closed, 30)
    await asking
    assert [event.kind for event in events] == ["dying", "exited"]
    assert all(event.exit is not None and event.exit.signal == signal.SIGKILL for event in events)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\x00\n",
        b"[1]\n",
        b'{"op": NaN}\n',
        b"[" * 60000 + b"\n",
        b'{"op": "' + b"x" * 70000 + b'"}\n',
        b"x" * 200_000,
    ],
    ids=["http", "binary", "array", "nan", "deep", "long-line", "endless-line"],
)
async def test_garbage_drops_its_sender_alone(yard: Yard, connect: Connect, garbage: bytes) -> None:
    folder, started = await yard.run()
    good = await connect(folder, "supervisor")
    with raw(folder) as bad:
        try:
            await asyncio.to_thread(bad.sendall, garbage)
            assert await asyncio.to_thread(bad.recv, 100) == b""
        except (BrokenPipeError, ConnectionResetError):  # dropped while it was still sending
            pass
    hello = await good.hello("supervisor")
    assert (hello.pid, hello.running) == (started.pid, True)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"op": "explode"}, "knows no such op"),
        ({}, "knows no such op"),
        ({"op": ["kill"]}, "knows no such op"),
        ({"op": "hello", "who": "nobody"}, "who: supervisor, router or cli"),
        ({"op": "hello", "who": ["cli"]}, "who: supervisor, router or cli"),
        ({"op": "signal", "signal": 0}, "a number from 1 to 64"),
        ({"op": "signal", "signal": True}, "a number from 1 to 64"),
        ({"op": "signal", "signal": "TERM"}, "a number from 1 to 64"),
        ({"op": "stop"}, "grace_s: seconds"),
        ({"op": "stop", "grace_s": -1}, "grace_s: seconds"),
        ({"op": "stop", "grace_s": 1e300}, "grace_s: seconds"),
        ({"op": "listen_fd"}, "role replica"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_and_the_client_stays(
    yard: Yard, is_alive: IsAlive, request_: dict[str, object], words: str
) -> None:
    folder, started = await yard.run()
    with raw(folder) as peer:
        peer.sendall(json.dumps(request_).encode() + b"\n")
        answer = await asyncio.to_thread(line, peer)
        assert answer["ok"] is False
        assert words in answer["error"]
        peer.sendall(b'{"op":"hello","who":"cli"}\n')
        assert (await asyncio.to_thread(line, peer))["pid"] == started.pid
    assert is_alive(started.pid)


async def test_a_request_may_come_in_pieces_and_several_at_once(yard: Yard) -> None:
    folder, started = await yard.run()
    with raw(folder) as peer:
        for piece in (b'{"op":"he', b'llo","who"', b':"cli"}\n'):
            peer.sendall(piece)
        assert (await asyncio.to_thread(line, peer))["pid"] == started.pid
        peer.sendall(b'\n{"op":"watch"}\n{"op":"kill"}\n')
        data = b""
        while more := await asyncio.to_thread(peer.recv, 65536):
            data += more
    got = [json.loads(each) for each in data.splitlines()]
    assert got[:2] == [{"ok": True}, {"ok": True}]
    assert [each["event"] for each in got[2:]] == ["dying", "exited"]


async def test_a_client_that_asks_and_never_reads_is_dropped(yard: Yard, connect: Connect) -> None:
    folder, _ = await yard.run()
    ask = b'{"op":"hello","who":"cli"}\n' * 400_000
    with raw(folder) as deaf:
        deaf.settimeout(30)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            await asyncio.to_thread(deaf.sendall, ask)
    assert (await (await connect(folder)).hello("cli")).running


async def test_a_flood_of_silent_connections_locks_nobody_out_and_drops_no_keeper(
    yard: Yard, connect: Connect
) -> None:
    folder, started = await yard.run()
    keeper = await connect(folder, "supervisor")
    with contextlib.ExitStack() as silent:
        for _ in range(300):
            silent.enter_context(await asyncio.to_thread(raw, folder))
        late = await connect(folder)
        assert (await late.hello("cli")).pid == started.pid
        assert (await keeper.hello("supervisor")).pid == started.pid


async def test_connecting_waits_for_room_in_the_backlog(yard: Yard, connect: Connect) -> None:
    folder, started = await yard.run()
    os.kill(started.shim_pid, signal.SIGSTOP)
    with contextlib.ExitStack() as waiting:
        with pytest.raises(BlockingIOError):  # noqa: PT012 - the backlog is full somewhere on the way
            while True:
                peer = waiting.enter_context(
                    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                )
                peer.connect(str(folder / "shim.sock"))
        late = asyncio.ensure_future(connect(folder))
        done, _ = await asyncio.wait([late], timeout=0.2)
        assert not done
        os.kill(started.shim_pid, signal.SIGCONT)
        assert (await (await late).hello("cli")).pid == started.pid


async def test_signal_reaches_the_api_process_alone(
    yard: Yard, connect: Connect, wait_until: WaitUntil
) -> None:
    code = (
        "import os,signal,time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('parent' if os.getpid()==me else 'child', flush=True))\n"
        "me=os.getpid()\nos.fork()\nprint('up', flush=True)\n"
        "while True: time.sleep(0.05)"
    )
    folder, _ = await yard.run(code)
    log = folder / "log" / "1.log"
    await wait_until(lambda: log.read_text().count("up") == 2, "both run")
    client = await connect(folder)
    await client.signal(signal.SIGUSR1)
    await wait_until(lambda: "parent" in log.read_text(), "the API process got it")
    assert "child" not in log.read_text()


async def test_requests_after_the_end_say_so(yard: Yard, connect: Connect) -> None:
    folder, _started = await yard.run()
    client = await connect(folder)
    await client.kill()
    await asyncio.wait_for(client.closed, 30)
    with pytest.raises(sc.ShimError, match="the shim is gone"):
        await client.kill()
    with pytest.raises(sc.ShimError, match="no shim answers"):
        await connect(folder)


def test_the_client_works_under_uvloop(yard: Yard) -> None:
    import uvloop

    async def story() -> list[str]:
        folder, started = await yard.run()
        client = await sc.ShimConnection.connect(folder / "shim.sock")
        kinds: list[str] = []
        assert (await client.hello("router")).pid == started.pid
        await client.watch(lambda event: kinds.append(event.kind))
        await client.kill()
        await asyncio.wait_for(client.closed, 30)
        with pytest.raises(sc.ShimError, match="cannot run /no/such"):
            await sc.launch(yard.spec(argv=["/no/such"]))
        return kinds

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(story()) == ["dying", "exited"]
    finally:
        loop.close()


async def test_orphaned_after_the_ttl_without_supervisor_and_router(yard: Yard) -> None:
    began = time.monotonic()
    folder, _ = await yard.run(orphan_ttl_s=0.6)
    record = await yard.exit(folder)
    assert time.monotonic() - began >= 0.6
    assert (record.cause, record.info.signal) == ("orphaned", signal.SIGTERM)
    assert (
        b"[gpuserve] neither supervisor nor router for 0.6 s: stopping"
        in (folder / "log" / "1.log").read_bytes()
    )


async def run_kept(
    yard: Yard, connect: Connect, who: str, code: str | None = None, **changes: Any
) -> tuple[Path, sc.ShimConnection]:
    """A replica with a keeper. Its time may be over before the keeper is there, on a machine that stalls: another one, then."""
    for _ in range(20):
        began = time.monotonic()
        folder, _ = await yard.run(code, **changes)
        with contextlib.suppress(sc.ShimError):
            keeper = await connect(folder, who)
            if time.monotonic() - began < changes["orphan_ttl_s"]:
                return folder, keeper
    pytest.fail("no keeper came in time")


@pytest.mark.parametrize("who", ["supervisor", "router"])
async def test_a_keeper_keeps_it_and_its_end_starts_the_clock(yard: Yard, connect: Connect, who: str) -> None:
    ttl_s = 0.5
    folder, keeper = await run_kept(yard, connect, who, orphan_ttl_s=ttl_s)
    began = time.monotonic()
    while time.monotonic() - began < 3 * ttl_s:
        assert (await keeper.hello(who)).running
        await asyncio.sleep(0.1)
    gone_at = time.monotonic()
    keeper.close()
    assert (await yard.exit(folder)).cause == "orphaned"
    assert time.monotonic() - gone_at >= ttl_s


async def test_a_cli_is_no_keeper_and_an_orphan_that_ignores_sigterm_is_killed(
    yard: Yard, connect: Connect, wait_until: WaitUntil
) -> None:
    code = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)"
    folder, keeper = await run_kept(yard, connect, "supervisor", code, orphan_ttl_s=0.5, term_grace_s=0.3)
    log = folder / "log" / "1.log"
    await wait_until(lambda: b"up" in log.read_bytes(), "it ignores SIGTERM")
    await connect(folder, "cli")
    keeper.close()
    record = await yard.exit(folder)
    assert record.cause == "orphaned"
    assert record.info.signal == signal.SIGKILL
