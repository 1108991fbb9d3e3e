"""What systemd is told, and how often."""

from __future__ import annotations

import os

import pytest

from gpuserved.host import sdnotify


def test_one_ping_may_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two pings to a deadline, a single skipped one is the deadline."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    interval_s = sdnotify.watchdog_interval_s()
    assert interval_s is not None
    assert 3 * interval_s < 30
    assert "WATCHDOG_USEC" not in os.environ, "children must not ping"


def test_a_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert sdnotify.watchdog_interval_s() is None


def test_a_successor_is_told_what_its_predecessor_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    told = sdnotify.Service("/run/notify", 7.5).environment(ours)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    os.set_inheritable(ours, True)
    taken = sdnotify.Service.take()
    assert taken == sdnotify.Service("/run/notify", 7.5, ours)
    assert not set(told) & set(os.environ), "no child may speak to systemd"
    assert not os.get_inheritable(ours)
    assert sdnotify.Service(None, None).environment(ours) == {}
    os.close(ours)
    os.close(theirs)
