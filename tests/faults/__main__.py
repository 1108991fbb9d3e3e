"""`make faults`: every test that proves a row of the fault table, in its slow form where it has one; then the table."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.faults import report

ROOT = Path(__file__).resolve().parents[2]
STAGES = (
    ("fault and not real_vllm and not alone", ["-n", "2", "--dist", "loadfile", "tests"]),
    # Minutes of waiting for deadlines that are promised to the second: nothing that needs the processor may run beside them.
    ("fault and not real_vllm and alone", ["-n", "3", "--dist", "loadfile", "tests"]),
)
VLLM_STAGE = ("fault and real_vllm", ["tests/faults", "tests/e2e"])


def vllm_python() -> str | None:
    """The environment that `make test-vllm` made, or another one."""
    made = ROOT / ".venv-vllm" / "bin" / "python"
    return os.environ.get("GPUSERVE_TEST_VLLM") or (str(made) if made.exists() else None)


def main() -> int:
    """Run everything, whatever fails; 0 where all is green."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--report", type=Path, default=ROOT / ".venv" / "faults.jsonl", help="what each test said"
    )
    parser.add_argument("--record", type=Path, metavar="PAGE", help="write the table into this page, too")
    options = parser.parse_args()
    options.report.unlink(missing_ok=True)
    python = vllm_python()
    env = os.environ | {"GPUSERVE_TEST_SLOW": "1", "GPUSERVE_FAULTS_REPORT": str(options.report.resolve())}
    stages = list(STAGES)
    if python is not None:
        env["GPUSERVE_TEST_VLLM"] = python
        stages.append(VLLM_STAGE)
    begun = time.monotonic()
    failed = 0
    for marks, arguments in stages:
        command = [sys.executable, "-m", "pytest", "-q", "-m", marks, *arguments]
        failed |= subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    found = report.read(options.report)
    if options.record:
        report.record(options.record, found, time.monotonic() - begun)
    if python is None:
        print(
            "NOT RUN AGAINST THE REAL VLLM: there is no .venv-vllm; `make test-vllm` makes one",
            file=sys.stderr,
        )
    return report.show(found) or failed


if __name__ == "__main__":
    sys.exit(main())
