"""One client connection, driven by hand: how much it reads, when it begins a request, and how long it waits for its client."""

from __future__ import annotations

import asyncio

import pytest

from gpuserved.core import routes
from gpuserved.core.routes import Match
from gpuserved.router.client_connection import AHEAD_MAX_BYTES, WRITE_STALL_S, ClientConnection
from gpuserved.router.http.body import Body
from gpuserved.router.http.head import RequestHead

REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"x" * 1000
READ_BYTES = 256 * 1024
"""What uvloop reads at once."""


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and is full beyond `room`."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.written = bytearray()
        self.taken = 0
        self._reads = True
        self.aborted = False
        self.client: ClientConnection | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        was = self.full
        self.written += data
        if self.full and not was and self.client is not None:
            self.client.pause_writing()

    @property
    def full(self) -> bool:
        return len(self.written) - self.taken > self.room

    def take(self) -> None:
        """The client reads all there is."""
        was, self.taken = self.full, len(self.written)
        if was and self.client is not None:
            self.client.resume_writing()

    def reads(self) -> bool:
        return self._reads

    def pause_reading(self) -> None:
        assert self._reads
        self._reads = False

    def resume_reading(self) -> None:
        assert not self._reads
        self._reads = True

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return len(self.written) - self.taken

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Nobody looks."""

    def abort(self) -> None:
        self.aborted = True


class Local:
    """A router that answers everything itself, at once."""

    def __init__(self) -> None:
        self.begun = 0

    def screen(self, head: RequestHead) -> Match:
        found = routes.match(head.method, head.path)
        assert found is not None
        return found

    def body_max_bytes(self) -> int:
        return 1 << 20

    def begin(self, client: ClientConnection, head: RequestHead, body: Body, found: Match) -> None:
        del head, body, found
        self.begun += 1
        client.respond(200, [], ANSWER)

    def opened(self, client: ClientConnection) -> bool:
        del client
        return True

    def closed(self, client: ClientConnection) -> None:
        """Nobody counts."""

    def refused(self, status: int) -> None:
        raise AssertionError(status)

    def keeps_alive(self) -> bool:
        return True


def _connected(room: int) -> tuple[ClientConnection, Wire, Local]:
    front, wire = Local(), Wire(room)
    client = ClientConnection(front)
    wire.client = client
    client.connection_made(wire)
    return client, wire, front


async def test_what_a_client_pipelines_is_left_in_its_socket_until_it_is_worked_on() -> None:
    client, wire, front = _connected(room=1 << 40)
    count = READ_BYTES // len(REQUEST)
    for round_ in range(1, 4):
        client.data_received(REQUEST * count)
        turns = 0
        while not wire.reads():
            await asyncio.sleep(0)
            turns += 1
        assert turns > count // 2, "one a turn: other clients have theirs"
        assert front.begun == round_ * count
    assert wire.written.count(ANSWER) == 3 * count
    assert client.idle()


async def test_nothing_begins_while_the_client_does_not_take_its_answers() -> None:
    client, wire, front = _connected(room=10 * len(ANSWER))
    sent = 0
    while wire.reads() and sent < 100 * READ_BYTES:
        client.data_received(REQUEST)
        sent += 1
    for _ in range(100):
        await asyncio.sleep(0)
    begun = front.begun
    assert begun <= 11
    assert not wire.reads(), "its requests stay in its socket"
    assert (sent - begun) * len(REQUEST) <= AHEAD_MAX_BYTES + len(REQUEST)
    while front.begun < sent:
        wire.take()
        before = front.begun
        for _ in range(100):
            await asyncio.sleep(0)
        assert 0 < front.begun - before <= 11
    wire.take()
    assert wire.reads()
    assert wire.written.count(ANSWER) == sent


async def test_the_time_to_take_an_answer_does_not_start_anew_with_each_request() -> None:
    client, wire, front = _connected(room=10 * len(ANSWER))
    loop = asyncio.get_running_loop()
    while not wire.full:
        client.data_received(REQUEST)
    until = client.deadline
    assert loop.time() < until <= loop.time() + WRITE_STALL_S
    for _ in range(10):
        client.data_received(REQUEST)
        await asyncio.sleep(0)
    assert client.deadline == until
    assert not client.idle()
    client.expire()
    assert wire.aborted
    assert front.begun <= 11


@pytest.mark.parametrize("taken", [False, True])
async def test_an_answer_that_ends_a_connection_may_be_taken_slowly(taken: bool) -> None:
    client, wire, _ = _connected(room=1 << 40)
    client.data_received(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert b"connection: close" in wire.written
    if taken:
        wire.take()
    client.expire()
    assert wire.aborted == taken
    assert client.deadline >= 0
