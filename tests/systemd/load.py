"""A program: requests and streams against ENDPOINT for MODEL until its standard input ends. Fails where one of them did. It runs
on the network of a container, where threads of the test process are not.
"""

from __future__ import annotations

import contextlib
import sys
import threading

from tests.e2e.clients import QUESTION, PlainLoad, Stream, open_streams

STREAMS = 4


class RollingStreams:
    """Streams one after the other on each of `count` threads: some are open whenever something happens, however long it takes."""

    def __init__(self, endpoint: str, model: str, count: int, tokens: int) -> None:
        self._url = f"{endpoint}/v1/chat/completions"
        self._body = {
            "model": model, "messages": QUESTION, "max_tokens": tokens, "stream": True, "ignore_eos": True,
        }  # fmt: skip
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        self._firsts: list[Stream] = [Stream() for _ in self._threads]
        self.streams: list[Stream] = list(self._firsts)
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        stream = self._firsts[self._threads.index(threading.current_thread())]
        while True:
            stream.read(self._url, self._body, 120)
            if self._ending.is_set() or not stream.whole:
                return
            stream = Stream()
            self.streams.append(stream)

    def wait_begun(self) -> None:
        """Until the first of each thread has sent text."""
        for stream in self._firsts:
            assert stream.began.wait(60), "a stream did not begin in time"

    def join(self) -> list[Stream]:
        """All there were, once those that are open have ended."""
        self._ending.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "a stream did not end in time"
        return self.streams


def main() -> None:
    """`load.py ENDPOINT MODEL STREAM_TOKENS both|streams`: with requests go streams without end, alone each is the only one."""
    endpoint, model, tokens, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    with contextlib.ExitStack() as running:
        plain = running.enter_context(PlainLoad(endpoint, model)) if kind == "both" else None
        opened = open_streams if plain is None else RollingStreams
        streams = opened(endpoint, model, STREAMS, tokens)
        streams.wait_begun()
        print("under load", flush=True)
        sys.stdin.read()
        cut = [stream.failure or stream for stream in streams.join() if not stream.whole]
        if plain is not None:
            plain.reach(4)
    assert cut == [], cut


if __name__ == "__main__":
    main()
