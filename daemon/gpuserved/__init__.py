"""gpuserve: one machine, many GPUs, one URL."""

__version__ = "0.1.0"
