"""Clients of the URL: streams that know how they ended, and a steady load of plain requests that counts its failures."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, final

import requests

QUESTION = [{"role": "user", "content": "My order is late."}]


@dataclass
class Stream:
    """One streamed chat completion, seen from the client."""

    replica: str | None = None
    """Who answered, by the X-Gpuserve-Replica header."""
    chunks: int = 0
    finish_reason: str | None = None
    done: bool = False
    """`data: [DONE]` was seen."""
    error: Any = None
    """The body of the error event."""
    failure: str | None = None
    """A refusal, or a broken transfer: what a client library would raise."""
    hang_up_after: int | None = None
    """Chunks after which the client leaves."""
    began: threading.Event = field(default_factory=threading.Event)

    @property
    def whole(self) -> bool:
        """Ended as a healthy stream does."""
        return self.failure is None and self.error is None and self.done and self.finish_reason is not None

    @property
    def told(self) -> bool:
        """Ended with an error event and a clean end, never a silent truncation."""
        return self.failure is None and isinstance(self.error, dict) and bool(self.error.get("message"))

    def read(self, url: str, body: dict[str, Any], timeout_s: float) -> None:
        """Run the request to its end."""
        try:
            with requests.post(url, json=body, stream=True, timeout=timeout_s) as response:
                self.replica = response.headers.get("X-Gpuserve-Replica")
                if response.status_code != 200:
                    self.failure = f"{response.status_code} {response.text[:300]}"
                    return
                for line in response.iter_lines(chunk_size=1):
                    self._line(line)
                    if self.hang_up_after is not None and self.chunks >= self.hang_up_after:
                        return
        except requests.RequestException as error:
            self.failure = repr(error)
        finally:
            self.began.set()

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data: "):
            return
        data = line[len(b"data: ") :]
        if data == b"[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = event["error"]
            return
        for choice in event["choices"]:
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            if choice["delta"].get("content"):
                self.chunks += 1
                if self.chunks == 2:
                    self.began.set()


@dataclass
class Streams:
    """Many streams at once."""

    streams: list[Stream]
    threads: list[threading.Thread]

    def wait_begun(self, timeout_s: float = 60) -> None:
        """Until every stream has sent text."""
        deadline = time.monotonic() + timeout_s
        for stream in self.streams:
            assert stream.began.wait(max(0.0, deadline - time.monotonic())), "a stream did not begin in time"

    def flow(self, timeout_s: float = 60) -> None:
        """Each of them goes on: nothing has cut it, and text still comes."""
        deadline = time.monotonic() + timeout_s
        before = [stream.chunks for stream in self.streams]
        while not all(s.chunks > chunks + 5 for s, chunks in zip(self.streams, before, strict=True)):
            assert [s for s in self.streams if s.failure or s.error or s.done] == []
            assert time.monotonic() < deadline, "a stream stands still"
            time.sleep(0.05)

    def leave(self) -> list[Stream]:
        """Their clients have seen enough, and nothing has cut them before."""
        for stream in self.streams:
            stream.hang_up_after = 0
        ended = self.join()
        assert [s for s in ended if s.failure or s.error] == []
        return ended

    def join(self, timeout_s: float = 90) -> list[Stream]:
        """Until every stream has ended."""
        deadline = time.monotonic() + timeout_s
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a stream did not end in time"
        return self.streams


def open_streams(
    endpoint: str,
    model: str,
    count: int,
    tokens: int,
    timeout_s: float = 120,
    hang_up_after: int | None = None,
) -> Streams:
    """Start `count` streams of exactly `tokens` tokens each."""
    body = {
        "model": model,
        "messages": QUESTION,
        "max_tokens": tokens,
        "stream": True,
        "ignore_eos": True,
    }
    streams = [Stream(hang_up_after=hang_up_after) for _ in range(count)]
    arguments = (f"{endpoint}/v1/chat/completions", body, timeout_s)
    threads = [threading.Thread(target=stream.read, args=arguments, daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    return Streams(streams, threads)


@final
class PlainLoad:
    """Plain requests, one after the other on each of `clients` threads, until the block is left."""

    def __init__(self, endpoint: str, model: str, clients: int = 2, timeout_s: float = 120) -> None:
        self._url = f"{endpoint}/v1/chat/completions"
        self._body: dict[str, Any] = {"model": model, "messages": QUESTION, "max_tokens": 4}
        self._timeout_s = timeout_s
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        self.answered = 0
        self.failures: list[str] = []
        self.longest_s = 0.0

    def _run(self) -> None:
        while not self._ending.is_set():
            begun = time.monotonic()
            try:
                response = requests.post(self._url, json=self._body, timeout=self._timeout_s)
            except requests.RequestException as error:
                self.failures.append(repr(error))
                continue
            self.longest_s = max(self.longest_s, time.monotonic() - begun)
            if response.status_code == 200 and response.json()["choices"]:
                self.answered += 1
            else:
                self.failures.append(f"{response.status_code} {response.text[:300]}")
            # A pause keeps two cores free for what is being tested; the rate does not matter.
            self._ending.wait(0.02)

    def pause(self, seconds: float = 0.05) -> None:
        """Let the load run on for a moment."""
        self._ending.wait(seconds)

    def reach(self, answers: int, timeout_s: float = 60) -> None:
        """Let it run until so many more requests have been answered; a failure ends the wait."""
        deadline, goal = time.monotonic() + timeout_s, self.answered + answers
        while self.answered < goal and not self.failures:
            assert time.monotonic() < deadline, f"{answers} answers: not within {timeout_s:g} s"
            self.pause()

    def __enter__(self) -> PlainLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:  # fmt: skip
        self._ending.set()
        for thread in self._threads:
            thread.join(self._timeout_s)
        if error is None:
            assert self.failures == [], self.failures[:5]
            assert self.answered > 0
