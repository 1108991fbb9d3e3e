"""A program: connections that wait while nobody takes them, and a new one every few milliseconds until its standard input ends. It
prints what became of all of them, by status code or error. It runs on the network of a container.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

EVERY_S = 0.03
LIMIT_S = 120.0


async def one(port: int, model: str, waits: asyncio.Event | None = None) -> str:
    """One request on a connection of its own; how it ended."""
    body = {"model": model, "messages": [{"role": "user", "content": "My order is late."}], "max_tokens": 4}
    data = json.dumps(body).encode()
    fields = (
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        "Connection: close",
    )
    head = "\r\n".join(("POST /v1/chat/completions HTTP/1.1", *fields, "", ""))
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + data)
        await writer.drain()
        if waits is not None:
            waits.set()
        answer = await asyncio.wait_for(reader.read(), LIMIT_S)
        writer.close()
    except (OSError, asyncio.TimeoutError) as error:
        return type(error).__name__
    if not answer.rstrip().endswith(b"}"):
        return f"cut: {answer[:200]!r}"
    return answer.split(b" ", 2)[1].decode()


async def main(port: int, model: str, count: int) -> None:
    """`count` of them wait before "waiting" is printed."""
    waits = [asyncio.Event() for _ in range(count)]
    tasks = [asyncio.ensure_future(one(port, model, each)) for each in waits]
    for each in waits:
        await asyncio.wait_for(each.wait(), LIMIT_S)
    print("waiting", flush=True)
    told = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    while not told.done():
        tasks.append(asyncio.ensure_future(one(port, model)))
        await asyncio.sleep(EVERY_S)
    print(json.dumps(Counter(await asyncio.gather(*tasks))))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
