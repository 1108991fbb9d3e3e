"""A program: requests and streams against ENDPOINT for MODEL until its standard input ends. Fails where one of them did. It runs
on the network of a container, where threads of the test process are not.
"""

from __future__ import annotations

import contextlib
import sys

from tests.e2e.clients import PlainLoad, open_streams

STREAMS = 4


def main() -> None:
    """`load.py ENDPOINT MODEL STREAM_TOKENS both|streams`."""
    endpoint, model, tokens, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    with contextlib.ExitStack() as running:
        plain = running.enter_context(PlainLoad(endpoint, model)) if kind == "both" else None
        streams = open_streams(endpoint, model, STREAMS, tokens)
        streams.wait_begun()
        print("under load", flush=True)
        sys.stdin.read()
        cut = [stream.failure for stream in streams.join() if not stream.whole]
        if plain is not None:
            plain.reach(4)
    assert cut == [], cut


if __name__ == "__main__":
    main()
