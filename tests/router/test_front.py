"""Who connects, and how: proxies that are believed, and TLS."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.router.bench import Bench, Client, true

from gpuserved.api.routing import Tls
from gpuserved.router.http.head import parse_request
from gpuserved.router.tenants import TrustedProxies

CHAT = "/v1/chat/completions"


def _chain(peer: str, *values: str, trusted: tuple[str, ...] = ("10.0.0.0/8", "::1")) -> list[str]:
    lines = "".join(f"X-Forwarded-For: {value}\r\n" for value in values)
    head = parse_request(f"GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode())
    return TrustedProxies(list(trusted)).chain(head, peer)


@pytest.mark.parametrize(
    ("peer", "values", "chain"),
    [
        ("192.0.2.1", ("198.51.100.7",), ["192.0.2.1"]),
        ("10.0.0.1", (), ["10.0.0.1"]),
        ("10.0.0.1", ("198.51.100.7",), ["198.51.100.7", "10.0.0.1"]),
        ("10.0.0.1", ("6.6.6.6, 198.51.100.7, 10.0.0.2",), ["198.51.100.7", "10.0.0.2", "10.0.0.1"]),
        ("10.0.0.1", ("6.6.6.6", "198.51.100.7"), ["198.51.100.7", "10.0.0.1"]),
        ("10.0.0.1", ("198.51.100.7, nonsense",), ["10.0.0.1"]),
        ("10.0.0.1", ("10.0.0.3, 10.0.0.2",), ["10.0.0.3", "10.0.0.2", "10.0.0.1"]),
        ("::ffff:10.0.0.1", ("2001:db8::7",), ["2001:db8::7", "::ffff:10.0.0.1"]),
        ("::1", ("[2001:db8::7]",), ["2001:db8::7", "::1"]),
        ("::1", ("fe80::7%x\ty",), ["::1"]),
        ("unknown", ("198.51.100.7",), ["unknown"]),
    ],
)
def test_the_client_is_the_nearest_that_nobody_need_be_believed_for(
    peer: str, values: tuple[str, ...], chain: list[str]
) -> None:
    assert _chain(peer, *values) == chain


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20), max_size=6))
def test_what_a_client_writes_reaches_no_replica_but_as_addresses(values: list[str]) -> None:
    assert all(c in "0123456789abcdef.:" for hop in _chain("10.0.0.1", *values) for c in hop)


async def test_x_forwarded_for_counts_from_trusted_proxies_alone(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    sent = {"X-Forwarded-For": "6.6.6.6, 198.51.100.7"}
    assert (await bench.chat(headers=sent)).status == 200
    await bench.tell(bench.model(up), trusted_proxies=["127.0.0.0/8"])
    assert (await bench.chat(headers=sent)).status == 200
    assert [seen.get("x-forwarded-for") for seen in up.seen] == ["127.0.0.1", "198.51.100.7, 127.0.0.1"]


def _certificate(folder: Path, name: str) -> Tls:
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return Tls(cert=str(cert), key=str(key))


async def _secure(bench: Bench, tls: Tls, name: str) -> Client:
    context = ssl.create_default_context(cafile=tls.cert)
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port, ssl=context, server_hostname=name)
    client = Client(reader, writer)
    bench.clients.append(client)
    return client


async def test_tls_serves_renews_its_certificate_and_is_switched_on_and_off(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    tls = _certificate(bench.dir, "one.test")
    await bench.start(bench.model(up), tls=tls)
    kept = await _secure(bench, tls, "one.test")
    assert (await kept.ask("POST", CHAT, {"model": "m", "pad": "x" * 300_000})).json["bytes"] > 300_000

    _certificate(bench.dir, "two.test")
    await bench.tell(bench.model(up), tls=tls)
    renewed = await _secure(bench, tls, "two.test")
    for client in (renewed, kept):
        assert (await client.ask("POST", CHAT, {"model": "m"})).status == 200

    Path(tls.cert).write_text("no certificate")
    await bench.tell(bench.model(up), tls=tls)
    await bench.until(lambda: true("is not used" in (bench.dir / "router.log").read_text()))
    assert (await kept.ask("GET", "/v1/models")).status == 200

    await bench.tell(bench.model(up))

    async def plain() -> bool:
        try:
            return (await bench.ask("GET", "/health")).status == 200
        except (asyncio.IncompleteReadError, ConnectionError):
            return False

    await bench.until(plain)
    assert (await kept.ask("GET", "/v1/models")).status == 200


async def test_a_handshake_that_does_not_come_ends_like_a_head_that_does_not(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up), tls=_certificate(bench.dir, "one.test"))
    loop = asyncio.get_running_loop()
    began = loop.time()
    client = await bench.client()
    client.writer.write(b"\x16\x03\x01\x02\x00")
    assert await client.gone()
    # Ten seconds, and room for a machine that stalls; the TLS library's own limit is a minute.
    assert 8.0 < loop.time() - began < 45.0


async def test_a_refused_request_over_tls_is_answered_before_the_end(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    tls = _certificate(bench.dir, "one.test")
    await bench.start(bench.model(up), tls=tls)
    client = await _secure(bench, tls, "one.test")
    client.writer.write(b"GET /v1/models HTTP/1.1\nHost: a\n\n")
    assert (await client.head())[0] == 400
    assert await client.gone() or await client.gone()
    talk = await bench.raw(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"HTTP/1.1 200" not in talk
    assert up.seen == []
