"""Row 42: the engine's environment is replaced in place under running replicas. The environment is a real one, whose interpreter
the daemon is given, with vLLM's metadata and entry point in it; what answers behind that entry point is the look-alike.
"""

from __future__ import annotations

import json
import shutil
import sys
import venv
from pathlib import Path

import pytest
from tests.e2e.box import REPOSITORY, Box, kill, until
from tests.e2e.clients import PlainLoad
from tests.e2e.texts import RESTART, toml
from tests.faults.table import Measured

MAIN = """
import os, pathlib, sys
site = pathlib.Path(__file__).parents[3]
if any(word.startswith("--help") for word in sys.argv):
    sys.stdout.write((site / "help.txt").read_text())
    sys.exit()
print("vLLM API server version VERSION", flush=True)
os.environ["PYTHONPATH"] = ROOT
os.execv(REAL, [REAL, "-m", "gpuserved.engines.sim", *sys.argv[1:]])
"""


class Environment:
    """An interpreter with some version of vLLM."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.site = next((folder / "lib").glob("python3*")) / "site-packages"
        data = REPOSITORY / "tests" / "engines" / "data" / "vllm-0.32-options.txt"
        (self.site / "help.txt").write_text(data.read_text("utf-8"), "utf-8")

    def install(self, version: str) -> None:
        """As pip does it: the old files go, the new ones come."""
        for old in self.site.glob("vllm*"):
            if old.is_dir():
                shutil.rmtree(old)
        entry = self.site / "vllm" / "entrypoints" / "cli"
        entry.mkdir(parents=True)
        for package in (entry, entry.parent, entry.parent.parent):
            (package / "__init__.py").touch()
        main = MAIN.replace("VERSION", version).replace("ROOT", repr(str(REPOSITORY / "daemon")))
        (entry / "main.py").write_text(main.replace("REAL", repr(sys.executable)), "utf-8")
        info = self.site / f"vllm-{version}.dist-info"
        info.mkdir()
        (info / "RECORD").write_text("", "utf-8")


def said(box: Box, replica: str) -> str:
    return str(box.replica(replica)["outdated"] or "")


@pytest.mark.fault(42)
def test_replicas_go_on_and_the_next_start_uses_the_new_one(box: Box, measured: Measured) -> None:
    environment = Environment(box.top / "venv")
    environment.install("0.32.0")
    model = box.top / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    profile = toml(
        {"restart": RESTART}, model=str(model), served_name="tiny", engine="vllm", replicas=2, max_model_len=4096, gpus=[],
        python=str(environment.python),
    )  # fmt: skip
    box.up({"tiny": profile}, wait_s=90)
    before = {row["id"]: row for row in box.look()["replicas"]}
    assert [said(box, name) for name in before] == ["", ""]
    with PlainLoad(box.endpoint, "tiny") as load:
        load.reach(10)
        environment.install("0.33.0")
        until(
            lambda: all(said(box, name) for name in before),
            "status says that the environment has changed",
            60,
        )
        assert "runs vllm 0.32.0, and 0.33.0 is installed now" in said(box, "tiny-0")
        assert "0.33.0 is installed now" in box.ok("status")
        kill(box.look()["supervisor"]["pid"])  # what each was started from is kept beside it
        box.up({"tiny": profile}, wait_s=90)
        until(lambda: all(said(box, name) for name in before), "a new daemon says so, too", 60)
        assert {name: box.replica(name)["pid"] for name in before} == {n: r["pid"] for n, r in before.items()}
        box.ok("restart", "tiny-0")
        box.wait_restarted(before["tiny-0"], 90)
        load.reach(10)
    assert load.failures == []
    measured.failed, measured.answered = 0, load.answered
    assert said(box, "tiny-0") == ""
    assert "vLLM API server version 0.33.0" in box.ok("logs", "tiny-0", "-n", "1000")
    assert box.replica("tiny-1")["pid"] == before["tiny-1"]["pid"]
    assert "0.33.0 is installed now" in said(box, "tiny-1")
