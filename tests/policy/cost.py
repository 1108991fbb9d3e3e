"""What policy `prefix` costs the router: `python -m tests.policy.cost`. CPU time, the best of nine, so that neighbours count little.

The bodies are chats of one system prompt and one question; the worst ones are those that take longest for their size.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from gpuserved.core.balance import Rotation
from gpuserved.core.policy.base import UNTIED, Ask, Candidate
from gpuserved.core.policy.make import make_policy
from gpuserved.core.policy.mirror import Mirror
from gpuserved.core.policy.prefix_key import BODY_MAX_BYTES, ESCAPES_MAX, MARKS_MAX, PrefixKey, prefix_key
from gpuserved.router.peers import Peers

SIZES = {"1 KB": 1024, "8 KB": 8192, "32 KB": 32_768, "256 KB": 262_144, "1 MB": 1_048_576}
REPEATS = 9
REPLICAS = 8
_PROSE = "The order left the depot on Monday and was last seen in Hamburg. "


def chat(size: int) -> bytes:
    """A chat of about so many bytes."""
    system = (_PROSE * (size // len(_PROSE) + 1))[: max(1, size - 200)]
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Where is my order?"}]
    return json.dumps({"model": "demo", "stream": True, "messages": messages}).encode()


def worst() -> dict[str, bytes]:
    """Bodies that take long for the policy, within its limits and beyond them."""

    def text(piece: str, count: int) -> bytes:
        content = piece * min(count, (BODY_MAX_BYTES - 1024) // len(piece))
        return b'{"model":"demo","messages":[{"role":"user","content":"' + content.encode() + b'"}]}'

    def list_of(item: bytes, count: int) -> bytes:
        items = b",".join([item] * min(count, (BODY_MAX_BYTES - 1024) // (len(item) + 1)))
        return b'{"model":"demo","messages":[' + items + b"]}"

    many = BODY_MAX_BYTES
    return {
        "no escapes": text("abcdefgh", many),
        "escapes, as many as are read": text("\\u00e9", ESCAPES_MAX),
        "nothing but escapes": text("\\u00e9", many),
        "line breaks, as many as are read": text("\\n", ESCAPES_MAX),
        "values, as many as are read": list_of(b"[1]", MARKS_MAX // 2 - 10),
        "nothing but values": list_of(b"[1]", many),
        "nested lists": list_of(b"[" * 900 + b"]" * 900, many),
        "keys, as many as are read": b'{"model":"demo","messages":[{'
        + b'"k":1,' * (MARKS_MAX - 10)
        + b'"k":1}]}',
    }


def best(work: Callable[[], object], repeats: int = REPEATS, times: int = 1) -> float:
    """CPU seconds of one call, the least of `repeats` measurements of `times` calls each."""

    def once() -> float:
        began = time.thread_time()
        for _ in range(times):
            work()
        return (time.thread_time() - began) / times

    return min(once() for _ in range(repeats))


def _candidates(key: PrefixKey) -> list[Candidate]:
    """Half of the replicas know the prompt."""
    mirrors = [Mirror() for _ in range(REPLICAS)]
    for mirror in mirrors[::2]:
        mirror.sent(key)
    return [
        Candidate(3, Rotation.IN, identity=i, mirror=mirror, queued_tokens=100.0)
        for i, mirror in enumerate(mirrors)
    ]


def main() -> None:
    """The table of docs/performance.md."""
    print("| what | CPU µs |\n| --- | --- |")
    for name, size in SIZES.items():
        body = chat(size)
        times = max(1, 262_144 // size)
        print(f"| read and hash a prompt of {name} | {1e6 * best(lambda body=body: prefix_key(body), times=times):.0f} |")  # type: ignore[misc]  # fmt: skip
    key = prefix_key(chat(SIZES["8 KB"]))
    assert key is not None
    rows, ask = _candidates(key), Ask(prefix=key)
    for name, asked in (("prefix", ask), ("least_inflight", UNTIED)):
        choose = make_policy(name).choose
        print(f"| choose among {REPLICAS} replicas, {name} | {1e6 * best(lambda c=choose, a=asked: c(a, rows), times=1000):.1f} |")  # type: ignore[misc]  # fmt: skip
    mirror = Mirror()
    print(f"| remember | {1e6 * best(lambda: mirror.sent(key), times=1000):.1f} |")
    with TemporaryDirectory() as folder:
        peers = Peers(str(Path(folder) / "ctl.sock"))
        print(
            f"| tell the other routers | {1e6 * best(lambda: peers.tell(1, 1, key, 0.0), times=1000):.1f} |"
        )
        peers.close()
    for name, body in worst().items():
        seconds = best(lambda body=body: prefix_key(body), 3)  # type: ignore[misc]
        print(f"| worst: {len(body) / 1e6:.1f} MB, {name} | {1e6 * seconds:.0f} |")


if __name__ == "__main__":
    main()
