"""After a restart of the daemon: find what runs, take over what is ours, end what nobody wants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpuserved.core.recovery import continues
from gpuserved.fleet.store import ReplicaRecord
from gpuserved.host.failpoint import reach
from gpuserved.host.sweep import end_start
from gpuserved.replica.start_files import FoundStart


def match(
    found: list[FoundStart], records: Mapping[str, ReplicaRecord], wanted: set[str]
) -> tuple[dict[str, FoundStart], list[FoundStart]]:
    """The start that each wanted replica continues, and the strays: unknown, unwanted, overtaken by a later start, or one
    whose end is in the state already, so that only its folder is left.
    """
    ours: dict[str, FoundStart] = {}
    strays: list[FoundStart] = []
    for each in sorted(found, key=lambda f: f.note.generation, reverse=True):
        record = records.get(each.note.replica)
        known = continues(record.replica() if record is not None else None, each.note.generation)
        if each.note.replica in wanted and each.note.replica not in ours and known:
            ours[each.note.replica] = each
        else:
            strays.append(each)
    return ours, strays


async def end_stray(folder: Path, nonce: str) -> None:
    """Kill one start that nobody wants, wait until its tree is gone, remove its folder."""
    reach("adopt.stray")
    await end_start(folder, nonce)
    reach("adopt.ended")
