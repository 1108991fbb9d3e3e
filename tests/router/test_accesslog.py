"""The access log: what is in it, what never is, and that a disk without room costs no request."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.router.bench import Bench, true
from tests.router.scripted import Seen, Upstream, send_chunk, send_stream_head

from gpuserved.router.accesslog import AccessLog, Record

CHAT = "/v1/chat/completions"


async def stream(
    up: Upstream, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    await send_stream_head(writer)
    for n in range(50):
        await send_chunk(writer, b"data: %02d\n\n" % n)
        await asyncio.sleep(0.001)
    writer.write(b"0\r\n\r\n")
    return True


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_one_line_a_request_and_nothing_of_its_content(bench: Bench) -> None:
    path = bench.dir / "logs" / "access.log"
    bench.arguments = ["--access-log", str(path)]
    up = await bench.upstream("a-0", stream)
    await bench.start(bench.model(up))
    headers = {"X-Request-Id": "mine", "Authorization": "Bearer a-secret-key"}
    streamed = await bench.ask(
        "POST", CHAT + "?q=a-query", {"model": "m", "prompt": "a-secret-prompt"}, headers
    )
    assert streamed.body.count(b"data: ") == 50
    assert (await bench.chat("nobody")).status == 404
    await bench.until(lambda: true(len(_lines(path)) == 2))
    assert not any(text in path.read_text() for text in ("a-secret", "a-query", "nobody"))
    served, refused = _lines(path)
    assert {k: served[k] for k in ("request_id", "method", "path", "model", "replica", "status", "replays", "cut", "key")} == {
        "request_id": "mine", "method": "POST", "path": CHAT, "model": "m", "replica": "a-0", "status": 200,
        "replays": 0, "cut": False, "key": None,
    }  # fmt: skip
    framed = sum(len(b"%x\r\n%b\r\n" % (10, b"data: %02d\n\n" % n)) for n in range(50)) + len(b"0\r\n\r\n")
    assert framed - 200 <= served["bytes"] <= framed  # chunks that came together may have become one
    assert 0 <= served["queue_s"] <= served["ttft_s"] < served["duration_s"] < 60
    assert (refused["status"], refused["model"], refused["replica"], refused["ttft_s"]) == (
        404,
        None,
        None,
        None,
    )
    assert path.stat().st_mode & 0o077 == 0


async def test_what_waits_is_written_when_the_router_stops(bench: Bench) -> None:
    path = bench.dir / "access.log"
    bench.arguments = ["--access-log", str(path)]
    await bench.start(bench.model(await bench.upstream("a-0")))
    for _ in range(5):
        assert (await bench.chat()).status == 200
    bench.running.terminate()
    await bench.running.wait()
    assert len(_lines(path)) == 5


def _over(n: int) -> Record:
    return Record(
        time=1.0, request_id=str(n), peer="::1", method="POST", path="/", model="m", replica="a-0", status=200,
        bytes=5, queue_s=0.5, ttft_s=1.0, duration_s=2.0, replays=0, cut=False, key=None,
    )  # fmt: skip


def test_the_cap_is_kept_and_no_line_is_cut(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log", max_bytes=5000, keep=2)
    for n in range(200):
        log.add(_over(n))
        log.flush()
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == ["access.log", "access.log.1", "access.log.2"]
    assert all(f.stat().st_size <= 5000 for f in files)
    last = [line["request_id"] for f in reversed(files) for line in _lines(f)]
    assert last == [str(n) for n in range(200 - len(last), 200)]


def test_a_log_that_cannot_be_written_costs_nothing_and_is_made_up_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = AccessLog(tmp_path / "file" / "access.log")
    for n in range(1000):
        log.add(_over(n))
    (tmp_path / "file").unlink()
    log.close()
    assert len(_lines(tmp_path / "file" / "access.log")) == 1000
