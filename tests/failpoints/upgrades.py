"""Where an upgrade leads: to this tree itself, to a release that does not come up, or to one whose routers do not."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from tests.e2e.box import REPOSITORY
from tests.e2e.releases import Release

from gpuserved.api.types import UpgradeRequest

_FAULTS = {
    "upgrade-spoilt": {
        "fleet/recovery.py": (
            "        saved, problem =",
            "        raise MemoryError\n        saved, problem =",
        )
    },
    "upgrade-routers": {
        "router/main.py": ("    wanted = _arguments(", "    sys.exit(9)\n    wanted = _arguments(")
    },
}
VERBS = ("upgrade", *_FAULTS)
_made: dict[str, Path] = {}
_making = threading.Lock()


def request(verb: str) -> UpgradeRequest:
    """What `gpuserve upgrade` of that release asks for."""
    path = REPOSITORY / "daemon" if verb == "upgrade" else _release(verb)
    return UpgradeRequest(python=sys.executable, pythonpath=str(path))


def _release(verb: str) -> Path:
    """A copy of the package with its fault; one for all runs of this process."""
    with _making:
        if verb not in _made:
            folder = Path(tempfile.mkdtemp(prefix="gsf-release-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            _made[verb] = Release(folder, f"9.0.{VERBS.index(verb)}", _FAULTS[verb]).path
        return _made[verb]
