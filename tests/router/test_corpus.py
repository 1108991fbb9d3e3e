"""Requests that two parsers might read in two ways: none of them reaches a replica."""

from __future__ import annotations

import asyncio
import re

import pytest
from tests.router.bench import Bench
from tests.router.corpus import BAD, JSON, Case, cases

_NEXT = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
_CLOSING = {400, 413, 417, 431}
"""After these nobody can say where the next request begins."""


def test_the_corpus_is_there_and_every_case_says_what_it_checks() -> None:
    found = [case for name in (*BAD, "good") for case in cases(name)]
    assert len(found) >= 160
    assert len({case.checks for case in found}) == len(found)


async def _wrong(bench: Bench, case: Case) -> str | None:
    answer = await bench.raw(case.wire + _NEXT)
    statuses = [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
    wanted = [case.status] if case.status in _CLOSING else [case.status, 200]
    return None if statuses == wanted else f"{case.checks}: {statuses}, not {wanted}"


@pytest.mark.fault(23)
@pytest.mark.parametrize("name", BAD)
async def test_a_doubtful_request_is_refused_and_never_forwarded(bench: Bench, name: str) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    outcomes = await asyncio.gather(*(_wrong(bench, case) for case in cases(name)))
    assert [outcome for outcome in outcomes if outcome] == []
    assert [seen.target for seen in up.seen] == []
    assert (await bench.chat()).status == 200


async def test_an_unusual_request_arrives_in_its_one_canonical_form(bench: Bench) -> None:
    up = await bench.upstream("a-0")
    await bench.start(bench.model(up))
    for case in cases("good"):
        client = await bench.client()
        client.writer.write(case.wire)
        assert (await client.answer()).status == 200, case.checks
        seen = up.seen.pop()
        assert (seen.method, seen.target, seen.body) == ("POST", case.target, JSON), case.checks
        names = [name for name, _ in seen.headers]
        assert len(set(names)) == len(names)
        assert names[0] == "host"
        assert names[-3:] == ["content-length", "x-request-id", "x-forwarded-for"], case.checks
        assert (seen.get("content-length"), seen.get("x-forwarded-for")) == ("13", "127.0.0.1")
        assert seen.get("transfer-encoding") is seen.get("connection") is seen.get("x-gone") is None
