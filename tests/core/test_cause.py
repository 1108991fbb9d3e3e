from __future__ import annotations

import pytest

from gpuserved.core.cause import Cause, CauseKind, ExitInfo, Healing, from_exit


@pytest.mark.parametrize(
    ("info", "kind", "message"),
    [
        (ExitInfo(0, None, 0.0), CauseKind.EXITED, "API process ended by itself (exit code 0)"),
        (ExitInfo(2, None, 0.0), CauseKind.EXITED, "API process ended by itself (exit code 2)"),
        (ExitInfo(None, 9, 0.0), CauseKind.KILLED, "API process killed by SIGKILL"),
        (ExitInfo(None, 11, 0.0), CauseKind.KILLED, "API process killed by SIGSEGV"),
        (ExitInfo(None, 200, 0.0), CauseKind.KILLED, "API process killed by signal 200"),
    ],
)
def test_an_exit_status_becomes_a_sentence(info: ExitInfo, kind: CauseKind, message: str) -> None:
    assert from_exit(info) == Cause(kind, message)


def test_what_can_heal() -> None:
    by_healing = {h: {k for k in CauseKind if Cause(k, "").healing is h} for h in Healing}
    assert by_healing[Healing.NEVER] == {
        CauseKind.BAD_FLAG, CauseKind.MODEL_MISSING, CauseKind.DOES_NOT_FIT,
    }  # fmt: skip
    assert by_healing[Healing.BY_ITSELF] == {
        CauseKind.PORT_IN_USE, CauseKind.HUB_UNREACHABLE, CauseKind.GPU_HELD, CauseKind.OUT_OF_MEMORY,
    }  # fmt: skip
    assert by_healing[Healing.ON_RELEASE] == {CauseKind.GPU_QUARANTINED}
    assert set().union(*by_healing.values()) == set(CauseKind), "each cause can heal, or cannot, or may"
