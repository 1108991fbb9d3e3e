"""Which provider a daemon uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.host.nvml import NvmlUnavailable
from gpuserved.telemetry.file import FileProvider
from gpuserved.telemetry.nvml import NvmlProvider
from gpuserved.telemetry.provider import GpuProvider, NoneProvider

AUTO = "auto"


def choose(env: Mapping[str, str], setting: str = AUTO) -> GpuProvider:
    """The provider for a setting: `auto` (NVML, or none with the reason), `nvml`, `none`, or an inventory file's path.

    :param env: the daemon's environment; its CUDA_VISIBLE_DEVICES limits what NVML shows.
    :raises Invalid: `nvml` was asked for and is not there, or the file is no inventory.
    """
    if setting == "none":
        return NoneProvider("switched off by the configuration")
    if setting not in {AUTO, "nvml"}:
        return FileProvider(Path(setting.removeprefix("file:")).expanduser())
    try:
        return NvmlProvider(env.get("CUDA_VISIBLE_DEVICES"))
    except NvmlUnavailable as error:
        if setting == "nvml":
            raise Invalid(
                str(error), hint="install the NVIDIA driver, or leave the choice of GPUs to auto"
            ) from error
        return NoneProvider(_amd() or str(error))


def _amd() -> str | None:
    # /dev/kfd is the ROCm compute device; a display card alone does not have it.
    return "AMD GPUs are not supported by this version" if os.path.exists("/dev/kfd") else None
