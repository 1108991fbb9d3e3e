import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.core.placement import GpuInfo
from gpuserved.core.profile import EngineName, Profile
from gpuserved.telemetry import attribution
from gpuserved.telemetry.choose import choose
from gpuserved.telemetry.file import FileProvider
from gpuserved.telemetry.provider import LOST, Combined, GpuProcess, GpuSample, NoneProvider
from gpuserved.telemetry.sim import BASE_USED_BYTES, Claim, SimProvider, claims_of, simulated_by
from gpuserved.telemetry.visible import limit

GIB = 1024**3
Gpu = Callable[..., dict[str, Any]]


def gpu(index: int, **fields: Any) -> dict[str, Any]:
    return {
        "index": index, "uuid": f"GPU-{index}", "name": "H100", "memory_total_bytes": 80 * GIB, "memory_used_bytes": GIB,
        **fields,
    }  # fmt: skip


def write(path: Path, *gpus: dict[str, Any]) -> Path:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"gpus": list(gpus)}))
    os.replace(fresh, path)
    return path


def test_an_inventory_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "i.json", gpu(1, nvlink=[0], numa_node=1, compute_capability="9.0"), gpu(0, nvlink=[1])
    )
    provider = FileProvider(path)
    assert [info.index for info in provider.inventory()] == [0, 1]
    assert provider.inventory()[1] == GpuInfo(1, "GPU-1", "H100", 80 * GIB, (0,), 1, "9.0")
    sample = provider.sample()[0]
    assert sample.memory_used_bytes == GIB
    assert sample.temperature_c is None
    assert sample.processes is None


def test_a_file_scripts_faults_while_it_is_watched(tmp_path: Path) -> None:
    path = write(tmp_path / "i.json", gpu(0))
    provider = FileProvider(path)
    write(path, gpu(0, state=LOST, memory_used_bytes=None))
    assert provider.sample()[0].state == LOST
    assert provider.sample()[0].memory_used_bytes is None
    path.write_text('{"gpus": [')
    assert provider.sample()[0].state == LOST  # the last good figures
    assert provider.reason is not None
    assert "not JSON" in provider.reason
    write(path, gpu(0))
    assert provider.sample()[0].state == "OK"
    assert provider.reason is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not JSON"),
        ('{"gpus": [{"index": 0}]}', "uuid"),
        ('{"gpus": [{"index": "0"}]}', "index"),
        ('{"gpu": []}', "gpu"),
    ],
)
def test_a_wrong_inventory_names_the_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "i.json"
    path.write_text(text)
    with pytest.raises(Invalid, match=words):
        FileProvider(path)


def test_two_gpus_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="two GPUs have the index 0"):
        FileProvider(write(tmp_path / "i.json", gpu(0), gpu(0)))


def simulated_gpus(count: int, memory_bytes: int) -> list[GpuInfo]:
    return [GpuInfo(n, f"SIM-{n}", "Simulated GPU", memory_bytes) for n in range(count)]


def test_simulated_gpus_show_what_is_claimed() -> None:
    provider = SimProvider(simulated_gpus(2, 80 * GIB))
    assert [info.uuid for info in provider.inventory()] == ["SIM-0", "SIM-1"]
    assert provider.sample()[0].memory_used_bytes == BASE_USED_BYTES
    provider.claim([Claim("SIM-1", 10, GIB), Claim("SIM-1", 11, 2 * GIB)])
    first, second = provider.sample()
    assert first.memory_used_bytes == BASE_USED_BYTES
    assert second.memory_used_bytes == BASE_USED_BYTES + 3 * GIB
    assert second.processes == (GpuProcess(10, GIB), GpuProcess(11, 2 * GIB))
    provider.claim([])
    assert provider.sample()[1].processes == ()


def test_simulated_gpus_come_after_real_ones(tmp_path: Path) -> None:
    both = Combined(
        [FileProvider(write(tmp_path / "i.json", gpu(0), gpu(1))), SimProvider(simulated_gpus(2, GIB))]
    )
    assert [(info.index, info.uuid) for info in both.inventory()] == [
        (0, "GPU-0"), (1, "GPU-1"), (2, "SIM-0"), (3, "SIM-1"),
    ]  # fmt: skip
    assert both.inventory()[3].nvlink == (2,)
    assert [sample.index for sample in both.sample()] == [0, 1, 2, 3]
    assert both.reason is None


INFOS = [GpuInfo(n, uuid, "H100") for n, uuid in enumerate(["GPU-aa", "GPU-ab", "GPU-b"])]


@pytest.mark.parametrize(
    ("value", "indexes"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [0, 2]),
        ("GPU-b", [2]),
        ("GPU-a,2", []),  # fits two
        ("0, GPU-ab", [0, 1]),
        ("0,9,1", [0]),  # what follows an unknown one is not seen
        ("nonsense", []),
    ],
)
def test_an_inherited_limit(value: str | None, indexes: list[int]) -> None:
    assert [info.index for info in limit(INFOS, value)] == indexes


def test_owners_are_ours_or_foreign() -> None:
    sample = GpuSample(
        0,
        "GPU-aa",
        10 * GIB,
        80 * GIB,
        processes=(GpuProcess(5, GIB), GpuProcess(7, 6 * GIB), GpuProcess(9, None)),
    )
    trees = {"llama-0": {6, 7}, "llama-1": {8}}
    found = attribution.owners(sample, trees)
    assert [(owner.replica, owner.pid, owner.memory_bytes) for owner in found] == [
        ("llama-0", 7, 6 * GIB), (None, 5, GIB), (None, 9, None),
    ]  # fmt: skip
    assert attribution.foreign_bytes(sample, trees) == 4 * GIB
    assert attribution.foreign_bytes(sample, {"x": {9}}) is None
    assert attribution.foreign_bytes(GpuSample(0, "GPU-aa"), trees) is None


def test_views_never_show_zero_for_unknown() -> None:
    lost = GpuSample(1, "GPU-ab", state=LOST)
    shown = attribution.views(INFOS, [GpuSample(0, "GPU-aa", 5, 10), lost], {})
    assert [view.state for view in shown] == ["OK", LOST, "OK"]
    assert shown[0].memory_used_bytes == 5
    assert shown[2].memory_used_bytes is None
    assert shown[2].utilization_pct is None
    assert shown[2].owners == []


def test_the_choice(tmp_path: Path) -> None:
    path = write(tmp_path / "i.json", gpu(0), gpu(1))
    for setting in (str(path), f"file:{path}"):
        provider = choose({"CUDA_VISIBLE_DEVICES": "0"}, setting)
        assert provider.name == "file"
        assert len(provider.inventory()) == 2  # a file describes another host: the local limit is not its
    off = choose({}, "none")
    assert isinstance(off, NoneProvider)
    assert off.reason
    with pytest.raises(Invalid, match=r"nowhere\.json"):
        choose({}, "/nowhere.json")


def test_profiles_of_the_look_alike_add_the_gpus_that_the_planner_places_on_and_claim_their_share() -> None:
    flags: dict[str, Any] = {"gpus": 2, "gpu_memory_gib": 40, "gpu_memory_utilization": 0.5}
    profile = Profile("p", "sim/tiny", "p", engine=EngineName.SIM, flags=flags)
    provider = simulated_by([profile])
    assert provider is not None
    assert [(info.uuid, info.memory_total_bytes, info.nvlink) for info in provider.inventory()] == [
        ("SIM-0", 40 * GIB, (1,)), ("SIM-1", 40 * GIB, (0,)),
    ]  # fmt: skip
    assert claims_of(profile, 7, ("SIM-1", "GPU-real")) == [Claim("SIM-1", 7, 20 * GIB)]
    assert simulated_by([Profile("q", "a/b", "q")]) is None
