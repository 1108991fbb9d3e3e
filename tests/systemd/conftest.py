"""A booted systemd with the units installed, for each test file one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.e2e.texts import sim
from tests.systemd.container import GPUSERVE, Container, why_not


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """Nothing is started yet; a profile with two replicas is installed."""
    reason = why_not()
    if reason:
        pytest.skip(f"UNITS NOT TESTED: {reason}")
    made = Container()
    try:
        made.boot()
        made.run("systemd-sysusers")
        profile = sim("tiny", replicas=2, tables={"limits": {"drain_s": 20}})
        made.write("/etc/gpuserve/tiny.toml", profile)
        made.run("systemctl", "daemon-reload")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def systemd(container: Container) -> Container:
    """The units run as the documents say, and serve the profile."""
    container.run("systemctl", "enable", "--now", "gpuserved.socket", "gpuserved.service")
    container.run(GPUSERVE, "apply", "/etc/gpuserve/tiny.toml")
    return container


@pytest.fixture(scope="module")
def alone(container: Container) -> Container:
    """The service without the socket unit: it binds the port itself."""
    container.run("systemctl", "start", "gpuserved.service")
    container.run(GPUSERVE, "apply", "/etc/gpuserve/tiny.toml")
    return container
