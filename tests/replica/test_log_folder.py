"""The logs of earlier starts: some stay, the rest goes, and nothing is left of it in memory either."""

from __future__ import annotations

import gc
import re
from pathlib import Path

from gpuserved.api.roots import from_environment
from gpuserved.replica.start_files import KEPT_STARTS, log_folder, prune_logs


def patterns() -> int:
    gc.collect()
    return sum(isinstance(each, re.Pattern) for each in gc.get_objects())


def test_the_files_of_old_starts_go_together(tmp_path: Path) -> None:
    roots = from_environment({"GPUSERVE_ROOT": str(tmp_path)}, uid=0)
    folder = log_folder(roots, "a-0")
    folder.mkdir(parents=True)
    before = patterns()
    for generation in range(1, 60):
        for ending in ("log", "log.1", "crash.json", "evidence.txt"):
            (folder / f"{generation}.{ending}").touch()
        prune_logs(roots, "a-0")
    assert {path.name.partition(".")[0] for path in folder.iterdir()} == {
        str(generation) for generation in range(60 - KEPT_STARTS + 1, 60)
    }
    assert len(list(folder.iterdir())) == 4 * (KEPT_STARTS - 1)
    assert patterns() - before < 10, "a pattern of each start was kept"
