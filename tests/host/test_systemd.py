"""What systemd is told, how often, and what is taken back: with real sockets, and this test in systemd's place."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpuserved.host import listen
from gpuserved.host.systemd import NAME, Passed, PortStore, Service, passed_descriptors, watchdog_interval_s


class Systemd:
    """The notify socket, and the store behind it."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.stored: list[tuple[str, int]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            text, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(64))
            fds = array.array("i")
            for _, _, raw in ancillary:
                fds.frombytes(raw)
            told = dict(line.split("=", 1) for line in text.decode().splitlines())
            if "END" in told:
                return
            if "FDSTORE" in told:
                self.stored.append((told["FDNAME"], fds[0]))
                continue
            if "FDSTOREREMOVE" in told:
                for each in [each for each in self.stored if each[0] == told["FDNAME"]]:
                    self.stored.remove(each)
                    os.close(each[1])
            for fd in fds:  # a barrier
                os.close(fd)

    def passed(self) -> list[Passed]:
        """What the next start gets: its own copies."""
        return [Passed(name, os.dup(fd)) for name, fd in self.stored]

    def settled(self) -> list[str]:
        """The names in the store, once everything said so far has been read."""
        barrier(self.address)
        return [name for name, _ in self.stored]

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"END=1", self.address)
        self._thread.join(10)
        self._socket.close()
        for _, fd in self.stored:
            os.close(fd)


def barrier(address: str) -> None:
    """sd_notify_barrier(3): return once everything said before has been read."""
    ours, theirs = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(address)
        socket.send_fds(sender, [b"BARRIER=1"], [theirs])
    os.close(theirs)
    assert os.read(ours, 1) == b""
    os.close(ours)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    yield made
    made.close()


def address_of(listener: socket.socket) -> str:
    return "{}:{}".format(*listener.getsockname())


def refused(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def held(systemd: Systemd, listener: socket.socket) -> None:
    """A daemon's life: it has stored its port, and is gone."""
    with closing(PortStore(systemd.address)) as store:
        asyncio.run(store.hold(listener))
    assert NAME in systemd.settled()


def again(systemd: Systemd, *more: Passed) -> closing[PortStore]:
    """The next one."""
    return closing(PortStore(systemd.address, [*more, *systemd.passed()]))


def one_socket(fd: int, listener: socket.socket) -> bool:
    return os.path.samestat(os.fstat(fd), os.fstat(listener.fileno()))


def test_a_stored_port_takes_connections_while_nobody_lives_and_comes_back(systemd: Systemd) -> None:
    with listen.bind("127.0.0.1:0") as listener:
        address = address_of(listener)
        held(systemd, listener)
    with socket.create_connection(listen.parse_address(address), timeout=5) as client:
        with again(systemd) as store:
            back = asyncio.run(store.take_back(address))
            assert back is not None
            with back:
                back.settimeout(5)
                served, peer = back.accept()
                served.close()
                assert peer == client.getsockname()
                asyncio.run(store.hold(back))
        assert systemd.settled() == [NAME], "the same, and once"


def test_port_zero_is_any_port(systemd: Systemd) -> None:
    with listen.bind("127.0.0.1:0") as listener:
        held(systemd, listener)
    with again(systemd) as store:
        back = asyncio.run(store.take_back("127.0.0.1:0"))
        assert back is not None
        back.close()


@pytest.mark.parametrize(
    "wanted", ["127.0.0.2:{port}", "127.0.0.1:{other}", "0.0.0.0:{port}", "[::1]:{port}"]
)
def test_another_address_is_let_go_and_free_at_once(systemd: Systemd, wanted: str) -> None:
    with listen.bind("127.0.0.1:0") as listener, listen.bind("127.0.0.1:0") as other:
        held(systemd, listener)
        address, port = address_of(listener), listener.getsockname()[1]
        asked = wanted.format(port=port, other=other.getsockname()[1])
    with again(systemd) as store:
        assert not refused(address)
        assert asyncio.run(store.take_back(asked)) is None
        # Not "some time later": the same process binds next, and 0.0.0.0 does not go beside 127.0.0.1.
        assert refused(address)
    listen.bind(address).close()


def test_a_socket_that_does_not_listen_any_more_is_let_go(systemd: Systemd) -> None:
    with listen.bind("127.0.0.1:0") as listener:
        address = address_of(listener)
        held(systemd, listener)
        listener.shutdown(socket.SHUT_RDWR)  # of the socket, and so for all who hold it
    with again(systemd) as store:
        assert asyncio.run(store.take_back(address)) is None
        with listen.bind(address) as anew:
            asyncio.run(store.hold(anew))
            assert systemd.settled() == [NAME]
            assert one_socket(systemd.stored[0][1], anew)


def test_what_a_version_does_not_know_is_removed(systemd: Systemd) -> None:
    with listen.bind("127.0.0.1:0") as listener, listen.bind("127.0.0.1:0") as other:
        held(systemd, listener)
        read, write = os.pipe()
        systemd.stored += [("stored-later", write), ("stored", os.dup(other.fileno())), (NAME, read)]
        with again(systemd) as store:
            assert store.of_unit() is None, "what is stored is no socket unit's"
            asyncio.run(store.hold(listener))
        assert systemd.settled() == [NAME]
        assert one_socket(systemd.stored[0][1], listener)


def test_what_a_socket_unit_holds_is_not_stored(systemd: Systemd) -> None:
    with listen.bind("127.0.0.1:0") as of_unit, listen.bind("127.0.0.1:0") as before:
        held(systemd, before)  # from when there was no socket unit
        with again(systemd, Passed("http", os.dup(of_unit.fileno()))) as store:
            for _life in range(2):  # a daemon that goes on after a failed upgrade needs it again
                taken = store.of_unit()
                assert taken is not None
                with taken:
                    assert one_socket(taken.fileno(), of_unit)
                    asyncio.run(store.hold(taken))
        assert systemd.settled() == []


def test_down_frees_the_port(systemd: Systemd) -> None:
    with closing(PortStore(systemd.address)) as store:
        with listen.bind("127.0.0.1:0") as listener:
            asyncio.run(store.hold(listener))
            address = address_of(listener)
        assert not refused(address)
        asyncio.run(store.drop())
        assert refused(address)
    assert systemd.settled() == []


def test_without_systemd_nothing_is_kept() -> None:
    with closing(PortStore(None)) as store:
        with listen.bind("127.0.0.1:0") as listener:
            asyncio.run(store.hold(listener))
            address = address_of(listener)
        assert refused(address)


def test_a_program_without_a_store_takes_a_socket_units_socket() -> None:
    """`gpuserve route` in a unit of its own."""
    program = (
        "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from gpuserved.host.systemd import inherited\n"
        "print(inherited().getsockname()[1], [n for n in os.environ if n.startswith('LISTEN_')])"
    )
    with listen.bind("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        told = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            ["bash", "-c", f'exec "$0" -c "$1" 3<&{listener.fileno()}', sys.executable, program],
            env=told, pass_fds=(listener.fileno(),), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.stdout == f"{port} []\n", done.stderr


def test_descriptors_of_another_process_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "http"}.items():
        monkeypatch.setenv(name, value)
    assert passed_descriptors() == ()
    assert not {name for name in os.environ if name.startswith("LISTEN_")}, "children must not take them"


# --- the watchdog, and a successor


def test_one_ping_may_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two pings to a deadline, a single skipped one is the deadline."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    interval_s = watchdog_interval_s()
    assert interval_s is not None
    assert 3 * interval_s < 30
    assert "WATCHDOG_USEC" not in os.environ, "children must not ping"


def test_a_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None


def test_a_successor_is_told_what_its_predecessor_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    told = Service("/run/notify", 7.5).environment(ours)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    os.set_inheritable(ours, True)
    taken = Service.take()
    assert taken == Service("/run/notify", 7.5, ours)
    assert not set(told) & set(os.environ), "no child may speak to systemd"
    assert not os.get_inheritable(ours)
    assert Service(None, None).environment(ours) == {}
    os.close(ours)
    os.close(theirs)
