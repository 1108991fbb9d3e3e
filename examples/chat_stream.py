"""A streamed chat completion, with what a client should do when a replica dies halfway.

Usage: python chat_stream.py [MODEL] [URL]   (pip install requests)
"""

import json
import sys

import requests

MODEL = sys.argv[1] if len(sys.argv) > 1 else "gemma-3-270m"
URL = sys.argv[2] if len(sys.argv) > 2 else "http://localhost:8000"

with requests.post(
    f"{URL}/v1/chat/completions",
    json={
        "model": MODEL,
        "messages": [{"role": "user", "content": "My order is late."}],
        "max_tokens": 200,
        "temperature": 0.7,
        "stream": True,
    },
    stream=True,
    timeout=(5, 300),  # connect; longest silence between two chunks
) as response:
    response.raise_for_status()
    for line in response.iter_lines():
        if not line.startswith(b"data: "):
            continue  # blank lines between events, and the names of typed ones
        data = line.removeprefix(b"data: ")
        if data == b"[DONE]":
            break
        chunk = json.loads(data)
        if "error" in chunk:  # the replica is gone; what came so far is all there is
            print()
            sys.exit(f"the answer broke off: {chunk['error']['message']}")
        for choice in chunk["choices"]:
            print(choice["delta"].get("content") or "", end="", flush=True)
print()
