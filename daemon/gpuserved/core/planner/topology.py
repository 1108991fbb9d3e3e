"""Which GPUs go together: groups of one size inside NVLink islands, or NUMA nodes where nothing is linked."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gpuserved.core.placement import Gpu


@dataclass(frozen=True)
class Group:
    """GPUs of one replica, by index."""

    gpus: tuple[Gpu, ...]
    spans: bool = False
    """Not inside one island: all-reduces cross PCIe or the sockets."""


def islands(gpus: Sequence[Gpu]) -> list[list[Gpu]]:
    """Connected by NVLink; where no GPU has a link, one island for each NUMA node (all of unknown node together)."""
    ordered = sorted(gpus, key=lambda gpu: gpu.index)
    if not any(gpu.nvlink for gpu in ordered):
        nodes: dict[int | None, list[Gpu]] = {}
        for gpu in ordered:
            nodes.setdefault(gpu.numa_node, []).append(gpu)
        return list(nodes.values())
    by_index = {gpu.index: gpu for gpu in ordered}
    found: list[list[Gpu]] = []
    seen: set[int] = set()
    for gpu in ordered:
        if gpu.index in seen:
            continue
        queue, island = [gpu], []
        seen.add(gpu.index)
        while queue:
            one = queue.pop()
            island.append(one)
            fresh = [n for n in one.nvlink if n in by_index and n not in seen]
            seen.update(fresh)
            queue += [by_index[n] for n in fresh]
        found.append(sorted(island, key=lambda each: each.index))
    return found


def kept_groups(
    gpus: Sequence[Gpu], size: int, keep: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Gpu, ...]]:
    """The groups that replicas hold and may stay in."""
    left = {gpu.uuid: gpu for gpu in gpus}
    found: dict[str, tuple[Gpu, ...]] = {}
    for replica in sorted(keep):
        wanted = list(dict.fromkeys(keep[replica]))
        if len(wanted) == size and all(uuid in left for uuid in wanted):
            found[replica] = tuple(left.pop(uuid) for uuid in wanted)
    return found


def names(profile: str, count: int, kept: Collection[str], *, blocked: bool) -> list[str]:
    """The replicas of a placement: `PROFILE-0` and on.

    :param kept: those that can stay where they are.
    :param blocked: fewer fit than are wanted because of GPUs that are set aside: those that can stay do, whatever their numbers.
    """
    plain = [f"{profile}-{n}" for n in range(count)]
    if not blocked:
        return plain
    stay = sorted(kept, key=_number)[:count]
    fresh = (name for n in itertools.count() if (name := f"{profile}-{n}") not in stay)
    return sorted([*stay, *itertools.islice(fresh, count - len(stay))], key=_number)


def _number(replica: str) -> int:
    tail = replica.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0


def groups(gpus: Sequence[Gpu], size: int) -> list[Group]:
    """As many groups of `size` as there are, those inside islands first; what is left over is joined across them."""
    found: list[Group] = []
    rest: list[Gpu] = []
    if size == 1:
        return [Group((gpu,)) for gpu in sorted(gpus, key=lambda gpu: gpu.index)]
    for island in islands(gpus):
        whole, remainder = _chunks(island, size)
        found += [Group(each) for each in whole]
        rest += remainder
    across, _ = _chunks(sorted(rest, key=lambda gpu: gpu.index), size)
    return found + [Group(each, spans=size > 1) for each in across]


def _chunks(island: list[Gpu], size: int) -> tuple[list[tuple[Gpu, ...]], list[Gpu]]:
    """Groups of neighbours: the first GPU that is left, and the nearest to it (linked, same NUMA node, index)."""
    left, found = list(island), []
    while len(left) >= size:
        first = left[0]
        near = sorted(
            left[1:],
            key=lambda gpu: (gpu.index not in first.nvlink, gpu.numa_node != first.numa_node, gpu.index),
        )
        chosen = (first, *near[: size - 1])
        found.append(tuple(sorted(chosen, key=lambda gpu: gpu.index)))
        names = {gpu.uuid for gpu in chosen}
        left = [gpu for gpu in left if gpu.uuid not in names]
    return found, left
