"""The smallest client: one chat completion. Usage: python chat.py [MODEL]   (pip install requests)"""

import sys

import requests

response = requests.post(
    "http://localhost:8000/v1/chat/completions",
    json={
        "model": sys.argv[1] if len(sys.argv) > 1 else "gemma-3-270m",
        "messages": [{"role": "user", "content": "My order is late."}],
        "max_tokens": 200,
        "temperature": 0.7,
    },
)
response.raise_for_status()
print(response.json()["choices"][0]["message"]["content"])
