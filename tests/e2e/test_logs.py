"""Logs: followed, kept for the start before, and under a cap on disk."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import Any

import pytest
import requests
from tests.e2e.box import Box, kill, until
from tests.e2e.clients import QUESTION
from tests.e2e.texts import sim

CAP_BYTES = 256 * 1024


@pytest.fixture(scope="module")
def noisy(shared_box: Box) -> Box:
    """`flood-0` writes thousands of lines a second under a small cap; `calm-0` is an ordinary replica."""
    shared_box.env["GPUSERVE_LOG_MAX_BYTES"] = str(CAP_BYTES)
    shared_box.up({
        "flood": sim("flood", replicas=1, flags={"log_flood": 4000}),
        "calm": sim("calm", replicas=1),
    })  # fmt: skip
    return shared_box


def ask(box: Box, model: str) -> requests.Response:
    body: dict[str, Any] = {"model": model, "messages": QUESTION, "max_tokens": 4}
    return requests.post(f"{box.endpoint}/v1/chat/completions", json=body, timeout=60)


def on_disk(box: Box, replica: str) -> dict[str, int]:
    """Sizes by name, of a moment in which nothing was renamed."""
    folder = box.roots.log / "replicas" / replica

    def files() -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(folder)}

    def sizes() -> dict[str, int] | None:
        before = files()
        try:
            found = {name: (folder / name).stat().st_size for name in before}
        except FileNotFoundError:
            return None
        return found if files() == before else None

    return until(sizes, "a look between two rotations", 60, every_s=0.001)


def test_a_flood_of_log_lines_stays_under_its_cap(noisy: Box) -> None:
    rotated = lambda: any(re.search(r"\.log\.1$", name) for name in on_disk(noisy, "flood-0"))  # noqa: E731
    until(rotated, "the first rotation", 60)
    files = on_disk(noisy, "flood-0")
    oldest = re.compile(r"\.log\.(\d+)$")
    kept = max(int(found[1]) for name in files if (found := oldest.search(name)))
    assert all(size <= CAP_BYTES + 4096 for size in files.values()), files
    assert kept <= 10
    # It goes on rotating, serving and answering meanwhile.
    before = noisy.ok("logs", "flood-0", "-n", "1")
    assert ask(noisy, "flood").status_code == 200
    until(lambda: noisy.ok("logs", "flood-0", "-n", "1") != before, "newer lines at the end of the log", 60)
    total = sum(on_disk(noisy, "flood-0").values())
    assert total <= 11 * CAP_BYTES


def test_logs_shows_the_last_lines(noisy: Box) -> None:
    three = noisy.ok("logs", "flood-0", "-n", "3").splitlines()
    assert len(three) == 3
    assert "pid=" in noisy.ok("logs", "calm-0", "-n", "100000")


def test_logs_follows(noisy: Box) -> None:
    with noisy.popen("logs", "calm-0", "-f", "-n", "1") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline()
        asked = threading.Event()

        def keep_asking() -> None:
            while not asked.wait(0.2):
                ask(noisy, "calm")

        asker = threading.Thread(target=keep_asking, daemon=True)
        asker.start()
        lines = iter(follower.stdout.readline, "")
        assert any("/v1/chat/completions" in line for line in lines)
        asked.set()
        asker.join(60)
        follower.send_signal(signal.SIGINT)
        follower.communicate(timeout=20)
    assert follower.returncode in {0, 130}


def test_the_log_of_the_start_before_is_kept(noisy: Box) -> None:
    before = noisy.replica("calm-0")
    assert noisy.run("logs", "calm-0", "--previous").returncode == 2
    kill(before["pid"])
    after = noisy.wait_restarted(before, 60)
    assert f"pid={before['pid']}" in noisy.ok("logs", "calm-0", "--previous", "-n", "100000")
    assert f"pid={after['pid']}" in noisy.ok("logs", "calm-0", "-n", "100000")
