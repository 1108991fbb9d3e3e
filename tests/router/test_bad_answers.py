"""What a replica may not do to a client: answers that are broken, endless, or not the one that was asked for."""

from __future__ import annotations

import asyncio

import pytest
from tests.router.bench import PATIENCE_S, Bench, Client, true
from tests.router.scripted import Script, Seen, Upstream, plain

CHAT = "/v1/chat/completions"
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BEFORE_A_BYTE = {
    "not HTTP": b"\x00\x15\x03 hello\r\n\r\n",
    "RFC 9112 4: a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "RFC 9112 4: a status above 599": b"HTTP/1.1 600 OK\r\n\r\n",
    "RFC 9112 2.3: HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "RFC 9112 2.2: a bare LF": b"HTTP/1.1 200 OK\nx: 1\r\n\r\n",
    "RFC 9112 5.2: a folded line": _OK + b"x: 1\r\n 2\r\n\r\n",
    "RFC 9110 5.5: a NUL": _OK + b"x: \x00\r\n\r\n",
    "RFC 9112 5.1: a space before the colon": _OK + b"x : 1\r\n\r\n",
    "RFC 9112 6.3: two framings": _OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
    "RFC 9110 8.6: two lengths": _OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "RFC 9110 8.6: a signed length": _OK + b"content-length: +2\r\n\r\n{}",
    "RFC 9112 6.1: a coding nobody asked for": _OK + b"transfer-encoding: gzip, chunked\r\n\r\n",
    "RFC 9112 7.1: a first chunk without size": _OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "a header without end": _OK + b"x: " + b"y" * 70_000,
    "headers without end": _OK + b"x: 1\r\n" * 12_000 + b"\r\n",
    "RFC 9110 15.2.2: an upgrade nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nraw",
    "RFC 9110 15.2: interim answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
}
_CHUNKED = _OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"
AFTER_A_BYTE = {
    "RFC 9112 7.1: a chunk longer than its size": (_CHUNKED, b"2\r\nabcd", False),
    "RFC 9112 7.1: a later chunk without size": (_CHUNKED, b"zz\r\n", False),
    "RFC 9112 7.1.2: a trailer that is no header line": (_CHUNKED, b"0\r\nx\r\n", False),
    "RFC 9112 8: a chunked body cut short": (_CHUNKED, b"40\r\n{", True),
    "RFC 9112 8: no last chunk": (_CHUNKED, b"", True),
    "RFC 9112 8: a body shorter than its length": (_OK + b"content-length: 1000\r\n\r\n{", b"", True),
}
"""What comes while all is well, what comes then, and whether the replica closes by itself."""


def once(data: bytes) -> Script:
    async def answer(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(data)
        await writer.drain()
        await reader.read()
        return False

    return answer


async def _to_the_end(client: Client) -> tuple[bytes, bool]:
    """What comes until the connection ends, and whether it ended with a reset."""
    rest = b""
    try:
        while data := await asyncio.wait_for(client.reader.read(65536), PATIENCE_S):
            rest += data
    except ConnectionResetError:
        return rest, True
    return rest, False


async def test_a_broken_answer_before_its_first_byte_is_502(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    for checks, data in BEFORE_A_BYTE.items():
        up.script = once(data)
        client = await bench.client()
        answer = await client.ask("POST", CHAT, {"model": "m"})
        assert (answer.status, answer.json["error"]["code"]) == (502, "bad_upstream_answer"), checks
        await bench.until(lambda: true(up.open == 0))
        up.script = plain
        assert (await client.ask("POST", CHAT, {"model": "m"})).status == 200, checks


@pytest.mark.parametrize("checks", AFTER_A_BYTE)
async def test_a_broken_answer_after_its_first_byte_is_aborted(bench: Bench, checks: str) -> None:
    good, bad, closes = AFTER_A_BYTE[checks]
    begun = asyncio.Event()

    async def answer(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(good)
        await begun.wait()
        writer.write(bad)
        await writer.drain()
        if not closes:
            await reader.read()
        return False

    up = await bench.upstream("a-0", answer)
    await bench.start(bench.model(up))
    client = await bench.client()
    await client.send("POST", CHAT, {"model": "m"})
    assert (await client.head())[0] == 200
    begun.set()
    rest, reset = await _to_the_end(client)
    assert reset, f"a clean end after {rest!r}"
    assert not rest.endswith(b"0\r\n\r\n")
    await bench.until(lambda: true(up.open == 0))
    up.script = plain
    assert (await bench.chat()).status == 200


async def test_bytes_after_an_answer_reach_nobody_and_end_the_connection(bench: Bench) -> None:
    up = await bench.upstream("a-0", once(_OK + b'content-length: 2\r\n\r\n{}{"of": "another"}'))
    await bench.start(bench.model(up))
    client = await bench.client()
    assert (await client.ask("POST", CHAT, {"model": "m"})).body == b"{}"
    up.script = plain
    assert (await client.ask("POST", CHAT, {"model": "m"})).json["by"] == "a-0"
    assert up.connections == 2


async def test_an_answer_sent_before_it_is_asked_for_is_not_taken_for_one(bench: Bench) -> None:
    async def twice(
        up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(_OK + b"content-length: 2\r\n\r\n{}")
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.write(_OK + b"content-length: 6\r\n\r\npoison")
        await writer.drain()
        await reader.read()
        return False

    up = await bench.upstream("a-0", twice)
    await bench.start(bench.model(up))
    client = await bench.client()
    assert (await client.ask("POST", CHAT, {"model": "m"})).body == b"{}"
    await bench.until(lambda: true(up.open == 0))
    up.script = plain
    assert (await client.ask("POST", CHAT, {"model": "m"})).json["by"] == "a-0"
